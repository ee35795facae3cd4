"""The redrive: SQS itself moves every message out of the DLQ (StartMessageMoveTask), and this waits for it.

It is faster than a replay (up to 500 messages per second) and needs no consumer, but it has no filter, no limit, no
audit file and one task at a time. Messages keep `Reason` and `Rejection`, which the handler ignores, get no
`ReplayCount`, and start again with a receive count of zero.
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
    """Wait until the task is over, and cancel it if shutdown is requested; the state says how it ended.

    Raises Throttled or ServiceFailed; the task may continue then.
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
