"""The outcome of each record of a batch, with fake stores, queue and models that fail on demand."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
import time
import tracemalloc
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from enrichment import Enricher, EnrichmentData, EnrichmentError, ModelFailed, OutOfTime, RawTicket
from enrichment.shadow import Shadow
from handler.errors import ServiceFailed, StoreRefused, Throttled
from handler.outcome import Outcome, backoff_seconds, overall
from handler.ports import Committed, RawObject, TicketName
from tests.support.cases import Answer
from tests.support.fakes import FakeHarness, FakeModels, context, event, failed, notification, record, ticket
from tests.support.waiting import eventually


@pytest.fixture
def harness() -> FakeHarness:
    return FakeHarness()


def outcomes(answer: Answer, message_id: str = "m-1") -> list[str]:
    return [line["outcome"] for line in answer.tickets(message_id)]


def notes(answer: Answer, message_id: str = "m-1") -> list[str | None]:
    return [line.get("note") for line in answer.tickets(message_id)]


def put(harness: FakeHarness, *keys: str, modified: int = 1_795_166_000_000, **fields: Any) -> None:
    for key in keys:
        harness.source.put(key, json.dumps(ticket(f"T-{key}", **fields)).encode(), modified)


def rejection(harness: FakeHarness) -> tuple[list[dict[str, Any]], str]:
    ((_, reasons, code),) = harness.dead_letters.rejected
    return [dict(reason) for reason in reasons], code


# -- done and skipped


def test_done_ticket_is_stored_and_not_retried(harness: FakeHarness) -> None:
    put(harness, "a")
    answer = harness.invoke(event(record(notification("a"))))
    assert answer.response == {"batchItemFailures": []}
    assert outcomes(answer) == ["done"]
    assert (harness.dead_letters.rejected, harness.dead_letters.deferred) == ([], {})
    (line,) = answer.tickets("m-1")
    assert (line["ticket_id"], line["s3_key"]) == ("T-a", "a")
    assert line["milliseconds"].keys() == {"fetch", "enrich", "store"}


def test_models_run_once_per_batch(harness: FakeHarness) -> None:
    put(harness, "a", "b", "c")
    answer = harness.invoke(event(record(notification("a", "b")), record(notification("c"), "m-2")))
    assert harness.models.seen == [["T-a", "T-b", "T-c"]]
    assert harness.metrics.batches == [3]
    assert outcomes(answer) + outcomes(answer, "m-2") == ["done"] * 3
    assert harness.metrics.stages == ["fetch", "encode", "store"]


def test_already_enriched_ticket_is_skipped(harness: FakeHarness) -> None:
    put(harness, "a")
    harness.invoke(event(record(notification("a"))))
    answer = harness.invoke(event(record(notification("a"), "again")))
    assert notes(answer, "again") == ["already enriched"]
    assert len(harness.models.seen) == 1
    assert len(harness.sink.objects["a"]) == 1


@pytest.mark.parametrize("change", ["content", "model", "key"])
def test_changed_ticket_is_enriched_again(harness: FakeHarness, change: str) -> None:
    put(harness, "a")
    harness.invoke(event(record(notification("a"))))
    key = "a"
    if change == "content":
        put(harness, "a", subject="Another")
    elif change == "model":
        harness.handler = harness.build(FakeModels("newer@111111111111"))
    else:
        key = "copy"
        harness.source.objects["copy"] = harness.source.objects["a"]
    assert outcomes(harness.invoke(event(record(notification(key), "again"))), "again") == ["done"]


def test_stale_version_is_skipped_before_the_models(harness: FakeHarness) -> None:
    put(harness, "a", subject="new")
    harness.invoke(event(record(notification("a"))))
    put(harness, "a", subject="old", modified=1_795_165_999_999)
    answer = harness.invoke(event(record(notification("a"), "late")))
    assert notes(answer, "late") == ["stale"]
    assert len(harness.models.seen) == 1


def test_stale_version_is_skipped_at_the_conditional_put(harness: FakeHarness) -> None:
    put(harness, "a", subject="new")
    harness.invoke(event(record(notification("a"))))
    put(harness, "a", subject="old", modified=1_795_165_999_999)
    harness.sink.blind = True
    answer = harness.invoke(event(record(notification("a"), "loser")))
    assert (outcomes(answer, "loser"), notes(answer, "loser")) == (["skipped"], ["stale"])
    assert len(harness.models.seen) == 2
    committed = harness.item("T-a", 1_795_165_200)
    assert committed is not None
    assert committed["subject"] == "new"
    assert b'"new"' in harness.object("a", committed["s3_version_id"])


def test_duplicate_message_in_a_batch_is_enriched_once(harness: FakeHarness) -> None:
    body = json.dumps(ticket("T"))
    answer = harness.invoke(event(record(body), record(body, "m-2")))
    assert (outcomes(answer), outcomes(answer, "m-2")) == (["done"], ["skipped"])
    assert notes(answer, "m-2") == ["duplicate in the batch"]
    assert harness.models.seen == [["T"]]
    assert harness.metrics.outcomes == {"done": 1, "skipped": 1}


def test_invalid_duplicates_are_both_rejected(harness: FakeHarness) -> None:
    answer = harness.invoke(event(record(notification("gone")), record(notification("gone"), "m-2")))
    assert (outcomes(answer), outcomes(answer, "m-2")) == (["rejected"], ["rejected"])
    assert [r["messageId"] for r, _, _ in harness.dead_letters.rejected] == ["m-1", "m-2"]
    assert harness.source.fetched == ["gone"]


def test_inline_ticket_is_dated_by_its_message(harness: FakeHarness) -> None:
    old, new = (record(ticket("T", subject=s), s) for s in ("old", "new"))
    new["attributes"]["SentTimestamp"] = "1795166102001"
    harness.invoke(event(new))
    answer = harness.invoke(event(old))
    assert notes(answer, "old") == ["stale"]
    stored = harness.item("T", 1_795_165_200)
    assert stored is not None
    assert (stored["source_modified"], stored["subject"]) == (1_795_166_102_001, "new")


def test_duplicate_inline_ticket_is_dated_by_the_newer_message(harness: FakeHarness) -> None:
    first, second = record(ticket("T")), record(ticket("T"), "m-2")
    second["attributes"]["SentTimestamp"] = "1795166102009"
    harness.invoke(event(first, second))
    stored = harness.item("T", 1_795_165_200)
    assert stored is not None
    assert stored["source_modified"] == 1_795_166_102_009


def _text(value: str) -> dict[str, str]:
    return {"dataType": "String", "stringValue": value}


@pytest.mark.parametrize(
    "attributes",
    [
        {"FirstSentTimestamp": _text("1795166102000")},
        {"Rejection": _text('{"message_id": "m", "first_sent": 1795166102000, "errors": []}')},
    ],
    ids=["replayed", "redriven"],
)
def test_the_replay_of_an_old_inline_ticket_is_stale(harness: FakeHarness, attributes: dict[str, Any]) -> None:
    new = record(ticket("T", subject="new"), "new")
    new["attributes"]["SentTimestamp"] = "1795166102001"
    harness.invoke(event(new))
    old = record(ticket("T", subject="old"), "old", messageAttributes=attributes)
    old["attributes"]["SentTimestamp"] = "1795169999999"
    assert notes(harness.invoke(event(old)), "old") == ["stale"]


@pytest.mark.parametrize("value", ["1895166102000", "-1", "soon", "9" * 20])
def test_a_first_time_that_cannot_be_right_is_ignored(harness: FakeHarness, value: str) -> None:
    harness.invoke(event(record(ticket("T"), messageAttributes={"FirstSentTimestamp": _text(value)})))
    stored = harness.item("T", 1_795_165_200)
    assert stored is not None
    assert stored["source_modified"] == 1_795_166_102_000


def version(subject: str, milliseconds: int, etag: str, key: str = "v") -> tuple[RawObject, dict[str, Any]]:
    """A version of an object as it is read, and its notification."""
    body = notification(key)
    body["Records"][0]["s3"]["object"]["eTag"] = etag
    body["Records"][0]["eventTime"] = f"2026-11-20T09:15:00.{milliseconds:03}Z"
    raw = json.dumps(ticket("T", subject=subject)).encode()
    return RawObject(raw, 1_795_166_100_000, etag), body


def _stored(harness: FakeHarness) -> tuple[str, int]:
    item = harness.item("T", 1_795_165_200)
    assert item is not None
    return item["subject"], item["source_modified"]


def test_of_two_versions_within_a_second_the_newer_wins(harness: FakeHarness) -> None:
    (first, about_first), (second, about_second) = version("one", 118, "a"), version("two", 730, "b")
    harness.source.objects["v"] = second
    harness.invoke(event(record(about_second)))
    assert _stored(harness) == ("two", 1_795_166_100_730)
    harness.source.objects["v"] = first  # as a worker that has read it before the second one was written
    assert notes(harness.invoke(event(record(about_first)))) == ["stale"]
    assert _stored(harness) == ("two", 1_795_166_100_730)


def test_the_time_of_another_version_is_not_used(harness: FakeHarness) -> None:
    (first, _), (_, about_second) = version("one", 118, "a"), version("two", 730, "b")
    harness.source.objects["v"] = first
    harness.invoke(event(record(about_second)))
    assert _stored(harness) == ("one", 1_795_166_100_000)


def test_a_backfill_with_whole_seconds_enriches_again_what_an_event_has_stored(harness: FakeHarness) -> None:
    found, about = version("one", 118, "a")
    harness.source.objects["v"] = found
    harness.invoke(event(record(about)))
    _, backfill = version("one", 0, "a")
    handler = harness.build(FakeModels("newer@000000000000"))
    harness.handler = handler
    assert outcomes(harness.invoke(event(record(backfill)))) == ["done"]
    assert _stored(harness) == ("one", 1_795_166_100_118)


def test_a_version_without_its_own_notification_replaces_an_older_one_of_the_same_second(harness: FakeHarness) -> None:
    (first, about_first), (second, _) = version("one", 118, "a"), version("two", 730, "b")
    harness.source.objects["v"] = first
    harness.invoke(event(record(about_first)))
    harness.source.objects["v"] = second
    assert outcomes(harness.invoke(event(record(about_first)))) == ["done"]
    assert _stored(harness)[0] == "two"


def test_test_events_and_removals_are_skipped_without_store_calls(harness: FakeHarness) -> None:
    bodies = [{"Event": "s3:TestEvent"}, notification("x", event="ObjectRemoved:Delete"), {"Event": "s3:TestEvent"}]
    answer = harness.invoke(event(*(record(body, str(i)) for i, body in enumerate(bodies))))
    assert [notes(answer, str(i)) for i in range(3)] == [["s3:TestEvent"], ["s3:ObjectRemoved"], ["s3:TestEvent"]]
    assert harness.source.fetched == []
    assert harness.models.seen == []
    assert harness.metrics.outcomes == {"skipped": 3}


# -- rejected


def test_rejected_message_is_sent_to_the_dlq_with_its_reason(harness: FakeHarness) -> None:
    harness.source.put("a", b'{"ticket_id": "secret"}')
    answer = harness.invoke(event(record(notification("a"))))
    assert answer.response == {"batchItemFailures": []}
    assert outcomes(answer) == ["rejected"]
    (reason,), code = rejection(harness)
    assert code == reason["error"] == "schema_violation"
    assert (reason["stage"], reason["s3_key"]) == ("validate", "a")
    assert "customer_id" in reason["detail"]
    assert "ticket_id" not in reason
    assert harness.metrics.errors == {("rejected", "schema_violation"): 1}


def test_gzip_objects_are_read(harness: FakeHarness) -> None:
    plain = json.dumps(ticket("GZ")).encode()
    harness.source.put("gz", gzip.compress(plain[:50]) + gzip.compress(plain[50:]))
    answer = harness.invoke(event(record(notification("gz"))))
    assert outcomes(answer) == ["done"]
    item = harness.item("GZ", 1_795_165_200)
    assert item is not None
    assert item["content_sha256"] == hashlib.sha256(plain).hexdigest()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (gzip.compress(bytes(64 * 1024 * 1024)), "object_too_large"),
        (gzip.compress(b"{}")[:-9], "schema_violation"),
        (gzip.compress(b"{}")[:12] + b"garbage", "schema_violation"),
        (b"\x1f\x8b", "schema_violation"),
    ],
    ids=["bomb", "cut", "damaged", "header"],
)
def test_gzip_objects_that_cannot_be_read_are_rejected(harness: FakeHarness, body: bytes, code: str) -> None:
    harness.source.put("gz", body)
    tracemalloc.start()
    harness.invoke(event(record(notification("gz"))))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rejection(harness)[1] == code
    assert peak < 8 * 1024 * 1024


@pytest.mark.parametrize(("letter", "count", "good"), [("😀", 82, True), ("😀", 84, False), ("a", 256, True)])
def test_an_inline_id_whose_key_is_too_long_is_rejected(
    harness: FakeHarness, letter: str, count: int, *, good: bool
) -> None:
    answer = harness.invoke(event(record(ticket(letter * count))))
    if good:
        assert outcomes(answer) == ["done"]
    else:
        (reason,), code = rejection(harness)
        assert code == "key_too_long"
        assert "S3 allows 1024" in reason["detail"]


def test_raw_ticket_with_a_key_of_the_log_of_corrections_is_rejected(harness: FakeHarness) -> None:
    key, similar = f"corrections/{'a' * 64}/1000/000001.json", "corrections/2026/000001.json"
    for name in (key, similar):
        put(harness, name)
    answer = harness.invoke(event(record(notification(key)), record(notification(similar), "similar")))
    assert (outcomes(answer), outcomes(answer, "similar")) == (["rejected"], ["done"])
    (reason,), code = rejection(harness)
    assert code == "key_reserved"
    assert "store the ticket under another key" in reason["detail"]
    assert harness.source.fetched == [similar]


def test_many_records_in_one_message_leave_its_neighbours_alone(harness: FakeHarness) -> None:
    put(harness, "good")
    many = record(notification(*map(str, range(8000))), "many")
    answer = harness.invoke(event(many, record(notification("good"))))
    assert (outcomes(answer, "many"), outcomes(answer)) == (["rejected"], ["done"])
    assert harness.source.fetched == ["good"]


def test_inline_ticket_over_the_size_limit_is_rejected() -> None:
    harness = FakeHarness(max_ticket_bytes=200)
    answer = harness.invoke(event(record(ticket("big", body="x" * 200)), record(ticket("small", body=""), "m-2")))
    assert (outcomes(answer), outcomes(answer, "m-2")) == (["rejected"], ["done"])
    assert rejection(harness)[1] == "object_too_large"


def test_permanent_store_error_rejects_the_message(harness: FakeHarness) -> None:
    harness.sink.faults.set(StoreRefused("PutItem: ValidationException"), "T")
    harness.invoke(event(record(ticket("T"))))
    (reason,), code = rejection(harness)
    assert (code, reason["stage"], reason["ticket_id"]) == ("store_refused", "store", "T")


@pytest.mark.parametrize("error", [Throttled("SendMessage: x"), ServiceFailed("SendMessage: x"), ValueError("x")])
def test_dlq_send_failure_fails_the_record(harness: FakeHarness, error: Exception) -> None:
    harness.dead_letters.faults.set(error, "m-1")
    answer = harness.invoke(event(record("no JSON"), record("no JSON", "m-2")))
    assert failed(answer) == {"m-1"}
    assert (outcomes(answer), outcomes(answer, "m-2")) == (["failed"], ["rejected"])
    assert 15 <= harness.dead_letters.deferred["m-1"] <= 30
    assert any("sent to the DLQ" in line["message"] and line["message_id"] == "m-1" for line in answer.lines())
    assert harness.metrics.outcomes == {"failed": 1, "rejected": 1}


# -- failed


@pytest.mark.parametrize("where", ["fetch", "known", "store"])
def test_throttled_ticket_is_deferred(harness: FakeHarness, where: str) -> None:
    put(harness, "a", "b")
    faults = {"fetch": harness.source.faults, "known": harness.sink.faults_known, "store": harness.sink.faults}[where]
    faults.set(Throttled("SlowDown"), "a", "T-a")
    answer = harness.invoke(event(record(notification("a"), receive_count=3), record(notification("b"), "m-2")))
    assert failed(answer) == {"m-1"}
    assert (outcomes(answer), outcomes(answer, "m-2")) == (["failed"], ["done"])
    assert harness.dead_letters.deferred.keys() == {"m-1"}
    assert 60 <= harness.dead_letters.deferred["m-1"] <= 120
    (line,) = answer.tickets("m-1")
    assert (line["error_type"], line["stage"]) == ("throttled", "store" if where == "store" else "fetch")
    assert line["receive_count"] == 3
    assert harness.dead_letters.rejected == []
    faults.clear()
    assert outcomes(harness.invoke(event(record(notification("a"), "again"))), "again") == ["done"]


def test_backoff_doubles_with_jitter_up_to_15_minutes() -> None:
    assert {backoff_seconds(1) for _ in range(500)} == set(range(15, 31))
    for count, ceiling in ((0, 30), (2, 60), (5, 480), (6, 900), (1000, 900)):
        drawn = [backoff_seconds(count) for _ in range(300)]
        assert ceiling * 0.9 < max(drawn) <= ceiling
        assert ceiling * 0.5 <= min(drawn) < ceiling * 0.6


def test_out_of_time_is_deferred_like_a_service_failure(harness: FakeHarness) -> None:
    harness.models.failures = {"late": OutOfTime("not started: 0.1 s left")}
    answer = harness.invoke(event(record(ticket("late"), receive_count=3), record(ticket("soon"), "m-2")))
    assert failed(answer) == {"m-1"}
    assert harness.failure_counts.receives == {}, "it is not the ticket's fault"
    assert 60 <= harness.dead_letters.deferred["m-1"] <= 120
    assert outcomes(answer, "m-2") == ["done"]


def test_models_leave_time_for_later_stages(harness: FakeHarness) -> None:
    for total, reserve in ((20.0, 3.0), (900.0, 5.0)):
        harness.seconds = [total]
        harness.invoke(event(record(ticket(f"T-{total}"))))
        assert harness.models.left.pop() == pytest.approx(total - reserve)


@pytest.mark.parametrize("stage", ["fetch", "store"])
def test_hanging_call_is_out_of_time_and_blocks_no_other(harness: FakeHarness, stage: str) -> None:
    put(harness, "hangs", "b")
    harness.seconds = [1, 1.65, 30] if stage == "fetch" else [1, 30, 30, 30, 0.6, 30]
    gate = (harness.source.faults if stage == "fetch" else harness.sink.faults).hang("hangs", "T-hangs")
    answer = harness.invoke(event(record(notification("hangs")), record(notification("b"), "m-2")))
    gate.set()
    assert failed(answer) == {"m-1"}
    assert harness.dead_letters.deferred.keys() == {"m-1"}
    assert (outcomes(answer), outcomes(answer, "m-2")) == (["failed"], ["done"])
    (line,) = answer.tickets("m-1")
    assert (line["error_type"], line["stage"]) == ("out_of_time", stage)


def test_one_hanging_store_leaves_time_to_ask_what_was_forgotten(
    harness: FakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(harness, "hangs", "b")
    gate = harness.sink.faults.hang("T-hangs")
    left, timeouts = [20.0], list[float]()

    def simulated(futures: Iterable[Future[Any]], timeout: float) -> Any:
        """As wait, but its time passes only if a call hangs, and three seconds show that."""
        found = wait(futures, 3)
        timeouts.append(timeout)
        if found.not_done:
            left[0] -= timeout
            timeouts.clear()
        return found

    monkeypatch.setattr("handler.batch.wait", simulated)
    answer = harness.handler(
        event(record(notification("hangs")), record(notification("b"), "m-2")), context(lambda: left[0])
    )
    gate.set()
    assert answer == {"batchItemFailures": [{"itemIdentifier": "m-1"}]}
    assert timeouts[0] > 0.5  # of a reserve of three seconds


def test_one_hanging_read_leaves_time_for_the_models_and_the_other_tickets(harness: FakeHarness) -> None:
    keys = [f"good-{i}" for i in range(9)]
    put(harness, "hangs", *keys)
    gate = harness.source.faults.hang("hangs")
    end = time.monotonic() + 2
    with_clock = context(lambda: end - time.monotonic())
    answer = harness.handler(event(*(record(notification(key), key) for key in ("hangs", *keys))), with_clock)
    assert time.monotonic() < end
    gate.set()
    assert answer == {"batchItemFailures": [{"itemIdentifier": "hangs"}]}
    assert {name for name, _ in harness.sink.items} == {f"T-{key}" for key in keys}
    assert harness.models.left[0] > 0.5, "the models get more than half of the time before the reserve"
    assert harness.dead_letters.deferred.keys() == {"hangs"}
    assert harness.metrics.errors == {("failed", "out_of_time"): 1}


def test_many_hanging_reads_of_one_message_do_not_delay_the_others(harness: FakeHarness) -> None:
    many, keys = [f"hangs-{i}" for i in range(100)], [f"good-{i}" for i in range(9)]
    put(harness, *many, *keys)
    gate = harness.source.faults.hang(*many)
    end = time.monotonic() + 2
    records = [record(notification(*many), "many"), *(record(notification(key), key) for key in keys)]
    answer = harness.handler(event(*records), context(lambda: end - time.monotonic()))
    assert answer == {"batchItemFailures": [{"itemIdentifier": "many"}]}
    assert {name for name, _ in harness.sink.items} == {f"T-{key}" for key in keys}
    gate.set()


@pytest.mark.parametrize(("where", "shortest"), [("models", 60), ("read", 450)])
def test_delay_of_a_ticket_out_of_time(harness: FakeHarness, where: str, shortest: int) -> None:
    put(harness, "late")
    if where == "models":  # they had no time for it: it needs another batch
        harness.models.failures = {"T-late": OutOfTime("not started: 0.1 s left")}
    else:  # no answer: perhaps an outage, which the delays must outlast
        harness.source.faults.set(OutOfTime("no answer"), "late")
    harness.invoke(event(record(notification("late"), receive_count=20)))
    assert shortest <= harness.dead_letters.deferred["m-1"] <= 2 * shortest


def test_calls_queued_behind_a_full_pool_fail(harness: FakeHarness) -> None:
    hanging = [f"hangs-{i}" for i in range(16)]
    put(harness, *hanging, "queued")
    harness.seconds = [1, 0.35, 0.6]
    gate = harness.source.faults.hang(*hanging)
    answer = harness.invoke(event(*(record(notification(key), key) for key in (*hanging, "queued"))))
    gate.set()
    assert failed(answer) == {*hanging, "queued"}
    assert harness.dead_letters.deferred.keys() == failed(answer), "hanging reads do not hold up other calls"


def test_hanging_dlq_send_fails_the_record(harness: FakeHarness) -> None:
    harness.seconds = [1, 30, 30, 30, 30, 30, 0.23, 30]
    gate = harness.dead_letters.faults.hang("m-1")
    answer = harness.invoke(event(record("no JSON"), record(ticket(), "m-2")))
    gate.set()
    assert failed(answer) == {"m-1"}
    assert (outcomes(answer), outcomes(answer, "m-2")) == (["failed"], ["done"])


def test_hanging_or_failing_defer_is_ignored(harness: FakeHarness) -> None:
    harness.seconds = [1, 30, 30, 30, 0.2]
    harness.models.failures = {name: OutOfTime("x") for name in ("a", "b")}
    gate = harness.dead_letters.faults_defer.hang("m-1")
    harness.dead_letters.faults_defer.set(ValueError("x"), "m-2")
    answer = harness.invoke(event(record(ticket("a")), record(ticket("b"), "m-2")))
    gate.set()
    assert failed(answer) == {"m-1", "m-2"}
    assert harness.metrics.outcomes == {"failed": 2}


# -- the last receive


def test_last_receive_rejects_a_failing_message_with_its_reason(harness: FakeHarness) -> None:
    put(harness, "a")
    harness.source.faults.set(ServiceFailed("GetObject: InternalError"), "a")
    early = harness.invoke(event(record(notification("a"), receive_count=29)))
    assert (failed(early), harness.dead_letters.rejected) == ({"m-1"}, [])
    last = harness.invoke(event(record(notification("a"), receive_count=30)))
    assert failed(last) == set()
    (reason,), code = rejection(harness)
    assert (code, reason["error"], reason["s3_key"]) == ("service_failed", "service_failed", "a")
    assert harness.metrics.errors == {("failed", "service_failed"): 1, ("rejected", "service_failed"): 1}


def test_last_receive_with_dlq_failure_is_left_to_sqs(harness: FakeHarness) -> None:
    harness.dead_letters.faults.set(Throttled("x"), "m-1")
    answer = harness.invoke(event(record("no JSON", receive_count=30)))
    assert failed(answer) == {"m-1"}
    assert outcomes(answer) == ["failed"]


# -- failures caused by the message itself


def cause_own_failure(harness: FakeHarness, how: str) -> None:
    """Makes ticket T-a itself cause a failure: in the models, or in our code."""
    if how == "model":
        harness.models.failures = {"T-a": ModelFailed("a model raised RuntimeError")}
    elif how == "models":
        harness.models.fault = ValueError("a bug")
    else:
        harness.sink.faults.set(ValueError("a bug"), "T-a")


@pytest.mark.parametrize("how", ["model", "models", "code"])
@pytest.mark.parametrize("receives_before", [0, 21])
def test_fifth_own_failure_rejects_the_message(harness: FakeHarness, how: str, receives_before: int) -> None:
    put(harness, "a")
    harness.source.faults.set(ServiceFailed("GetObject: InternalError"), "a")
    for number in range(receives_before):  # an outage
        assert outcomes(harness.invoke(event(record(notification("a"), receive_count=number + 1)))) == ["failed"]
    harness.source.faults.clear()
    assert harness.failure_counts.receives == {}
    cause_own_failure(harness, how)
    for number in range(1, 5):
        answer = harness.invoke(event(record(notification("a"), receive_count=receives_before + number)))
        (line,) = answer.tickets("m-1")
        assert (line["outcome"], line["own_failures"], failed(answer)) == ("failed", number, {"m-1"})
        assert 15 * 2 ** (number - 1) <= harness.dead_letters.deferred["m-1"] <= 30 * 2 ** (number - 1)
    assert harness.dead_letters.rejected == []
    last = harness.invoke(event(record(notification("a"), receive_count=receives_before + 5)))
    assert (failed(last), outcomes(last)) == (set(), ["rejected"])
    assert rejection(harness)[1] == ("model_failed" if how == "model" else "unexpected")


def test_outages_do_not_count_as_own_failures(harness: FakeHarness) -> None:
    put(harness, "a")
    receives = iter(range(1, 30))
    for number in range(1, 6):
        harness.sink.faults_known.set(Throttled("x"), "T-a")
        for _ in range(3):
            assert outcomes(harness.invoke(event(record(notification("a"), receive_count=next(receives))))) == [
                "failed"
            ]
        harness.sink.faults_known.clear()
        cause_own_failure(harness, "model")
        answer = harness.invoke(event(record(notification("a"), receive_count=next(receives))))
        assert outcomes(answer) == (["failed"] if number < 5 else ["rejected"])


@pytest.mark.parametrize("error", [Throttled("SlowDown"), ServiceFailed("x"), OutOfTime("x")])
def test_message_is_kept_while_a_ticket_waits_for_a_service(harness: FakeHarness, error: Exception) -> None:
    put(harness, "a", "waits")
    cause_own_failure(harness, "model")
    harness.source.faults.set(error, "waits")
    for number in range(1, 10):
        answer = harness.invoke(event(record(notification("a", "waits"), receive_count=number)))
        assert outcomes(answer) == ["failed", "failed"]
    assert harness.failure_counts.receives == {}
    harness.source.faults.clear()
    assert outcomes(harness.invoke(event(record(notification("a", "waits"), receive_count=10)))) == ["failed", "done"]
    assert harness.failure_counts.receives == {"m-1": {10}}


@pytest.mark.parametrize("error", [Throttled("UpdateItem: x"), ServiceFailed("UpdateItem: x"), ValueError("x")])
def test_failure_that_cannot_be_counted_is_an_outage(harness: FakeHarness, error: Exception) -> None:
    put(harness, "a")
    cause_own_failure(harness, "model")
    harness.failure_counts.faults.set(error, "m-1")
    for number in range(1, 30):
        answer = harness.invoke(event(record(notification("a"), receive_count=number)))
        assert outcomes(answer) == ["failed"]
        assert any(line["message"] == "a failure could not be counted" for line in answer.lines())
    assert harness.dead_letters.deferred["m-1"] >= 450
    last = harness.invoke(event(record(notification("a"), receive_count=30)))
    assert outcomes(last) == ["rejected"]


def test_hanging_failure_count_blocks_no_other(harness: FakeHarness) -> None:
    harness.models.failures = {"bad": ModelFailed("x")}
    harness.seconds = [1, 30, 30, 30, 0.2, 30]
    gate = harness.failure_counts.faults.hang("m-1")
    answer = harness.invoke(event(record(ticket("bad")), record(ticket("good"), "m-2")))
    gate.set()
    assert (outcomes(answer), outcomes(answer, "m-2")) == (["failed"], ["done"])


# -- several tickets in one message


def test_failed_ticket_fails_the_message_and_rejects_nothing(harness: FakeHarness) -> None:
    put(harness, "good", "slow")
    harness.source.put("bad", b"[]")
    harness.source.faults.set(Throttled("SlowDown"), "slow")
    body = notification("good", "bad", "slow")
    answer = harness.invoke(event(record(body)))
    assert failed(answer) == {"m-1"}
    assert harness.dead_letters.rejected == []
    assert outcomes(answer) == ["done", "failed", "failed"]
    harness.source.faults.clear()
    answer = harness.invoke(event(record(body, receive_count=2)))
    assert failed(answer) == set()
    assert outcomes(answer) == ["skipped", "rejected", "done"]
    (reason,), code = rejection(harness)
    assert (code, reason["s3_key"]) == ("schema_violation", "bad")


def test_rejected_ticket_rejects_the_message_and_all_are_named(harness: FakeHarness) -> None:
    put(harness, "good")
    harness.source.put("bad", b"[]")
    answer = harness.invoke(event(record(notification("good", "bad", "gone"))))
    assert failed(answer) == set()
    assert outcomes(answer) == ["done", "rejected", "rejected"]
    reasons, code = rejection(harness)
    assert code == "schema_violation"
    assert [(reason["error"], reason["s3_key"]) for reason in reasons] == [
        ("schema_violation", "bad"),
        ("object_gone", "gone"),
    ]
    assert ("T-good", 1_795_165_200) in harness.sink.items


def test_done_ticket_makes_the_message_done(harness: FakeHarness) -> None:
    put(harness, "old", "new")
    harness.invoke(event(record(notification("old"))))
    answer = harness.invoke(event(record(notification("old", "new"), "m-2")))
    assert failed(answer) == set()
    assert outcomes(answer, "m-2") == ["skipped", "done"]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["skipped", "done", "rejected", "failed"], "failed"),
        (["done", "rejected", "skipped"], "rejected"),
        (["skipped", "done"], "done"),
        (["skipped", "skipped"], "skipped"),
    ],
)
def test_message_takes_the_worst_outcome(found: list[Outcome], expected: Outcome) -> None:
    assert overall(found) == expected


# -- isolation


def test_bad_ticket_does_not_affect_the_others(harness: FakeHarness) -> None:
    put(harness, *"abcdefg")
    harness.source.put("b", b"\xff")
    del harness.source.objects["c"]
    harness.source.faults.set(Throttled("SlowDown"), "d")
    harness.models.failures = {"T-e": ModelFailed("a model raised RuntimeError")}
    harness.sink.faults.set(ValueError("a bug"), "T-f")
    answer = harness.invoke(event(*(record(notification(key), key) for key in "abcdefg")))
    assert {key: outcomes(answer, key) for key in "abcdefg"} == {
        "a": ["done"],
        "b": ["rejected"],
        "c": ["rejected"],
        "d": ["failed"],
        "e": ["failed"],
        "f": ["failed"],
        "g": ["done"],
    }
    assert failed(answer) == {"d", "e", "f"}
    assert {name for name, _ in harness.sink.items} == {"T-a", "T-g"}


@pytest.mark.parametrize("where", ["fetch", "known", "store", "models", "too few results"])
def test_unexpected_exception_is_logged_without_its_message(harness: FakeHarness, where: str) -> None:
    put(harness, "a")
    error = ValueError("could not convert 'what the customer wrote'")
    error.__cause__ = KeyError("what the customer wrote")
    harness.source.faults.set(error, *(["a"] if where == "fetch" else []))
    harness.sink.faults_known.set(error, *(["T-a"] if where == "known" else []))
    harness.sink.faults.set(error, *(["T-a"] if where == "store" else []))
    if where == "models":
        harness.models.fault = error
    if where == "too few results":
        harness.models.enrich = lambda *_, **__: []  # type: ignore[method-assign]
    answer = harness.invoke(event(record(notification("a")), record("no JSON", "m-2")))
    assert failed(answer) == {"m-1"}
    assert outcomes(answer, "m-2") == ["rejected"]
    assert harness.metrics.errors["failed", "unexpected"] == 1
    assert "customer" not in answer.log
    (line,) = [line for line in answer.lines() if line["message"] == "unexpected"]
    assert line["traceback"].count("Traceback") == 0
    assert "ValueError" in line["traceback"]
    assert ("fakes.py" if where == "known" else "batch.py") in line["traceback"]


def test_model_exception_is_one_json_line_without_its_message(
    enricher: Enricher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(part: Any, _: Any) -> Any:
        raise ValueError(f"could not convert {part[0].ticket.body!r}")

    broken = Enricher(enricher.bundle, enricher._encoder, enricher._classifiers)
    monkeypatch.setattr(broken, "_summarize", fail)
    answer = FakeHarness(broken).invoke(event(record(ticket("bad"))))
    assert (failed(answer), ticket()["body"] in answer.log) == ({"m-1"}, False)
    (line,) = [line for line in answer.lines() if line["message"] == "a model failed"]
    assert (line["level"], line["ticket_id"], line["stage"]) == ("ERROR", "bad", "enrich")
    assert line["traceback"].endswith("ValueError")
    assert "in fail" in line["traceback"]


def test_late_result_is_ignored(harness: FakeHarness) -> None:
    put(harness, "late")
    harness.seconds = [1, 30, 30, 30, 0.26, 30]
    gate = harness.sink.faults.hang("T-late")
    answer = harness.invoke(event(record(notification("late"))))
    assert failed(answer) == {"m-1"}
    gate.set()
    deadline = time.monotonic() + 60
    while not harness.sink.items and time.monotonic() < deadline:
        time.sleep(0.005)
    assert harness.metrics.outcomes == {"failed": 1}
    again = harness.invoke(event(record(notification("late"), receive_count=2)))
    assert notes(again) == ["already enriched"]


def test_ticket_that_was_forgotten_is_erased_although_its_store_ends_late(harness: FakeHarness) -> None:
    harness.seconds = [1, 30, 30, 30, 0.26, 30]
    gate = harness.sink.faults.hang("T-late")
    put(harness, "late")
    assert failed(harness.invoke(event(record(notification("late"))))) == {"m-1"}
    harness.sink.forgotten_ids.add("T-late")
    gate.set()
    eventually(lambda: harness.sink.changes and not harness.sink.items)


def test_tickets_that_are_forgotten_while_they_are_stored_are_erased(harness: FakeHarness) -> None:
    put(harness, "a", "b")

    class Models(FakeModels):
        def enrich(self, *arguments: Any, **options: Any) -> list[EnrichmentData | EnrichmentError]:
            harness.sink.forgotten_ids.add("T-a")
            return super().enrich(*arguments, **options)

    harness.handler = harness.build(Models())
    answer = harness.invoke(event(record(notification("a")), record(notification("b"), "m-2")))
    assert (notes(answer), outcomes(answer, "m-2")) == (["forgotten"], ["done"])
    assert {name for name, _ in harness.sink.items} == {"T-b"}
    assert harness.sink.objects.keys() == {"b"}


def test_a_read_of_the_table_that_fails_is_repeated_for_each_ticket(
    harness: FakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(harness, "a", "b", "c")
    known, reads = harness.sink.known, []

    def refuse(names: Sequence[TicketName]) -> list[Committed]:
        reads.append(len(names))
        if any(name == "T-b" for name, _ in names):
            raise ServiceFailed("BatchGetItem: InternalServerError")
        return known(names)

    monkeypatch.setattr(harness.sink, "known", refuse)
    answer = harness.invoke(event(*(record(notification(name), name) for name in "abc")))
    assert failed(answer) == {"b"}
    assert {name for name, _ in harness.sink.items} == {"T-a", "T-c"}
    assert reads == [3, 1, 1, 1]


# -- several batches at once, as in the worker


def test_models_run_for_one_batch_at_a_time_while_another_is_stored(harness: FakeHarness) -> None:
    gates = {name: threading.Event() for name in ("T-1", "T-2")}
    entered = {name: threading.Event() for name in ("T-1", "T-2")}

    class Models(FakeModels):
        def enrich(self, tickets: Sequence[RawTicket], **options: Any) -> list[EnrichmentData | EnrichmentError]:
            name = tickets[0].ticket_id
            entered[name].set()
            assert gates[name].wait(60)
            return super().enrich(tickets, **options)

    handler = harness.build(Models())
    storing = harness.sink.faults.hang("T-1")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(handler, event(record(ticket("T-1"), "m-1")), context())
        assert entered["T-1"].wait(60)
        second = pool.submit(handler, event(record(ticket("T-2"), "m-2")), context())
        assert not entered["T-2"].wait(0.2), "the models have one batch at a time"
        gates["T-1"].set()
        assert entered["T-2"].wait(60), "the first batch is still being stored"
        assert not first.done()
        storing.set()
        gates["T-2"].set()
        assert first.result(60) == second.result(60) == {"batchItemFailures": []}
    assert {name for name, _ in harness.sink.items} == {"T-1", "T-2"}


def test_batch_that_waits_too_long_for_the_models_is_out_of_time(harness: FakeHarness) -> None:
    gate, entered = threading.Event(), threading.Event()

    class Models(FakeModels):
        def enrich(self, tickets: Sequence[RawTicket], **options: Any) -> list[EnrichmentData | EnrichmentError]:
            entered.set()
            assert gate.wait(60)
            return super().enrich(tickets, **options)

    handler = harness.build(Models())
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(handler, event(record(ticket("T-1"), "m-1")), context())
        assert entered.wait(60)
        answer = handler(event(record(ticket("T-2"), "m-2")), context(lambda: 0.2))
        assert answer == {"batchItemFailures": [{"itemIdentifier": "m-2"}]}
        assert harness.metrics.errors == {("failed", "out_of_time"): 1}
        gate.set()
        assert first.result(60) == {"batchItemFailures": []}
    assert handler(event(record(ticket("T-2"), "m-2", receive_count=2)), context()) == {"batchItemFailures": []}


def test_stored_tickets_are_retried_if_nobody_knows_whether_they_were_forgotten(harness: FakeHarness) -> None:
    put(harness, "a")
    harness.sink.faults_forgotten.set(Throttled("BatchGetItem: x"), "T-a")
    assert failed(harness.invoke(event(record(notification("a"))))) == {"m-1"}
    harness.sink.faults_forgotten.clear()
    assert notes(harness.invoke(event(record(notification("a"), receive_count=2)))) == ["already enriched"]


# -- redaction


def personal(**fields: Any) -> dict[str, Any]:
    return {"subject": "From jane@example.com", "body": "My password: hunter2", "cc": "jane@example.com", **fields}


class SummaryOfBody(FakeModels):
    """Models whose summary is the body as they saw it."""

    def _data(self, ticket: RawTicket) -> EnrichmentData:
        return super()._data(ticket).model_copy(update={"summary": ticket.body})


@pytest.mark.parametrize(
    ("setting", "in_table", "in_object"),
    [("off", False, False), ("table", True, False), ("all", True, True)],
)
def test_redaction_covers_what_the_setting_names(setting: str, in_table: bool, in_object: bool) -> None:
    harness = FakeHarness(SummaryOfBody(), redact=setting)
    put(harness, "a", **personal())
    assert outcomes(harness.invoke(event(record(notification("a"))))) == ["done"]
    write, _ = harness.sink.items["T-a", 1_795_165_200]
    table = [write.ticket.subject, write.enrichment.summary]
    assert table == (
        ["From [EMAIL]", "My password: [SECRET]"] if in_table else [personal()["subject"], personal()["body"]]
    )
    whole = json.loads(harness.sink.objects["a"][0])
    stored = [whole["subject"], whole["body"], whole["cc"], whole["enrichment"]["summary"]]
    masked = ["From [EMAIL]", "My password: [SECRET]", "[EMAIL]", "My password: [SECRET]"]
    assert stored == (masked if in_object else [*personal().values(), personal()["body"]])
    assert write.content_sha256 == hashlib.sha256(harness.source.objects["a"].raw).hexdigest()
    assert write.redacted == setting


@pytest.mark.parametrize("setting", ["table", "all"])
def test_redacted_ticket_is_recognised_as_already_enriched(setting: str) -> None:
    harness = FakeHarness(redact=setting)
    put(harness, "a", **personal())
    harness.invoke(event(record(notification("a"))))
    assert notes(harness.invoke(event(record(notification("a"), "again"))), "again") == ["already enriched"]


def test_ticket_stored_with_another_setting_is_stored_again() -> None:
    harness = FakeHarness()
    put(harness, "a", **personal())
    harness.invoke(event(record(notification("a"))))
    harness.handler = harness.build(harness.models, redact="table")
    assert outcomes(harness.invoke(event(record(notification("a"))))) == ["done"]
    assert harness.sink.items["T-a", 1_795_165_200][0].ticket.subject == "From [EMAIL]"


# -- the shadow


def test_shadow_that_raises_or_has_no_time_leaves_the_ticket_as_it_is(
    bundle: Path, shadow_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Enricher.open(bundle, shadow=shadow_bundle)
    labels = Shadow._labels

    def fail(self: Shadow, part: Any) -> Any:
        if any(each.ticket.ticket_id == "bad" for each in part):
            raise ValueError(f"could not convert {part[0].ticket.body!r}")
        return labels(self, part)

    monkeypatch.setattr(Shadow, "_labels", fail)
    harness = FakeHarness(models)
    answer = harness.invoke(event(record(ticket("bad"), "bad"), record(ticket("good"), "good")))
    assert (failed(answer), harness.metrics.outcomes) == (set(), {"done": 2})
    stored = {name: write.enrichment.shadow for (name, _), (write, _) in harness.sink.items.items()}
    assert (stored["bad"], stored["good"] is None) == (None, False)
    assert b'"shadow"' not in harness.sink.items["bad", 1_795_165_200][0].body
    (line,) = [line for line in answer.lines() if line["message"] == "the shadow bundle did not label a ticket"]
    assert (line["level"], line["ticket_id"], line["error_type"]) == ("WARNING", "bad", "model_failed")
    assert line["traceback"].endswith("ValueError")
    assert ticket()["body"] not in answer.log
    assert harness.metrics.failed_shadows == ["model_failed"]

    assert models._shadow is not None
    models._shadow._batches.seconds_per_token = 1e6
    answer = harness.invoke(event(record(ticket("late"), "late")))
    assert (failed(answer), harness.metrics.outcomes) == (set(), {"done": 3})
    assert harness.metrics.failed_shadows == ["model_failed", "out_of_time"]
    assert len(harness.metrics.differences) == 3
    assert harness.metrics.differences.count(None) == 2


@pytest.mark.parametrize("setting", ["off", "all"])
def test_shadow_is_stored_and_says_nothing_of_the_text(bundle: Path, shadow_bundle: Path, setting: str) -> None:
    harness = FakeHarness(Enricher.open(bundle, shadow=shadow_bundle), redact=setting)
    put(harness, "a", **personal())
    assert outcomes(harness.invoke(event(record(notification("a"))))) == ["done"]
    whole = json.loads(harness.sink.objects["a"][0])
    assert (whole["subject"] == "From [EMAIL]") == (setting == "all")
    shadow = whole["enrichment"]["shadow"]
    assert shadow["model_version"].startswith("candidate@")
    assert shadow["differs"] == [
        task for task in ("intent", "urgency", "sentiment") if shadow[task] != whole["enrichment"][task]
    ]
    assert harness.metrics.differences == [shadow["differs"]]


def test_ticket_that_is_already_enriched_is_not_labelled_by_a_new_shadow(
    bundle: Path, shadow_bundle: Path, enricher: Enricher
) -> None:
    harness = FakeHarness(enricher)
    put(harness, "a")
    harness.invoke(event(record(notification("a"))))
    harness.handler = harness.build(Enricher.open(bundle, shadow=shadow_bundle))
    assert notes(harness.invoke(event(record(notification("a"))))) == ["already enriched"]
    assert harness.sink.items["T-a", 1_795_165_200][0].enrichment.shadow is None
