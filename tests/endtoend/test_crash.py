"""No ticket is lost when a container is killed while it processes a batch, or by one of the batch's tickets."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from events.generator import TicketGenerator
from tests.endtoend.pipeline import Pipeline, wait_until
from tests.endtoend.test_tickets import made
from tests.runtime.container import docker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.endtoend.cloud import Cloud

_TICKETS = 120
_MORE = 40
_VISIBILITY = 15  # seconds; much longer than a batch takes, much shorter than the template's six minutes
_TIMEOUT = 240.0


@contextmanager
def short_visibility(pipeline: Pipeline) -> Iterator[None]:
    """Shorten the visibility timeout for the duration of the block, so that a crashed batch is retried soon."""
    before = pipeline.set_visibility(_VISIBILITY)
    try:
        yield
    finally:
        pipeline.set_visibility(before)


def test_crash_loses_nothing(cloud: Cloud, pipeline: Pipeline) -> None:
    tickets = TicketGenerator(seed=6, start=1_790_000_000)
    raw: dict[str, bytes] = {}

    def put(count: int) -> None:
        new = {f"crash/{t['ticket_id']}.json": json.dumps(t).encode() for t in islice(tickets, count)}
        raw.update(new)
        pipeline.put(new)

    crashes, killed = cloud.crashes(), 0
    with short_visibility(pipeline):
        put(_TICKETS)
        deadline = time.monotonic() + _TIMEOUT
        while cloud.crashes() < crashes + 2:
            assert time.monotonic() < deadline, (
                f"{killed} containers were killed during a batch, {cloud.crashes() - crashes} crashes were reported"
            )
            if not pipeline.depth():  # a fast machine has processed all of them
                put(_MORE)
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


@pytest.mark.only("ministack")
def test_ticket_that_kills_the_process_takes_no_other_with_it(cloud: Cloud, pipeline: Pipeline) -> None:
    tickets, subject = made(200, seed=7), "segfault"  # tests/support/deadly
    raw = {f"{subject}/{t['ticket_id']}.json": json.dumps(t).encode() for t in tickets}
    deadly = f"{subject}/deadly.json"
    crashes = cloud.crashes()
    with short_visibility(pipeline):
        pipeline.put({**raw, deadly: json.dumps({**tickets[0], "ticket_id": deadly, "subject": subject}).encode()})
        wait_until(lambda: pipeline.is_finished(raw), "every good ticket has an item, and the queue is empty", _TIMEOUT)
    (rejected,) = pipeline.rejected_messages()
    assert rejected.attributes["Reason"] == "crashed"
    assert deadly in rejected.body.replace("%2F", "/")
    assert pipeline.stored(f"{subject}/").keys() == raw.keys()
    assert cloud.crashes() - crashes == 4


def is_processing(name: str) -> bool:
    """Whether the container is processing a batch other than its first, which includes init."""
    output = docker("logs", name)
    started, ended = ((output.stdout + output.stderr).count(word) for word in ("INVOKE START(", "INVOKE RTDONE("))
    return started > ended > 0
