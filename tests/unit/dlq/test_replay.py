"""A replay deletes only what SQS has accepted, and makes everything else visible again, whatever the queues do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handler.aws.sqs import MAX_BYTES, SendResult
from handler.dlq.audit import Audit
from handler.dlq.errors import DlqError
from handler.dlq.filter import Filter
from handler.dlq.message import DlqMessage
from handler.dlq.options import Options
from handler.dlq.replay import RateLimiter, Replay, send_batch
from handler.dlq.scan import Scan, Stats
from handler.errors import ServiceFailed
from tests.support.dlq_queues import Clock, FakeQueue, FakeShutdown, dlq_message, text

SUBJECT = {"source": "dead", "destination": "live"}
REFUSED = SendResult(None, "InvalidMessageContents: no", transient=False)
BUSY = SendResult(None, "InternalError: busy", transient=True)


class Harness:
    """A DLQ and its queue on one clock, and replays from one to the other."""

    def __init__(self, *messages: DlqMessage) -> None:
        self.clock = Clock()
        self.dlq = FakeQueue("dead", self.clock)
        self.live = FakeQueue("live", self.clock)
        self.shutdown = FakeShutdown(self.clock)
        self.dlq.put(*messages)
        self.stats = Stats()
        self.progress: list[int] = []

    def run(self, *, audit: Audit | None = None, target: FakeQueue | None = None, **options: Any) -> Stats:
        """Replay, until everything is made visible again; `options` are fields of Options."""
        audit, target = audit or Audit(), target or self.live
        scan = Scan(self.dlq, Options(**options), self.shutdown, audit.history, self.clock)
        self.stats = scan.stats
        limiter = RateLimiter(options.get("rate"), self.shutdown, self.clock)
        with scan.in_flight:
            Replay(scan, target, target.attributes(), audit, limiter).run(
                lambda stats: self.progress.append(stats.scanned)
            )
        return scan.stats


def messages(number: int, **fields: Any) -> list[DlqMessage]:
    return [dlq_message(f"m-{n}", **fields) for n in range(number)]


def bodies(number: int) -> list[str]:
    return [f"body of m-{n}" for n in range(number)]


def test_every_message_arrives_once_and_is_deleted() -> None:
    harness = Harness(*messages(37))
    stats = harness.run()
    assert Counter(harness.live.bodies) == Counter(bodies(37))
    assert harness.dlq.ids == []
    assert (stats.scanned, stats.selected, stats.replayed) == (37, 37, 37)
    assert stats.is_complete
    assert harness.progress[-1] == 37
    assert harness.progress == sorted(harness.progress)


def test_json_output_keeps_its_names() -> None:
    assert Stats(scanned=3, selected=2, replayed=1, failed=1).as_json() == {
        "looked": 3,
        "chosen": 2,
        "replayed": 1,
        "finished": 0,
        "refused": 0,
        "failed": 1,
        "undeleted": 0,
        "returned": 0,
        "unmarked": 0,
        "interrupted": False,
        "complete": False,
    }


# -- receiving


def test_scan_ends_after_several_empty_receives() -> None:
    harness = Harness()
    assert harness.run(empty_polls=4).is_complete
    assert harness.dlq.calls == ["receive"] * 4


def test_falsely_empty_receives_do_not_end_the_scan() -> None:
    harness = Harness(*messages(3))
    for stored in harness.dlq.stored:
        stored.visible_at = harness.clock.now + 7  # two polls of five seconds return nothing
    assert harness.run(empty_polls=3).replayed == 3


def test_message_delivered_twice_by_one_receive_is_sent_once() -> None:
    harness = Harness(*messages(2))
    receive = harness.dlq.receive

    def twice(**arguments: Any) -> list[Any]:
        return [copy for message in receive(**arguments) for copy in (message, message)]

    harness.dlq.receive = twice  # type: ignore[method-assign]
    assert harness.run().replayed == 2
    assert Counter(harness.live.bodies) == Counter(bodies(2))


def test_unselected_messages_become_visible_at_the_end() -> None:
    harness = Harness(*messages(15, reason="throttled"), *(dlq_message(f"x-{n}", reason="gone") for n in range(15)))
    stats = harness.run(reason=["gone"])
    assert (stats.scanned, stats.selected, stats.replayed) == (30, 15, 15)
    assert len(harness.dlq.visible) == 15
    assert stats.is_complete


def test_unselected_messages_are_scanned_once_in_a_run_of_hours() -> None:
    harness = Harness(*messages(15, reason="throttled"), *(dlq_message(f"x-{n}", reason="gone") for n in range(150)))
    stats = harness.run(reason=["gone"], rate=0.02)
    assert harness.clock.now > 7000
    assert (stats.scanned, stats.replayed) == (165, 150)
    assert len(harness.dlq.visible) == 15


def test_slow_replay_keeps_its_messages_invisible() -> None:
    harness = Harness(*(dlq_message(f"x-{n}") for n in range(5)), *messages(30, reason="slow"))
    seen: set[str] = set()
    harness.live.before = lambda call: seen.update(harness.dlq.visible)
    stats = harness.run(reason=["slow"], rate=0.02)
    assert (stats.replayed, stats.scanned) == (30, 35)  # nothing was received a second time
    assert not seen & {f"x-{n}" for n in range(5)}  # they were received first


def test_expired_message_is_not_sent_but_received_again(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness(*messages(3))
    selects = Filter.selects

    def slow(self: Filter, message: DlqMessage) -> bool:
        """While the machine sleeps, another consumer receives the messages, and releases them later."""
        if message.message_id == "m-2" and harness.dlq.calls.count("receive") == 1:
            harness.clock.now += 70
            assert len(harness.dlq.receive(wait=0, visibility_timeout=8)) == 3
        return selects(self, message)

    monkeypatch.setattr(Filter, "selects", slow)
    stats = harness.run()
    assert (stats.scanned, stats.replayed, stats.undeleted) == (3, 3, 0)
    assert Counter(harness.live.bodies) == Counter(bodies(3))


# -- sending and deleting


def test_only_accepted_messages_are_deleted() -> None:
    harness = Harness(*messages(10))
    harness.live.send_faults = {"body of m-3": [REFUSED], "body of m-8": [BUSY, BUSY, BUSY]}
    stats = harness.run()
    assert harness.dlq.visible == ["m-3", "m-8"]
    assert Counter(harness.live.bodies) == Counter(bodies(10)) - Counter(["body of m-3", "body of m-8"])
    assert (stats.replayed, stats.failed) == (8, 2)
    assert stats.failures == [("m-3", "InvalidMessageContents: no"), ("m-8", "InternalError: busy")]
    assert not stats.is_complete


def test_transient_failures_are_retried_alone() -> None:
    harness = Harness(*messages(3))
    harness.live.send_faults = {"body of m-1": [BUSY, BUSY]}
    assert harness.run().replayed == 3
    sent = [[entry["MessageBody"] for entry in batch] for batch in harness.live.batches]
    assert sent == [bodies(3), ["body of m-1"], ["body of m-1"]]


def test_send_batch_returns_results_in_order() -> None:
    queue = FakeQueue()
    queue.send_faults = {"b": [BUSY, REFUSED], "c": [BUSY]}
    results = send_batch(queue, [{"MessageBody": body} for body in "abc"], FakeShutdown())
    assert [result.error for result in results] == ["", REFUSED.error, ""]


def test_accepted_messages_are_deleted_when_the_retry_cannot_be_made() -> None:
    harness = Harness(*messages(3))
    harness.live.send_faults = {"body of m-1": [BUSY]}
    harness.live.errors["send"] = [None, ServiceFailed("SendMessageBatch: no network")]
    stats = harness.run()
    assert harness.dlq.visible == ["m-1"]
    assert (stats.replayed, stats.failed) == (2, 1)


def test_failing_send_call_ends_the_run_and_releases_everything() -> None:
    harness = Harness(*messages(25))
    harness.live.errors["send"] = [None, ServiceFailed("SendMessageBatch: AccessDenied")]
    with pytest.raises(ServiceFailed, match="AccessDenied"):
        harness.run()
    assert Counter(harness.live.bodies) == Counter(bodies(10))
    assert len(harness.dlq.visible) == 15
    assert harness.stats.replayed == 10


def test_delete_is_retried_and_then_counted_as_undeleted() -> None:
    harness = Harness(*messages(3))
    harness.dlq.stubborn.update({"m-0": 2, "m-1": 3})
    stats = harness.run()
    assert (stats.replayed, stats.undeleted) == (2, 1)
    assert harness.dlq.visible == ["m-1"]
    assert not stats.is_complete


def test_failing_delete_call_counts_what_is_in_both_queues() -> None:
    harness = Harness(*messages(12))
    harness.dlq.errors["delete"] = [ServiceFailed("DeleteMessageBatch: gone")]
    with pytest.raises(ServiceFailed, match="gone"):
        harness.run()
    assert (harness.stats.replayed, harness.stats.undeleted) == (0, 10)
    assert len(harness.dlq.visible) == 12


def test_unsendable_message_stays_in_the_dlq() -> None:
    harness = Harness(dlq_message("m-0"), dlq_message("m-1", body=""), dlq_message("m-2"))
    stats = harness.run()
    assert (stats.replayed, stats.failed) == (2, 1)
    assert harness.dlq.visible == ["m-1"]


def test_large_messages_go_in_several_batches() -> None:
    harness = Harness(*(dlq_message(f"m-{n}", body=str(n) * (400 * 1024)) for n in range(7)))
    assert harness.run().replayed == 7
    assert [len(batch) for batch in harness.live.batches] == [2, 2, 2, 1]
    for batch in harness.live.batches:
        assert sum(len(entry["MessageBody"]) for entry in batch) <= MAX_BYTES


def test_messages_without_room_for_the_replay_count_are_counted() -> None:
    ten = {f"own{n}": text("x") for n in range(10)}
    stats = Harness(*messages(3, attributes=ten), dlq_message("x-1")).run()
    assert (stats.replayed, stats.unmarked) == (4, 3)
    assert stats.is_complete


# -- what comes back


def test_messages_that_come_back_during_the_run_stay_in_the_dlq() -> None:
    harness = Harness(*messages(5))

    def fail_everything(call: str) -> None:
        """Every message fails at once: half of them are rejected by the handler, half are moved by SQS."""
        if call == "receive":
            while harness.live.stored:
                message = harness.live.stored.pop().message
                if int(message.message_id.rpartition("-")[2]) % 2:
                    rejection = {"message_id": message.message_id}
                    message = dlq_message(f"back {message.message_id}", reason="bad", rejection=rejection)
                harness.dlq.put(message)

    harness.dlq.before = fail_everything
    stats = harness.run()
    assert (stats.replayed, stats.returned) == (5, 5)
    assert len(harness.dlq.visible) == 5


def test_replay_into_the_same_queue_ends() -> None:
    harness = Harness(*messages(25))
    assert harness.run(target=harness.dlq).replayed == 25
    assert Counter(harness.dlq.bodies) == Counter(bodies(25))
    assert len(harness.dlq.visible) == 25


def test_max_replays_refuses_without_using_up_the_limit() -> None:
    often = {"ReplayCount": text("3", "Number")}
    harness = Harness(*messages(5, attributes=often), *(dlq_message(f"x-{n}") for n in range(5)))
    stats = harness.run(max_replays=3, limit=4)
    assert (stats.replayed, stats.refused) == (4, 5)
    assert len(harness.dlq.visible) == 6
    assert not stats.is_complete
    assert harness.run(max_replays=4, limit=20).replayed == 6


# -- limits


@pytest.mark.parametrize("limit", [1, 7, 10, 13])
def test_limit_bounds_what_is_sent(limit: int) -> None:
    harness = Harness(*messages(30))
    stats = harness.run(limit=limit)
    assert len(harness.live.bodies) == stats.replayed == limit
    assert len(harness.dlq.visible) == 30 - limit
    assert stats.is_complete


@pytest.mark.parametrize(("rate", "most"), [(0.5, 1), (1, 1), (4, 4), (25, 10)])
def test_rate_is_kept_evenly(rate: float, most: int) -> None:
    harness = Harness(*messages(40))
    times: list[float] = []
    harness.live.before = lambda call: times.append(harness.clock.now)
    started = harness.clock.now
    assert harness.run(rate=rate, limit=40).replayed == 40
    assert max(len(batch) for batch in harness.live.batches) == most
    sent = 0
    for moment, batch in zip(times, harness.live.batches, strict=True):
        assert sent <= (moment - started) * rate + 1e-6
        sent += len(batch)
    # Not slower than the rate either: the last batch is sent as soon as it may be.
    assert times[-1] - started == pytest.approx((40 - len(harness.live.batches[-1])) / rate)


# -- interruption


@pytest.mark.parametrize("after", range(1, 9))
def test_shutdown_finishes_the_batch_and_releases_the_rest(after: int) -> None:
    harness = Harness(*messages(40, reason="x"), *(dlq_message(f"y-{n}") for n in range(5)))
    calls: list[str] = []

    def request(call: str) -> None:
        calls.append(call)
        if len(calls) == after:
            harness.shutdown.request()

    harness.dlq.before = harness.live.before = request
    stats = harness.run(reason=["x"], rate=100)
    assert stats.interrupted
    assert not stats.is_complete
    assert len(harness.live.bodies) == stats.replayed
    assert len(harness.live.bodies) + len(harness.dlq.ids) == 45
    assert len(harness.dlq.visible) == len(harness.dlq.ids)


def test_shutdown_during_a_pause_counts_as_interrupted_when_the_limit_is_reached() -> None:
    harness = Harness(*messages(10))
    harness.live.before = lambda call: harness.shutdown.request()
    stats = harness.run(limit=10, rate=1)
    assert (stats.replayed, stats.interrupted) == (1, True)
    assert len(harness.dlq.visible) == 9


# -- resuming from the audit file


def test_next_run_deletes_what_a_killed_run_had_sent(tmp_path: Path) -> None:
    harness = Harness(*messages(25))
    harness.dlq.errors["delete"] = [None, ServiceFailed("killed")]
    with Audit(tmp_path / "audit", SUBJECT) as audit, pytest.raises(ServiceFailed):
        harness.run(audit=audit)
    with Audit(tmp_path / "audit", SUBJECT) as audit:
        assert len(audit.history.undeleted) == 10
        stats = harness.run(audit=audit)
    assert (stats.replayed, stats.finished) == (5, 10)
    assert Counter(harness.live.bodies) == Counter(bodies(25))
    assert harness.dlq.ids == []


def test_sent_messages_are_deleted_although_the_filter_skips_them_now(tmp_path: Path) -> None:
    harness = Harness(*messages(5))
    harness.dlq.errors["delete"] = [ServiceFailed("killed")]
    with Audit(tmp_path / "audit", SUBJECT) as audit, pytest.raises(ServiceFailed):
        harness.run(audit=audit)
    with Audit(tmp_path / "audit", SUBJECT) as audit:
        assert harness.run(audit=audit, reason=["another"]).finished == 5
    assert harness.dlq.ids == []


def test_full_disk_deletes_what_was_sent_although_another_message_failed() -> None:
    class FullDisk(Audit):
        def write(self, event: str, lines: Sequence[Mapping[str, Any]]) -> None:
            if event == "failed":
                raise DlqError("audit: No space left on device")

    harness = Harness(*messages(3))
    harness.live.send_faults = {"body of m-0": [REFUSED]}
    with pytest.raises(DlqError, match="No space"):
        harness.run(audit=FullDisk())
    assert len(harness.live.bodies) == 2
    assert harness.dlq.visible == ["m-0"]
    assert (harness.stats.replayed, harness.stats.failed) == (2, 1)


def test_full_disk_deletes_what_was_sent_and_ends_the_run() -> None:
    class FullDisk(Audit):
        def write(self, event: str, lines: Sequence[Mapping[str, Any]]) -> None:
            if event == "sent":
                raise DlqError("audit: No space left on device")

    harness = Harness(*messages(12))
    with pytest.raises(DlqError, match="No space"):
        harness.run(audit=FullDisk())
    assert len(harness.live.bodies) == 10
    assert len(harness.dlq.visible) == 2


def test_audit_file_keeps_replay_counts_for_which_there_was_no_room(tmp_path: Path) -> None:
    harness = Harness(dlq_message("m-0", attributes={f"own{n}": text("x") for n in range(10)}))
    for _ in range(2):
        with Audit(tmp_path / "audit", SUBJECT) as audit:
            assert harness.run(audit=audit, max_replays=2).replayed == 1
        message = harness.live.stored.pop().message
        harness.dlq.put(replace(message, receipt=""))  # moved by SQS, which keeps the id
    with Audit(tmp_path / "audit", SUBJECT) as audit:
        assert harness.run(audit=audit, max_replays=2).refused == 1
