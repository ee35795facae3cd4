"""Messages delivered several times, in any order and concurrently: one item each, with the newest content."""

from __future__ import annotations

import json
import random
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING

from enrichment import Enricher
from handler.worker.reports import WorkerOptions
from tests.support.reconciliation import Reference
from tests.support.workers import worker

if TYPE_CHECKING:
    from tests.faults.conftest import Scenario

# For exact counts: on a busy machine no message may come back, and no batch may run out of time.
PATIENT = WorkerOptions(wait=1, visibility_timeout=60, timeout=120)
SIZES = (
    {"BATCH_SIZE": "10"},
    {"BATCH_SIZE": "7"},
)  # different sizes, so that the batches of the two workers do not stay aligned


def test_duplicates_are_enriched_once_by_two_workers(scenario: Scenario, tmp_path: Path) -> None:
    traffic, rng = scenario.traffic, scenario.traffic.rng
    first = traffic.mixed(scenario.size(1200))
    more = [traffic.again(message) for message in first for _ in range(rng.choice([1, 1, 2, 2, 4]))]
    rng.shuffle(more)
    # Each message next to its duplicate, so that both processes get the same ticket at the same time.
    adjacent = [
        message for one in traffic.mixed(scenario.size(200), uploads=0) for message in (one, traffic.again(one))
    ]
    messages = [*adjacent, *first, *more]
    environment = scenario.stack.environment() | {
        "MODEL_BUNDLE": scenario.bundle.as_uri(),
        "BUNDLE_CACHE_DIR": str(tmp_path / "cache"),
    }
    with ExitStack() as running:
        logs = [tmp_path / f"{number}.log" for number in range(2)]
        # The first one installs the bundle.
        workers = [
            running.enter_context(worker(environment | size, log, "--visibility-timeout", "60"))
            for log, size in zip(logs, SIZES, strict=True)
        ]
        for one in workers:
            one.wait_until("a process is ready")
        scenario.sender.send(messages)
        scenario.sender.wait_until_empty()
    reconciliation = scenario.reconcile(messages)
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines() if '"ticket"' in line]
    done = [line["ticket_id"] for line in lines if line["outcome"] == "done"]
    skipped = [line for line in lines if line["outcome"] == "skipped"]
    assert len(done) + len(skipped) == reconciliation.sent
    assert {line["note"] for line in skipped} <= {"already enriched", "duplicate in the batch", "stale"}
    # A ticket that both processes handled at the same time has two object versions and one item. All messages of a
    # ticket have the same content, so "stale" means: a process stored the earlier of two inline messages after the
    # later one; its object is written, its item refused.
    refused = [line for line in skipped if line["note"] == "stale"]
    assert reconciliation.superseded == len(done) + len(refused) - len(set(done))
    for log in logs:
        assert '"outcome":"done"' in log.read_text()


def test_newer_content_wins_in_any_order(scenario: Scenario) -> None:
    traffic = scenario.traffic
    old = [traffic.ticket() for _ in range(scenario.size(600))]
    new = [{**ticket, "subject": f"{ticket['subject']} (again)"} for ticket in old]
    before, after, late = [], [], []
    for number, (one, two) in enumerate(zip(old, new, strict=True)):
        if number % 3:
            first, second = traffic.inline(one), traffic.inline(two)
        else:  # overwritten before the first notification arrives, and notified again
            key = f"twice/{one['ticket_id']}.json"
            first, second = traffic.uploaded(one, key), traffic.uploaded(two, key)
            late.append(traffic.again(second))
        # Half of the older messages are delivered long after the newer ones are stored.
        before.append(replace(first, expected=second.expected, delay=15 * (number % 2)))
        after.append(second)
    reconciliation, containers = scenario.run(before, [*after, *late])
    assert reconciliation.enriched == len(old)
    assert "stale" in {line.get("note") for line in containers.lines()}


def test_new_bundle_reenriches_and_same_bundle_skips(scenario: Scenario, tmp_path: Path) -> None:
    messages = scenario.traffic.mixed(scenario.size(500))
    reconciliation, containers = scenario.run(messages, options=PATIENT)
    assert containers.tickets() == {"done": len(messages)}

    again = [scenario.traffic.again(message) for message in messages]
    random.Random(scenario.seed).shuffle(again)
    reconciliation, containers = scenario.run(again, options=PATIENT)
    assert containers.tickets() == {"skipped": len(messages)}
    assert reconciliation.superseded == 0

    folder = tmp_path / "newer"
    copytree(scenario.bundle, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(manifest | {"name": "newer"}))
    newer = Enricher.open(folder, threads=1)
    anew = [scenario.traffic.again(message) for message in messages]
    scenario.reference = Reference(newer)
    reconciliation, containers = scenario.run(anew, models=newer, options=PATIENT)
    assert containers.tickets() == {"done": len(messages)}
    assert reconciliation.superseded == len(messages)
