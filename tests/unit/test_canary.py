"""Customer text appears in no log line, metric or attribute of a DLQ message, whatever the outcome of a ticket."""

from __future__ import annotations

import json
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import pytest

from enrichment import Enricher, EnrichmentError, ModelFailed, OutOfTime
from handler.errors import ServiceFailed, StoreRefused, Throttled
from handler.metrics import EmfMetrics
from tests.support.canaries import BROKEN, REFUSED, SKIPPED, WORD, assert_no_canary, valid
from tests.support.cases import Answer
from tests.support.fakes import FakeHarness, FakeModels, event, failed, notification, record


def invoke_and_capture(harness: FakeHarness, *records: dict[str, Any]) -> Answer:
    """Invokes the handler; the log of the answer contains everything that was written, including metrics."""
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


def outcomes(answer: Answer, message_id: str = "m-1") -> list[str]:
    return [line["outcome"] for line in answer.tickets(message_id)]


def test_done_and_skipped_tickets_leak_nothing(harness: FakeHarness, enricher: Enricher) -> None:
    harness.models = enricher  # type: ignore[assignment]
    harness.source.put("k.json", json.dumps(valid("T-1")).encode())
    sent = [record(notification("k.json"), "stored"), record(valid("T-2"), "inline"), record(valid("T-2"), "twice")]
    answer = invoke_and_capture(harness, *sent)
    assert [outcomes(answer, name) for name in ("stored", "inline", "twice")] == [["done"], ["done"], ["skipped"]]
    assert_no_canary(answer, [])
    answer = invoke_and_capture(harness, *sent[:2])
    assert outcomes(answer, "stored") + outcomes(answer, "inline") == ["skipped"] * 2
    assert_no_canary(answer, [])
    harness.source.put("k.json", json.dumps(valid("T-1", body="older")).encode(), modified=1)
    assert outcomes(invoke_and_capture(harness, sent[0]), "stored") == ["skipped"]
    assert WORD in harness.object("k.json", "0").decode(), "the enriched ticket contains canaries"


@pytest.mark.parametrize("key", sorted(BROKEN))
def test_rejected_objects_leak_nothing(harness: FakeHarness, key: str) -> None:
    harness.source.put(key, BROKEN[key])
    answer = invoke_and_capture(harness, record(notification(key)))
    assert outcomes(answer) == ["rejected"]
    assert_no_canary(answer, harness.rejected_messages())


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_rejected_messages_keep_their_body_and_leak_nothing(harness: FakeHarness, name: str) -> None:
    answer = invoke_and_capture(harness, record(REFUSED[name], name))
    assert outcomes(answer, name) == ["rejected"]
    (dlq_message,) = harness.rejected_messages()
    assert dlq_message.body == REFUSED[name]
    assert WORD in dlq_message.body
    assert_no_canary(answer, [dlq_message])


@pytest.mark.parametrize("name", sorted(SKIPPED))
def test_skipped_messages_leak_nothing(harness: FakeHarness, name: str) -> None:
    answer = invoke_and_capture(harness, record(SKIPPED[name], name))
    assert outcomes(answer, name) == ["skipped"]
    assert_no_canary(answer, harness.rejected_messages())


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
    answer = invoke_and_capture(harness, record(notification("k.json"), receive_count=receive_count))
    assert outcomes(answer) == ["failed" if receive_count == 1 else "rejected"]
    dlq_messages = harness.rejected_messages()
    assert len(dlq_messages) == (receive_count == 30)
    assert_no_canary(answer, dlq_messages)


def test_store_and_dlq_errors_leak_nothing(harness: FakeHarness) -> None:
    harness.sink.faults.set(StoreRefused("PutItem: ValidationException"), "T-1")
    harness.dead_letters.faults.set(UNEXPECTED, "m-2")
    harness.dead_letters.faults_defer.set(UNEXPECTED, "m-2")
    answer = invoke_and_capture(harness, record(valid("T-1")), record("canary", "m-2"))
    assert outcomes(answer) + outcomes(answer, "m-2") == ["rejected", "failed"]
    assert failed(answer) == {"m-2"}
    dlq_messages = harness.rejected_messages()
    assert_no_canary(answer, dlq_messages)
    assert dlq_messages[0].rejection["errors"][0]["ticket_id"] == "T-1"


def test_only_ids_of_valid_tickets_are_logged(
    harness: FakeHarness,
) -> None:
    harness.models = FakeModels()
    answer = invoke_and_capture(harness, record(valid("canary-id")), record(valid("canary-id", created_at=None), "m-2"))
    assert [line.get("ticket_id") for line in answer.tickets("m-1")] == ["canary-id"]
    assert all(WORD not in json.dumps(line) for line in answer.tickets("m-2"))
