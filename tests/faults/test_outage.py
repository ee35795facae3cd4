"""DynamoDB outage: valid tickets wait for its end, and only tickets that fail by themselves are rejected."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from enrichment import EnrichmentData, EnrichmentError, ModelFailed, RawTicket
from tests.support.fault_injection import Call, ErrorResponse, Rule

if TYPE_CHECKING:
    from enrichment import Enricher
    from tests.faults.conftest import Scenario


class Outage:
    """DynamoDB responds with 500 to every call, for a number of seconds from the first call on."""

    def __init__(self, seconds: float) -> None:
        self.refused = 0
        self._seconds = seconds
        self._end: float | None = None

    def __call__(self, call: Call) -> ErrorResponse | None:
        if call.service != "dynamodb":
            return None
        self._end = self._end or time.monotonic() + self._seconds
        if time.monotonic() > self._end:
            return None
        self.refused += 1
        return ErrorResponse(500, "InternalServerError")


class FailingFor:
    """Models that fail for tickets with these ids."""

    def __init__(self, models: Enricher, bad: set[str]) -> None:
        self.version = models.version
        self._models, self._bad = models, bad

    def enrich(
        self,
        tickets: Sequence[RawTicket],
        *,
        time_left: Callable[[], float] | None = None,
        observe: Callable[[str, float, int], None] | None = None,
    ) -> list[EnrichmentData | EnrichmentError]:
        """As Models.enrich."""
        results = self._models.enrich(tickets, time_left=time_left, observe=observe)
        return [
            ModelFailed("a model raised RuntimeError", ticket_id=ticket.ticket_id)
            if ticket.ticket_id in self._bad
            else result
            for ticket, result in zip(tickets, results, strict=True)
        ]


def test_dynamodb_down_for_a_minute(scenario: Scenario) -> None:
    outage = Outage(60)
    reconciliation, containers = scenario.run(scenario.traffic.mixed(100), fault_plan=outage, speedup=1)
    assert outage.refused >= 100
    assert (reconciliation.enriched, reconciliation.rejected) == (100, Counter())
    assert {code for _, code in containers.errors()} == {"service_failed"}


def test_own_failures_are_counted_separately_from_an_outage(scenario: Scenario) -> None:
    good = scenario.traffic.mixed(40)
    tickets = [scenario.traffic.ticket() for _ in range(10)]
    bad = [replace(scenario.traffic.inline(each), expected=(), reasons=("model_failed",)) for each in tickets]
    models = FailingFor(scenario.models, {ticket["ticket_id"] for ticket in tickets})
    # An outage of 7 to 21 receives: botocore makes up to three calls in each.
    outage = scenario.fault_plan(
        Rule(lambda call: call.name == "BatchGetItem", 1, (21,), (ErrorResponse(500, "InternalServerError"),))
    )
    reconciliation, containers = scenario.run(
        [*good, *bad], fault_plan=outage, models=models, own_failures=frozenset({"model_failed"})
    )
    assert (reconciliation.enriched, reconciliation.rejected) == (len(good), {"model_failed": len(bad)})
    for ticket in tickets:
        lines = [line for line in containers.lines() if line.get("ticket_id") == ticket["ticket_id"]]
        own: list[dict[str, Any]] = [line for line in lines if line["error_type"] == "model_failed"]
        assert [line["own_failures"] for line in own] == [1, 2, 3, 4, 5]
        assert [line["outcome"] for line in own] == ["failed"] * 4 + ["rejected"]
        assert own[0]["receive_count"] > 5, "the outage alone had used up five receives"
