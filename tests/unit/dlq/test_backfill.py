"""A backfill sends the notifications of stored tickets, resumes after a kill, and needs constant memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from handler.aws.sqs import SendResult
from handler.dlq.audit import Audit
from handler.dlq.backfill import Backfill, notification, parse_location
from handler.dlq.errors import DlqError, RequestInvalid
from handler.dlq.options import Options
from handler.dlq.replay import RateLimiter
from handler.messages import StoredTicket, references
from tests.support.dlq_queues import FakeQueue, FakeShutdown

REPO = Path(__file__).resolve().parents[3]
BUCKET = "tickets-raw"
SUBJECT = {"source": "s3://tickets-raw/2026/", "destination": "live"}


def item(key: str, *, size: int = 100, modified: int = 1_795_000_000) -> dict[str, Any]:
    """An entry of S3's listing; the time in seconds."""
    return {"Key": key, "Size": size, "ETag": '"abc"', "LastModified": datetime.fromtimestamp(modified, UTC)}


def items(number: int) -> list[dict[str, Any]]:
    return [item(f"2026/{n:04}.json") for n in range(number)]


def keys(queue: FakeQueue) -> list[str]:
    found = []
    for body in queue.bodies:
        (reference,) = references(body)
        assert isinstance(reference, StoredTicket)
        assert reference.bucket == BUCKET
        found.append(reference.key)
    return found


def run(
    queue: FakeQueue,
    objects: Iterable[Mapping[str, Any]],
    audit: Audit | None = None,
    shutdown: FakeShutdown | None = None,
    **options: Any,
) -> Backfill:
    shutdown = shutdown or FakeShutdown()
    limiter = RateLimiter(options.get("rate"), shutdown, shutdown.clock)
    work = Backfill(BUCKET, queue, Options(**options), audit or Audit(), limiter)
    work.run(objects, lambda stats: None)
    return work


def remaining(objects: list[dict[str, Any]], audit: Audit) -> list[dict[str, Any]]:
    """What S3 lists after the last key of an earlier run."""
    return [entry for entry in objects if entry["Key"] > audit.history.last_key]


@pytest.mark.parametrize("key", ["2026/a b+c&d.json", "ü/€.json", "a//b", "x%2Fy", "line\nbreak", "plain.json"])
def test_handler_reads_the_key_from_the_notification(key: str) -> None:
    assert references(notification(BUCKET, item(key))) == [StoredTicket(BUCKET, key)]
    assert references(notification(BUCKET, {"Key": key})) == [StoredTicket(BUCKET, key)]


def test_notification_looks_like_one_of_s3() -> None:
    (record,) = json.loads(notification(BUCKET, item("2026/a b.json", size=7)))["Records"]
    assert record["eventSource"] == "aws:s3"
    assert record["eventName"] == "ObjectCreated:Put"
    assert record["eventTime"] == "2026-11-18T11:06:40.000Z"
    assert record["s3"]["bucket"] == {"name": "tickets-raw", "arn": "arn:aws:s3:::tickets-raw"}
    assert record["s3"]["object"] == {"key": "2026/a+b.json", "size": 7, "eTag": "abc"}


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("s3://bucket/a/b/", ("bucket", "a/b/")),
        ("s3://bucket/", ("bucket", "")),
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/a%20b", ("bucket", "a%20b")),
    ],
)
def test_location_is_bucket_and_prefix(url: str, location: tuple[str, str]) -> None:
    assert parse_location(url) == location


@pytest.mark.parametrize("url", ["", "bucket/prefix", "s3:/bucket", "s3:///prefix", "https://bucket/prefix"])
def test_other_locations_are_refused(url: str) -> None:
    with pytest.raises(RequestInvalid, match="does not look like s3://bucket/prefix"):
        parse_location(url)


def test_every_ticket_is_sent_once() -> None:
    queue = FakeQueue()
    stats = run(queue, [item("2026/", size=0), *items(25), item("2026/empty.json", size=0)]).stats
    assert keys(queue) == [*(f"2026/{n:04}.json" for n in range(25)), "2026/empty.json"]
    assert (stats.scanned, stats.selected, stats.replayed) == (27, 26, 26)
    assert stats.is_complete


def test_times_are_compared_with_the_last_modification() -> None:
    queue = FakeQueue()
    run(queue, [item(f"2026/{n}", modified=1000 + n) for n in range(5)], newer_than=1_001_000, older_than=1_004_000)
    assert keys(queue) == ["2026/1", "2026/2", "2026/3"]


def test_limit_and_rate_are_kept() -> None:
    queue, shutdown = FakeQueue(), FakeShutdown()
    run(queue, items(25), shutdown=shutdown, limit=13, rate=4)
    assert [len(batch) for batch in queue.batches] == [4, 4, 4, 1]
    assert sum(shutdown.pauses) == pytest.approx(3)


def test_dry_run_sends_nothing() -> None:
    queue = FakeQueue()
    assert run(queue, items(25), dry_run=True).stats.selected == 25
    assert queue.calls == []


def test_interrupted_run_continues_after_its_last_key(tmp_path: Path) -> None:
    queue, shutdown = FakeQueue(), FakeShutdown()
    queue.before = lambda call: shutdown.request() if len(queue.batches) == 2 else None
    with Audit(tmp_path / "audit", SUBJECT) as audit:
        work = run(queue, items(100), audit, shutdown)
    assert work.stats.interrupted
    assert work.last_key == "2026/0029.json"
    queue.before = lambda call: None
    with Audit(tmp_path / "audit", SUBJECT) as audit:
        run(queue, remaining(items(100), audit), audit)
    assert keys(queue) == [f"2026/{n:04}.json" for n in range(100)]


@pytest.mark.parametrize("batch", range(3))
def test_killed_run_sends_at_most_one_batch_twice(tmp_path: Path, batch: int) -> None:
    class Killed(BaseException):
        pass

    def kill(call: str) -> None:
        if len(queue.batches) == batch:
            queue.batches.append([])
            first = 10 * batch
            queue.send([{"MessageBody": notification(BUCKET, entry)} for entry in items(30)[first : first + 10]])
            raise Killed

    queue = FakeQueue()
    queue.before = kill
    with Audit(tmp_path / "audit", SUBJECT) as audit, pytest.raises(Killed):
        run(queue, items(30), audit)
    queue.before = lambda call: None
    with Audit(tmp_path / "audit", SUBJECT) as audit:
        run(queue, remaining(items(30), audit), audit)
    found = keys(queue)
    assert set(found) == {f"2026/{n:04}.json" for n in range(30)}
    assert len(found) == 40


def test_failed_keys_are_retried_by_the_next_run(tmp_path: Path) -> None:
    queue = FakeQueue()
    refused = SendResult(None, "Invalid: no")
    queue.send_faults = {notification(BUCKET, entry): [refused] for entry in items(30)[3:30:7]}
    with Audit(tmp_path / "audit", SUBJECT) as audit:
        stats = run(queue, items(30), audit).stats
    assert (stats.replayed, stats.failed) == (26, 4)
    assert stats.failures[0] == ("2026/0003.json", "Invalid: no")
    with Audit(tmp_path / "audit", SUBJECT) as audit:
        assert run(queue, remaining(items(30), audit), audit).stats.replayed == 4
    with Audit(tmp_path / "audit", SUBJECT) as audit:
        assert run(queue, remaining(items(30), audit), audit).stats.selected == 0
    assert sorted(keys(queue)) == [f"2026/{n:04}.json" for n in range(30)]


def test_run_ends_after_a_thousand_failures() -> None:
    class Refusing(FakeQueue):
        def send(self, entries: Sequence[Any]) -> list[SendResult]:
            return [SendResult(None, "Invalid: no") for _ in entries]

    with pytest.raises(DlqError, match="1000 keys failed"):
        run(Refusing(), items(5000))
