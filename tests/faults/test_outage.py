"""DynamoDB outage: valid tickets wait for its end, and only tickets that fail by themselves are rejected."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enrichment import EnrichmentData, EnrichmentError, ModelFailed, RawTicket
from tests.support.fault_injection import Call, ErrorResponse, Rule
from tests.support.proxy import Proxy
from tests.support.workers import worker

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


class Switch:
    """While it is on, DynamoDB responds with 500 to every call."""

    def __init__(self) -> None:
        self.on = threading.Event()
        self.refused = 0

    def __call__(self, call: Call) -> ErrorResponse | None:
        if call.service != "dynamodb" or not self.on.is_set():
            return None
        self.refused += 1
        return ErrorResponse(500, "InternalServerError")


class FailingFor:
    """Models that fail for tickets with these ids."""

    def __init__(self, models: Enricher, bad: set[str]) -> None:
        self.version = models.version
        self._models, self._bad = models, bad

    def enrich(self, tickets: Sequence[RawTicket], **options: Any) -> list[EnrichmentData | EnrichmentError]:
        """As Models.enrich."""
        results = self._models.enrich(tickets, **options)
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
    codes = {code for _, code in containers.errors()}
    assert "service_failed" in codes
    # On a busy machine the repeated calls of a batch may take all its time.
    assert codes <= {"service_failed", "out_of_time"}


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


def get(port: int, path: str) -> tuple[int, str]:
    """What the worker's health server answers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def wait_for(condition: Callable[[], bool], seconds: float = 180.0) -> None:
    """Wait until a condition holds. Raises AssertionError if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.1)


def test_workers_stop_receiving_during_an_outage(scenario: Scenario, tmp_path: Path) -> None:
    """A real worker with two processes: its breakers open, its probes fail, they close, and nothing is lost."""
    messages = scenario.traffic.mixed(200)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = scenario.stack.environment() | {
        "MODEL_BUNDLE": scenario.bundle.as_uri(),
        "BUNDLE_CACHE_DIR": str(tmp_path / "cache"),
        "NUM_WORKERS": "2",
        "HEALTH_PORT": str(port),
    }

    def metric(series: str) -> float:
        lines = get(port, "/metrics")[1].splitlines()
        return float(next(line for line in lines if line.startswith(series)).rpartition(" ")[2])

    outage = Switch()
    outage.on.set()
    with (
        Proxy(scenario.stack.endpoint_url, outage) as proxy,
        worker(environment | {"AWS_ENDPOINT_URL": proxy.url}, tmp_path / "log") as running,
    ):
        running.wait_until("a process is ready")
        scenario.sender.send(messages)
        stopped = "2 of 2 processes have stopped receiving for now: no ticket can be stored"
        wait_for(lambda: get(port, "/readyz")[1].startswith(stopped))
        assert get(port, "/readyz")[0] == HTTPStatus.SERVICE_UNAVAILABLE
        assert [get(port, path)[0] for path in ("/livez", "/startupz")] == [HTTPStatus.OK] * 2
        # The first batches were handled as always: their messages are deferred. Most are still visible.
        assert scenario.sender.depth()[0] > len(messages) / 2
        refused = outage.refused
        wait_for(lambda: outage.refused > refused)  # a probe fails too
        outage.on.clear()
        # A breaker closes only when its process stores a ticket, and the other one may have taken all that were left.
        deadline = time.monotonic() + 300
        while metric('ticket_breaker_processes{state="closed"}') < 2:
            assert time.monotonic() < deadline, "the breakers did not close in time"
            messages.append(scenario.traffic.inline())
            scenario.sender.send(messages[-1:])
            time.sleep(1)
        assert get(port, "/readyz") == (HTTPStatus.OK, "ready\n")
        scenario.sender.wait_until_empty()
        assert metric("ticket_breaker_openings_total") == 2
        assert metric("ticket_process_restarts_total") == 0
    reconciliation = scenario.reconcile(messages, {"InternalServerError": outage.refused})
    assert (reconciliation.enriched, reconciliation.rejected) == (len(messages), Counter())
