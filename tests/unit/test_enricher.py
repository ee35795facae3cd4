"""The enricher: one result or error per ticket, in order, whatever happens to the neighbours."""

import json
import math
import re
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrichment import (
    Bundle,
    BundleCorrupt,
    BundleMissing,
    Enricher,
    EnrichmentData,
    EnrichmentError,
    ModelFailed,
    OutOfTime,
    RawTicket,
)
from enrichment.encoder import Encoded, Encoder, Tokens
from enrichment.micro_batches import BUDGET, micro_batches
from enrichment.text import Sentence

HELDOUT = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "parity" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
]


def _ticket(subject: str = "", body: str = "", **fields: Any) -> RawTicket:
    return RawTicket(
        **{"ticket_id": "T", "customer_id": "C", "created_at": 0, "subject": subject, "body": body, **fields}
    )


TICKETS = [_ticket(row["subject"], row["body"], ticket_id=f"T{i}") for i, row in enumerate(HELDOUT[:24])] + [
    _ticket(ticket_id="empty"),
    _ticket("Parcel", "Where is it? " * 200, ticket_id="long"),
]


def _good(result: EnrichmentData | EnrichmentError) -> EnrichmentData:
    assert isinstance(result, EnrichmentData), result
    return result


class FakeEncoder:
    """The real encoder behind a door: counts what passes, and fails for texts that hold a given word."""

    def __init__(self, real: Encoder, fail: Callable[[list[Encoded]], list[Encoded]] | None = None) -> None:
        self._real = real
        self._fail = fail
        self._poisoned: list[Tokens] = []  # kept, so that no id is given twice
        self.batches: list[int] = []

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """As Encoder.tokenize."""
        result = self._real.tokenize(texts)
        self._poisoned += [tokens for text, tokens in zip(texts, result, strict=True) if "poison" in text]
        return result

    def encode(self, batch: Sequence[Tokens], spans: Sequence[Sequence[Sentence]]) -> list[Encoded]:
        """As Encoder.encode, but for the poisoned."""
        self.batches.append(len(batch))
        result = self._real.encode(batch, spans)
        if any(tokens is bad for tokens in batch for bad in self._poisoned):
            if self._fail is None:
                raise RuntimeError("the graph failed")
            return self._fail(result)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _with(enricher: Enricher, encoder: FakeEncoder) -> Enricher:
    made = Enricher(enricher.bundle, encoder, enricher._classifiers)  # type: ignore[arg-type]
    encoder.batches.clear()  # the warm-up
    return made


@pytest.fixture
def encoder(enricher: Enricher) -> FakeEncoder:
    """A fake around the real encoder."""
    return FakeEncoder(enricher._encoder)


@pytest.fixture
def counting(enricher: Enricher, encoder: FakeEncoder) -> Enricher:
    """An enricher whose encoder counts and fails."""
    return _with(enricher, encoder)


def _same(one: EnrichmentData, other: EnrichmentData) -> None:
    assert one.model_copy(update={"processed_at": other.processed_at}) == other


# -- order and neighbours ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(enricher: Enricher) -> list[EnrichmentData]:
    """Each of TICKETS, enriched by itself."""
    return [_good(enricher.enrich([ticket])[0]) for ticket in TICKETS]


@settings(max_examples=8)
@given(order=st.permutations(range(len(TICKETS))), size=st.integers(0, 12))
def test_a_batch_says_what_each_ticket_alone_says(
    enricher: Enricher, alone: list[EnrichmentData], order: list[int], size: int
) -> None:
    chosen = order[:size]
    results = enricher.enrich([TICKETS[i] for i in chosen])
    assert len(results) == size
    for i, result in zip(chosen, results, strict=True):
        _same(_good(result), alone[i])


def test_no_tickets_no_results(enricher: Enricher) -> None:
    assert enricher.enrich([]) == []


def test_a_ticket_may_come_twice(enricher: Enricher, alone: list[EnrichmentData]) -> None:
    for result in enricher.enrich([TICKETS[0]] * 3):
        _same(_good(result), alone[0])


def test_several_threads_may_enrich_at_once(enricher: Enricher, alone: list[EnrichmentData]) -> None:
    start = threading.Barrier(4)

    def run(first: int) -> list[EnrichmentData | EnrichmentError]:
        start.wait()
        return enricher.enrich(TICKETS[first::4])

    with ThreadPoolExecutor(4) as pool:
        for first, results in enumerate(pool.map(run, range(4))):
            for result, expected in zip(results, alone[first::4], strict=True):
                _same(_good(result), expected)


def test_a_ticket_that_fails_stays_alone(
    counting: Enricher, encoder: FakeEncoder, alone: list[EnrichmentData], caplog: pytest.LogCaptureFixture
) -> None:
    bad = _ticket("poison", "canary " * 3, ticket_id="bad")
    results = counting.enrich([*TICKETS[:3], bad, *TICKETS[3:6]])
    failure = results.pop(3)
    assert isinstance(failure, ModelFailed)
    assert (failure.ticket_id, failure.transient, str(failure)) == ("bad", True, "a model raised RuntimeError")
    assert isinstance(failure.__cause__, RuntimeError)
    for result, expected in zip(results, alone, strict=False):
        _same(_good(result), expected)
    assert encoder.batches == [7, 1, 1, 1, 1, 1, 1, 1]
    assert not caplog.records, "the exception's message may quote the ticket: it is the caller who logs"


def test_numbers_that_are_none_are_a_failure_of_the_model(enricher: Enricher, alone: list[EnrichmentData]) -> None:
    def spoil(results: list[Encoded]) -> list[Encoded]:
        return [Encoded(r.embedding, r.pooled * np.float32(np.nan), r.adapted, r.sentences) for r in results]

    broken = _with(enricher, FakeEncoder(enricher._encoder, spoil))
    with np.errstate(invalid="ignore"):
        good, bad = broken.enrich([TICKETS[0], _ticket("poison")])
    assert isinstance(bad, ModelFailed)
    _same(_good(good), alone[0])


def test_a_text_that_cannot_be_read_stays_alone(enricher: Enricher, alone: list[EnrichmentData]) -> None:
    # parse_ticket refuses it; a ticket that was made otherwise must not take the batch along.
    results = enricher.enrich([TICKETS[0], _ticket("half a pair: \ud800", ticket_id="bad"), TICKETS[1]])
    failure = results[1]
    assert isinstance(failure, ModelFailed)
    assert failure.ticket_id == "bad"
    _same(_good(results[0]), alone[0])
    _same(_good(results[2]), alone[1])


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0.0, -5.0, 1e-9])
def test_without_time_nothing_is_started(counting: Enricher, encoder: FakeEncoder, left: float) -> None:
    results = counting.enrich(TICKETS[:5], time_left=lambda: left)
    assert encoder.batches == []
    for ticket, result in zip(TICKETS, results, strict=False):
        assert isinstance(result, OutOfTime)
        assert (result.ticket_id, result.transient) == (ticket.ticket_id, True)
        assert str(result) == f"not started: {left:.1f} s left"


def test_an_empty_ticket_needs_no_time(counting: Enricher) -> None:
    assert _good(counting.enrich([_ticket("", "")], time_left=lambda: 0.0)[0]).intent == "general_inquiry"


def test_text_is_not_processed_once_the_time_is_over(counting: Enricher, encoder: FakeEncoder) -> None:
    # Asked before each of five texts, then before the micro-batch of those that were processed in time.
    clock = iter([1e6, 1e6, 1e6, -0.1, -0.2, 1e6])
    results = counting.enrich(TICKETS[:5], time_left=lambda: next(clock))
    assert [type(result) for result in results] == [EnrichmentData] * 3 + [OutOfTime] * 2
    assert [r.ticket_id for r in results if isinstance(r, OutOfTime)] == [t.ticket_id for t in TICKETS[3:5]]
    assert encoder.batches == [3]


def test_what_still_fits_is_done(counting: Enricher, encoder: FakeEncoder) -> None:
    tickets = [_ticket("", "word " * 100, ticket_id=str(i)) for i in range(8)]
    counting._batches.seconds_per_token = 1.0
    # With the headroom a ticket of 102 tokens is expected to take 153 s; each takes 130 off this clock.
    results = counting.enrich(tickets, time_left=lambda: 400.0 - 130.0 * sum(encoder.batches))
    assert [type(result) for result in results] == [EnrichmentData] * 3 + [OutOfTime] * 5
    assert encoder.batches == [2, 1]


def test_a_pause_in_a_short_run_does_not_put_off_the_next_long_ticket(enricher: Enricher) -> None:
    made = Enricher(enricher.bundle, enricher._encoder, enricher._classifiers)
    made._batches.learn(9, 1.0)
    [result] = made.enrich([_ticket("Printer", "It does not print. " * 500)], time_left=lambda: 30.0)
    assert isinstance(result, EnrichmentData)


def test_with_time_enough_all_run_together(counting: Enricher, encoder: FakeEncoder) -> None:
    results = counting.enrich(TICKETS[:4], time_left=lambda: 1e6)
    assert all(isinstance(result, EnrichmentData) for result in results)
    assert encoder.batches == [4]


def test_the_estimate_follows_what_was_seen(counting: Enricher) -> None:
    assert counting._batches.seconds_per_token > 0
    counting._batches.seconds_per_token = 1.0
    counting._batches.learn(100, 300.0)
    assert counting._batches.seconds_per_token == pytest.approx(2.0)  # half of the way up
    counting._batches.learn(100, 100.0)
    assert counting._batches.seconds_per_token == pytest.approx(1.9)  # a tenth of the way down


def test_a_micro_batch_stays_within_the_budget_of_tokens(counting: Enricher, encoder: FakeEncoder) -> None:
    fit = BUDGET // 252
    results = counting.enrich([_ticket("", "word " * 250) for _ in range(2 * fit + 1)])
    assert all(isinstance(result, EnrichmentData) for result in results)
    assert encoder.batches == [fit, fit, 1]


def test_stages_are_observed(counting: Enricher) -> None:
    seen: list[tuple[str, float, int]] = []
    counting.enrich(TICKETS[:-1], observe=lambda *stage: seen.append(stage))
    assert seen[0][0] == "tokenize"
    assert all(seconds >= 0 for _, seconds, _ in seen)
    for stage in ("tokenize", "encode", "classify", "summarize"):
        assert sum(tickets for name, _, tickets in seen if name == stage) == len(TICKETS) - 1
    assert {name for name, _, _ in seen} == {"tokenize", "encode", "classify", "summarize"}


# -- what is said of a ticket ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("priority", ["critical", "high", "medium", "low"])
def test_an_explicit_priority_decides_and_the_scores_keep_the_texts_say(enricher: Enricher, priority: str) -> None:
    text = ("No rush", "Whenever you have time: the logo on the letter is a little too blue.")
    plain, stated = map(_good, enricher.enrich([_ticket(*text), _ticket(*text, priority=priority)]))
    assert (stated.urgency, stated.urgency_confidence) == (priority, 1.0)
    assert stated.scores["urgency"] == plain.scores["urgency"]
    assert plain.urgency == max(plain.scores["urgency"], key=plain.scores["urgency"].__getitem__) == "low"
    assert (stated.intent, stated.sentiment) == (plain.intent, plain.sentiment)


@pytest.mark.parametrize(("subject", "body"), [("", ""), (" \n", "\t \r\n"), ("\u200b", "")])
def test_an_empty_ticket_is_no_crash(enricher: Enricher, subject: str, body: str) -> None:
    found = _good(enricher.enrich([_ticket(subject, body)])[0])
    assert not any(found.embedding)
    assert len(found.embedding) == 384
    assert (found.intent, found.urgency, found.sentiment) == ("general_inquiry", "medium", "NEUTRAL")
    assert found.scores["intent"] == pytest.approx(dict.fromkeys(found.scores["intent"], 0.1))
    assert found.intent_confidence == pytest.approx(0.1)
    assert found.needs_review
    assert found.truncated == []


def test_a_subject_alone_is_read_and_is_the_summary(enricher: Enricher) -> None:
    found = _good(enricher.enrich([_ticket("I cannot log in, the password is refused", "")])[0])
    assert (found.intent, found.summary) == ("login_issue", "I cannot log in, the password is refused.")


def test_confidences_are_the_scores_of_the_labels(alone: list[EnrichmentData], enricher: Enricher) -> None:
    reviews = set()
    for found in alone[:-2]:
        labels = {"intent": found.intent, "urgency": found.urgency, "sentiment": found.sentiment}
        confidences = []
        for task, label in labels.items():
            scores, confidence = found.scores[task], getattr(found, f"{task}_confidence")
            assert label == max(scores, key=scores.__getitem__)
            assert confidence == scores[label]
            assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
            confidences.append(confidence)
        review = enricher.bundle.manifest.models.review
        assert review is not None
        assert found.needs_review == (math.prod(confidences) < review or found.language not in {"en", None})
        reviews.add(found.needs_review)
    assert reviews == {True, False}


def test_a_language_that_the_models_do_not_know_needs_review(enricher: Enricher) -> None:
    found = _good(enricher.enrich([_ticket("Rechnung", "Die Rechnung für Oktober nennt leider die falsche Firma.")])[0])
    assert (found.language, found.needs_review, found.review_reasons) == ("de", True, ["language"])
    german = enricher.bundle.manifest.model_copy(update={"languages": ["de"]})
    bundle = Bundle(enricher.bundle.folder, german, enricher.bundle.digest)
    ours = Enricher(bundle, enricher._encoder, enricher._classifiers)
    again = _good(ours.enrich([_ticket("Rechnung", "Die Rechnung für Oktober nennt leider die falsche Firma.")])[0])
    assert "language" not in again.review_reasons
    short = _good(enricher.enrich([_ticket("VPN", "")])[0])
    assert short.language is None
    assert "language" not in short.review_reasons


def test_reasons_name_the_uncertain_tasks(enricher: Enricher, alone: list[EnrichmentData]) -> None:
    review = enricher.bundle.manifest.models.review
    assert review is not None
    for found in alone:
        confidence = {task: getattr(found, f"{task}_confidence") for task in ("intent", "urgency", "sentiment")}
        unsure = [task for task, value in confidence.items() if value < review ** (1 / 3)] if found.needs_review else []
        assert found.review_reasons == (unsure if found.language in {"en", None} else ["language"])
        assert found.needs_review == bool(found.review_reasons)


def test_a_stated_priority_needs_no_review_of_the_urgency(enricher: Enricher, alone: list[EnrichmentData]) -> None:
    thresholds = enricher.bundle.manifest.models
    for ticket, found in zip(TICKETS, alone, strict=True):
        unsure = [
            found.intent_confidence < thresholds.intent.threshold,
            found.sentiment_confidence < thresholds.sentiment.threshold,
        ]
        if found.urgency_confidence < thresholds.urgency.threshold and not any(unsure):
            stated = ticket.model_copy(update={"priority": "high"})
            assert not _good(enricher.enrich([stated])[0]).needs_review
            return
    pytest.fail("no ticket is unsure of its urgency alone; choose others")


@pytest.mark.parametrize(
    ("body", "truncated"),
    [
        ("word " * 200, []),
        ("word " * 300, ["embedding", "intent", "urgency", "sentiment"]),
        ("word " * 1100, ["embedding", "intent", "urgency", "sentiment", "summary"]),
        ("word" + " " * 40_000 + "word", []),
        ("word" * 40_000, ["embedding", "intent", "urgency", "sentiment", "summary"]),
    ],
    ids=["one window", "two windows", "five windows", "white space", "a long word"],
)
def test_what_saw_only_the_beginning_is_named(enricher: Enricher, body: str, truncated: list[str]) -> None:
    assert _good(enricher.enrich([_ticket("", body)])[0]).truncated == truncated


def test_the_result_says_when_and_by_what(enricher: Enricher, bundle: Path) -> None:
    before = datetime.now(UTC)
    found = _good(enricher.enrich([TICKETS[0]])[0])
    assert found.model_version == enricher.version == Bundle.open(bundle).version
    assert re.fullmatch(r"compact-int8@[0-9a-f]{12}", found.model_version)
    assert found.processed_at.endswith("Z")
    at = datetime.fromisoformat(found.processed_at)
    assert before.replace(microsecond=before.microsecond // 1000 * 1000) <= at <= datetime.now(UTC)
    assert found.schema_version == 1
    assert np.linalg.norm(found.embedding) == pytest.approx(1, abs=1e-5)


def _peak(enricher: Enricher, body: str) -> int:
    ticket = _ticket("Parcel", body)
    tracemalloc.start()
    try:
        enricher.enrich([ticket])
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_huge_body_needs_little_more_memory_than_a_long_one(enricher: Enricher) -> None:
    sentence = "Where is it? "
    long, huge = sentence * (40_000 // len(sentence)), sentence * (1_000_000 // len(sentence))
    # The joined text is a copy or two; everything else sees only the beginning.
    assert _peak(enricher, huge) < _peak(enricher, long) + 3 * len(huge)


# -- opening -----------------------------------------------------------------------------------------------------------


def test_opening_says_what_is_wrong(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleMissing, match=r"holds no bundle\.json"):
        Enricher.open(tmp_path)
    for path in bundle.iterdir():
        (tmp_path / path.name).symlink_to(path)
    spoiled = bytearray((bundle / "features.json").read_bytes())
    spoiled[-2] ^= 1
    (tmp_path / "features.json").unlink()
    (tmp_path / "features.json").write_bytes(spoiled)
    with pytest.raises(BundleCorrupt, match=r"features\.json differs from its sha256"):
        Enricher.open(tmp_path, verify=True)


def test_threads_change_nothing(bundle: Path, alone: list[EnrichmentData]) -> None:
    single = Enricher.open(str(bundle), threads=1, verify=True)
    for result, expected in zip(single.enrich(TICKETS[:6]), alone, strict=False):
        _same(_good(result), expected)


# -- micro-batches -----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 256), st.integers(0, 4)), max_size=60), st.integers(1, 2000))
def test_micro_batches_share_out_the_tickets_within_the_budget(sizes: list[tuple[int, int]], budget: int) -> None:
    lengths, rows = [length for length, _ in sizes], [row for _, row in sizes]
    batches = list(micro_batches(lengths, rows, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) == 1 or sum(rows[i] for i in batch) * max(lengths[i] for i in batch) <= budget
    order = [lengths[i] for batch in batches for i in batch]
    assert order == sorted(order, reverse=True)


def test_micro_batches_are_as_large_as_the_budget_allows() -> None:
    assert list(micro_batches([10, 10, 10, 10, 10], [1] * 5, 20)) == [[0, 1], [2, 3], [4]]
    assert list(micro_batches([5, 100, 5], [1, 9, 1], 20)) == [[1], [0, 2]]
    assert list(micro_batches([], [], 20)) == []
