"""A replay sends before it deletes, deletes only what arrived, and gives everything else back, whatever queues do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from handler.replay.audit import Audit, AuditFile, NoAudit
from handler.replay.choice import Choice
from handler.replay.hold import Hold
from handler.replay.letter import MOST_BYTES, Letter
from handler.replay.look import Look, Plan, Tally
from handler.replay.queue import QueueFacts, ReplayError, Sent
from handler.replay.run import Pace, Replay, send_entries
from tests.replay_fakes import ARN, Clock, FakeHalt, FakeQueue, letter, text

SUBJECT = {"source": "dead", "destination": "live"}
GONE = Sent(None, "InvalidMessageContents: no", transient=False)
BUSY = Sent(None, "InternalError: busy", transient=True)


class Scene:
    """A dead-letter queue and the queue that it belongs to, on one clock, and runs between them."""

    def __init__(self, *letters: Letter) -> None:
        self.clock = Clock()
        self.dead = FakeQueue("dead", self.clock)
        self.live = FakeQueue("live", self.clock, dead_letter_arn=ARN + "dead")
        self.halt = FakeHalt(self.clock)
        self.dead.put(*letters)
        self.tally = Tally()
        self.progress: list[int] = []

    def run(
        self,
        choice: Choice | None = None,
        *,
        rate: float | None = None,
        audit: Audit | None = None,
        target: FakeQueue | None = None,
        **plan: Any,
    ) -> Tally:
        """One run, from the first look to giving back."""
        audit, target = audit or NoAudit(), target or self.live
        hold = Hold(self.dead, 60, self.clock)
        look = Look(self.dead, hold, choice or Choice(), self.halt, Plan(**plan), audit.journal)
        self.tally = look.tally
        pace = Pace(rate, self.halt, self.clock)
        facts = QueueFacts(arn=ARN + target.name)
        replay = Replay(look, hold, self.dead, target, facts, audit=audit, pace=pace, halt=self.halt)
        with hold:
            replay.run(lambda tally: self.progress.append(tally.settled))
        return look.tally


def letters(number: int, **fields: Any) -> list[Letter]:
    return [letter(f"m-{n}", **fields) for n in range(number)]


def bodies(number: int) -> list[str]:
    return [f"body of m-{n}" for n in range(number)]


def test_everything_arrives_once_and_is_deleted() -> None:
    scene = Scene(*letters(37))
    tally = scene.run()
    assert Counter(scene.live.bodies) == Counter(bodies(37))
    assert scene.dead.ids == []
    assert (tally.looked, tally.chosen, tally.replayed, tally.settled) == (37, 37, 37, 37)
    assert tally.is_complete
    assert scene.progress[-1] == 37
    assert scene.progress == sorted(scene.progress)


def test_an_empty_queue_is_requested_several_times() -> None:
    scene = Scene()
    assert scene.run(empty_polls=4).is_complete
    assert scene.dead.calls == ["receive"] * 4


def test_one_falsely_empty_answer_ends_nothing() -> None:
    scene = Scene(*letters(3))
    hidden_until = scene.clock.now + 7  # two polls of five seconds find nothing
    for stored in scene.dead.stored:
        stored.visible_at = hidden_until
    assert scene.run(empty_polls=3).replayed == 3


def test_only_what_arrived_is_deleted() -> None:
    scene = Scene(*letters(10))
    scene.live.send_faults = {"body of m-3": [GONE], "body of m-8": [BUSY, BUSY, BUSY]}
    tally = scene.run()
    assert scene.dead.visible == ["m-3", "m-8"]
    assert Counter(scene.live.bodies) == Counter(bodies(10)) - Counter(["body of m-3", "body of m-8"])
    assert (tally.replayed, tally.failed) == (8, 2)
    assert tally.failures == [("m-3", "InvalidMessageContents: no"), ("m-8", "InternalError: busy")]
    assert not tally.is_complete


def test_what_failed_by_the_fault_of_sqs_is_tried_again_alone() -> None:
    scene = Scene(*letters(3))
    scene.live.send_faults = {"body of m-1": [BUSY, BUSY]}
    assert scene.run().replayed == 3
    sent = [[entry["MessageBody"] for entry in batch] for batch in scene.live.batches]
    assert sent == [bodies(3), ["body of m-1"], ["body of m-1"]]


def test_what_arrived_is_settled_also_where_the_second_try_cannot_be_made() -> None:
    scene = Scene(*letters(3))
    scene.live.send_faults = {"body of m-1": [BUSY]}
    scene.live.errors["send"] = [None, ReplayError("no network")]
    tally = scene.run()
    assert scene.dead.visible == ["m-1"]
    assert (tally.replayed, tally.failed) == (2, 1)


def test_a_queue_that_refuses_ends_the_run_and_everything_is_given_back() -> None:
    scene = Scene(*letters(25))
    scene.live.errors["send"] = [None, ReplayError("SendMessageBatch: AccessDenied")]
    with pytest.raises(ReplayError, match="AccessDenied"):
        scene.run()
    assert Counter(scene.live.bodies) == Counter(bodies(10))
    assert len(scene.dead.visible) == 15
    assert scene.tally.replayed == 10


def test_what_cannot_be_deleted_is_tried_again_and_then_said() -> None:
    scene = Scene(*letters(3))
    scene.dead.stubborn.update({"m-0": 2, "m-1": 3})
    tally = scene.run()
    assert (tally.replayed, tally.undeleted) == (2, 1)
    assert scene.dead.visible == ["m-1"]
    assert not tally.is_complete


def test_where_deleting_breaks_the_run_says_what_is_in_both_queues() -> None:
    scene = Scene(*letters(12))
    scene.dead.errors["delete"] = [ReplayError("DeleteMessageBatch: gone")]
    with pytest.raises(ReplayError, match="gone"):
        scene.run()
    assert (scene.tally.replayed, scene.tally.undeleted) == (0, 10)
    assert len(scene.dead.visible) == 12


def test_the_unchosen_are_seen_by_others_at_once() -> None:
    scene = Scene(*letters(15, reason="throttled"), *(letter(f"x-{n}", reason="object_gone") for n in range(15)))
    tally = scene.run(Choice(reasons=frozenset({"object_gone"})))
    assert (tally.looked, tally.chosen, tally.replayed) == (30, 15, 15)
    assert len(scene.dead.visible) == 15
    assert tally.is_complete


def test_the_unchosen_are_looked_at_once_also_where_the_look_takes_hours() -> None:
    scene = Scene(*letters(15, reason="throttled"), *(letter(f"x-{n}", reason="object_gone") for n in range(150)))
    tally = scene.run(Choice(reasons=frozenset({"object_gone"})), rate=0.02)
    assert scene.clock.now > 7000
    assert (tally.looked, tally.replayed) == (165, 150)
    assert len(scene.dead.visible) == 15


@pytest.mark.parametrize("limit", [1, 7, 10, 13])
def test_a_limit_bounds_what_is_sent(limit: int) -> None:
    scene = Scene(*letters(30))
    tally = scene.run(limit=limit)
    assert len(scene.live.bodies) == tally.replayed == limit
    assert len(scene.dead.visible) == 30 - limit
    assert tally.is_complete


def test_what_was_replayed_too_often_is_refused_and_bounds_nothing() -> None:
    often = {"ReplayCount": text("3", "Number")}
    scene = Scene(*letters(5, attributes=often), *(letter(f"x-{n}") for n in range(5)))
    tally = scene.run(max_replays=3, limit=4)
    assert (tally.replayed, tally.refused) == (4, 5)
    assert len(scene.dead.visible) == 6
    assert not tally.is_complete
    assert scene.run(max_replays=4, limit=20).replayed == 6


def test_an_unsendable_letter_stays_and_harms_no_neighbour() -> None:
    scene = Scene(letter("m-0"), letter("m-1", body=""), letter("m-2"))
    tally = scene.run()
    assert (tally.replayed, tally.failed) == (2, 1)
    assert scene.dead.visible == ["m-1"]


def test_what_comes_back_while_the_run_goes_on_stays() -> None:
    scene = Scene(*letters(5))

    def poison(call: str) -> None:
        """Every message fails at once, and half of them come back by the handler, half by SQS."""
        if call == "receive":
            while scene.live.stored:
                stored = scene.live.stored.pop()
                by_handler = int(stored.letter.message_id.rpartition("-")[2]) % 2
                rejection = {"message_id": stored.letter.message_id}
                new = letter(f"back {stored.letter.message_id}", reason="bad", rejection=rejection)
                scene.dead.put(new if by_handler else stored.letter)

    scene.dead.before = poison
    tally = scene.run()
    assert (tally.replayed, tally.returned) == (5, 5)
    assert len(scene.dead.visible) == 5


def test_a_queue_replayed_into_itself_ends() -> None:
    scene = Scene(*letters(25))
    tally = scene.run(target=scene.dead)
    assert tally.replayed == 25
    assert Counter(scene.dead.bodies) == Counter(bodies(25))
    assert len(scene.dead.visible) == 25


def test_large_messages_go_in_several_batches() -> None:
    scene = Scene(*(letter(f"m-{n}", body=str(n) * (400 * 1024)) for n in range(7)))
    assert scene.run().replayed == 7
    assert [len(batch) for batch in scene.live.batches] == [2, 2, 2, 1]
    for batch in scene.live.batches:
        assert sum(len(entry["MessageBody"]) for entry in batch) <= MOST_BYTES


def test_room_for_marks_is_counted() -> None:
    ten = {f"own{n}": text("x") for n in range(10)}
    scene = Scene(*letters(3, attributes=ten), letter("x-1"))
    tally = scene.run()
    assert (tally.replayed, tally.unmarked) == (4, 3)
    assert tally.is_complete


@pytest.mark.parametrize(("rate", "most"), [(0.5, 1), (1, 1), (4, 4), (25, 10)])
def test_a_rate_is_kept_evenly(rate: float, most: int) -> None:
    scene = Scene(*letters(40))
    times: list[float] = []
    scene.live.before = lambda call: times.append(scene.clock.now)
    begun = scene.clock.now
    assert scene.run(rate=rate, limit=40).replayed == 40
    assert max(len(batch) for batch in scene.live.batches) == most
    sent = 0
    for moment, batch in zip(times, scene.live.batches, strict=True):
        assert sent <= (moment - begun) * rate + 1e-6
        sent += len(batch)
    # Not slower either: when the last batch goes out, its time has just come.
    assert times[-1] - begun == pytest.approx((40 - len(scene.live.batches[-1])) / rate)


def test_a_slow_pace_keeps_what_it_holds() -> None:
    scene = Scene(*letters(30, reason="slow"), *(letter(f"x-{n}") for n in range(5)))
    others: set[str] = set()
    scene.live.before = lambda call: others.update(scene.dead.visible if len(scene.live.batches) > 20 else ())
    tally = scene.run(Choice(reasons=frozenset({"slow"})), rate=0.02)
    assert tally.replayed == 30
    assert tally.looked == 35  # nothing had to be received twice
    assert len(scene.dead.visible) == 5


def test_what_slipped_out_of_hand_is_not_sent_but_received_again() -> None:
    scene = Scene(*letters(3))

    class Asleep(Choice):
        """While the machine sleeps, somebody else is given the messages, and lets them go again."""

        def takes(self, letter: Letter) -> bool:
            if letter.message_id == "m-2" and scene.dead.calls.count("receive") == 1:
                scene.clock.now += 70
                assert len(scene.dead.receive(8, 0)) == 3
            return True

    tally = scene.run(Asleep())
    assert (tally.looked, tally.replayed, tally.undeleted) == (3, 3, 0)
    assert Counter(scene.live.bodies) == Counter(bodies(3))
    assert scene.dead.calls.index("delete") > scene.dead.calls.index("hide")


@pytest.mark.parametrize("after", range(1, 9))
def test_an_end_that_is_requested_for_finishes_the_batch_in_hand(after: int) -> None:
    scene = Scene(*letters(40, reason="x"), *(letter(f"y-{n}") for n in range(5)))
    calls: list[str] = []

    def ask(call: str) -> None:
        calls.append(call)
        if len(calls) == after:
            scene.halt.request()

    scene.dead.before = scene.live.before = ask
    tally = scene.run(Choice(reasons=frozenset({"x"})), rate=100)
    assert tally.interrupted
    assert not tally.is_complete
    assert len(scene.live.bodies) == tally.replayed
    assert len(scene.live.bodies) + len(scene.dead.ids) == 45
    assert len(scene.dead.visible) == len(scene.dead.ids)


def test_an_end_in_a_long_pause_is_heeded_though_the_limit_is_reached() -> None:
    scene = Scene(*letters(10))
    scene.live.before = lambda call: scene.halt.request()
    tally = scene.run(limit=10, rate=1)
    assert (tally.replayed, tally.interrupted) == (1, True)
    assert len(scene.dead.visible) == 9


def test_the_audit_goes_on_where_an_earlier_run_was_killed(tmp_path: Path) -> None:
    scene = Scene(*letters(25))
    scene.dead.errors["delete"] = [None, ReplayError("killed")]
    with AuditFile(tmp_path / "audit", SUBJECT) as audit, pytest.raises(ReplayError):
        scene.run(audit=audit)
    with AuditFile(tmp_path / "audit", SUBJECT) as audit:
        assert len(audit.journal.unfinished) == 10
        tally = scene.run(audit=audit)
    assert (tally.replayed, tally.finished) == (5, 10)
    assert Counter(scene.live.bodies) == Counter(bodies(25))
    assert scene.dead.ids == []


def test_what_an_earlier_run_sent_is_deleted_though_it_is_not_chosen_now(tmp_path: Path) -> None:
    scene = Scene(*letters(5))
    scene.dead.errors["delete"] = [ReplayError("killed")]
    with AuditFile(tmp_path / "audit", SUBJECT) as audit, pytest.raises(ReplayError):
        scene.run(audit=audit)
    with AuditFile(tmp_path / "audit", SUBJECT) as audit:
        tally = scene.run(Choice(reasons=frozenset({"another"})), audit=audit)
    assert tally.finished == 5
    assert scene.dead.ids == []


def test_a_full_disk_deletes_what_was_sent_and_ends_the_run() -> None:
    class Full(NoAudit):
        def write(self, event: str, lines: Sequence[Any] = ({},)) -> None:
            if event == "sent":
                raise ReplayError("audit: No space left on device")

    scene = Scene(*letters(12))
    with pytest.raises(ReplayError, match="No space"):
        scene.run(audit=Full())
    assert len(scene.live.bodies) == 10
    assert len(scene.dead.visible) == 2


def test_counts_that_had_no_room_are_followed_through_the_audit(tmp_path: Path) -> None:
    ten = {f"own{n}": text("x") for n in range(10)}
    scene = Scene(letter("m-0", attributes=ten))
    for _ in range(2):
        with AuditFile(tmp_path / "audit", SUBJECT) as audit:
            assert scene.run(audit=audit, max_replays=2).replayed == 1
        scene.dead.put(scene.live.stored.pop().letter)  # redriven: the id stays
    with AuditFile(tmp_path / "audit", SUBJECT) as audit:
        assert scene.run(audit=audit, max_replays=2).refused == 1


def test_entries_are_answered_in_their_order() -> None:
    queue = FakeQueue()
    queue.send_faults = {"b": [BUSY, GONE], "c": [BUSY]}
    entries = [{"MessageBody": body} for body in "abc"]
    answers = send_entries(queue, entries, FakeHalt())
    assert [answer.error for answer in answers] == ["", GONE.error, ""]
