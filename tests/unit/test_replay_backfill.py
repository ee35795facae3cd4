"""Stored tickets are sent as S3 would have notified them; a backfill goes on where it ended, in constant memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from handler.messages import StoredTicket, references
from handler.replay.audit import Audit, AuditFile, NoAudit
from handler.replay.backfill import Backfill, Place, notification, parse_place
from handler.replay.choice import Choice
from handler.replay.queue import ReplayError, ReplayRefused, Sent
from handler.replay.run import Pace
from tests.replay_fakes import FakeHalt, FakeQueue

REPO = Path(__file__).resolve().parents[2]
PLACE = Place("tickets-raw", "2026/")
SUBJECT = {"source": "s3://tickets-raw/2026/", "destination": "live"}


def item(key: str, *, size: int = 100, modified: int = 1_795_000_000) -> dict[str, Any]:
    """An entry of S3's list; the time in seconds."""
    return {"Key": key, "Size": size, "ETag": '"abc"', "LastModified": datetime.fromtimestamp(modified, UTC)}


def items(number: int) -> list[dict[str, Any]]:
    return [item(f"2026/{n:04}.json") for n in range(number)]


def keys(queue: FakeQueue) -> list[str]:
    found = []
    for body in queue.bodies:
        (reference,) = references(body)
        assert isinstance(reference, StoredTicket)
        assert reference.bucket == "tickets-raw"
        found.append(reference.key)
    return found


def run(
    queue: Any,
    objects: Iterable[Mapping[str, Any]],
    audit: Audit | None = None,
    halt: FakeHalt | None = None,
    choice: Choice | None = None,
    rate: float | None = None,
    **options: Any,
) -> Backfill:
    halt = halt or FakeHalt()
    work = Backfill(
        PLACE,
        queue,
        choice or Choice(),
        audit=audit or NoAudit(),
        pace=Pace(rate, halt, halt.clock),
        halt=halt,
        **options,
    )
    work.run(objects, lambda tally: None)
    return work


def rest(objects: list[dict[str, Any]], audit: Audit) -> list[dict[str, Any]]:
    """What S3 lists after the last key of an earlier run."""
    return [entry for entry in objects if entry["Key"] > audit.journal.last_key]


@pytest.mark.parametrize("key", ["2026/a b+c&d.json", "ü/€.json", "a//b", "x%2Fy", "line\nbreak", "plain.json"])
def test_the_handler_finds_the_key_that_is_meant(key: str) -> None:
    assert references(notification(PLACE, item(key))) == [StoredTicket("tickets-raw", key)]
    assert references(notification(PLACE, {"Key": key})) == [StoredTicket("tickets-raw", key)]


def test_a_notification_looks_as_those_of_s3_do() -> None:
    (record,) = json.loads(notification(PLACE, item("2026/a b.json", size=7)))["Records"]
    assert record["eventSource"] == "aws:s3"
    assert record["eventName"] == "ObjectCreated:Put"
    assert record["eventTime"] == "2026-11-18T11:06:40.000Z"
    assert record["s3"]["bucket"] == {"name": "tickets-raw", "arn": "arn:aws:s3:::tickets-raw"}
    assert record["s3"]["object"] == {"key": "2026/a+b.json", "size": 7, "eTag": "abc"}


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("s3://bucket/a/b/", Place("bucket", "a/b/")),
        ("s3://bucket/", Place("bucket", "")),
        ("s3://bucket", Place("bucket", "")),
        ("s3://bucket/a%20b", Place("bucket", "a%20b")),
    ],
)
def test_a_place_is_a_bucket_and_the_beginning_of_keys(said: str, meant: Place) -> None:
    assert parse_place(said) == meant


@pytest.mark.parametrize("said", ["", "bucket/prefix", "s3:/bucket", "s3:///prefix", "https://bucket/prefix"])
def test_other_places_are_refused(said: str) -> None:
    with pytest.raises(ReplayRefused, match="not like s3://bucket/prefix"):
        parse_place(said)


def test_every_ticket_is_sent_once() -> None:
    queue = FakeQueue()
    tally = run(queue, [item("2026/", size=0), *items(25), item("2026/empty.json", size=0)]).tally
    assert keys(queue) == [*(f"2026/{n:04}.json" for n in range(25)), "2026/empty.json"]
    assert (tally.looked, tally.chosen, tally.replayed) == (27, 26, 26)
    assert tally.is_complete


def test_times_choose_by_the_last_change() -> None:
    queue = FakeQueue()
    objects = [item(f"2026/{n}", modified=1000 + n) for n in range(5)]
    run(queue, objects, choice=Choice(after=1_001_000, before=1_004_000))
    assert keys(queue) == ["2026/1", "2026/2", "2026/3"]


def test_a_limit_and_a_rate_are_kept() -> None:
    queue, halt = FakeQueue(), FakeHalt()
    run(queue, items(25), halt=halt, limit=13, rate=4)
    assert [len(batch) for batch in queue.batches] == [4, 4, 4, 1]
    assert sum(halt.pauses) == pytest.approx(3)


def test_a_dry_run_sends_nothing() -> None:
    queue = FakeQueue()
    assert run(queue, items(25), dry_run=True).tally.chosen == 25
    assert queue.calls == []


def test_a_run_that_was_ended_goes_on_after_its_last_key(tmp_path: Path) -> None:
    queue, halt = FakeQueue(), FakeHalt()
    queue.before = lambda call: halt.request() if len(queue.batches) == 2 else None
    with AuditFile(tmp_path / "audit", SUBJECT) as audit:
        work = run(queue, items(100), audit, halt)
    assert work.tally.interrupted
    assert work.last_key == "2026/0029.json"
    queue.before = lambda call: None
    with AuditFile(tmp_path / "audit", SUBJECT) as audit:
        run(queue, rest(items(100), audit), audit)
    assert keys(queue) == [f"2026/{n:04}.json" for n in range(100)]


@pytest.mark.parametrize("batch", range(3))
def test_a_run_that_was_killed_sends_at_most_a_batch_twice(tmp_path: Path, batch: int) -> None:
    class Killed(BaseException):
        pass

    def kill(call: str) -> None:
        if len(queue.batches) == batch:
            queue.batches.append([])
            queue.send(entries_of(batch))
            raise Killed

    def entries_of(number: int) -> list[dict[str, str]]:
        return [{"MessageBody": notification(PLACE, entry)} for entry in items(30)[number * 10 : number * 10 + 10]]

    queue = FakeQueue()
    queue.before = kill
    with AuditFile(tmp_path / "audit", SUBJECT) as audit, pytest.raises(Killed):
        run(queue, items(30), audit)
    queue.before = lambda call: None
    with AuditFile(tmp_path / "audit", SUBJECT) as audit:
        run(queue, rest(items(30), audit), audit)
    found = keys(queue)
    assert set(found) == {f"2026/{n:04}.json" for n in range(30)}
    assert len(found) == 40


def test_what_failed_is_tried_again_by_the_next_run(tmp_path: Path) -> None:
    queue = FakeQueue()
    failing = {notification(PLACE, entry): [Sent(None, "Invalid: no")] for entry in items(30)[3:30:7]}
    queue.send_faults = failing
    with AuditFile(tmp_path / "audit", SUBJECT) as audit:
        tally = run(queue, items(30), audit).tally
    assert (tally.replayed, tally.failed) == (26, 4)
    assert tally.failures[0] == ("2026/0003.json", "Invalid: no")
    with AuditFile(tmp_path / "audit", SUBJECT) as audit:
        assert run(queue, rest(items(30), audit), audit).tally.replayed == 4
    with AuditFile(tmp_path / "audit", SUBJECT) as audit:
        assert run(queue, rest(items(30), audit), audit).tally.chosen == 0
    assert sorted(keys(queue)) == [f"2026/{n:04}.json" for n in range(30)]


def test_where_a_thousand_keys_fail_more_of_them_would_not_help() -> None:
    class Refusing(FakeQueue):
        def send(self, entries: Any) -> list[Sent]:
            return [Sent(None, "Invalid: no") for _ in entries]

    with pytest.raises(ReplayError, match="1000 keys failed"):
        run(Refusing(), items(5000))
