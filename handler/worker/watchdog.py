"""Watches the batch of one process: renews the visibility timeout of its messages, and kills it if the batch overruns.

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

ChangeVisibility = Callable[[Sequence[str], int], Sequence[bool]]
"""Sets the visibility timeout (s) of up to ten receipt handles; True for each that SQS confirms. Never raises."""

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
    is_given_up: bool = False


class Watchdog:
    """Takes the reports of one process. Methods are called in one thread, except `is_overrunning`."""

    def __init__(self, change_visibility: ChangeVisibility, kill: Callable[[], None], logger: Logger) -> None:
        self._change_visibility = change_visibility
        self._kill = kill
        self._logger = logger
        self._batch: _Batch | None = None

    def started(self, report: BatchReport) -> None:
        """The process has begun a batch."""
        now = time.monotonic()
        self._batch = _Batch(report, now + report.visibility_timeout / 3, now + report.seconds)

    def settled(self, receipts: Collection[str]) -> None:
        """The handler has deleted or deferred these messages: their visibility timeout is not renewed any more."""
        if self._batch is not None:
            report = self._batch.report
            rest = [pair for pair in zip(report.message_ids, report.receipts, strict=True) if pair[1] not in receipts]
            self._batch.report = replace(
                report, message_ids=[name for name, _ in rest], receipts=[receipt for _, receipt in rest]
            )

    @property
    def message_ids(self) -> list[str]:
        """The messages of the current batch that are not settled."""
        return [] if self._batch is None else list(self._batch.report.message_ids)

    def finished(self) -> None:
        """The process has finished its batch, or has ended."""
        self._batch = None

    def is_overrunning(self) -> bool:
        """Whether the time for the current batch is over; for any thread."""
        batch = self._batch
        return batch is not None and time.monotonic() > batch.end

    def seconds_until_due(self) -> float | None:
        """When `act` should be called next; None: not at all."""
        batch = self._batch
        if batch is None or batch.is_given_up:
            return None
        return max(0.0, min(batch.renew_at, batch.end + _OVERRUN) - time.monotonic())

    def act(self) -> None:
        """Does what is due: renews the visibility timeout, or kills the process."""
        batch, now = self._batch, time.monotonic()
        if batch is None or batch.is_given_up:
            return
        if now >= batch.end + _OVERRUN:
            self._give_up(batch)
        elif now >= batch.renew_at:
            batch.renew_at = now + batch.report.visibility_timeout / 3
            confirmed = self._change_visibility(batch.report.receipts, batch.report.visibility_timeout)
            if not all(confirmed):
                ids = [name for name, done in zip(batch.report.message_ids, confirmed, strict=True) if not done]
                self._logger.warning(
                    "the visibility timeout of messages could not be renewed", extra={"message_ids": ids}
                )

    def _give_up(self, batch: _Batch) -> None:
        batch.is_given_up = True
        ids = {"message_ids": list(batch.report.message_ids)}
        self._logger.error(
            "a batch overruns its time; its process is killed and its messages will be retried", extra=ids
        )
        self._kill()
        receipts = batch.report.receipts
        if len(receipts) == 1:  # it was this message: it waits as long as it took, so that others get their turn
            self._change_visibility(receipts, math.ceil(batch.report.seconds))
            return
        for place, receipt in enumerate(receipts):
            self._change_visibility([receipt], place * _APART)
