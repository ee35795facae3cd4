"""SQS fails for the worker and the handler: partially failed batches, lost responses, denied access to the DLQ."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from handler.worker.reports import WorkerOptions
from tests.support.fault_injection import Call, Disconnect, ErrorResponse, PartialFailure, Rule
from tests.support.traffic import Message

if TYPE_CHECKING:
    from tests.faults.conftest import Scenario

MAX_BYTES = "65536"
LOST = Disconnect(delivered=True)
RESET = Disconnect(delivered=False)
BROKEN = ErrorResponse(500, "InternalFailure")


def sqs_calls(*names: str) -> Callable[[Call], bool]:
    return lambda call: call.service == "sqs" and call.name in names


def test_sqs_batches_fail_partially(scenario: Scenario) -> None:
    traffic = scenario.traffic
    fault_plan = scenario.fault_plan(
        Rule(sqs_calls("ReceiveMessage"), 0.1, (1,), (ErrorResponse(400, "RequestThrottled"), BROKEN, RESET, LOST)),
        Rule(
            sqs_calls("DeleteMessageBatch"),
            0.4,
            (1,),
            (PartialFailure(2, 0), PartialFailure(2, 1), PartialFailure(1, 0), BROKEN, RESET, LOST),
        ),
        Rule(sqs_calls("ChangeMessageVisibilityBatch"), 0.4, (1,), (PartialFailure(), BROKEN, LOST)),
        Rule(sqs_calls("ChangeMessageVisibility"), 0.4, (1,), (BROKEN, LOST)),
        # A rejection whose response is lost is sent again: the DLQ then has it twice, which is better than losing it.
        Rule(
            sqs_calls("SendMessage"), 0.3, (1, 2, 3, 4), (BROKEN, ErrorResponse(400, "RequestThrottled"), RESET, LOST)
        ),
    )
    messages = [*islice(traffic.poison(), scenario.size(1000)), *traffic.mixed(scenario.size(1500), uploads=0.1)]
    traffic.rng.shuffle(messages)
    # Messages whose receive response was lost become visible again after the visibility timeout.
    reconciliation, _ = scenario.run(
        messages,
        fault_plan=fault_plan,
        options=WorkerOptions(wait=1, visibility_timeout=3, timeout=30),
        MAX_TICKET_BYTES=MAX_BYTES,
    )
    assert reconciliation.rejected_twice
    assert fault_plan.injected["DeleteMessageBatch half failed"]


def test_dlq_refuses_messages(scenario: Scenario) -> None:
    _set_max_receive_count(scenario, 3)
    traffic = scenario.traffic

    def refused(part: int) -> Callable[[Call], bool]:
        # Only messages that the test sends itself: the contents of S3's notifications are not known in advance.
        return lambda call: (
            call.name == "SendMessage" and b'"Number"' in call.body and zlib.crc32(call.subject.encode()) % 8 == part
        )

    denied = (ErrorResponse(403, "AccessDeniedException"),)
    fault_plan = scenario.fault_plan(
        Rule(refused(0), 1, (1, 2), denied),
        # Always: SQS then moves the message after its last receive, without a reason.
        Rule(refused(1), 1, (1000,), denied),
    )
    messages = [
        *(
            _expect_move_by_sqs(message, fault_plan.rules[1].matches)
            for message in islice(traffic.poison(), scenario.size(600))
        ),
        *traffic.mixed(scenario.size(600), uploads=0.1),
    ]
    traffic.rng.shuffle(messages)
    reconciliation, containers = scenario.run(
        messages, fault_plan=fault_plan, MAX_TICKET_BYTES=MAX_BYTES, MAX_RECEIVE_COUNT="3"
    )
    assert reconciliation.rejected["moved by SQS"]
    assert not reconciliation.rejected_twice
    assert containers.tickets()["failed"]


def _set_max_receive_count(scenario: Scenario, most: int) -> None:
    """Set maxReceiveCount of the queue, below the template's minimum, to save time."""
    sqs, url = scenario.stack.client("sqs"), scenario.stack.outputs["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])["Attributes"]
    policy = json.loads(attributes["RedrivePolicy"]) | {"maxReceiveCount": most}
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": json.dumps(policy)})


def _expect_move_by_sqs(message: Message, refused: Callable[[Call], bool]) -> Message:
    """Messages that the DLQ always refuses are moved there by SQS, without a reason."""
    if not message.reasons or message.body is None:
        return message
    subject = hashlib.sha256(message.body.encode()).hexdigest()[:16]
    return replace(message, reasons=(None,)) if refused(Call("SendMessage", "sqs", subject, b'"Number"')) else message
