"""What all scenarios share: a seed, models, the library's own answers, and the stats in all at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from enrichment import Enricher
from handler.local import EmbeddedStack
from handler.worker.reports import WorkerOptions
from tests.support.containers import Containers, Post
from tests.support.fault_injection import FaultPlan, Rule
from tests.support.proxy import Proxy
from tests.support.reconciliation import Account, Auditor, Reference
from tests.support.traffic import SEED_VARIABLE, Message, Traffic

SHARE_VARIABLE = "FAULT_SHARE"

_ACCOUNTS = pytest.StashKey[list[Account]]()


def pytest_configure(config: pytest.Config) -> None:
    """A list for the accounts of this run."""
    config.stash[_ACCOUNTS] = []


def pytest_report_header() -> str:
    """Says how the same traffic and the same faults are had again."""
    return f"faults: {SEED_VARIABLE}={_seed()} (set it to have others), {SHARE_VARIABLE}={_share():g} of all messages"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints all tallies once more, and what they come to."""
    accounts = config.stash[_ACCOUNTS]
    if accounts:
        terminalreporter.section(f"faults, {SEED_VARIABLE}={_seed()}")
        for account in accounts:
            terminalreporter.write_line(account.line())
        total = Account("in all", 0)
        for account in accounts:
            total.sent += account.sent
            total.enriched += account.enriched
            total.again += account.again
            total.nothing += account.nothing
            total.rejected += account.rejected
            total.wrong += account.wrong
            total.twice += account.twice
            total.superseded += account.superseded
            total.seconds += account.seconds
        terminalreporter.write_line(total.line())


def _seed() -> int:
    return int(os.environ.get(SEED_VARIABLE, "5"))


def _share() -> float:
    return float(os.environ.get(SHARE_VARIABLE, "1"))


@dataclass
class Scenario:
    """A stack of its own, its traffic, and how it is accounted for."""

    name: str
    seed: int
    stack: EmbeddedStack
    models: Enricher
    bundle: Path
    reference: Reference
    accounts: list[Account]
    traffic: Traffic = field(init=False)
    post: Post = field(init=False)
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.traffic = Traffic(self.seed, self.stack.outputs["RawBucket"])
        self.post = Post(self.stack)

    @staticmethod
    def size(number: int) -> int:
        """So many messages, or the share that is asked for: a small one may miss a fault that the test looks for."""
        return int(number * _share())

    def fault_plan(self, *rules: Rule) -> FaultPlan:
        """What befalls calls, by this scenario's seed."""
        return FaultPlan(self.seed, rules)

    def run(
        self,
        *waves: Sequence[Message],
        fault_plan: FaultPlan | None = None,
        options: WorkerOptions | None = None,
        models: Enricher | None = None,
        **settings: str,
    ) -> tuple[Account, Containers]:
        """Sends messages in waves to containers whose AWS calls follow `fault_plan`, and reconciles the results."""
        with Proxy(self.stack.endpoint_url, fault_plan or (lambda call: None)) as proxy:
            containers = Containers(
                self.stack,
                proxy.url,
                models or self.models,
                options=options or WorkerOptions(wait=1, visibility_timeout=10, timeout=30),
                settings=settings,
            )
            with containers.running():
                for wave in waves:
                    self.post.bring(wave)
                self.post.wait_until_empty(containers.tickets)
        # Whatever is thrown at them: nothing unforeseen, and no invocation that raises.
        assert not {code for _, code in containers.errors()} & {"unexpected", "model_failed"}, containers.log
        assert set(containers.invocations()) == {"ok"}
        assert not containers.hung
        return self.account(
            [message for wave in waves for message in wave], fault_plan.struck if fault_plan else {}
        ), containers

    def account(self, messages: Sequence[Message], notes: Mapping[str, int] | None = None) -> Account:
        """Accounts for messages, prints the stats, and holds it to be complete."""
        account = Auditor(self.stack, self.reference).account(self.name, messages, self.post.ids)
        now = time.monotonic()
        account.seconds, account.notes, self.begun = now - self.begun, dict(notes or {}), now
        self.accounts.append(account)
        print(f"\n{account.line()}", flush=True)  # noqa: T201
        assert account.adds_up, account
        assert not account.wrong, account.wrong[:20]
        return account


@pytest.fixture(scope="session")
def reference(enricher: Enricher) -> Reference:
    return Reference(enricher)


@pytest.fixture(scope="session")
def models(bundle: Path) -> Enricher:
    """For several containers at once, each with a thread of its own."""
    return Enricher.open(bundle, threads=1)


@pytest.fixture
def scenario(
    request: pytest.FixtureRequest, bundle: Path, models: Enricher, reference: Reference
) -> Iterator[Scenario]:
    """A scenario named by its test, on a stack of its own. The role's rights are tested elsewhere, and cost time."""
    name = request.node.name.removeprefix("test_").removesuffix("[]").replace("_", " ")
    parameters = getattr(request, "param", {})
    with EmbeddedStack(emulator={"AUTH": "false"}, parameters=parameters) as stack:
        yield Scenario(name, _seed(), stack, models, bundle, reference, request.config.stash[_ACCOUNTS])
