"""Two real `ticket-processor`s on one queue, their processes killed by SIGKILL at random points of a batch."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.proxy import Proxy
from tests.support.workers import Assassin, worker

if TYPE_CHECKING:
    from tests.faults.conftest import Scenario

KILLS = 25  # of each


def test_two_workers_killed_repeatedly(scenario: Scenario, tmp_path: Path) -> None:
    messages = scenario.traffic.mixed(scenario.size(1500))
    environment = scenario.stack.environment() | {
        "MODEL_BUNDLE": scenario.bundle.as_uri(),
        "BUNDLE_CACHE_DIR": str(tmp_path / "cache"),
        "BATCH_SIZE": "10",
    }
    assassins = []
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
            chance = random.Random(f"{scenario.seed}/{number}")
            assassins.append(Assassin(proxy, one.child, chance, scenario.size(KILLS)))
        scenario.post.bring(messages)
        scenario.post.wait_until_empty()
    deaths = Counter(death for assassin in assassins for death in assassin.deaths)
    scenario.account(messages, {f"killed {death}": number for death, number in deaths.items()})
    assert deaths.total() == 2 * scenario.size(KILLS)
    assert {death.split()[0] for death in deaths} == {"before", "after", "later"}
