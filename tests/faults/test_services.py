"""S3, DynamoDB and the network fail: tickets are enriched after recovery, or go to the DLQ with the reason."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from handler.worker.reports import WorkerOptions
from tests.support.fault_injection import Call, Disconnect, ErrorResponse, Fault, FaultPlan, Rule, Stall
from tests.support.traffic import Message

if TYPE_CHECKING:
    from tests.faults.conftest import Scenario

# Consecutive faults for one subject. Each receive makes at least one call, so tickets survive up to four faults
# whatever is left of botocore's retry budget; PERMANENT outlasts all 30 receives.
PERMANENT: Final = 1000
TIMES: Final = (1, 2, 2, 3, 3, 4, 4, 4, PERMANENT, PERMANENT)

THROTTLED: Final = (
    ErrorResponse(400, "ProvisionedThroughputExceededException"),
    ErrorResponse(400, "ThrottlingException"),
)
BROKEN: Final = (Disconnect(delivered=False), Disconnect(delivered=True), Disconnect(delivered=True, share=0.5))


def of(service: str, name: str, part: int, bucket: str = "") -> Callable[[Call], bool]:
    """Matches calls of this name for a sixth of all tickets; parts are disjoint, so only one rule affects a ticket."""

    def matches(call: Call) -> bool:
        where = call.subject.partition("/")[0] if call.service == "s3" else ""
        ticket = re.search(r"FLT-\d+", call.subject)
        return (call.service, call.name, where) == (service, name, bucket) and (
            ticket is not None and zlib.crc32(ticket[0].encode()) % 6 == part
        )

    return matches


def with_expected_rejections(
    messages: Sequence[Message], fault_plan: FaultPlan, reasons: dict[int, str], buckets: Sequence[str]
) -> list[Message]:
    """The messages; those with permanent faults get the expected reason of their rejection."""
    return [_with_expected_rejection(message, fault_plan, reasons, buckets) for message in messages]


def _with_expected_rejection(
    message: Message, fault_plan: FaultPlan, reasons: dict[int, str], buckets: Sequence[str]
) -> Message:
    (ticket,) = message.expected
    for number, reason in reasons.items():
        for name, subject in (
            ("dynamodb", ticket.name[0]),
            *((f"s3 {bucket}", f"{bucket}/{ticket.key}") for bucket in buckets),
        ):
            service, _, bucket = name.partition(" ")
            applies = message.body is None or bucket != buckets[0]  # inline tickets are not fetched
            probe = [Call(call, service, subject, b"") for call in ("GET", "PUT", "BatchGetItem", "PutItem")]
            matched = any(fault_plan.rules[number].matches(call) for call in probe)
            if applies and matched and fault_plan.times(number, subject) == PERMANENT:
                return replace(message, expected=(), reasons=(reason,))
    return message


def rule(
    matches: Callable[[Call], bool], *kinds: Fault, probability: float = 0.15, times: tuple[int, ...] = TIMES
) -> Rule:
    return Rule(matches, probability, times, kinds)


def test_s3_fails_and_throttles(scenario: Scenario) -> None:
    raw, enriched = scenario.stack.outputs["RawBucket"], scenario.stack.outputs["EnrichedBucket"]
    slow, broken = (
        (ErrorResponse(503, "SlowDown"),),
        (ErrorResponse(500, "InternalError"), ErrorResponse(503, "ServiceUnavailable")),
    )
    fault_plan = scenario.fault_plan(
        rule(of("s3", "GET", 0, raw), *slow),
        rule(of("s3", "GET", 1, raw), *broken),
        rule(of("s3", "PUT", 2, enriched), *slow),
        rule(of("s3", "PUT", 3, enriched), *broken),
    )
    reasons = {0: "throttled", 1: "service_failed", 2: "throttled", 3: "service_failed"}
    messages = with_expected_rejections(
        scenario.traffic.mixed(scenario.size(2000), uploads=0.2), fault_plan, reasons, (raw, enriched)
    )
    reconciliation, containers = scenario.run(messages, fault_plan=fault_plan)
    assert reconciliation.rejected["throttled"]
    assert reconciliation.rejected["service_failed"]
    assert containers.tickets()["failed"]


def test_dynamodb_fails_and_throttles(scenario: Scenario) -> None:
    buckets = scenario.stack.outputs["RawBucket"], scenario.stack.outputs["EnrichedBucket"]
    failing = ErrorResponse(500, "InternalServerError")
    fault_plan = scenario.fault_plan(
        rule(of("dynamodb", "BatchGetItem", 0), *THROTTLED),
        rule(of("dynamodb", "BatchGetItem", 1), failing),
        rule(of("dynamodb", "PutItem", 2), *THROTTLED),
        rule(of("dynamodb", "PutItem", 3), failing),
    )
    reasons = {0: "throttled", 1: "service_failed", 2: "throttled", 3: "service_failed"}
    messages = with_expected_rejections(scenario.traffic.mixed(scenario.size(2000)), fault_plan, reasons, buckets)
    reconciliation, containers = scenario.run(messages, fault_plan=fault_plan)
    assert reconciliation.rejected["throttled"]
    assert reconciliation.rejected["service_failed"]
    assert containers.tickets()["failed"]


def test_connections_break(scenario: Scenario) -> None:
    raw, enriched = scenario.stack.outputs["RawBucket"], scenario.stack.outputs["EnrichedBucket"]
    fault_plan = scenario.fault_plan(
        rule(of("s3", "GET", 0, raw), *BROKEN),
        rule(of("s3", "PUT", 1, enriched), *BROKEN[:2]),  # a response without a body cannot be truncated
        rule(of("dynamodb", "BatchGetItem", 2), *BROKEN),
        # A write whose response is lost has been made: the next attempt finds the ticket already enriched.
        rule(of("dynamodb", "PutItem", 3), *BROKEN, times=(1, 2, 3, 4)),
    )
    reasons = dict.fromkeys(range(3), "service_failed")
    messages = with_expected_rejections(
        scenario.traffic.mixed(scenario.size(1500)), fault_plan, reasons, (raw, enriched)
    )
    reconciliation, containers = scenario.run(messages, fault_plan=fault_plan)
    assert set(reconciliation.rejected) == {"service_failed"}
    assert reconciliation.superseded  # objects of retried writes
    assert containers.tickets()["failed"]


def test_hanging_calls_are_abandoned_before_the_deadline(scenario: Scenario) -> None:
    raw, enriched = scenario.stack.outputs["RawBucket"], scenario.stack.outputs["EnrichedBucket"]
    hanging = (Stall(12, delivered=True), Stall(12, delivered=False))  # longer than the timeout of a batch here
    fault_plan = scenario.fault_plan(
        *(
            rule(matches, *hanging, probability=0.04, times=(1,))
            for matches in (
                of("s3", "GET", 0, raw),
                of("s3", "PUT", 1, enriched),
                of("dynamodb", "BatchGetItem", 2),
                of("dynamodb", "PutItem", 3),
            )
        )
    )
    messages = scenario.traffic.mixed(scenario.size(500))
    reconciliation, containers = scenario.run(
        messages, fault_plan=fault_plan, options=WorkerOptions(wait=1, visibility_timeout=10, timeout=8)
    )
    assert sum(fault_plan.injected.values())
    assert {code for outcome, code in containers.errors() if outcome == "failed"} == {"out_of_time"}
    assert not reconciliation.rejected
