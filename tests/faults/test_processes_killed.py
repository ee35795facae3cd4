"""Two real `ticket-processor` commands on one queue; their processes are killed with SIGKILL at random points."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.proxy import Proxy
from tests.support.workers import ProcessKiller, worker

if TYPE_CHECKING:
    from tests.faults.conftest import Scenario

KILLS = 15  # per worker


def test_two_workers_killed_repeatedly(scenario: Scenario, tmp_path: Path) -> None:
    messages = scenario.traffic.mixed(scenario.size(1500))
    environment = scenario.stack.environment() | {
        "MODEL_BUNDLE": scenario.bundle.as_uri(),
        "BUNDLE_CACHE_DIR": str(tmp_path / "cache"),
        "BATCH_SIZE": "10",
    }
    killers = []
    with ExitStack() as running:
        for number in range(2):
            proxy = running.enter_context(Proxy(scenario.stack.endpoint_url))
            one = running.enter_context(
                worker(
                    environment | {"AWS_ENDPOINT_URL": proxy.url},
                    tmp_path / f"{number}.log",
                    "--visibility-timeout",
                    "3",
                )
            )
            one.wait_until("a process is ready")
            rng = random.Random(f"{scenario.seed}/{number}")
            killers.append(ProcessKiller(proxy, one.child, rng, scenario.size(KILLS)))
        scenario.sender.send(messages)
        scenario.sender.wait_until_empty()
        # The number of calls up to a kill is random, so these messages may not have been enough.
        deadline = time.monotonic() + 600
        while any(len(killer.kills) < scenario.size(KILLS) for killer in killers) and time.monotonic() < deadline:
            more = scenario.traffic.mixed(20)
            messages += more
            scenario.sender.send(more)
            scenario.sender.wait_until_empty()
    kills = Counter(kill for killer in killers for kill in killer.kills)
    scenario.reconcile(messages, {f"killed {kill}": number for kill, number in kills.items()})
    assert kills.total() == 2 * scenario.size(KILLS)
    assert {kill.split()[0] for kill in kills} == {"before", "after", "later"}
