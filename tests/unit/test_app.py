"""The handler that Lambda calls: any event gets an answer of the right shape."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from enrichment import BundleMissing
from handler.app import EventNotUnderstood, build
from handler.errors import ServiceFailed
from handler.settings import Settings
from tests.support.fakes import (
    SETTINGS,
    FakeDeadLetters,
    FakeFailureCounts,
    FakeHarness,
    FakeSink,
    FakeSource,
    context,
    event,
    record,
    ticket,
)

NOTHING: dict[str, list[Any]] = {"batchItemFailures": []}


@pytest.fixture
def harness() -> FakeHarness:
    return FakeHarness()


@pytest.mark.parametrize(
    "empty",
    [
        {},
        {"Records": []},
        {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "tickets-raw"},
        [],
        None,
        "",
    ],
)
def test_an_event_without_messages_is_ignored_with_a_warning(harness: FakeHarness, empty: Any) -> None:
    answer = harness.invoke(empty)
    assert answer.response == NOTHING
    assert [line["level"] for line in answer.lines()] == ["WARNING"]
    assert harness.metrics.flushes == 0


@pytest.mark.parametrize(
    "odd",
    [
        {"Records": None},
        {"Records": "none"},
        {"Records": {"messageId": "m-1"}},
        {"Records": [None, 7, "x", []]},
        {"Records": [{}]},
        {"Records": [{"messageId": "m-1", "body": "canary"}]},
        {"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put"}]},
        {"Records": [{"EventSource": "aws:sns", "Sns": {"Message": "canary"}}]},
        {"Records": [{"eventSource": "aws:kinesis", "kinesis": {"data": "canary"}}]},
        {"Records": [record(ticket("canary")), {"eventSource": "aws:s3"}]},
        {"source": "aws.s3", "detail-type": "Object Created", "detail": {"canary": 1}},
        ticket("canary"),
        [ticket("canary")],
        [record(ticket("canary")), None],
        [None],
        "canary",
        7,
    ],
)
def test_an_event_that_is_not_understood_raises_and_nothing_of_it_is_processed(harness: FakeHarness, odd: Any) -> None:
    with pytest.raises(EventNotUnderstood, match="does not consist of SQS records") as caught:
        harness.handler(odd, context())
    assert "canary" not in str(caught.value)
    assert (harness.models.seen, harness.dead_letters.rejected, harness.metrics.flushes) == ([], [], 0)


def test_a_list_of_records_as_eventbridge_pipes_sends_it_is_processed(harness: FakeHarness) -> None:
    harness.sink.faults.set(ServiceFailed("x"), "bad")
    answer = harness.invoke([record(ticket("good")), record(ticket("bad"), "m-2"), record("no JSON", "m-3")])
    assert answer.response == {"batchItemFailures": [{"itemIdentifier": "m-2"}]}
    assert harness.metrics.outcomes == {"done": 1, "failed": 1, "rejected": 1}


@pytest.mark.parametrize("message_id", [None, "", 7, "absent"])
def test_a_record_without_an_id_is_processed_but_never_reported(harness: FakeHarness, message_id: Any) -> None:
    nameless = record(ticket("bad"), message_id)
    if message_id == "absent":
        del nameless["messageId"]
    harness.sink.faults.set(ValueError("x"), "bad", "worse")
    alone = harness.invoke(event(nameless))
    assert alone.response == NOTHING, "an empty or unknown identifier would make Lambda repeat the whole batch"
    answer = harness.invoke(event(nameless, record(ticket("worse"), "m-2"), record(ticket("good"), "m-3")))
    assert answer.response == {"batchItemFailures": [{"itemIdentifier": "m-2"}]}
    assert harness.metrics.outcomes == {"failed": 3, "done": 1}


@pytest.mark.parametrize("body", [None, 7, {}, "absent"])
def test_a_record_without_a_text_as_body_is_rejected(harness: FakeHarness, body: Any) -> None:
    odd = record("") | {"body": body}
    if body == "absent":
        del odd["body"]
    assert harness.invoke(event(odd)).response == NOTHING
    assert [code for _, _, code in harness.dead_letters.rejected] == ["message_invalid"]


@pytest.mark.parametrize("attributes", [None, [], "x", {"ApproximateReceiveCount": "many", "SentTimestamp": None}])
def test_attributes_of_another_shape_are_no_reason_to_fail(harness: FakeHarness, attributes: Any) -> None:
    answer = harness.invoke(event(record(ticket()) | {"attributes": attributes}))
    assert [line["outcome"] for line in answer.tickets("m-1")] == ["done"]


def test_all_failed_is_an_answer_and_no_exception(harness: FakeHarness) -> None:
    harness.models.fault = RuntimeError("x")
    answer = harness.invoke(event(record(ticket("a")), record(ticket("b"), "m-2")))
    assert answer.response == {"batchItemFailures": [{"itemIdentifier": "m-1"}, {"itemIdentifier": "m-2"}]}
    assert json.loads(json.dumps(answer.response)) == answer.response


def test_one_batch_leaves_nothing_to_the_next(harness: FakeHarness) -> None:
    harness.models.fault = RuntimeError("x")
    assert harness.invoke(event(record(ticket()))).response["batchItemFailures"]
    harness.models.fault = None
    assert harness.invoke(event(record(ticket()))).response == NOTHING


@pytest.mark.parametrize("odd", [None, object()])
def test_without_a_clock_there_is_a_minute(harness: FakeHarness, odd: Any) -> None:
    assert harness.handler(event(record(ticket())), odd) == NOTHING
    (left,) = harness.models.left
    assert 0 < left <= 60


def test_the_clock_is_the_context_s_own(harness: FakeHarness) -> None:
    harness.handler(event(record(ticket())), context(lambda: 200.0))
    assert harness.models.left == [195.0]


def test_a_missing_bundle_is_said_when_the_handler_is_made(tmp_path: Path) -> None:
    settings = Settings(**{**SETTINGS, "model_bundle": (tmp_path / "none").as_uri()})
    with pytest.raises(BundleMissing, match=re.escape(str(tmp_path / "none"))):
        build(
            settings,
            source=FakeSource(),
            sink=FakeSink(),
            dead_letters=FakeDeadLetters(),
            failure_counts=FakeFailureCounts(),
        )


def test_with_a_bundle_the_start_is_counted(bundle: Path, tmp_path: Path) -> None:
    harness = FakeHarness()
    settings = Settings(**{**SETTINGS, "model_bundle": bundle.as_uri(), "bundle_cache_dir": str(tmp_path)})
    handler = build(
        settings,
        source=harness.source,
        sink=harness.sink,
        dead_letters=harness.dead_letters,
        failure_counts=harness.failure_counts,
        metrics=harness.metrics,
    )
    assert harness.metrics.starts == 1
    assert handler(event(record(ticket())), context()) == NOTHING
    assert harness.metrics.outcomes == {"done": 1}
