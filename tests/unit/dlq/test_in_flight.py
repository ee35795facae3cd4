"""Received messages stay invisible to other consumers during a run, and become visible when it ends."""

from __future__ import annotations

import pytest

from handler.dlq.message import DlqMessage
from handler.dlq.scan import InFlight
from handler.errors import ServiceFailed
from tests.support.dlq_queues import Clock, FakeQueue, dlq_message


class Harness:
    """A queue whose messages are all in flight, with a visibility timeout of a minute at first."""

    def __init__(self, number: int = 25) -> None:
        self.clock = Clock()
        self.queue = FakeQueue(clock=self.clock)
        self.queue.put(*(dlq_message(f"m-{n}") for n in range(number)))
        self.in_flight = InFlight(self.queue, 60, self.clock)
        while received := self.receive():
            self.in_flight.add(received)

    def receive(self) -> list[DlqMessage]:
        return [DlqMessage.from_boto3(message) for message in self.queue.receive(wait=0, visibility_timeout=60)]

    def work(self, seconds: float) -> set[str]:
        """Work for so long, extending what is due; returns the ids that another consumer could have received."""
        seen: set[str] = set()
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now += 1
            self.in_flight.extend()
            seen.update(self.queue.visible)
        return seen


def test_messages_stay_invisible_for_hours() -> None:
    harness = Harness()
    assert harness.work(5 * 3600) == set()
    assert all(harness.in_flight.has(f"m-{n}") for n in range(25))


def test_extensions_become_rarer() -> None:
    harness = Harness(number=10)
    counts = []
    for _ in range(4):
        harness.queue.calls.clear()
        harness.work(900)
        counts.append(harness.queue.calls.count("change_visibility"))
    assert counts[0] > counts[-1]
    assert counts[-1] <= 2


def test_messages_of_a_process_killed_early_are_visible_after_a_minute() -> None:
    harness = Harness()
    harness.work(20)
    harness.clock.now += 60
    assert len(harness.queue.visible) == 25


def test_leaving_the_block_releases_everything_in_tens() -> None:
    harness = Harness()
    with harness.in_flight:
        pass
    assert len(harness.queue.visible) == 25
    assert not harness.in_flight.has("m-1")
    assert harness.queue.calls.count("change_visibility") == 3


def test_error_in_the_block_releases_and_is_not_replaced() -> None:
    harness = Harness()
    harness.queue.errors["change_visibility"] = [None, ServiceFailed("ChangeMessageVisibilityBatch: no")]
    with pytest.raises(ServiceFailed, match="sending"), harness.in_flight:
        raise ServiceFailed("sending failed")
    assert len(harness.queue.visible) == 10


def test_second_interrupt_releases_nothing() -> None:
    harness = Harness()
    with pytest.raises(KeyboardInterrupt), harness.in_flight:
        raise KeyboardInterrupt
    assert harness.queue.visible == []
    assert "change_visibility" not in harness.queue.calls


def test_removed_message_is_neither_extended_nor_released() -> None:
    harness = Harness(number=2)
    harness.in_flight.remove("m-0")
    harness.in_flight.remove("m-0")
    assert not harness.in_flight.has("m-0")
    harness.clock.now += 31
    harness.in_flight.extend()
    assert harness.queue.stored[0].visible_at == 1060.0
    harness.in_flight.release()
    assert harness.queue.visible == ["m-1"]


def test_no_calls_when_nothing_is_left() -> None:
    harness = Harness(number=2)
    harness.in_flight.remove("m-0")
    harness.in_flight.remove("m-1")
    harness.work(200)
    harness.in_flight.release()
    assert "change_visibility" not in harness.queue.calls
    assert harness.in_flight.due_in() == float("inf")


def test_unconfirmed_extension_counts_as_lost() -> None:
    harness = Harness(number=2)
    harness.queue.stubborn["m-0"] = 1
    harness.clock.now += 31
    harness.in_flight.extend()
    assert not harness.in_flight.has("m-0")
    assert harness.in_flight.has("m-1")


def test_message_close_to_its_timeout_counts_as_lost() -> None:
    harness = Harness(number=1)
    harness.clock.now += 50
    assert not harness.in_flight.has("m-0")


def test_message_received_again_is_kept_by_its_new_receipt() -> None:
    harness = Harness(number=1)
    harness.clock.now += 61
    harness.in_flight.add(harness.receive())
    assert harness.work(600) == set()
    harness.in_flight.release()
    assert harness.queue.visible == ["m-0"]
