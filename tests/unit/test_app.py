"""The Lambda handler: any event gets a valid response or a clear error."""

from __future__ import annotations

import json
import re
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from enrichment import Bundle, BundleMissing
from handler.app import EventNotUnderstood, build
from handler.errors import ServiceFailed
from handler.metrics import make_logger
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
    written_to,
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
def test_event_without_messages_is_ignored_with_a_warning(harness: FakeHarness, empty: Any) -> None:
    answer = harness.invoke(empty)
    assert answer.response == NOTHING
    assert [line["level"] for line in answer.lines()] == ["WARNING"]
    assert harness.metrics.flushes == 0


@pytest.mark.parametrize(
    "unknown",
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
def test_unknown_event_raises_and_processes_nothing(harness: FakeHarness, unknown: Any) -> None:
    with pytest.raises(EventNotUnderstood, match="does not consist of SQS records") as caught:
        harness.handler(unknown, context())
    assert "canary" not in str(caught.value)
    assert (harness.models.seen, harness.dead_letters.rejected, harness.metrics.flushes) == ([], [], 0)


def test_eventbridge_pipes_list_is_processed(harness: FakeHarness) -> None:
    harness.sink.faults.set(ServiceFailed("x"), "bad")
    answer = harness.invoke([record(ticket("good")), record(ticket("bad"), "m-2"), record("no JSON", "m-3")])
    assert answer.response == {"batchItemFailures": [{"itemIdentifier": "m-2"}]}
    assert harness.metrics.outcomes == {"done": 1, "failed": 1, "rejected": 1}


@pytest.mark.parametrize("message_id", [None, "", 7, "absent"])
def test_record_without_id_is_processed_but_not_reported(harness: FakeHarness, message_id: Any) -> None:
    without_id = record(ticket("bad"), message_id)
    if message_id == "absent":
        del without_id["messageId"]
    harness.sink.faults.set(ValueError("x"), "bad", "worse")
    alone = harness.invoke(event(without_id))
    assert alone.response == NOTHING, "an empty or unknown identifier would make Lambda retry the whole batch"
    answer = harness.invoke(event(without_id, record(ticket("worse"), "m-2"), record(ticket("good"), "m-3")))
    assert answer.response == {"batchItemFailures": [{"itemIdentifier": "m-2"}]}
    assert harness.metrics.outcomes == {"failed": 3, "done": 1}


@pytest.mark.parametrize("body", [None, 7, {}, "absent"])
def test_record_with_non_string_body_is_rejected(harness: FakeHarness, body: Any) -> None:
    malformed = record("") | {"body": body}
    if body == "absent":
        del malformed["body"]
    assert harness.invoke(event(malformed)).response == NOTHING
    assert [code for _, _, code in harness.dead_letters.rejected] == ["message_invalid"]


@pytest.mark.parametrize("attributes", [None, [], "x", {"ApproximateReceiveCount": "many", "SentTimestamp": None}])
def test_malformed_attributes_are_ignored(harness: FakeHarness, attributes: Any) -> None:
    answer = harness.invoke(event(record(ticket()) | {"attributes": attributes}))
    assert [line["outcome"] for line in answer.tickets("m-1")] == ["done"]


def test_entirely_failed_batch_returns_all_ids(harness: FakeHarness) -> None:
    harness.models.fault = RuntimeError("x")
    answer = harness.invoke(event(record(ticket("a")), record(ticket("b"), "m-2")))
    assert answer.response == {"batchItemFailures": [{"itemIdentifier": "m-1"}, {"itemIdentifier": "m-2"}]}
    assert json.loads(json.dumps(answer.response)) == answer.response


def test_batches_share_no_state(harness: FakeHarness) -> None:
    harness.models.fault = RuntimeError("x")
    assert harness.invoke(event(record(ticket()))).response["batchItemFailures"]
    harness.models.fault = None
    assert harness.invoke(event(record(ticket()))).response == NOTHING


@pytest.mark.parametrize("lambda_context", [None, object()])
def test_time_left_defaults_to_one_minute(harness: FakeHarness, lambda_context: Any) -> None:
    assert harness.handler(event(record(ticket())), lambda_context) == NOTHING
    (seconds,) = harness.models.left
    assert 0 < seconds <= 60


def test_time_left_comes_from_the_context(harness: FakeHarness) -> None:
    harness.handler(event(record(ticket())), context(lambda: 200.0))
    assert harness.models.left == [195.0]


def test_missing_bundle_raises_at_build(tmp_path: Path) -> None:
    settings = Settings(**{**SETTINGS, "model_bundle": (tmp_path / "none").as_uri()})
    with pytest.raises(BundleMissing, match=re.escape(str(tmp_path / "none"))):
        build(
            settings,
            source=FakeSource(),
            sink=FakeSink(),
            dead_letters=FakeDeadLetters(),
            failure_counts=FakeFailureCounts(),
        )


@pytest.mark.parametrize("damage", ["missing", "corrupt", "unexpected"])
def test_shadow_that_cannot_be_opened_stops_no_ticket_and_is_reported(
    damage: str, bundle: Path, shadow_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow = tmp_path / "shadow"
    if damage != "missing":
        shutil.copytree(shadow_bundle, shadow)
    if damage == "corrupt":
        (shadow / "heads.npz").write_bytes(b"0")
    if damage == "unexpected":
        monkeypatch.setattr("enrichment.shadow.Shadow.open", lambda *_args, **_options: 1 / 0)
    harness, log = FakeHarness(), StringIO()
    places = {"model_bundle": bundle.as_uri(), "shadow_bundle": shadow.as_uri(), "bundle_cache_dir": str(tmp_path)}
    with written_to(log):
        handler = build(
            Settings(**{**SETTINGS, **places}),
            source=harness.source,
            sink=harness.sink,
            dead_letters=harness.dead_letters,
            failure_counts=harness.failure_counts,
            metrics=harness.metrics,
            logger=make_logger("INFO"),
        )
    (line,) = map(json.loads, log.getvalue().splitlines())
    assert (line["level"], line["message"][:30]) == ("ERROR", "SHADOW_BUNDLE cannot be opened")
    code = {"missing": "bundle_missing", "corrupt": "bundle_corrupt", "unexpected": "bundle_invalid"}[damage]
    assert line["error_type"] == code
    if damage == "missing":
        assert line["detail"].startswith(f"SHADOW_BUNDLE names {shadow}, where bundle.json cannot be read")
    # Every ticket counts, so that nobody waits for a comparison that does not happen.
    assert handler(event(record(ticket("T-1"), "1"), record(ticket("T-2"), "2")), context()) == NOTHING
    assert (harness.metrics.outcomes, harness.metrics.failed_shadows) == ({"done": 2}, [code] * 2)


def test_shadow_is_opened_next_to_the_bundle(bundle: Path, shadow_bundle: Path, tmp_path: Path) -> None:
    harness = FakeHarness()
    bundles = {"model_bundle": bundle.as_uri(), "shadow_bundle": shadow_bundle.as_uri()}
    handler = build(
        Settings(**{**SETTINGS, **bundles, "bundle_cache_dir": str(tmp_path)}),
        source=harness.source,
        sink=harness.sink,
        dead_letters=harness.dead_letters,
        failure_counts=harness.failure_counts,
        metrics=harness.metrics,
    )
    assert handler(event(record(ticket())), context()) == NOTHING
    (write, _) = harness.sink.items["T-1", 1_795_165_200]
    assert write.enrichment.shadow is not None
    assert {path.name for path in tmp_path.iterdir()} == {Bundle.open(each).digest for each in (bundle, shadow_bundle)}
    assert harness.metrics.failed_shadows == []


def test_cold_start_is_counted(bundle: Path, tmp_path: Path) -> None:
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
