"""Lambda's event source mappings for SQS in simulated time, with the limits that AWS documents.

From "Configuring scaling behavior for SQS event source mappings" and "Understanding Lambda function scaling":

- a mapping begins with five concurrent batches. While more messages are waiting, it adds up to 300 a minute, up to its
  MaximumConcurrency, and never more than 1,250; it goes back when the queue is empty;
- a batch is complete when it is full, or when the batching window of its first message is over;
- all functions of an account share its quota of concurrent executions. What exceeds it is throttled and tried again;
- a function that needs another environment waits for its init, and gets at most 1,000 of them in ten seconds.

SQS hands out the messages of a standard queue roughly in the order in which they came: here exactly in that order.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

__all__ = ["Run", "SimulatedMapping", "poisson", "simulate"]

TICK: Final = 0.1  # seconds: the simulation's resolution, by which it is slower than Lambda
FIRST_BATCHES: Final = 5
MORE_PER_SECOND: Final = 300 / 60
MOST_BATCHES: Final = 1250
ENVIRONMENTS_PER_SECOND: Final = 1000 / 10
RETRY: Final = 1.0  # seconds until a throttled batch is tried again
SAMPLE: Final = 10.0  # seconds between two values of a metric


@dataclass
class _Batch:
    mapping: SimulatedMapping
    sent: list[float]
    due: float = 0.0


@dataclass(eq=False)
class SimulatedMapping:
    """A mapping and its queue; `arrivals` are the times at which messages are sent, in order."""

    queue: str
    maximum_concurrency: int
    batch_size: int
    window: float
    arrivals: Sequence[float]
    waiting: deque[float] = field(default_factory=deque)
    allowed: float = FIRST_BATCHES
    batches: int = 0  # running or throttled
    _next: int = 0

    @property
    def is_done(self) -> bool:
        """Whether all messages were processed."""
        return self._next == len(self.arrivals) and not self.waiting and not self.batches

    def poll(self, now: float) -> list[_Batch]:
        """The batches that are complete, as many as may run."""
        while self._next < len(self.arrivals) and self.arrivals[self._next] <= now:
            self.waiting.append(self.arrivals[self._next])
            self._next += 1
        limit = min(self.maximum_concurrency, MOST_BATCHES)
        found = []
        while self.batches < min(limit, int(self.allowed)) and self._is_complete(now):
            taken = [self.waiting.popleft() for _ in range(min(self.batch_size, len(self.waiting)))]
            found.append(_Batch(self, taken))
            self.batches += 1
        has_more = self._is_complete(now)
        self.allowed = min(limit, self.allowed + MORE_PER_SECOND * TICK) if has_more else FIRST_BATCHES
        return found

    def _is_complete(self, now: float) -> bool:
        waiting = self.waiting
        return len(waiting) >= self.batch_size or (bool(waiting) and now - waiting[0] >= self.window)


@dataclass
class Run:
    """What CloudWatch would have measured: (seconds, value) pairs; ages and depths by queue."""

    ages: dict[str, list[float]] = field(default_factory=dict)  # of each message, from its sending to its deletion
    oldest: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    throttles: list[tuple[float, float]] = field(default_factory=list)
    milliseconds: list[tuple[float, float]] = field(default_factory=list)  # of each batch
    environments: int = 0
    seconds: float = 0.0

    def p99(self, queue: str) -> float:
        """The 99th percentile of the ages of a queue's messages."""
        ages = sorted(self.ages[queue])
        return ages[int(0.99 * (len(ages) - 1))]


def simulate(
    mappings: Sequence[SimulatedMapping],
    *,
    quota: int,
    seconds_per_ticket: float,
    init: float,
    until_done: str,
    seed: int = 7,
) -> Run:
    """Runs until the queue `until_done` is empty and nothing more is sent to it.

    `quota` is the account's, `seconds_per_ticket` the duration of a batch per ticket, `init` that of an environment.
    """
    chance, run, now = random.Random(seed), Run(), 0.0
    for mapping in mappings:
        run.ages[mapping.queue], run.oldest[mapping.queue] = [], []
    running: list[tuple[float, int, _Batch]] = []
    throttled: list[_Batch] = []
    idle, startable, number, sampled = 0, 0.0, 0, 0.0
    (awaited,) = (mapping for mapping in mappings if mapping.queue == until_done)
    while not awaited.is_done:
        now += TICK
        while running and running[0][0] <= now:
            end, _, batch = heappop(running)
            run.ages[batch.mapping.queue] += [end - sent for sent in batch.sent]
            batch.mapping.batches -= 1
            idle += 1
        startable = min(1000.0, startable + ENVIRONMENTS_PER_SECOND * TICK)
        new = [batch for mapping in mappings for batch in mapping.poll(now)]
        again = [batch for batch in throttled if batch.due <= now]
        throttled = [batch for batch in throttled if batch.due > now]
        # Whose batch takes a free place is chance: the account does not know which queue is more urgent.
        for batch in chance.sample(new + again, len(new) + len(again)):
            if len(running) >= quota or not (idle or startable >= 1):
                run.throttles.append((now, 1))
                batch.due = now + RETRY * chance.uniform(0.5, 1.5)
                throttled.append(batch)
                continue
            begin = now
            if idle:
                idle -= 1
            else:
                startable -= 1
                run.environments += 1
                begin += init
            number += 1
            seconds = seconds_per_ticket * len(batch.sent)
            run.milliseconds.append((now, 1000 * seconds))
            heappush(running, (begin + seconds, number, batch))
        if now - sampled >= SAMPLE:
            sampled = now
            for mapping in mappings:
                taken = [batch.sent[0] for batch in throttled if batch.mapping is mapping]
                taken += [batch.sent[0] for _, _, batch in running if batch.mapping is mapping]
                first = min([*taken, *list(mapping.waiting)[:1]], default=now)
                run.oldest[mapping.queue].append((now, now - first))
    run.seconds = now
    return run


def poisson(rate: float, seconds: float, seed: int = 7) -> list[float]:
    """The times of independent events, so many per second on average."""
    chance, found, now = random.Random(seed), list[float](), 0.0
    while (now := now + chance.expovariate(rate)) < seconds:
        found.append(now)
    return found
