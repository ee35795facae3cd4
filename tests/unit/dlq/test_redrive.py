"""A redrive waits for SQS's move task. MiniStack and moto have none, so botocore's Stubber answers."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.stub import Stubber

from handler.aws.sqs import MoveTask, MoveTaskState
from handler.dlq.errors import describe
from handler.dlq.redrive import wait_for
from handler.errors import ServiceFailed
from tests.support.dlq_queues import ARN, FakeShutdown

DLQ, LIVE = ARN + "dead", ARN + "live"


def task(status: str, moved: int, *, started: int = 1_795_000_000_000, handle: str | None = "h", **more: Any) -> Any:
    return {
        "Status": status,
        "SourceArn": DLQ,
        "ApproximateNumberOfMessagesMoved": moved,
        "ApproximateNumberOfMessagesToMove": 30,
        "StartedTimestamp": started,
        **({"TaskHandle": handle} if handle else {}),
        **more,
    }


def add_list(stub: Stubber, *tasks: Any) -> None:
    stub.add_response("list_message_move_tasks", {"Results": list(tasks)}, {"SourceArn": DLQ, "MaxResults": 10})


def add_start(stub: Stubber, **more: Any) -> None:
    stub.add_response("start_message_move_task", {"TaskHandle": "h"}, {"SourceArn": DLQ, "DestinationArn": LIVE} | more)


def run(sqs: Any, shutdown: FakeShutdown | None = None, rate: int | None = None) -> tuple[MoveTaskState, list[int]]:
    steps: list[int] = []
    started = MoveTask(sqs, DLQ, LIVE, rate)
    state = wait_for(started, shutdown or FakeShutdown(), lambda state: steps.append(state.moved))
    return state, steps


def test_progress_until_the_task_is_completed(sqs: Any, stub: Stubber) -> None:
    add_start(stub, MaxNumberOfMessagesPerSecond=50)
    old = task("COMPLETED", 99, started=1_794_000_000_000, handle=None)
    add_list(stub, task("RUNNING", 0), old)
    add_list(stub, task("RUNNING", 12), old)
    add_list(stub, old, task("COMPLETED", 30, handle=None))  # only running tasks have a handle
    state, steps = run(sqs, rate=50)
    assert (state.status, state.moved, state.total) == ("COMPLETED", 30, 30)
    assert steps == [0, 12, 30]


def test_failed_task_says_why(sqs: Any, stub: Stubber) -> None:
    add_start(stub)
    add_list(stub, task("FAILED", 3, handle=None, FailureReason="AWS.SimpleQueueService.NonExistentQueue"))
    state, _ = run(sqs)
    assert (state.status, state.failure) == ("FAILED", "AWS.SimpleQueueService.NonExistentQueue")


def test_shutdown_cancels_the_task_once(sqs: Any, stub: Stubber) -> None:
    shutdown = FakeShutdown()
    shutdown.request()
    add_start(stub)
    add_list(stub, task("RUNNING", 5))
    stub.add_response("cancel_message_move_task", {"ApproximateNumberOfMessagesMoved": 5}, {"TaskHandle": "h"})
    add_list(stub, task("CANCELLING", 6))
    add_list(stub, task("CANCELLED", 7, handle=None))
    state, _ = run(sqs, shutdown)
    assert (state.status, state.moved) == ("CANCELLED", 7)


def test_second_task_is_refused(sqs: Any, stub: Stubber) -> None:
    stub.add_client_error("start_message_move_task", "UnsupportedOperation", "There is already a task running.")
    with pytest.raises(ServiceFailed) as caught:
        run(sqs)
    assert describe(caught.value).startswith("StartMessageMoveTask: UnsupportedOperation: There is already a task")


def test_missing_task_is_an_error(sqs: Any, stub: Stubber) -> None:
    add_start(stub)
    add_list(stub)
    with pytest.raises(ServiceFailed) as caught:
        run(sqs)
    assert "no longer lists the task" in describe(caught.value)
