"""S3, DynamoDB and the network fail under the handler: what recovers is enriched, what does not is dead and says so."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from handler.worker.reports import WorkerOptions
from tests.support.fault_injection import Call, Cut, Fault, FaultPlan, Refusal, Rule, Stall
from tests.support.traffic import Message

if TYPE_CHECKING:
    from tests.faults.conftest import Scenario

# Faults in a row for one subject. Each receive makes at least one call, so up to four are survived whatever is left of
# botocore's retry budget; FOREVER outlasts all 30 receives.
FOREVER: Final = 1000
TIMES: Final = (1, 2, 2, 3, 3, 4, 4, 4, FOREVER, FOREVER)

THROTTLED: Final = (Refusal(400, "ProvisionedThroughputExceededException"), Refusal(400, "ThrottlingException"))
BROKEN: Final = (Cut(heard=False), Cut(heard=True), Cut(heard=True, share=0.5))


def of(service: str, name: str, part: int, bucket: str = "") -> Callable[[Call], bool]:
    """Calls of that name about a sixth of all tickets: the parts do not overlap, so only one rule strikes a ticket."""

    def fits(call: Call) -> bool:
        where = call.subject.partition("/")[0] if call.service == "s3" else ""
        ticket = re.search(r"FLT-\d+", call.subject)
        return (call.service, call.name, where) == (service, name, bucket) and (
            ticket is not None and zlib.crc32(ticket[0].encode()) % 6 == part
        )

    return fits


def doomed(
    messages: Sequence[Message], fault_plan: FaultPlan, reasons: dict[int, str], buckets: Sequence[str]
) -> list[Message]:
    """The messages, with the reason of those that a rule strikes for ever and that therefore die."""
    return [_doomed(message, fault_plan, reasons, buckets) for message in messages]


def _doomed(message: Message, fault_plan: FaultPlan, reasons: dict[int, str], buckets: Sequence[str]) -> Message:
    (ticket,) = message.wanted
    for number, reason in reasons.items():
        for name, subject in (
            ("dynamodb", ticket.name[0]),
            *((f"s3 {bucket}", f"{bucket}/{ticket.key}") for bucket in buckets),
        ):
            service, _, bucket = name.partition(" ")
            applies = message.body is None or bucket != buckets[0]  # an inline ticket is not fetched
            probe = [Call(call, service, subject, b"") for call in ("GET", "PUT", "GetItem", "PutItem")]
            struck = any(fault_plan.rules[number].fits(call) for call in probe)
            if applies and struck and fault_plan.times(number, subject) == FOREVER:
                return replace(message, wanted=(), reasons=(reason,))
    return message


def rule(fits: Callable[[Call], bool], *kinds: Fault, odds: float = 0.15, times: tuple[int, ...] = TIMES) -> Rule:
    return Rule(fits, odds, times, kinds)


def test_s3_fails_and_throttles(scenario: Scenario) -> None:
    raw, enriched = scenario.stack.outputs["RawBucket"], scenario.stack.outputs["EnrichedBucket"]
    slow, broken = (Refusal(503, "SlowDown"),), (Refusal(500, "InternalError"), Refusal(503, "ServiceUnavailable"))
    fault_plan = scenario.fault_plan(
        rule(of("s3", "GET", 0, raw), *slow),
        rule(of("s3", "GET", 1, raw), *broken),
        rule(of("s3", "PUT", 2, enriched), *slow),
        rule(of("s3", "PUT", 3, enriched), *broken),
    )
    reasons = {0: "throttled", 1: "service_failed", 2: "throttled", 3: "service_failed"}
    messages = doomed(scenario.traffic.mixed(scenario.size(2000), uploads=0.2), fault_plan, reasons, (raw, enriched))
    account, containers = scenario.run(messages, fault_plan=fault_plan)
    assert account.rejected["throttled"]
    assert account.rejected["service_failed"]
    assert containers.tickets()["failed"]


def test_dynamodb_fails_and_throttles(scenario: Scenario) -> None:
    buckets = scenario.stack.outputs["RawBucket"], scenario.stack.outputs["EnrichedBucket"]
    failing = Refusal(500, "InternalServerError")
    fault_plan = scenario.fault_plan(
        rule(of("dynamodb", "GetItem", 0), *THROTTLED),
        rule(of("dynamodb", "GetItem", 1), failing),
        rule(of("dynamodb", "PutItem", 2), *THROTTLED),
        rule(of("dynamodb", "PutItem", 3), failing),
    )
    reasons = {0: "throttled", 1: "service_failed", 2: "throttled", 3: "service_failed"}
    messages = doomed(scenario.traffic.mixed(scenario.size(2000)), fault_plan, reasons, buckets)
    account, containers = scenario.run(messages, fault_plan=fault_plan)
    assert account.rejected["throttled"]
    assert account.rejected["service_failed"]
    assert containers.tickets()["failed"]


def test_connections_break(scenario: Scenario) -> None:
    raw, enriched = scenario.stack.outputs["RawBucket"], scenario.stack.outputs["EnrichedBucket"]
    fault_plan = scenario.fault_plan(
        rule(of("s3", "GET", 0, raw), *BROKEN),
        rule(of("s3", "PUT", 1, enriched), *BROKEN[:2]),  # an answer without a body cannot be cut
        rule(of("dynamodb", "GetItem", 2), *BROKEN),
        # A write whose answer is lost has been made: the next try finds the ticket enriched already.
        rule(of("dynamodb", "PutItem", 3), *BROKEN, times=(1, 2, 3, 4)),
    )
    reasons = dict.fromkeys(range(3), "service_failed")
    messages = doomed(scenario.traffic.mixed(scenario.size(1500)), fault_plan, reasons, (raw, enriched))
    account, containers = scenario.run(messages, fault_plan=fault_plan)
    assert set(account.rejected) == {"service_failed"}
    assert account.superseded  # objects of writes that were tried again
    assert containers.tickets()["failed"]


def test_hanging_calls_are_abandoned_before_the_deadline(scenario: Scenario) -> None:
    raw, enriched = scenario.stack.outputs["RawBucket"], scenario.stack.outputs["EnrichedBucket"]
    hanging = (Stall(12, heard=True), Stall(12, heard=False))  # longer than a batch may take here
    fault_plan = scenario.fault_plan(
        *(
            rule(fits, *hanging, odds=0.04, times=(1,))
            for fits in (
                of("s3", "GET", 0, raw),
                of("s3", "PUT", 1, enriched),
                of("dynamodb", "GetItem", 2),
                of("dynamodb", "PutItem", 3),
            )
        )
    )
    messages = scenario.traffic.mixed(scenario.size(500))
    account, containers = scenario.run(
        messages, fault_plan=fault_plan, options=WorkerOptions(wait=1, visibility_timeout=10, timeout=8)
    )
    assert sum(fault_plan.struck.values())
    assert {code for outcome, code in containers.errors() if outcome == "failed"} == {"out_of_time"}
    assert not account.rejected
