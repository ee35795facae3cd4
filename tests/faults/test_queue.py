"""SQS fails under the worker and under the handler: batches that half succeed, answers lost, a queue that refuses."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from handler.worker.reports import WorkerOptions
from tests.support.fault_injection import Call, Cut, Refusal, Rule, Share
from tests.support.traffic import Message

if TYPE_CHECKING:
    from tests.faults.conftest import Scenario

MOST_BYTES = "65536"
LOST = Cut(heard=True)
RESET = Cut(heard=False)
BROKEN = Refusal(500, "InternalFailure")


def named(*names: str) -> Callable[[Call], bool]:
    return lambda call: call.service == "sqs" and call.name in names


def test_sqs_batches_fail_partially(scenario: Scenario) -> None:
    traffic = scenario.traffic
    fault_plan = scenario.fault_plan(
        Rule(named("ReceiveMessage"), 0.1, (1,), (Refusal(400, "RequestThrottled"), BROKEN, RESET, LOST)),
        Rule(named("DeleteMessageBatch"), 0.4, (1,), (Share(2, 0), Share(2, 1), Share(1, 0), BROKEN, RESET, LOST)),
        Rule(named("ChangeMessageVisibilityBatch"), 0.4, (1,), (Share(), BROKEN, LOST)),
        Rule(named("ChangeMessageVisibility"), 0.4, (1,), (BROKEN, LOST)),
        # A rejection whose answer is lost is sent again: it is dead twice, which is better than gone.
        Rule(named("SendMessage"), 0.3, (1, 2, 3, 4), (BROKEN, Refusal(400, "RequestThrottled"), RESET, LOST)),
    )
    messages = [*islice(traffic.poison(), scenario.size(1000)), *traffic.mixed(scenario.size(1500), uploads=0.1)]
    traffic.chance.shuffle(messages)
    # Messages whose receipt was lost come back when they have been hidden for so long.
    account, _ = scenario.run(
        messages,
        fault_plan=fault_plan,
        options=WorkerOptions(wait=1, visibility_timeout=3, timeout=30),
        MAX_TICKET_BYTES=MOST_BYTES,
    )
    assert account.twice
    assert fault_plan.struck["DeleteMessageBatch half failed"]


def test_dlq_refuses_messages(scenario: Scenario) -> None:
    _receives(scenario, 3)
    traffic = scenario.traffic

    def refused(part: int) -> Callable[[Call], bool]:
        # Those that the test has sent: what S3 writes into a notification is not known before.
        return lambda call: (
            call.name == "SendMessage" and b'"Number"' in call.body and zlib.crc32(call.subject.encode()) % 8 == part
        )

    denied = (Refusal(403, "AccessDeniedException"),)
    fault_plan = scenario.fault_plan(
        Rule(refused(0), 1, (1, 2), denied),
        # For ever: SQS itself then moves the message after its last receive, without a reason.
        Rule(refused(1), 1, (1000,), denied),
    )
    messages = [
        *(_moved(message, fault_plan.rules[1].fits) for message in islice(traffic.poison(), scenario.size(600))),
        *traffic.mixed(scenario.size(600), uploads=0.1),
    ]
    traffic.chance.shuffle(messages)
    account, containers = scenario.run(
        messages, fault_plan=fault_plan, MAX_TICKET_BYTES=MOST_BYTES, MAX_RECEIVE_COUNT="3"
    )
    assert account.rejected["redriven by SQS"]
    assert not account.twice
    assert containers.tickets()["failed"]


def _receives(scenario: Scenario, most: int) -> None:
    """Lets the queue hand out each message so many times, fewer than the template allows: each takes longer."""
    sqs, url = scenario.stack.client("sqs"), scenario.stack.outputs["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])["Attributes"]
    policy = json.loads(attributes["RedrivePolicy"]) | {"maxReceiveCount": most}
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": json.dumps(policy)})


def _moved(message: Message, refused: Callable[[Call], bool]) -> Message:
    """What the dead-letter queue refuses for ever ends there without a reason."""
    if not message.reasons or message.body is None:
        return message
    subject = hashlib.sha256(message.body.encode()).hexdigest()[:16]
    return replace(message, reasons=(None,)) if refused(Call("SendMessage", "sqs", subject, b'"Number"')) else message
