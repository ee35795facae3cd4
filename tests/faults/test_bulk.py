"""Twenty thousand tickets in the queue for bulk, two real workers, and live tickets that trickle in."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
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
LIVE_PER_SECOND: Final = 2.0
LIVE_SECONDS: Final = 60.0


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
        times = send(stack, tickets)
        while len(stored_live(workers)) < len(times):
            assert time.time() < first + 20 * LIVE_SECONDS
            time.sleep(1)
        seconds = time.time() - first
        left = bulk.attributes().visible
        bulk_done = sum(entry.get("s3_key") is None and entry["seconds"] > first for entry in done(workers))
        for output in ("DlqUrl", "BulkDlqUrl"):
            assert Queue(stack.client("sqs"), stack.outputs[output]).attributes().visible == 0
    ages = sorted(stored_live(workers)[key] - sent for key, sent in times.items())
    p99, rate = ages[int(0.99 * (len(ages) - 1))], bulk_done / seconds
    print(  # noqa: T201
        f"\nbulk: {BULK} queued, {left} left, {rate:.1f} a second; {len(ages)} live tickets: "
        f"median {ages[len(ages) // 2]:.1f} s, p99 {p99:.1f} s, in one queue about {BULK / rate:.0f} s"
    )
    assert left > BULK / 2
    # A second on a quiet machine. In one queue, the live tickets would be the last of all.
    assert 20 * p99 < BULK / rate


def send(stack: EmbeddedStack, tickets: TicketGenerator) -> dict[str, float]:
    """Upload live tickets at random times; returns when each was sent, by its key."""
    begin, sent = time.time(), dict[str, float]()
    for due in poisson(LIVE_PER_SECOND, LIVE_SECONDS):
        time.sleep(max(0.0, begin + due - time.time()))
        key = f"live/{len(sent)}.json"
        sent[key] = time.time()
        body = json.dumps(next(tickets)).encode()
        stack.client("s3").put_object(Bucket=stack.outputs["RawBucket"], Key=key, Body=body)
    return sent


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
