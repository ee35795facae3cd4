"""What a replay has received stays hidden from others while it works, and is seen by them at once when it ends."""

from __future__ import annotations

import pytest

from handler.replay.hold import Hold
from handler.replay.queue import ReplayError
from tests.replay_fakes import Clock, FakeQueue, letter


class Holding:
    """A queue of so many letters, all of them held for a minute at first."""

    def __init__(self, number: int = 25, seconds: int = 60) -> None:
        self.clock = Clock()
        self.queue = FakeQueue(clock=self.clock)
        self.queue.put(*(letter(f"m-{n}") for n in range(number)))
        self.hold = Hold(self.queue, seconds, self.clock)
        while received := self.queue.receive(seconds, 0):
            self.hold.add(received)

    def work(self, seconds: float, step: float = 1.0) -> set[str]:
        """Works for so long, renewing what is due, and says what others could have received meanwhile."""
        seen: set[str] = set()
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now += step
            self.hold.renew()
            seen.update(self.queue.visible)
        return seen


def test_nobody_sees_what_is_held_however_long_the_work_takes() -> None:
    holding = Holding()
    assert holding.work(5 * 3600) == set()
    assert all(holding.hold.has(f"m-{n}") for n in range(25))


def test_renewing_costs_less_the_longer_it_goes_on() -> None:
    holding = Holding(number=10)
    counts = []
    for _ in range(4):
        holding.queue.calls.clear()
        holding.work(900)
        counts.append(holding.queue.calls.count("hide"))
    assert counts[0] > counts[-1]
    assert counts[-1] <= 2


def test_what_was_held_for_a_moment_comes_back_soon_when_the_process_dies() -> None:
    holding = Holding()
    holding.work(20)
    holding.clock.now += 60
    assert len(holding.queue.visible) == 25


def test_released_letters_are_seen_at_once() -> None:
    holding = Holding()
    holding.hold.release()
    assert len(holding.queue.visible) == 25
    assert not holding.hold.has("m-1")
    assert holding.queue.calls.count("hide") == 3


def test_a_block_gives_back_what_it_held() -> None:
    holding = Holding()
    with holding.hold:
        pass
    assert len(holding.queue.visible) == 25


def test_a_block_that_fails_gives_back_and_keeps_its_own_error() -> None:
    holding = Holding()
    holding.queue.errors["hide"] = [None, ReplayError("hiding is refused")]
    with pytest.raises(ReplayError, match="sending"), holding.hold:
        raise ReplayError("sending failed")
    assert len(holding.queue.visible) == 10


def test_a_second_interruption_does_not_wait_for_anything() -> None:
    holding = Holding()
    with pytest.raises(KeyboardInterrupt), holding.hold:
        raise KeyboardInterrupt
    assert holding.queue.visible == []
    assert "hide" not in holding.queue.calls


def test_what_is_deleted_is_neither_renewed_nor_released() -> None:
    holding = Holding(number=2)
    holding.hold.forget("m-0")
    holding.hold.forget("m-0")
    assert not holding.hold.has("m-0")
    holding.clock.now += 31
    holding.hold.renew()
    assert holding.queue.stored[0].visible_at == 1060.0
    holding.hold.release()
    assert holding.queue.visible == ["m-1"]


def test_nothing_is_requested_of_the_queue_where_nothing_is_left() -> None:
    holding = Holding(number=2)
    holding.hold.forget("m-0")
    holding.hold.forget("m-1")
    holding.work(200)
    holding.hold.release()
    assert "hide" not in holding.queue.calls
    assert holding.hold.due_in() == float("inf")


def test_what_the_queue_does_not_confirm_may_be_in_other_hands() -> None:
    holding = Holding(number=2)
    holding.queue.stubborn["m-0"] = 1
    holding.clock.now += 31
    holding.hold.renew()
    assert not holding.hold.has("m-0")
    assert holding.hold.has("m-1")


def test_a_machine_that_slept_holds_nothing_for_sure() -> None:
    holding = Holding(number=1)
    holding.clock.now += 50
    assert not holding.hold.has("m-0")


def test_a_letter_received_again_is_held_by_its_new_receipt() -> None:
    holding = Holding(number=1)
    holding.clock.now += 61
    holding.hold.add(holding.queue.receive(60, 0))
    assert holding.work(600) == set()
    holding.hold.release()
    assert holding.queue.visible == ["m-0"]
