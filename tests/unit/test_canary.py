"""What a customer wrote is in no log, no metric and no attribute of a dead letter, however a ticket ends."""

from __future__ import annotations

import json
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import pytest

from enrichment import Enricher, EnrichmentError, ModelFailed, OutOfTime
from handler.errors import ServiceFailed, StoreRefused, Throttled
from handler.metrics import EmfMetrics
from tests.support.canaries import BROKEN, REFUSED, SKIPPED, WORD, assert_none_is_told, valid
from tests.support.cases import Answer
from tests.support.fakes import FakeHarness, FakeModels, event, failed, notification, record


def told_by(harness: FakeHarness, *records: dict[str, Any]) -> Answer:
    """The answer, with everything that was written anywhere, metrics included, as its log."""
    harness.metrics = EmfMetrics()  # type: ignore[assignment]
    harness.handler = harness.build(harness.models)
    stream = StringIO()
    with redirect_stdout(stream), redirect_stderr(stream):
        answer = harness.invoke(event(*records))
    assert '"TicketsPerBatch"' in stream.getvalue()
    return Answer(answer.response, answer.log + stream.getvalue())


@pytest.fixture
def harness() -> FakeHarness:
    return FakeHarness()


def ends(answer: Answer, message_id: str = "m-1") -> list[str]:
    return [line["outcome"] for line in answer.tickets(message_id)]


def test_done_and_skipped_tickets_leak_nothing(harness: FakeHarness, enricher: Enricher) -> None:
    harness.models = enricher  # type: ignore[assignment]
    harness.source.put("k.json", json.dumps(valid("T-1")).encode())
    sent = [record(notification("k.json"), "stored"), record(valid("T-2"), "inline"), record(valid("T-2"), "twice")]
    answer = told_by(harness, *sent)
    assert [ends(answer, name) for name in ("stored", "inline", "twice")] == [["done"], ["done"], ["skipped"]]
    assert_none_is_told(answer, [])
    answer = told_by(harness, *sent[:2])
    assert ends(answer, "stored") + ends(answer, "inline") == ["skipped"] * 2
    assert_none_is_told(answer, [])
    harness.source.put("k.json", json.dumps(valid("T-1", body="older")).encode(), modified=1)
    assert ends(told_by(harness, sent[0]), "stored") == ["skipped"]
    assert WORD in harness.object("k.json", "0").decode(), "what was enriched were canaries"


@pytest.mark.parametrize("key", sorted(BROKEN))
def test_rejected_objects_leak_nothing(harness: FakeHarness, key: str) -> None:
    harness.source.put(key, BROKEN[key])
    answer = told_by(harness, record(notification(key)))
    assert ends(answer) == ["rejected"]
    assert_none_is_told(answer, harness.dead_letters())


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_rejected_messages_keep_their_body_and_leak_nothing(harness: FakeHarness, name: str) -> None:
    answer = told_by(harness, record(REFUSED[name], name))
    assert ends(answer, name) == ["rejected"]
    (letter,) = harness.dead_letters()
    assert letter.body == REFUSED[name]
    assert WORD in letter.body
    assert_none_is_told(answer, [letter])


@pytest.mark.parametrize("name", sorted(SKIPPED))
def test_skipped_messages_leak_nothing(harness: FakeHarness, name: str) -> None:
    answer = told_by(harness, record(SKIPPED[name], name))
    assert ends(answer, name) == ["skipped"]
    assert_none_is_told(answer, harness.dead_letters())


UNEXPECTED = ValueError("could not convert 'canary-body'")
UNEXPECTED.__cause__ = KeyError("canary")


@pytest.mark.parametrize("receive_count", [1, 30])
@pytest.mark.parametrize("place", ["fetch", "known", "store", "models"])
@pytest.mark.parametrize(
    "error",
    [Throttled("GetObject: SlowDown"), ServiceFailed("x"), OutOfTime("x"), ModelFailed("x"), UNEXPECTED],
    ids=["throttled", "service", "time", "model", "unexpected"],
)
def test_failures_and_last_receives_leak_nothing(
    harness: FakeHarness, error: Exception, place: str, receive_count: int
) -> None:
    harness.source.put("k.json", json.dumps(valid("T-1")).encode())
    if place == "models":
        if isinstance(error, EnrichmentError):
            harness.models.failures = {"T-1": error}
        else:
            harness.models.fault = error
    else:
        faults = {"fetch": harness.source.faults, "known": harness.sink.faults_known, "store": harness.sink.faults}[
            place
        ]
        faults.set(error, "k.json", "T-1")
    answer = told_by(harness, record(notification("k.json"), receive_count=receive_count))
    assert ends(answer) == ["failed" if receive_count == 1 else "rejected"]
    letters = harness.dead_letters()
    assert len(letters) == (receive_count == 30)
    assert_none_is_told(answer, letters)


def test_store_and_dlq_errors_leak_nothing(harness: FakeHarness) -> None:
    harness.sink.faults.set(StoreRefused("PutItem: ValidationException"), "T-1")
    harness.letters.faults.set(UNEXPECTED, "m-2")
    harness.letters.faults_defer.set(UNEXPECTED, "m-2")
    answer = told_by(harness, record(valid("T-1")), record("canary", "m-2"))
    assert ends(answer) + ends(answer, "m-2") == ["rejected", "failed"]
    assert failed(answer) == {"m-2"}
    letters = harness.dead_letters()
    assert_none_is_told(answer, letters)
    assert letters[0].rejection["errors"][0]["ticket_id"] == "T-1"


def test_only_ids_of_valid_tickets_are_logged(
    harness: FakeHarness,
) -> None:
    harness.models = FakeModels()
    answer = told_by(harness, record(valid("canary-id")), record(valid("canary-id", created_at=None), "m-2"))
    assert [line.get("ticket_id") for line in answer.tickets("m-1")] == ["canary-id"]
    assert all(WORD not in json.dumps(line) for line in answer.tickets("m-2"))
