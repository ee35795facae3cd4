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
from tests.fakes import (
    SETTINGS,
    FakeDeadLetters,
    FakeFailureCounts,
    FakeSink,
    FakeSource,
    FakeWorld,
    context,
    event,
    record,
    ticket,
)

NOTHING: dict[str, list[Any]] = {"batchItemFailures": []}


@pytest.fixture
def world() -> FakeWorld:
    return FakeWorld()


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
def test_an_event_without_messages_is_ignored_with_a_warning(world: FakeWorld, empty: Any) -> None:
    answer = world.invoke(empty)
    assert answer.response == NOTHING
    assert [line["level"] for line in answer.lines()] == ["WARNING"]
    assert world.figures.flushes == 0


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
def test_an_event_that_is_not_understood_raises_and_nothing_of_it_is_processed(world: FakeWorld, odd: Any) -> None:
    with pytest.raises(EventNotUnderstood, match="does not consist of SQS records") as caught:
        world.handler(odd, context())
    assert "canary" not in str(caught.value)
    assert (world.models.seen, world.letters.rejected, world.figures.flushes) == ([], [], 0)


def test_a_list_of_records_as_eventbridge_pipes_sends_it_is_processed(world: FakeWorld) -> None:
    world.sink.faults.set(ServiceFailed("x"), "bad")
    answer = world.invoke([record(ticket("good")), record(ticket("bad"), "m-2"), record("no JSON", "m-3")])
    assert answer.response == {"batchItemFailures": [{"itemIdentifier": "m-2"}]}
    assert world.figures.outcomes == {"done": 1, "failed": 1, "rejected": 1}


@pytest.mark.parametrize("message_id", [None, "", 7, "absent"])
def test_a_record_without_an_id_is_processed_but_never_reported(world: FakeWorld, message_id: Any) -> None:
    nameless = record(ticket("bad"), message_id)
    if message_id == "absent":
        del nameless["messageId"]
    world.sink.faults.set(ValueError("x"), "bad", "worse")
    alone = world.invoke(event(nameless))
    assert alone.response == NOTHING, "an empty or unknown identifier would make Lambda repeat the whole batch"
    answer = world.invoke(event(nameless, record(ticket("worse"), "m-2"), record(ticket("good"), "m-3")))
    assert answer.response == {"batchItemFailures": [{"itemIdentifier": "m-2"}]}
    assert world.figures.outcomes == {"failed": 3, "done": 1}


@pytest.mark.parametrize("body", [None, 7, {}, "absent"])
def test_a_record_without_a_text_as_body_is_rejected(world: FakeWorld, body: Any) -> None:
    odd = record("") | {"body": body}
    if body == "absent":
        del odd["body"]
    assert world.invoke(event(odd)).response == NOTHING
    assert [code for _, _, code in world.letters.rejected] == ["message_invalid"]


@pytest.mark.parametrize("attributes", [None, [], "x", {"ApproximateReceiveCount": "many", "SentTimestamp": None}])
def test_attributes_of_another_shape_are_no_reason_to_fail(world: FakeWorld, attributes: Any) -> None:
    answer = world.invoke(event(record(ticket()) | {"attributes": attributes}))
    assert [line["outcome"] for line in answer.tickets("m-1")] == ["done"]


def test_all_failed_is_an_answer_and_no_exception(world: FakeWorld) -> None:
    world.models.fault = RuntimeError("x")
    answer = world.invoke(event(record(ticket("a")), record(ticket("b"), "m-2")))
    assert answer.response == {"batchItemFailures": [{"itemIdentifier": "m-1"}, {"itemIdentifier": "m-2"}]}
    assert json.loads(json.dumps(answer.response)) == answer.response


def test_one_batch_leaves_nothing_to_the_next(world: FakeWorld) -> None:
    world.models.fault = RuntimeError("x")
    assert world.invoke(event(record(ticket()))).response["batchItemFailures"]
    world.models.fault = None
    assert world.invoke(event(record(ticket()))).response == NOTHING


@pytest.mark.parametrize("odd", [None, object()])
def test_without_a_clock_there_is_a_minute(world: FakeWorld, odd: Any) -> None:
    assert world.handler(event(record(ticket())), odd) == NOTHING
    (left,) = world.models.left
    assert 0 < left <= 60


def test_the_clock_is_the_context_s_own(world: FakeWorld) -> None:
    world.handler(event(record(ticket())), context(lambda: 200.0))
    assert world.models.left == [195.0]


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
    world = FakeWorld()
    settings = Settings(**{**SETTINGS, "model_bundle": bundle.as_uri(), "bundle_cache_dir": str(tmp_path)})
    handler = build(
        settings,
        source=world.source,
        sink=world.sink,
        dead_letters=world.letters,
        failure_counts=world.failure_counts,
        figures=world.figures,
    )
    assert world.figures.starts == 1
    assert handler(event(record(ticket())), context()) == NOTHING
    assert world.figures.outcomes == {"done": 1}
