"""The circuit breaker opens because of services, never because of tickets, and closes when a ticket is stored again."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from handler.worker.breaker import CircuitBreaker


class Harness:
    """A breaker, and the changes that it reported."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []
        self.breaker = CircuitBreaker(lambda state, reason: self.changes.append((state, reason)))

    @property
    def state(self) -> str:
        return self.breaker.state

    def batch(self, *messages: str, codes: Sequence[str | None] = (), outcome: str = "failed") -> str:
        """A batch whose messages have these outcomes; returns the state after it."""
        for code in codes or ["service_failed"] * len(messages):
            self.breaker.ticket("done" if code is None else outcome, code)
        self.breaker.batch_finished(messages if outcome == "failed" else ())
        return self.breaker.state

    @property
    def states(self) -> list[str]:
        return [state for state, _ in self.changes]


def opened() -> Harness:
    harness = Harness()
    assert harness.batch(*"abcdefghij") == "open"
    return harness


def test_one_full_batch_that_a_service_fails_opens() -> None:
    harness = opened()
    assert harness.changes == [("open", "no ticket can be stored (service_failed; the log names the service)")]


def test_batches_that_are_processed_at_once_are_told_apart() -> None:
    harness, both = Harness(), threading.Barrier(2)

    def batch(code: str | None, *messages: str) -> None:
        for _ in messages:
            harness.breaker.ticket("done" if code is None else "failed", code)
        both.wait(60)  # both have reported their tickets
        if code is not None:
            harness.breaker.batch_finished(messages)
            both.wait(60)
        else:
            both.wait(60)
            harness.breaker.batch_finished(())

    threads = [threading.Thread(target=batch, args=each) for each in (("service_failed", *"abcdefghij"), (None, "k"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert harness.states == ["open"], "the stored ticket is of another batch"


def test_small_batches_open_after_ten_messages() -> None:
    harness = Harness()
    assert [harness.batch(name) for name in "abcdefghij"] == ["closed"] * 9 + ["open"]


def test_throttling_opens_too() -> None:
    assert Harness().batch(*"abcdefghij", codes=["throttled", "service_failed"] * 5) == "open"


def test_failures_of_one_message_do_not_open() -> None:
    harness = Harness()
    assert {harness.batch("refused") for _ in range(100)} == {"closed"}


def test_one_stored_ticket_resets_the_count() -> None:
    harness = Harness()
    for number in range(100):
        harness.batch(*(f"{number}{name}" for name in "abcdefghi"))
        assert harness.batch("x", codes=["service_failed", None]) == "closed"


@pytest.mark.parametrize("code", ["model_failed", "unexpected", "schema_violation", "object_gone", "out_of_time"])
@pytest.mark.parametrize("outcome", ["failed", "rejected"])
def test_bad_tickets_do_not_open(code: str, outcome: str) -> None:
    harness = Harness()
    for number in range(20):
        assert harness.batch(*(f"{number}{name}" for name in "abcdefghij"), codes=[code] * 10, outcome=outcome) == (
            "closed"
        )


def test_bad_tickets_beside_a_failing_one_do_not_open() -> None:
    harness = Harness()
    for number in range(20):
        names = [f"{number}{name}" for name in "abcdefghi"]
        assert harness.batch("refused", *names, codes=["service_failed", *["model_failed"] * 9]) == "closed"


def test_rejected_tickets_do_not_hide_an_outage() -> None:
    assert Harness().batch(*"abcdefghij", codes=["schema_violation"] * 2 + ["service_failed"] * 10) == "open"


def test_nothing_but_a_stored_ticket_closes_it_again() -> None:
    harness = opened()
    harness.breaker.probe()
    harness.breaker.receive_succeeded()  # an empty queue, or the messages of the next batch
    assert harness.batch("k", codes=["schema_violation"], outcome="rejected") == "half_open"
    assert harness.batch("k", codes=["model_failed"]) == "half_open"
    assert harness.batch("k", codes=["out_of_time"]) == "half_open"
    assert harness.batch("k", "l", "m") == "open"
    harness.breaker.probe()
    assert harness.batch("k", "l", codes=["service_failed", None]) == "closed"
    assert harness.states == ["open", "half_open", "open", "half_open", "closed"]


def test_count_starts_again_after_closing() -> None:
    harness = opened()
    harness.breaker.probe()
    harness.batch("k", codes=[None])
    assert harness.batch("l", "m") == "closed"


def test_probes_are_small_and_other_batches_are_full() -> None:
    harness = Harness()
    assert harness.breaker.batch_size(10) == 10
    harness.batch(*"abcdefghij")
    harness.breaker.probe()
    assert (harness.breaker.batch_size(10), harness.breaker.batch_size(1)) == (3, 1)
    harness.batch("k", codes=[None])
    assert harness.breaker.batch_size(10) == 10


def test_waits_grow_with_jitter_and_start_again_after_closing() -> None:
    harness = opened()
    ceilings = [15, 30, 60, 120, 120, 120]
    waits = [harness.breaker.wait() for _ in ceilings]
    assert [ceiling / 2 <= wait <= ceiling for wait, ceiling in zip(waits, ceilings, strict=True)] == [True] * 6
    assert len(set(waits)) == 6
    harness.breaker.probe()
    harness.batch("k", codes=[None])
    harness.batch(*"abcdefghij")
    assert harness.breaker.wait() <= 15


def test_queue_that_cannot_be_read_opens_after_five_attempts() -> None:
    harness = Harness()
    for _ in range(4):
        harness.breaker.receive_failed("ReceiveMessage: 500")
    assert harness.state == "closed"
    harness.breaker.receive_failed("ReceiveMessage: 500")
    assert harness.changes == [("open", "the queue cannot be read (ReceiveMessage: 500)")]
    harness.breaker.probe()
    harness.breaker.receive_failed("ReceiveMessage: 500")
    harness.breaker.probe()
    harness.breaker.receive_succeeded()
    assert harness.states == ["open", "half_open", "open", "half_open", "closed"]


def test_receives_that_fail_now_and_then_do_not_open() -> None:
    harness = Harness()
    for _ in range(20):
        for _ in range(4):
            harness.breaker.receive_failed("ReceiveMessage: 500")
        harness.breaker.receive_succeeded()
    assert harness.changes == []
