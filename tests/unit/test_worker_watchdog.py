"""The watchdog of a process that has several batches at once, which may be of different queues."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from uuid import uuid4

import pytest

from handler.metrics import Logger
from handler.worker.reports import BatchReport
from handler.worker.watchdog import Watchdog


class Harness:
    """A watchdog; `changes` are the visibility timeouts that it set, by queue."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, list[str], int]] = []
        self.kills = 0
        log = logging.StreamHandler(io.StringIO())
        self.watchdog = Watchdog(self._change, self._kill, Logger(service=str(uuid4()), logger_handler=log))

    def start(
        self, number: int, queue: str, *receipts: str, visibility_timeout: int = 3000, seconds: float = 60
    ) -> None:
        report = BatchReport(
            number=number,
            queue_url=queue,
            message_ids=[f"id-{receipt}" for receipt in receipts],
            receipts=receipts,
            visibility_timeout=visibility_timeout,
            seconds=seconds,
        )
        self.watchdog.started(report)

    def _change(self, queue: str, receipts: Sequence[str], seconds: int) -> list[bool]:
        self.changes.append((queue, list(receipts), seconds))
        return [True] * len(receipts)

    def _kill(self) -> None:
        self.kills += 1


@pytest.fixture
def harness() -> Harness:
    return Harness()


def test_each_batch_is_renewed_in_its_own_queue(harness: Harness) -> None:
    harness.start(1, "live", "a", visibility_timeout=0)  # due at once
    harness.start(2, "bulk", "b", "c", visibility_timeout=0)
    harness.start(3, "live", "d")
    harness.watchdog.settled({"b"})
    assert harness.watchdog.seconds_until_due() == 0
    harness.watchdog.act()
    assert harness.changes == [("live", ["a"], 0), ("bulk", ["c"], 0)]


def test_finished_batch_leaves_the_others(harness: Harness) -> None:
    harness.start(1, "live", "a", visibility_timeout=0)
    harness.start(2, "live", "b")
    harness.watchdog.finished(1)
    harness.watchdog.act()
    assert harness.changes == []
    assert harness.watchdog.message_ids == ["id-b"]
    due = harness.watchdog.seconds_until_due()
    assert due is not None
    assert due > 0
    harness.watchdog.ended()
    assert (harness.watchdog.message_ids, harness.watchdog.seconds_until_due()) == ([], None)


def test_batch_that_overruns_ends_the_process_and_the_messages_of_the_others_come_back_by_themselves(
    harness: Harness,
) -> None:
    harness.start(1, "live", "a")
    harness.start(2, "bulk", "b", "c", seconds=-60)
    assert harness.watchdog.is_overrunning()
    harness.watchdog.act()
    harness.watchdog.act()
    assert harness.kills == 1
    assert harness.changes == [("bulk", ["b"], 0), ("bulk", ["c"], 1)]
    assert harness.watchdog.seconds_until_due() is None
    assert harness.watchdog.message_ids == ["id-a", "id-b", "id-c"]
