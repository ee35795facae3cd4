"""The public API: exported names and signatures."""

import inspect
from pathlib import Path

import enrichment


def test_public_names_are_sorted() -> None:
    assert enrichment.__all__ == sorted(set(enrichment.__all__))


def test_public_names_exist_and_have_docstrings() -> None:
    for name in enrichment.__all__:
        assert inspect.getdoc(getattr(enrichment, name)), name


def test_public_signatures_are_stable() -> None:
    assert list(inspect.signature(enrichment.Enricher.open).parameters) == [
        "folder",
        "encoder",
        "shadow",
        "verify",
        "threads",
    ]
    options = ["time_left", "observe", "shadow_failed"]
    enrich = list(inspect.signature(enrichment.Enricher.enrich).parameters)
    assert enrich == ["self", "tickets", "time_left", "observe", "with_shadow", "shadow_failed"]
    for name in options:
        found = inspect.signature(enrichment.Enricher.enrich).parameters[name]
        assert (found.kind, found.default) == (inspect.Parameter.KEYWORD_ONLY, None)
    assert list(inspect.signature(enrichment.parse_ticket).parameters) == ["raw"]
    assert list(inspect.signature(enrichment.enriched_json).parameters) == ["ticket", "enrichment"]
    assert list(inspect.signature(enrichment.install).parameters) == ["open_file", "cache", "place", "expected_digest"]


def test_py_typed_is_shipped() -> None:
    assert Path(enrichment.__file__).with_name("py.typed").is_file()
