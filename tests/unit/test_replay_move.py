"""--native: SQS moves everything by itself. MiniStack and moto know no move tasks, so botocore's Stubber stands in."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.stub import Stubber

from handler.replay.move import Move, move_all
from handler.replay.queue import ReplayError
from tests.replay_fakes import ARN, FakeHalt

DEAD, LIVE = ARN + "dead", ARN + "live"


def task(status: str, moved: int, *, begun: int = 1_795_000_000_000, handle: str | None = "h", **more: Any) -> Any:
    return {
        "Status": status,
        "SourceArn": DEAD,
        "ApproximateNumberOfMessagesMoved": moved,
        "ApproximateNumberOfMessagesToMove": 30,
        "StartedTimestamp": begun,
        **({"TaskHandle": handle} if handle else {}),
        **more,
    }


def listed(stub: Stubber, *tasks: Any) -> None:
    stub.add_response("list_message_move_tasks", {"Results": list(tasks)}, {"SourceArn": DEAD, "MaxResults": 10})


def started(stub: Stubber, **more: Any) -> None:
    stub.add_response(
        "start_message_move_task", {"TaskHandle": "h"}, {"SourceArn": DEAD, "DestinationArn": LIVE} | more
    )


def run(sqs: Any, halt: FakeHalt | None = None, rate: int | None = None) -> tuple[Move, list[int]]:
    steps: list[int] = []
    halt = halt or FakeHalt()
    move = move_all(sqs, DEAD, LIVE, rate=rate, halt=halt, advance=lambda state: steps.append(state.moved))
    return move, steps


def test_progress_is_told_until_all_is_moved(sqs: Any, stub: Stubber) -> None:
    started(stub, MaxNumberOfMessagesPerSecond=50)
    old = task("COMPLETED", 99, begun=1_794_000_000_000, handle=None)
    listed(stub, task("RUNNING", 0), old)
    listed(stub, task("RUNNING", 12), old)
    # The handle is told of running tasks only.
    listed(stub, old, task("COMPLETED", 30, handle=None))
    move, steps = run(sqs, rate=50)
    assert (move.status, move.moved, move.total) == ("COMPLETED", 30, 30)
    assert steps == [0, 12, 30]


def test_a_task_that_fails_says_why(sqs: Any, stub: Stubber) -> None:
    started(stub)
    listed(stub, task("FAILED", 3, handle=None, FailureReason="AWS.SimpleQueueService.NonExistentQueue"))
    move, _ = run(sqs)
    assert (move.status, move.failure) == ("FAILED", "AWS.SimpleQueueService.NonExistentQueue")


def test_an_end_that_is_requested_for_cancels_the_task_once(sqs: Any, stub: Stubber) -> None:
    halt = FakeHalt()
    halt.request()
    started(stub)
    listed(stub, task("RUNNING", 5))
    stub.add_response("cancel_message_move_task", {"ApproximateNumberOfMessagesMoved": 5}, {"TaskHandle": "h"})
    listed(stub, task("CANCELLING", 6))
    listed(stub, task("CANCELLED", 7, handle=None))
    move, _ = run(sqs, halt)
    assert (move.status, move.moved) == ("CANCELLED", 7)


def test_a_second_task_is_refused_in_one_line(sqs: Any, stub: Stubber) -> None:
    stub.add_client_error("start_message_move_task", "UnsupportedOperation", "There is already a task running.")
    with pytest.raises(ReplayError, match="StartMessageMoveTask: UnsupportedOperation: There is already a task"):
        run(sqs)


def test_a_task_that_vanishes_is_said(sqs: Any, stub: Stubber) -> None:
    started(stub)
    listed(stub)
    with pytest.raises(ReplayError, match="does not know its task"):
        run(sqs)
