"""Shared by all scenarios: the seed, the models, the library's reference results, and the total at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from enrichment import Enricher
from handler.local import EmbeddedStack
from handler.ports import Models
from handler.worker.reports import WorkerOptions
from tests.support.containers import Containers, Sender
from tests.support.fault_injection import Call, Fault, FaultPlan, Rule
from tests.support.proxy import Proxy
from tests.support.reconciliation import Reconciler, Reconciliation, Reference
from tests.support.result_events import ResultEvents, reconcile_events
from tests.support.traffic import SEED_VARIABLE, Message, Traffic

SHARE_VARIABLE = "FAULT_SHARE"

_RECONCILIATIONS = pytest.StashKey[list[Reconciliation]]()


def pytest_configure(config: pytest.Config) -> None:
    """Create the list of reconciliations of this run."""
    config.stash[_RECONCILIATIONS] = []


def pytest_report_header() -> str:
    """Print the variables that reproduce the same traffic and faults."""
    return f"faults: {SEED_VARIABLE}={_seed()} (set it for other ones), {SHARE_VARIABLE}={_share():g} of all messages"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print all reconciliations and their total."""
    reconciliations = config.stash[_RECONCILIATIONS]
    if reconciliations:
        terminalreporter.section(f"faults, {SEED_VARIABLE}={_seed()}")
        for reconciliation in reconciliations:
            terminalreporter.write_line(reconciliation.line())
        total = Reconciliation("total", 0)
        for reconciliation in reconciliations:
            total.sent += reconciliation.sent
            total.enriched += reconciliation.enriched
            total.duplicates += reconciliation.duplicates
            total.ignored += reconciliation.ignored
            total.rejected += reconciliation.rejected
            total.errors += reconciliation.errors
            total.rejected_twice += reconciliation.rejected_twice
            total.superseded += reconciliation.superseded
            total.seconds += reconciliation.seconds
            total.events += reconciliation.events
            total.delay = max(total.delay, reconciliation.delay)
        terminalreporter.write_line(total.line())


def _seed() -> int:
    return int(os.environ.get(SEED_VARIABLE, "5"))


def _share() -> float:
    return float(os.environ.get(SHARE_VARIABLE, "1"))


@dataclass
class Scenario:
    """A separate stack, the messages sent to it, and their reconciliation."""

    name: str
    seed: int
    stack: EmbeddedStack
    models: Enricher
    bundle: Path
    reference: Reference
    reconciliations: list[Reconciliation]
    events: ResultEvents
    traffic: Traffic = field(init=False)
    sender: Sender = field(init=False)
    started_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.traffic = Traffic(self.seed, self.stack.outputs["RawBucket"])
        self.sender = Sender(self.stack)

    @staticmethod
    def size(number: int) -> int:
        """The number of messages, scaled by FAULT_SHARE; with a small share a test may miss the fault that it needs."""
        return int(number * _share())

    def fault_plan(self, *rules: Rule) -> FaultPlan:
        """The faults of these rules, with this scenario's seed."""
        return FaultPlan(self.seed, rules)

    def run(
        self,
        *waves: Sequence[Message],
        fault_plan: Callable[[Call], Fault | None] | None = None,
        options: WorkerOptions | None = None,
        models: Models | None = None,
        speedup: int = 300,
        own_failures: frozenset[str] = frozenset(),
        **settings: str,
    ) -> tuple[Reconciliation, Containers]:
        """Send messages in waves to containers whose AWS calls get the plan's faults, and reconcile them.

        `own_failures` are the codes of model failures that the test causes on purpose.
        """
        with Proxy(self.stack.endpoint_url, fault_plan or (lambda call: None)) as proxy:
            containers = Containers(
                self.stack,
                proxy.url,
                models or self.models,
                options=options or WorkerOptions(wait=1, visibility_timeout=10, timeout=30),
                settings=settings,
                speedup=speedup,
            )
            with containers.running():
                for wave in waves:
                    self.sender.send(wave)
                self.sender.wait_until_empty(containers.tickets)
        # Whatever the faults: no unexpected errors, and no invocation that raises.
        assert {code for _, code in containers.errors()} & {"unexpected", "model_failed"} == own_failures, (
            containers.log
        )
        assert set(containers.invocations()) == {"ok"}
        assert not containers.hung
        return self.reconcile(
            [message for wave in waves for message in wave],
            fault_plan.injected if isinstance(fault_plan, FaultPlan) else {},
        ), containers

    def reconcile(self, messages: Sequence[Message], notes: Mapping[str, int] | None = None) -> Reconciliation:
        """Reconcile messages and result events, print the counts, and assert that they are complete."""
        reconciler = Reconciler(self.stack, self.reference)
        reconciliation = reconciler.reconcile(self.name, messages, self.sender.ids)
        event_errors = self._reconcile_events(reconciler, messages, reconciliation)
        now = time.monotonic()
        reconciliation.seconds, reconciliation.notes, self.started_at = now - self.started_at, dict(notes or {}), now
        self.reconciliations.append(reconciliation)
        print(f"\n{reconciliation.line()}", flush=True)  # noqa: T201
        assert reconciliation.is_balanced, reconciliation
        assert not reconciliation.errors, reconciliation.errors[:20]
        assert not event_errors, event_errors[:20]
        # 5 s on a quiet machine, as printed; the emulator's pipe reads the stream once per second.
        assert reconciliation.delay < 60, reconciliation
        return reconciliation

    def items(self) -> dict[tuple[str, int], dict[str, Any]]:
        """The items of all tickets by their keys."""
        return Reconciler(self.stack, self.reference).items()

    def _reconcile_events(
        self, reconciler: Reconciler, messages: Sequence[Message], reconciliation: Reconciliation
    ) -> list[str]:
        items = reconciler.items()
        self.events.wait_for([item["event"]["id"] for item in items.values()])
        tickets = [ticket.fields for message in messages for ticket in message.expected]
        texts = {
            ticket["ticket_id"]: [ticket["subject"], ticket["body"], ticket["customer_id"], item["summary"]]
            for ticket in tickets
            if (item := items.get((ticket["ticket_id"], ticket["created_at"]))) is not None
        }
        deliveries = list(self.events.deliveries)
        reconciliation.events, reconciliation.delay = len(self.events.events), self.events.delay()
        return reconcile_events(deliveries, items, texts)


@pytest.fixture(scope="session")
def reference(enricher: Enricher) -> Reference:
    return Reference(enricher)


@pytest.fixture(scope="session")
def models(bundle: Path) -> Enricher:
    """For several concurrent containers, each with one thread."""
    return Enricher.open(bundle, threads=1)


@pytest.fixture
def scenario(
    request: pytest.FixtureRequest, bundle: Path, models: Enricher, reference: Reference
) -> Iterator[Scenario]:
    """A scenario named after its test, on a separate stack. The role is not enforced: other tests cover it."""
    name = request.node.name.removeprefix("test_").removesuffix("[]").replace("_", " ")
    parameters = {"ResultEvents": "topic", **getattr(request, "param", {})}
    with (
        EmbeddedStack(emulator={"AUTH": "false"}, parameters=parameters) as stack,
        ResultEvents(stack) as events,
    ):
        yield Scenario(name, _seed(), stack, models, bundle, reference, request.config.stash[_RECONCILIATIONS], events)
