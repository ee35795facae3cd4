"""A two-hour outage in simulated time, with the real delays, decisions when a message is rejected, and breakers."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import chain, count
from pathlib import Path
from typing import Final

import pytest
from samtranslator.yaml_helper import yaml_parse

from enrichment.errors import EnrichmentError, ModelFailed
from handler.errors import ServiceFailed, Throttled
from handler.messages import StoredTicket
from handler.outcome import MessageState, TicketState, backoff_seconds
from handler.worker.breaker import CircuitBreaker

TEMPLATE: Final = yaml_parse((Path(__file__).parents[2] / "template.yaml").read_text(encoding="utf-8"))
RECEIVES: Final = TEMPLATE["Parameters"]["MaximumReceiveCount"]
OUTAGE: Final = 7200  # seconds
TICKETS: Final = 72_000
BATCH: Final = 10
IN_FLIGHT: Final = 120_000  # limit of a standard queue: above it, a receive returns nothing
ERRORS: Final[tuple[EnrichmentError, ...]] = (Throttled("PutItem: x"), ServiceFailed("PutItem: InternalServerError"))


def test_two_hour_outage_rejects_no_valid_ticket() -> None:
    run = simulate([10] * (TICKETS // 10), 100)
    assert run.outcomes == {"done": TICKETS}
    assert run.full_batches > 0.95


def test_fewer_receives_would_reject_valid_tickets() -> None:
    run = simulate([1000], IN_FLIGHT, max_receive_count=RECEIVES["MinValue"] - 7)
    assert run.outcomes["rejected"]


def test_messages_that_arrive_together_come_back_spread_and_in_full_batches() -> None:
    run = simulate([TICKETS], IN_FLIGHT)  # received as soon as they are visible
    assert run.outcomes == {"done": TICKETS}
    assert max(run.receives) - OUTAGE < 1000  # the longest delay, and no more
    mean = TICKETS / 900
    # All had arrived in the same second. Without jitter, they would come back in one second, every 15 minutes.
    assert max(run.receives.values()) < 3 * mean
    minutes = [sum(run.receives[OUTAGE + 60 * m + s] for s in range(60)) for m in range(10)]
    assert max(minutes) < 2 * 60 * mean
    assert min(minutes) > 60 * mean / 4
    # Up to one batch per second is not full: the last messages of the second.
    assert run.full_batches > 0.8


def test_fleet_of_workers_stores_everything_in_full_batches() -> None:
    fleet = Fleet(40)
    run = fleet.run([10] * (TICKETS // 10), 1.0)
    assert run.outcomes == {"done": TICKETS}
    assert run.full_batches > 0.95
    # The breakers left the messages in the queue: few of them lost even one of their receives.
    assert run.most_receives < RECEIVES["Default"] / 2
    assert run.receives_during_outage < 0.2 * TICKETS


def test_breakers_close_at_different_times_soon_after_the_outage() -> None:
    fleet = Fleet(200)
    run = fleet.run([TICKETS], 4.0)
    assert run.outcomes == {"done": TICKETS}
    assert len(fleet.closed_at) == 200  # each opened once, and closed once
    after = sorted(second - OUTAGE for second in fleet.closed_at)
    assert 0 <= after[0] <= after[-1] < 150
    # Evenly spread, 20 workers would begin again in ten seconds of the 120.
    assert max(sum(start <= second < start + 10 for second in after) for start in after) < 60


def test_bad_tickets_open_no_breaker() -> None:
    fleet = Fleet(5, outage=0, error=ModelFailed("a model raised RuntimeError"))
    run = fleet.run([1000], 1.0)
    assert run.outcomes == {"rejected": 1000}
    assert fleet.closed_at == []


def test_receives_span_two_hours_even_with_minimal_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random.SystemRandom, "randint", lambda _self, low, _high: low)
    assert sum(backoff_seconds(count) for count in range(1, RECEIVES["MinValue"])) > OUTAGE
    # Nine crashes, after which a message comes back early, may replace the longest delays.
    least = sorted(backoff_seconds(count) for count in range(1, RECEIVES["Default"]))
    assert sum(least[:-9]) > OUTAGE


def test_receives_end_within_message_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random.SystemRandom, "randint", lambda _self, _low, high: high)
    longest = sum(backoff_seconds(count) for count in range(1, RECEIVES["MaxValue"]))
    assert longest < TEMPLATE["Resources"]["TicketQueue"]["Properties"]["MessageRetentionPeriod"] / 4


@dataclass
class Run:
    """What happened to the messages; `receives` and `batches` count from the end of the outage on."""

    outcomes: Counter[str] = field(default_factory=Counter)
    receives: Counter[int] = field(default_factory=Counter)  # by second
    batches: Counter[int] = field(default_factory=Counter)  # by size
    receives_during_outage: int = 0
    most_receives: int = 0

    @property
    def full_batches(self) -> float:
        """The share of batches that are full."""
        return self.batches[BATCH] / self.batches.total()

    def received(self, second: int, batch: list[MessageState]) -> None:
        """Counts a batch."""
        if second < OUTAGE:
            self.receives_during_outage += len(batch)
        else:
            self.receives[second] += len(batch)
            self.batches[len(batch)] += 1

    def settle(self, received: MessageState, error: EnrichmentError | None, max_receive_count: int) -> int | None:
        """Ends a receive of a message; returns the seconds after which it becomes visible again, or None."""
        attributes = received.record["attributes"]
        attributes["ApproximateReceiveCount"] += 1
        (ticket,) = received.tickets
        if error is None:
            ticket.error = None
            ticket.end("done")
        else:
            ticket.fail(error)
            received.own_failures = received.receive_count if received.is_own_fault else None
        received.outcome = received.conclude(max_receive_count)
        self.most_receives = max(self.most_receives, attributes["ApproximateReceiveCount"])
        if received.outcome == "failed":
            return received.delay()
        self.outcomes[received.outcome] += 1
        return None


def simulate(arrivals: list[int], receives_per_second: int, *, max_receive_count: int = RECEIVES["Default"]) -> Run:
    """Lambda: messages arrive second by second, starting with the outage, and are received as soon as possible."""
    run = Run()
    visible: deque[MessageState] = deque()
    invisible: dict[int, list[MessageState]] = {}
    in_flight = 0
    second = 0
    while second < len(arrivals) or visible or in_flight:
        visible.extend(message() for _ in range(arrivals[second] if second < len(arrivals) else 0))
        back = invisible.pop(second, [])
        in_flight -= len(back)
        visible.extend(back)
        taken = [visible.popleft() for _ in range(min(len(visible), receives_per_second, IN_FLIGHT - in_flight))]
        for start in range(0, len(taken), BATCH):
            run.received(second, taken[start : start + BATCH])
        for received in taken:
            error = ERRORS[second % len(ERRORS)] if second < OUTAGE else None
            delay = run.settle(received, error, max_receive_count)
            if delay is not None:
                invisible.setdefault(second + delay, []).append(received)
                in_flight += 1
        second += 1
    assert not list(chain.from_iterable(invisible.values()))
    return run


class Fleet:
    """Processes of the worker, each with its own breaker, in simulated time; `closed_at` are seconds."""

    def __init__(self, size: int, *, outage: int = OUTAGE, error: EnrichmentError | None = None) -> None:
        self.closed_at: list[float] = []
        self._outage, self._error = outage, error
        self._now = 0.0
        self._breakers = [CircuitBreaker(self._changed) for _ in range(size)]

    def _changed(self, state: str, _reason: str) -> None:
        if state == "closed":
            self.closed_at.append(self._now)

    def run(self, arrivals: list[int], batch_seconds: float) -> Run:
        """Each process receives and handles one batch after the other, as Poller does, until all messages are settled.

        Without messages, it polls again after a second: a long poll would return with the first one.
        """
        run = Run()
        visible: deque[MessageState] = deque()
        numbers = count()  # heaps compare entries: no two are equal
        invisible: list[tuple[float, int, MessageState]] = []
        processes = [(0.0, number) for number in range(len(self._breakers))]
        arrived, total = 0, sum(arrivals)
        while run.outcomes.total() < total:
            self._now, process = heappop(processes)
            while arrived < len(arrivals) and arrived <= self._now:
                visible.extend(message(f"{arrived}-{number}") for number in range(arrivals[arrived]))
                arrived += 1
            while invisible and invisible[0][0] <= self._now:
                visible.append(heappop(invisible)[2])
            breaker = self._breakers[process]
            if breaker.state == "open":
                heappush(processes, (self._now + breaker.wait(), process))
                breaker.probe()
                continue
            batch = [visible.popleft() for _ in range(min(len(visible), breaker.batch_size(BATCH)))]
            breaker.receive_succeeded()
            if batch:
                run.received(int(self._now), batch)
                self._handle(run, batch, breaker, lambda at, one: heappush(invisible, (at, next(numbers), one)))
            heappush(processes, (self._now + (batch_seconds if batch else 1.0), process))
        return run

    def _handle(
        self,
        run: Run,
        batch: list[MessageState],
        breaker: CircuitBreaker,
        defer: Callable[[float, MessageState], None],
    ) -> None:
        failed = []
        for received in batch:
            error = ERRORS[int(self._now) % len(ERRORS)] if self._now < self._outage else self._error
            delay = run.settle(received, error, RECEIVES["Default"])
            for outcome, code, _ in received.lines():
                breaker.ticket(outcome, code)
            if delay is not None:
                failed.append(str(received.record["messageId"]))
                defer(self._now + delay, received)
        breaker.batch_finished(failed)


def message(name: str = "") -> MessageState:
    ticket = TicketState(StoredTicket("tickets-raw", "one.json"), 0)
    return MessageState({"messageId": name, "attributes": {"ApproximateReceiveCount": 0}}, [ticket], [True])
