"""Invalid and deadly messages of every kind among valid ones of every kind: none affects the others."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.workers import worker

if TYPE_CHECKING:
    from tests.faults.conftest import Scenario

MAX_BYTES = "65536"
DEADLY = Path(__file__).resolve().parents[1] / "support" / "deadly"


def test_poison_among_good_messages(scenario: Scenario) -> None:
    traffic = scenario.traffic
    messages = [
        *islice(traffic.poison(), scenario.size(2000)),
        *islice(traffic.envelopes(), scenario.size(1000)),
        *traffic.mixed(scenario.size(1000), uploads=0.1),
    ]
    traffic.rng.shuffle(messages)
    reconciliation, containers = scenario.run(messages, MAX_TICKET_BYTES=MAX_BYTES)
    assert set(reconciliation.rejected) == {
        "bucket_unexpected",
        "message_invalid",
        "object_gone",
        "object_too_large",
        "schema_violation",
    }
    assert not containers.tickets()["failed"]


def test_deadly_tickets_among_good_ones(scenario: Scenario, tmp_path: Path) -> None:
    traffic = scenario.traffic
    subjects = ["segfault", "segfault", "killed", "killed", "hang"]
    deadly = [traffic.inline(traffic.ticket(subject=subject)) for subject in subjects]
    messages = [
        *(replace(message, expected=(), reasons=("crashed",)) for message in deadly),
        *traffic.mixed(scenario.size(300)),
        *islice(traffic.envelopes(), scenario.size(100)),
    ]
    traffic.rng.shuffle(messages)
    environment = scenario.stack.environment() | {
        "MODEL_BUNDLE": scenario.bundle.as_uri(),
        "BUNDLE_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": str(DEADLY),
    }
    options = ("--visibility-timeout", "3", "--timeout", "20")
    with ExitStack() as running:
        for number in range(2):
            one = running.enter_context(worker(environment, tmp_path / f"{number}.log", *options))
            one.wait_until("a process is ready")
        scenario.sender.send(messages)
        scenario.sender.wait_until_empty()
    reconciliation = scenario.reconcile(messages)
    assert reconciliation.rejected == {"crashed": len(deadly)}
