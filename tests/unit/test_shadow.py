"""The shadow: a second bundle labels the same tickets, and changes nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from enrichment import (
    Bundle,
    BundleCorrupt,
    Enricher,
    EnrichmentData,
    EnrichmentError,
    ModelFailed,
    OutOfTime,
    RawTicket,
    enriched_json,
)
from enrichment.classify import Classified, Classifiers, Labelled
from enrichment.encoder import Encoded, Encoder, Tokens
from enrichment.features import LexicalFeatures
from enrichment.shadow import Shadow
from enrichment.text import Sentence
from tests.support.shadow_bundles import FAVOURED, write_shadow

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "parity" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
]


def _ticket(subject: str, body: str, **fields: Any) -> RawTicket:
    return RawTicket(
        **{"ticket_id": "T", "customer_id": "C", "created_at": 0, "subject": subject, "body": body, **fields}
    )


TICKETS = [_ticket(row["subject"], row["body"], ticket_id=f"T{i}") for i, row in enumerate(ROWS[:16])] + [
    _ticket("", "", ticket_id="empty"),
    _ticket("Parcel", "Where is it? " * 300, ticket_id="long"),
]


def _good(results: Sequence[EnrichmentData | EnrichmentError]) -> list[EnrichmentData]:
    good = [result for result in results if isinstance(result, EnrichmentData)]
    assert len(good) == len(results), results
    return good


def _labels(data: Any) -> tuple[Any, ...]:
    tasks = ("intent", "urgency", "sentiment")
    return tuple(getattr(data, task) for task in tasks), tuple(
        pytest.approx(getattr(data, f"{task}_confidence"), abs=1e-3) for task in tasks
    )


def _without_shadow(data: EnrichmentData) -> dict[str, Any]:
    return data.model_dump(exclude={"shadow", "processed_at"})


@pytest.fixture(scope="module")
def both(bundle: Path, shadow_bundle: Path) -> Enricher:
    """The compact bundle, with the candidate as its shadow."""
    return Enricher.open(bundle, shadow=shadow_bundle)


@pytest.fixture(scope="module")
def alone(shadow_bundle: Path) -> list[EnrichmentData]:
    """What the candidate gives the tickets when it is the only bundle."""
    return _good(Enricher.open(shadow_bundle).enrich(TICKETS))


def _shadow(enricher: Enricher) -> Shadow:
    assert enricher._shadow is not None
    return enricher._shadow


# -- labels


def test_the_shadow_gives_the_labels_that_its_bundle_gives_alone(both: Enricher, alone: list[EnrichmentData]) -> None:
    assert _shadow(both).shares_encoder
    results = _good(both.enrich(TICKETS))
    for result, expected in zip(results, alone, strict=True):
        assert result.shadow is not None
        assert result.shadow.model_version == expected.model_version != result.model_version
        assert _labels(result.shadow) == _labels(expected)
        assert result.shadow.differs == [
            task for task in ("intent", "urgency", "sentiment") if getattr(result, task) != getattr(expected, task)
        ]
    different = [result for result in results if result.shadow and result.shadow.differs]
    assert 0 < len(different) < len(results)
    assert {result.shadow.intent for result in different if result.shadow} == {FAVOURED}


def test_a_shadow_changes_nothing_else(both: Enricher, enricher: Enricher) -> None:
    plain, shadowed = _good(enricher.enrich(TICKETS)), _good(both.enrich(TICKETS))
    assert [_without_shadow(one) for one in shadowed] == [_without_shadow(one) for one in plain]
    assert all(result.shadow is None for result in plain)
    assert all(result.shadow is None for result in _good(both.enrich(TICKETS, with_shadow=False)))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts of each run of an encoder."""
    seen: list[int] = []
    encode = Encoder.encode

    def counting(self: Encoder, batch: Sequence[Tokens], spans: Sequence[Sequence[Sentence]]) -> list[Encoded]:
        seen.append(len(batch))
        return encode(self, batch, spans)

    monkeypatch.setattr(Encoder, "encode", counting)
    return seen


@pytest.fixture(scope="module")
def apart(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Enricher:
    """The compact bundle, with a shadow whose encoder is another file."""
    own = write_shadow(tmp_path_factory.mktemp("own") / "candidate", bundle, own_encoder=True)
    return Enricher.open(bundle, shadow=own)


def test_the_encoder_runs_once_if_it_is_the_same(both: Enricher, encoded: list[int]) -> None:
    both.enrich(TICKETS)
    assert sum(encoded) == len(TICKETS) - 1  # one is empty


def test_another_encoder_runs_too(apart: Enricher, alone: list[EnrichmentData], encoded: list[int]) -> None:
    assert not _shadow(apart).shares_encoder
    results = _good(apart.enrich(TICKETS))
    assert sum(encoded) == 2 * (len(TICKETS) - 1)
    # The other file computes the same, from tokens of its own.
    assert [_labels(result.shadow) for result in results] == [_labels(expected) for expected in alone]


@pytest.mark.parametrize("same", [True, False])
def test_lexical_features_are_computed_once_if_the_word_lists_are_the_same(
    same: bool, bundle: Path, shadow_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(shadow_bundle, tmp_path / "other")
    if not same:
        manifest = json.loads((other / "bundle.json").read_text())
        manifest["files"]["features.json"]["sha256"] = "0" * 64
        (other / "bundle.json").write_text(json.dumps(manifest))
    enricher = Enricher.open(bundle, shadow=other)
    seen: list[str] = []
    features = LexicalFeatures.features

    def counting(self: LexicalFeatures, text: str) -> Any:
        seen.append(text)
        return features(self, text)

    monkeypatch.setattr(LexicalFeatures, "features", counting)
    results = _good(enricher.enrich(TICKETS[:5]))
    assert len(seen) == (5 if same else 10)
    expected = _good(Enricher.open(shadow_bundle).enrich(TICKETS[:5]))
    assert [_labels(result.shadow) for result in results] == [_labels(each) for each in expected]


@pytest.mark.parametrize("key", ["tokenizer", "max_tokens", "max_windows"])
def test_the_encoder_is_not_shared_if_anything_that_its_output_depends_on_differs(
    bundle: Path, shadow_bundle: Path, tmp_path: Path, key: str
) -> None:
    other = shutil.copytree(shadow_bundle, tmp_path / "other")
    manifest = json.loads((other / "bundle.json").read_text())
    if key == "tokenizer":
        manifest["files"]["tokenizer.json"]["sha256"] = "0" * 64  # only `verify` reads the file again
    else:
        manifest["models"]["encoder"][key] = {"max_tokens": 128, "max_windows": 2}[key]
    manifest["models"]["encoder"]["license"] = "where it comes from does not matter"
    (other / "bundle.json").write_text(json.dumps(manifest))
    assert not _shadow(Enricher.open(bundle, shadow=other)).shares_encoder


def test_provenance_does_not_keep_the_encoder_from_being_shared(
    bundle: Path, shadow_bundle: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(shadow_bundle, tmp_path / "other")
    manifest = json.loads((other / "bundle.json").read_text())
    manifest["models"]["encoder"] |= {"revision": "local", "license": "ours"}
    (other / "bundle.json").write_text(json.dumps(manifest))
    assert _shadow(Enricher.open(bundle, shadow=other)).shares_encoder


def test_a_stated_priority_is_the_urgency_of_both(both: Enricher) -> None:
    [result] = _good(both.enrich([_ticket("Idea", "It would be nice to have a dark mode.", priority="critical")]))
    assert result.shadow is not None
    assert (result.shadow.urgency, result.shadow.urgency_confidence) == ("critical", 1.0)
    assert "urgency" not in result.shadow.differs


def test_the_object_has_a_shadow_only_if_there_is_one(both: Enricher) -> None:
    ticket = TICKETS[0]
    [with_it], [without] = _good(both.enrich([ticket])), _good(both.enrich([ticket], with_shadow=False))
    assert with_it.shadow is not None
    assert json.loads(enriched_json(ticket, with_it))["enrichment"]["shadow"] == with_it.shadow.model_dump()
    assert "shadow" not in json.loads(enriched_json(ticket, without))["enrichment"]


# -- the full profile


@pytest.mark.parametrize("first", ["full", "compact"])
def test_profiles_may_differ(first: str, bundle: Path, shadow_bundle: Path, full_bundle: Path) -> None:
    primary, shadow = (full_bundle, shadow_bundle) if first == "full" else (bundle, full_bundle)
    expected = _good(Enricher.open(shadow).enrich(TICKETS[:4]))
    enricher = Enricher.open(primary, shadow=shadow)
    assert _shadow(enricher).shares_encoder
    for result, other in zip(_good(enricher.enrich(TICKETS[:4])), expected, strict=True):
        assert _labels(result.shadow) == _labels(other)


def test_a_sentiment_model_that_is_the_same_runs_once(
    full_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(full_bundle, tmp_path / "other")
    manifest = json.loads((other / "bundle.json").read_text())
    manifest["name"] = "other"
    manifest["models"]["sentiment"]["threshold"] = 0.99
    (other / "bundle.json").write_text(json.dumps(manifest))
    opened: list[bool] = []
    classify = Classifiers.classify

    def spying(self: Classifiers, *arguments: Any) -> list[Classified]:
        opened.append(self._sentiment is not None)
        return classify(self, *arguments)

    monkeypatch.setattr(Classifiers, "classify", spying)
    results = _good(Enricher.open(full_bundle, shadow=other).enrich(TICKETS[:3]))
    assert set(opened) == {True, False}
    for result in results:
        assert result.shadow is not None
        assert (result.shadow.sentiment, result.shadow.differs) == (result.sentiment, [])
        assert result.shadow.sentiment_confidence == result.sentiment_confidence


# -- failures


def _enrich(
    enricher: Enricher, tickets: Sequence[RawTicket], time_left: Callable[[], float] | None = None
) -> tuple[list[EnrichmentData], list[EnrichmentError]]:
    errors: list[EnrichmentError] = []
    return _good(enricher.enrich(tickets, time_left=time_left, shadow_failed=errors.append)), errors


def test_a_ticket_on_which_the_shadow_raises_has_none_and_its_neighbours_do(
    both: Enricher, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = Shadow._labels

    def poisoned(self: Shadow, part: Sequence[Labelled]) -> Any:
        if any(each.ticket.ticket_id == "bad" for each in part):
            raise RuntimeError("quotes the customer")
        return labels(self, part)

    monkeypatch.setattr(Shadow, "_labels", poisoned)
    tickets = [TICKETS[0], _ticket("VPN", "It breaks.", ticket_id="bad"), TICKETS[1]]
    results, [error] = _enrich(both, tickets)
    assert [result.shadow is None for result in results] == [False, True, False]
    assert isinstance(error, ModelFailed)
    assert error.ticket_id == "bad"
    assert "customer" not in str(error)
    assert isinstance(error.__cause__, RuntimeError)


def test_a_shadow_whose_tokenizer_raises_changes_nothing(apart: Enricher, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_texts: Sequence[str]) -> list[Tokens]:
        raise RuntimeError

    monkeypatch.setattr(_shadow(apart)._encoder, "tokenize", broken)
    results, errors = _enrich(apart, TICKETS)
    assert all(result.shadow is None for result in results)
    assert {error.ticket_id for error in errors} == {ticket.ticket_id for ticket in TICKETS}


def test_without_time_for_the_shadow_the_tickets_are_labelled_all_the_same(both: Enricher) -> None:
    classified = [0]
    errors: list[EnrichmentError] = []

    def observe(stage: str, _seconds: float, tickets: int) -> None:
        classified[0] += tickets * (stage == "classify")

    def time_left() -> float:
        return -1.0 if classified[0] == len(TICKETS) else 60.0

    results = _good(both.enrich(TICKETS, time_left=time_left, observe=observe, shadow_failed=errors.append))
    assert all(result.shadow is None for result in results)
    assert {type(error) for error in errors} == {OutOfTime}
    assert {error.ticket_id for error in errors} == {ticket.ticket_id for ticket in TICKETS}


def test_the_shadow_starts_only_what_fits_by_its_own_estimate(both: Enricher) -> None:
    shadow = _shadow(both)
    before, shadow._batches.seconds_per_token = shadow._batches.seconds_per_token, 1e6
    try:
        results, errors = _enrich(both, TICKETS[:3], lambda: 60.0)
    finally:
        shadow._batches.seconds_per_token = before
    assert [result.shadow for result in results] == [None] * 3
    assert {type(error) for error in errors} == {OutOfTime}
    assert all(result.shadow for result in _enrich(both, TICKETS[:3], lambda: 60.0)[0])


def test_the_estimate_of_a_shadow_with_its_own_encoder_includes_it(both: Enricher, apart: Enricher) -> None:
    assert _shadow(both)._batches.seconds_per_token < 0.5 * _shadow(apart)._batches.seconds_per_token


def test_a_ticket_that_failed_has_no_shadow(both: Enricher) -> None:
    errors: list[EnrichmentError] = []
    bad = _ticket("half a pair: \ud800", "", ticket_id="bad")
    good, failed = both.enrich([TICKETS[0], bad], shadow_failed=errors.append)
    assert isinstance(good, EnrichmentData)
    assert good.shadow is not None
    assert isinstance(failed, ModelFailed)
    assert errors == []


def test_a_shadow_that_cannot_be_opened_is_an_error_of_the_library(
    bundle: Path, shadow_bundle: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(shadow_bundle, tmp_path / "broken")
    (broken / "heads.npz").write_bytes(b"")
    with pytest.raises(BundleCorrupt, match=r"heads\.npz"):
        Enricher.open(bundle, shadow=broken)


# -- time


def test_a_shadow_with_the_same_encoder_takes_little_time(both: Enricher) -> None:
    """The budget is 5 %, which `make bench` measures; here it is 25 %, because a busy machine pauses."""
    batch = TICKETS[:10]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(7):
        for with_shadow, found in seconds.items():
            begin = time.process_time()
            both.enrich(batch, with_shadow=with_shadow)
            found.append(time.process_time() - begin)
    assert min(seconds[True]) < 1.25 * min(seconds[False])


def test_the_bundle_says_which_one_it_is(both: Enricher, shadow_bundle: Path) -> None:
    assert _shadow(both).version == Bundle.open(shadow_bundle, verify=True).version
    assert _shadow(both).version.startswith("candidate@")


def test_nothing_is_imported_without_a_shadow(bundle: Path) -> None:
    script = "import sys; from handler.app import build; from enrichment import Enricher; Enricher.open(sys.argv[1])"
    script += "; print('enrichment.shadow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, str(bundle)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
