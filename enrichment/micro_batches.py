"""Micro-batches: items of similar length that the models read together, and how long that takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol, TypeVar

from enrichment.encoder import Tokens
from enrichment.errors import EnrichmentError, ModelFailed, OutOfTime
from enrichment.ticket import RawTicket

__all__ = ["BUDGET", "WARM_UP", "MicroBatches", "TimeLeft", "failed", "micro_batches"]

TimeLeft = Callable[[], float]
"""Returns the seconds left; called before each ticket's text is processed, and before each micro-batch."""

BUDGET: Final = 1024  # tokens of a micro-batch: more would need more memory without being faster
WARM_UP: Final = (
    "The first run of a session is slower than the others, so it is made before a ticket waits for it. " * 3
)
_HEADROOM: Final = 1.5  # safety factor of time estimates
_FEWEST_TO_LEARN_FROM: Final = 64  # tokens


class Tokenized(Protocol):
    """A ticket whose text has been tokenized."""

    @property
    def ticket(self) -> RawTicket: ...
    @property
    def tokens(self) -> Tokens: ...


_Item = TypeVar("_Item", bound=Tokenized)
_Result = TypeVar("_Result")


class MicroBatches:
    """Runs models over tickets, and learns how long that takes. Thread-safe.

    `seconds_per_token` is the first estimate; `extra` is the cost of a ticket in addition to its tokens, in tokens.
    """

    def __init__(self, seconds_per_token: float, extra: int = 0) -> None:
        self.seconds_per_token = seconds_per_token
        self._extra = extra

    def run(
        self, items: Sequence[_Item], models: Callable[[Sequence[_Item]], Sequence[_Result]], time_left: TimeLeft
    ) -> list[_Result | EnrichmentError]:
        """One result of `models` or one error per item, in order.

        What would not fit into the time left is not started and becomes OutOfTime. A micro-batch that raises is run
        again ticket by ticket; a ticket that raises again becomes ModelFailed, with the exception as its cause.
        """
        results: dict[int, _Result | EnrichmentError] = {}
        sizes = [item.tokens for item in items]
        for batch in micro_batches([t.longest for t in sizes], [t.windows for t in sizes], BUDGET):
            results.update(zip(batch, self._run([items[k] for k in batch], models, time_left), strict=True))
        return [results[i] for i in range(len(items))]

    def _run(
        self, part: Sequence[_Item], models: Callable[[Sequence[_Item]], Sequence[_Result]], time_left: TimeLeft
    ) -> list[_Result | EnrichmentError]:
        cost = sum(item.tokens.windows for item in part) * max(item.tokens.longest for item in part)
        cost += self._extra * len(part)
        left = time_left()
        if self._expected_seconds(cost) > left:
            if len(part) > 1:  # half of it may still fit
                half = len(part) // 2
                return [*self._run(part[:half], models, time_left), *self._run(part[half:], models, time_left)]
            return [OutOfTime(f"not started: {left:.1f} s left", ticket_id=part[0].ticket.ticket_id)]
        begin = time.perf_counter()
        try:
            results = models(part)
        except Exception as error:  # an isolation boundary: one ticket must not fail the others
            if len(part) > 1:
                return [result for item in part for result in self._run([item], models, time_left)]
            return [failed(part[0].ticket, error)]
        if any(item.tokens.windows for item in part):
            self.learn(cost, time.perf_counter() - begin)
        return [*results]

    def _expected_seconds(self, tokens: int) -> float:
        return tokens * self.seconds_per_token * _HEADROOM

    def learn(self, tokens: int, seconds: float) -> None:
        """Updates the estimate: quickly if a run was slower than expected, slowly if it was faster."""
        # A short run says little about the time per token: one pause of a busy machine, attributed to nine tokens,
        # would prevent the next long ticket from being started although there is time.
        seen = seconds / max(tokens, _FEWEST_TO_LEARN_FROM)
        if seen > self.seconds_per_token:
            self.seconds_per_token += 0.5 * (seen - self.seconds_per_token)
        elif tokens >= _FEWEST_TO_LEARN_FROM:
            self.seconds_per_token += 0.1 * (seen - self.seconds_per_token)


def micro_batches(lengths: Sequence[int], rows: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Groups indices by length so that rows times the longest length stays within `budget` tokens.

    `lengths[i]` is the length of item i's longest row, `rows[i]` its number of rows. An item that exceeds the budget
    gets its own batch. Longest first, so that the memory arena reaches its final size immediately instead of growing
    (https://github.com/microsoft/onnxruntime/issues/11627).
    """
    batch: list[int] = []
    longest = count = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = max(longest, lengths[index])
        if batch and (count + rows[index]) * longest > budget:
            yield batch
            batch, longest, count = [], lengths[index], 0
        batch.append(index)
        count += rows[index]
    if batch:
        yield batch


def failed(ticket: RawTicket, error: Exception) -> ModelFailed:
    """The error of a ticket on which a model raised. Without its message, which may quote the ticket."""
    failure = ModelFailed(f"a model raised {type(error).__name__}", ticket_id=ticket.ticket_id)
    failure.__cause__ = error
    return failure
