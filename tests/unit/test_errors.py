"""The error tree: as documented, each error with a stable code, permanent or transient."""

import pickle
import re

import pytest

from enrichment import errors
from enrichment.errors import EnrichmentError

TREE = [getattr(errors, name) for name in errors.__all__]


def _documented() -> dict[str, str]:
    """Every error in the module's docstring, and its base class."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([├└│─ ]*)([A-Z]\w+) ", line)
        if found:
            depth = len(found[1])
            while above and above[-1][0] >= depth:
                above.pop()
            parents[found[2]] = above[-1][1] if above else "Exception"
            above.append((depth, found[2]))
    return parents


def test_docstring_tree_matches_the_classes() -> None:
    assert _documented() == {error.__name__: error.__base__.__name__ for error in TREE}


def test_docstring_tree_marks_transient_errors() -> None:
    for error in TREE:
        line = re.search(rf"\b{error.__name__} +(.*)", errors.__doc__ or "")
        assert line is not None
        assert line[1].startswith("transient") == error.transient


@pytest.mark.parametrize(
    ("name", "code", "transient"),
    [
        ("EnrichmentError", "enrichment_error", False),
        ("TicketInvalid", "schema_violation", False),
        ("ModelFailed", "model_failed", True),
        ("OutOfTime", "out_of_time", True),
        ("BundleError", "bundle_error", False),
        ("BundleMissing", "bundle_missing", False),
        ("BundleInvalid", "bundle_invalid", False),
        ("BundleCorrupt", "bundle_corrupt", False),
    ],
)
def test_codes_are_stable(name: str, code: str, *, transient: bool) -> None:
    error = getattr(errors, name)
    assert (error.code, error.transient) == (code, transient)


def test_every_error_has_its_own_code_and_the_common_base() -> None:
    assert len(TREE) == 8 == len({error.code for error in TREE})
    assert all(issubclass(error, EnrichmentError) for error in TREE)


def test_ticket_id_is_optional() -> None:
    assert EnrichmentError("why").ticket_id is None
    error = errors.OutOfTime("not started", ticket_id="T-1")
    assert (str(error), error.ticket_id) == ("not started", "T-1")


def test_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(errors.OutOfTime("not started", ticket_id="T-1")))
    assert (type(error), str(error), error.ticket_id) == (errors.OutOfTime, "not started", "T-1")
