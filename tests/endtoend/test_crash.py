"""A container that is killed while it works takes no ticket along."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.endtoend.pipeline import Pipeline, wait_until
from tests.endtoend.test_tickets import made
from tests.runtime.container import docker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.endtoend.cloud import Cloud

_TICKETS = 120
_VISIBILITY = 15  # seconds; far more than a batch takes, and not the six minutes that the template asks for
_TIMEOUT = 240.0


@contextmanager
def short_visibility(pipeline: Pipeline) -> Iterator[None]:
    """What a crashed container held comes back after seconds, for as long as the block lasts."""
    before = pipeline.set_visibility(_VISIBILITY)
    try:
        yield
    finally:
        pipeline.set_visibility(before)


def test_crash_loses_nothing(cloud: Cloud, pipeline: Pipeline) -> None:
    raw = {f"crash/{t['ticket_id']}.json": json.dumps(t).encode() for t in made(_TICKETS, seed=6)}
    crashes, killed = cloud.crashes(), 0
    with short_visibility(pipeline):
        pipeline.put(raw)
        deadline = time.monotonic() + _TIMEOUT
        while cloud.crashes() < crashes + 2:
            assert time.monotonic() < deadline, (
                f"{killed} containers were killed at work, {cloud.crashes() - crashes} told of"
            )
            assert pipeline.depth(), "the tickets were through before two containers had been killed at work"
            for name in filter(is_processing, cloud.environments()):
                killed += docker("kill", "--signal", "KILL", name).returncode == 0
                break
        wait_until(lambda: pipeline.is_finished(raw), "every ticket has an item, and the queue is empty", _TIMEOUT)
    stored = pipeline.stored("crash/")
    assert {key: found.ticket["ticket_id"] for key, found in stored.items()} == {
        key: json.loads(body)["ticket_id"] for key, body in raw.items()
    }
    assert all(found.item["ticket_id"] == found.ticket["ticket_id"] for found in stored.values())
    assert pipeline.depth("DlqUrl") == 0


def is_processing(name: str) -> bool:
    """Whether the function in that container has a batch in hand, which is not its first: that began with its init."""
    output = docker("logs", name)
    started, ended = ((output.stdout + output.stderr).count(word) for word in ("INVOKE START(", "INVOKE RTDONE("))
    return started > ended > 0
