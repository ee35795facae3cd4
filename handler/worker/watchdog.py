"""Watches the batches of one process: renews the visibility timeout of their messages, and kills it if one overruns.

This runs in the parent, because code that holds the interpreter lock stops every thread of its own process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from handler.metrics import Logger
from handler.worker.reports import BatchReport

__all__ = ["ChangeVisibility", "Watchdog"]

ChangeVisibility = Callable[[str, Sequence[str], int], Sequence[bool]]
"""Sets the visibility timeout (s) of up to ten receipt handles of the queue with that URL; True for each that SQS
confirms. Never raises."""

# A handler ends in time by itself; after this many seconds more it is considered hung. Lambda would have killed it.
_OVERRUN: Final = 10.0
# The messages of a killed process become visible this many seconds apart, and not as the same batch again: whichever of
# them hangs then holds up few others.
_APART: Final = 1


@dataclass(slots=True)
class _Batch:
    report: BatchReport
    renew_at: float
    end: float


class Watchdog:
    """Takes the reports of one process. Methods are called in one thread, except `is_overrunning`."""

    def __init__(self, change_visibility: ChangeVisibility, kill: Callable[[], None], logger: Logger) -> None:
        self._change_visibility = change_visibility
        self._kill = kill
        self._logger = logger
        self._batches: dict[int, _Batch] = {}
        self._is_given_up = False

    def started(self, report: BatchReport) -> None:
        """The process has begun a batch."""
        now = time.monotonic()
        self._batches[report.number] = _Batch(report, now + report.visibility_timeout / 3, now + report.seconds)

    def settled(self, receipts: Collection[str]) -> None:
        """The handler has deleted or deferred these messages: their visibility timeout is not renewed any more."""
        for batch in self._batches.values():
            report = batch.report
            rest = [pair for pair in zip(report.message_ids, report.receipts, strict=True) if pair[1] not in receipts]
            batch.report = replace(
                report, message_ids=[name for name, _ in rest], receipts=[receipt for _, receipt in rest]
            )

    @property
    def message_ids(self) -> list[str]:
        """The messages of the current batches that are not settled."""
        return [name for batch in self._batches.values() for name in batch.report.message_ids]

    def finished(self, number: int) -> None:
        """The process has finished this batch."""
        self._batches.pop(number, None)

    def ended(self) -> None:
        """The process has ended."""
        self._batches.clear()

    def is_overrunning(self) -> bool:
        """Whether the time for a current batch is over; for any thread."""
        now = time.monotonic()
        return any(now > batch.end for batch in list(self._batches.values()))

    def seconds_until_due(self) -> float | None:
        """When `act` should be called next; None: not at all."""
        if self._is_given_up or not self._batches:
            return None
        due = min(min(batch.renew_at, batch.end + _OVERRUN) for batch in self._batches.values())
        return max(0.0, due - time.monotonic())

    def act(self) -> None:
        """Does what is due: renews the visibility timeout of each batch, or kills the process if one overruns."""
        for batch in list(self._batches.values()):
            now = time.monotonic()
            if self._is_given_up:
                return
            if now >= batch.end + _OVERRUN:
                self._give_up(batch)
            elif now >= batch.renew_at:
                self._renew(batch, now)

    def _renew(self, batch: _Batch, now: float) -> None:
        report = batch.report
        batch.renew_at = now + report.visibility_timeout / 3
        confirmed = self._change_visibility(report.queue_url, report.receipts, report.visibility_timeout)
        if not all(confirmed):
            ids = [name for name, done in zip(report.message_ids, confirmed, strict=True) if not done]
            self._logger.warning("the visibility timeout of messages could not be renewed", extra={"message_ids": ids})

    def _give_up(self, batch: _Batch) -> None:
        """Kills the process. The messages of its other batches come back when their visibility timeout ends."""
        self._is_given_up = True
        report = batch.report
        self._logger.error(
            "a batch overruns its time; its process is killed and its messages will be retried",
            extra={"message_ids": list(report.message_ids)},
        )
        self._kill()
        if len(report.receipts) == 1:  # it was this message: it waits as long as it took, so that others get their turn
            self._change_visibility(report.queue_url, report.receipts, math.ceil(report.seconds))
            return
        for place, receipt in enumerate(report.receipts):
            self._change_visibility(report.queue_url, [receipt], place * _APART)
