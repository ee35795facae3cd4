"""Bulk beside live tickets on a stack with BulkConcurrency: from the bucket for bulk to the table and its own DLQ."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from events.generator import TicketGenerator
from handler.aws.sqs import Queue
from handler.dlq import command
from handler.local import EmbeddedStack
from handler.local.reconciliation import dead_letters, stored_tickets
from tests.support.waiting import eventually
from tests.support.workers import worker

BULK, LIVE = 160, 4
# What a worker may have received before a live ticket comes: three batches, and once more while the test reads its log.
AHEAD = 60


@pytest.fixture(scope="module")
def bulk_stack() -> Iterator[EmbeddedStack]:
    with EmbeddedStack(parameters={"BulkConcurrency": "2"}) as embedded:
        yield embedded


def put(stack: EmbeddedStack, bucket: str, prefix: str, tickets: list[dict[str, Any]]) -> None:
    for ticket in tickets:
        body = json.dumps(ticket).encode()
        stack.client("s3").put_object(
            Bucket=stack.outputs[bucket], Key=f"{prefix}/{ticket['ticket_id']}.json", Body=body
        )


def depth(stack: EmbeddedStack, output: str) -> int:
    found = Queue(stack.client("sqs"), stack.outputs[output]).attributes()
    return found.visible + found.in_flight


def test_live_tickets_overtake_bulk_and_each_is_settled_in_its_queue(
    bulk_stack: EmbeddedStack, bundle: Path, tmp_path: Path
) -> None:
    made = list(islice(TicketGenerator(seed=19, start=1_790_000_000), BULK + LIVE))
    broken = {"ticket_id": "broken", "subject": "A field is missing", "body": "", "created_at": 1}
    put(bulk_stack, "BulkBucket", "bulk", [*made[:BULK], broken])
    eventually(lambda: depth(bulk_stack, "BulkQueueUrl") > BULK)
    environment = bulk_stack.environment()
    settings = environment | {"MODEL_BUNDLE": bundle.as_uri(), "BUNDLE_CACHE_DIR": str(tmp_path)}
    log = tmp_path / "log"

    def stored() -> list[str]:
        """The keys of the tickets that the worker has stored, in that order."""
        lines = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [line["s3_key"] for line in lines if line["message"] == "ticket" and line["outcome"] == "done"]

    with worker(settings, log) as running:
        running.wait_until('"outcome":"done"')
        child = running.child()
        assert child is not None
        os.kill(child, signal.SIGSTOP)  # until the live tickets are in their queue
        before = len(stored())
        put(bulk_stack, "RawBucket", "live", made[BULK:])
        eventually(lambda: depth(bulk_stack, "QueueUrl") == LIVE)
        os.kill(child, signal.SIGCONT)
        for output in ("QueueUrl", "BulkQueueUrl"):
            eventually(lambda output=output: depth(bulk_stack, output) == 0, 120)  # type: ignore[misc]  # bound now
    keys = stored()
    assert len(keys) == BULK + LIVE
    last = max(position for position, key in enumerate(keys) if key.startswith("live/"))
    assert last - LIVE - before < AHEAD
    assert last < len(keys) - 1, "nothing was left of bulk when the live tickets were stored"
    assert stored_tickets(bulk_stack, environment).keys() == set(keys)
    assert (depth(bulk_stack, "DlqUrl"), depth(bulk_stack, "BulkDlqUrl")) == (0, 1)
    assert dead_letters(bulk_stack, environment) == {"bulk/broken.json": "schema_violation"}


def test_backfill_and_replay_use_the_queue_for_bulk(bulk_stack: EmbeddedStack) -> None:
    sqs, environment = bulk_stack.client("sqs"), bulk_stack.environment()
    for output in ("QueueUrl", "DlqUrl", "BulkQueueUrl", "BulkDlqUrl"):
        sqs.purge_queue(QueueUrl=bulk_stack.outputs[output])
    bulk_stack.client("s3").put_object(Bucket=bulk_stack.outputs["RawBucket"], Key="again/1.json", Body=b"{}")
    eventually(lambda: depth(bulk_stack, "QueueUrl") == 1)

    def run(*arguments: str) -> None:
        result = CliRunner().invoke(command.app, [*arguments, "--yes"], env=environment, catch_exceptions=False)
        assert result.exit_code == 0, result.stderr

    run("backfill", f"s3://{bulk_stack.outputs['RawBucket']}/again/")
    assert (depth(bulk_stack, "QueueUrl"), depth(bulk_stack, "BulkQueueUrl")) == (1, 1)
    run("backfill", f"s3://{bulk_stack.outputs['RawBucket']}/again/", "--lane", "live")
    assert (depth(bulk_stack, "QueueUrl"), depth(bulk_stack, "BulkQueueUrl")) == (2, 1)
    sqs.send_message(QueueUrl=bulk_stack.outputs["BulkDlqUrl"], MessageBody="{}")
    run("replay", "--lane", "bulk", "--wait", "1", "--empty-polls", "1")
    assert (depth(bulk_stack, "BulkDlqUrl"), depth(bulk_stack, "BulkQueueUrl")) == (0, 2)
