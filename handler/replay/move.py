"""Handing a whole dead-letter queue over to SQS itself: StartMessageMoveTask, with progress.

SQS moves everything, up to 500 messages a second, and changes nothing: `Reason` and `Rejection` stay on, and no replay
is counted. The handler minds neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from handler.replay.look import Halt
from handler.replay.queue import ReplayError, error_line

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

__all__ = ["Move", "move_all"]

_POLL: Final = 2.0  # seconds between two looks at the task


@dataclass(frozen=True, slots=True)
class Move:
    """How far SQS is; `total` is its estimate. `status` is RUNNING, COMPLETED, CANCELLING, CANCELLED or FAILED."""

    status: str
    moved: int
    total: int
    failure: str = ""

    @property
    def is_over(self) -> bool:
        """Whether SQS does no more."""
        return self.status not in {"RUNNING", "CANCELLING"}


def move_all(
    client: SQSClient,
    source_arn: str,
    destination_arn: str,
    *,
    rate: int | None,
    halt: Halt,
    advance: Callable[[Move], None],
) -> Move:
    """Lets SQS move all messages and waits until it has; where an end is asked for, the task is cancelled.

    Raises ReplayError; the task then may go on.
    """
    arguments: dict[str, Any] = {"SourceArn": source_arn, "DestinationArn": destination_arn}
    if rate is not None:
        arguments["MaxNumberOfMessagesPerSecond"] = rate
    handle = _asked("StartMessageMoveTask", client.start_message_move_task, **arguments)["TaskHandle"]
    cancelled = False
    while True:
        move = _state(client, source_arn, handle)
        advance(move)
        if move.is_over:
            return move
        if halt.is_requested and not cancelled:
            cancelled = True
            _asked("CancelMessageMoveTask", client.cancel_message_move_task, TaskHandle=handle)
        halt.pause(_POLL)


def _state(client: SQSClient, source_arn: str, handle: str) -> Move:
    tasks = _asked("ListMessageMoveTasks", client.list_message_move_tasks, SourceArn=source_arn, MaxResults=10)
    results = tasks.get("Results", [])
    if not results:
        raise ReplayError(f"SQS does not know its task for {source_arn} any more; look at both queues")
    # SQS tells the handle of a running task only, and takes one task at a time: else ours is the one begun last.
    last = max(results, key=lambda task: task.get("StartedTimestamp", 0))
    found = next((task for task in results if task.get("TaskHandle") == handle), last)
    return Move(
        found.get("Status", ""),
        found.get("ApproximateNumberOfMessagesMoved", 0),
        found.get("ApproximateNumberOfMessagesToMove", 0),
        found.get("FailureReason", ""),
    )


def _asked(operation: str, call: Callable[..., Any], **arguments: Any) -> Any:
    try:
        return call(**arguments)
    except (ClientError, BotoCoreError) as error:
        raise ReplayError(error_line(error, operation)) from error
