"""Redrive: SQS itself moves all messages out of the DLQ (StartMessageMoveTask); this module waits for the task.

It is faster than a replay (up to 500 messages per second), but has no filter, no limit and no audit file, and SQS runs
only one task per DLQ. Messages keep `Reason` and `Rejection`, which the handler ignores, get no `ReplayCount`, and
their receive counts start again at zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from handler.aws.sqs import MoveTask, MoveTaskState
from handler.cli.shutdown import Shutdown

__all__ = ["MAX_RATE", "wait_for"]

MAX_RATE: Final = 500  # messages per second
_POLL: Final = 2.0  # seconds


def wait_for(task: MoveTask, shutdown: Shutdown, on_progress: Callable[[MoveTaskState], None]) -> MoveTaskState:
    """Wait until the task has ended, and cancel it if shutdown is requested; returns its last state.

    Raises Throttled or ServiceFailed; the task may then still be running.
    """
    cancelled = False
    while True:
        state = task.state()
        on_progress(state)
        if state.is_over:
            return state
        if shutdown.is_requested and not cancelled:
            cancelled = True
            task.cancel()
        shutdown.pause(_POLL)
