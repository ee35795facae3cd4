"""Twenty thousand tickets in the queue for bulk, two real workers, and live tickets that trickle in."""

from __future__ import annotations

import json
import os
import time
from bisect import bisect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

from events.generator import TicketGenerator
from handler.aws.sqs import Queue, tens
from handler.local import EmbeddedStack
from tests.support.mapping_simulation import poisson
from tests.support.workers import Worker, worker

BULK: Final = int(20_000 * float(os.environ.get("FAULT_SHARE", "1")))
FIRST: Final = 100  # bulk tickets, by which the workers' rate is measured
LIVE: Final = 60
LIVE_SHARE: Final = 0.2  # of the workers' rate
# A worker processes up to three batches at once, and a live ticket comes behind them.
AHEAD: Final = 2 * 3 * 10


def test_live_tickets_do_not_wait_for_bulk(bundle: Path, tmp_path: Path) -> None:
    tickets = TicketGenerator(seed=23, start=1_790_000_000)
    with (
        EmbeddedStack(emulator={"AUTH": "false"}, parameters={"BulkConcurrency": "2"}) as stack,
        ExitStack() as running,
    ):
        bulk = Queue(stack.client("sqs"), stack.outputs["BulkQueueUrl"])
        for batch in tens(islice(tickets, BULK)):
            sent = bulk.send([{"MessageBody": json.dumps(ticket)} for ticket in batch])
            assert all(result.message_id for result in sent)
        settings = stack.environment() | {"MODEL_BUNDLE": bundle.as_uri(), "BUNDLE_CACHE_DIR": str(tmp_path)}
        workers = [running.enter_context(worker(settings, tmp_path / f"{number}.log")) for number in range(2)]
        for each in workers:
            each.wait_until('"outcome":"done"')
        first = time.time()
        before = len(done(workers))
        wait_until(lambda: len(done(workers)) >= before + FIRST, workers)
        times = send(stack, tickets, LIVE_SHARE * FIRST / (time.time() - first))
        wait_until(lambda: len(stored_live(workers)) == len(times), workers)
        rate = (len(done(workers)) - before) / (time.time() - first)
        left = bulk.attributes().visible
        for output in ("DlqUrl", "BulkDlqUrl"):
            assert Queue(stack.client("sqs"), stack.outputs[output]).attributes().visible == 0
    live = stored_live(workers)
    bulk_times = sorted(entry["seconds"] for entry in done(workers) if "s3_key" not in entry)
    ages = sorted(live[key] - sent for key, sent in times.items())
    waits = sorted(bisect(bulk_times, live[key]) - bisect(bulk_times, sent) for key, sent in times.items())
    last = int(0.99 * (len(ages) - 1))
    print(  # noqa: T201
        f"\n{BULK} bulk tickets queued, {left} left, {rate:.1f} stored a second; age of {len(ages)} live tickets: "
        f"median {ages[len(ages) // 2]:.1f} s, p99 {ages[last]:.1f} s; bulk tickets stored meanwhile: p99 {waits[last]}"
        f"; in one queue about {BULK / rate:.0f} s"
    )
    assert left > BULK / 2
    # Seconds would be those of this machine, which may also pause.
    assert waits[last] < 3 * AHEAD


def send(stack: EmbeddedStack, tickets: TicketGenerator, rate: float) -> dict[str, float]:
    """Upload live tickets at random times, so many a second; returns when each was sent, by its key."""
    begin, sent = time.time(), dict[str, float]()
    for due in poisson(rate, LIVE / rate):
        time.sleep(max(0.0, begin + due - time.time()))
        key = f"live/{len(sent)}.json"
        sent[key] = time.time()
        body = json.dumps(next(tickets)).encode()
        stack.client("s3").put_object(Bucket=stack.outputs["RawBucket"], Key=key, Body=body)
    return sent


def wait_until(condition: Callable[[], bool], workers: Sequence[Worker]) -> None:
    """Return once the condition is true; a worker must not end before."""
    while not condition():
        assert all(each.process.poll() is None for each in workers)
        time.sleep(0.5)  # reading the logs takes time from the workers


def done(workers: Sequence[Worker]) -> list[dict[str, Any]]:
    """The log lines of stored tickets, each with its time in Unix seconds."""
    found = []
    for each in workers:
        for line in each.log.read_text().splitlines(keepends=True):
            entry = json.loads(line) if line.endswith("\n") else {}
            if entry.get("message") == "ticket" and entry["outcome"] == "done":
                found.append({**entry, "seconds": datetime.fromisoformat(entry["timestamp"]).timestamp()})
    return found


def stored_live(workers: Sequence[Worker]) -> dict[str, float]:
    """When the live tickets were stored, by their keys."""
    return {entry["s3_key"]: entry["seconds"] for entry in done(workers) if "s3_key" in entry}
