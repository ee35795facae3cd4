"""Workers with a webhook are killed, parents too, while the receiver fails: no commit loses its event."""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handler.aws.outbox import DynamoOutbox
from tests.support.proxy import Proxy
from tests.support.receiver import SECRET, Receiver
from tests.support.result_events import check_event
from tests.support.waiting import eventually
from tests.support.workers import ProcessKiller, worker

if TYPE_CHECKING:
    from tests.faults.conftest import Scenario

ROUNDS = 3  # in each, two workers' processes are killed, and at its end both parents
KILLS = 5  # per worker and round
_LATER = 10**10  # Unix time at which every event is due


def test_killed_workers_lose_no_event(scenario: Scenario, tmp_path: Path) -> None:
    messages = scenario.traffic.mixed(scenario.size(800))
    part = -(-len(messages) // ROUNDS)
    outbox = DynamoOutbox(scenario.stack.client("dynamodb"), scenario.stack.outputs["TableName"])
    rng = random.Random(f"webhook/{scenario.seed}")

    def answer(number: int, event: dict[str, Any]) -> int:
        # A fifth fails: no answer, overloaded, or an answer that gets lost after the event was accepted.
        return rng.choice([204] * 12 + [0, 503, 429])

    with Receiver(answer) as receiver:
        environment = scenario.stack.environment() | {
            "MODEL_BUNDLE": scenario.bundle.as_uri(),
            "BUNDLE_CACHE_DIR": str(tmp_path / "cache"),
            "RESULT_WEBHOOK": receiver.url,
            "RESULT_WEBHOOK_SECRET": SECRET,
        }
        kills: Counter[str] = Counter()
        for number in range(ROUNDS):
            last = number == ROUNDS - 1
            with ExitStack() as running:
                workers, killers = [], []
                for name in ("a", "b"):
                    proxy = running.enter_context(Proxy(scenario.stack.endpoint_url))
                    log = tmp_path / f"{number}{name}.log"
                    one = running.enter_context(
                        worker(environment | {"AWS_ENDPOINT_URL": proxy.url}, log, "--visibility-timeout", "3")
                    )
                    one.wait_until("a process is ready")
                    limit = 0 if last else scenario.size(KILLS)
                    killers.append(ProcessKiller(proxy, one.child, random.Random(f"{number}{name}"), limit))
                    workers.append(one)
                accepted = len(receiver.accepted)
                scenario.sender.send(messages[number * part : (number + 1) * part])
                if last:
                    scenario.sender.wait_until_empty()
                    # What a killed worker was sending comes back a minute later.
                    eventually(lambda: next(outbox.due(_LATER), None) is None, 300)
                else:
                    enough = accepted + part // 3
                    receiver.wait_for(lambda enough=enough: len(receiver.accepted) > enough, 300)  # type: ignore[misc]
                    for one in workers:
                        one.process.kill()
                        one.process.wait()
                        kills["parent"] += 1
                kills.update(kill for killer in killers for kill in killer.kills)
    scenario.reconcile(messages, {f"killed {kill}": number for kill, number in kills.items()})
    stored = {item["event"]["id"] for item in scenario.items().values()}
    assert stored <= receiver.accepted.keys()
    assert {found["ticket_id"] for found in receiver.events} == {m.expected[0].name[0] for m in messages}
    written = {t.name[0]: (t.fields["subject"], t.fields["body"]) for m in messages for t in m.expected}
    for found in receiver.events:
        check_event(found)
        assert not any(len(text) > 8 and text in json.dumps(found) for text in written[found["ticket_id"]])
