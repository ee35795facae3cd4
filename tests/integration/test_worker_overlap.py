"""Several batches at once: how much faster that is, how few calls it takes, and what a killed process leaves."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from enrichment import EnrichmentData, EnrichmentError, RawTicket
from handler.app import build
from handler.cli.shutdown import Shutdown
from handler.local import EmbeddedStack
from handler.metrics import make_logger
from handler.settings import WorkerSettings
from handler.worker import polling
from handler.worker.message_queue import message_queues
from handler.worker.polling import Poller
from handler.worker.reports import Reporter, WorkerOptions
from tests.support.cases import RejectedMessage
from tests.support.fakes import FakeModels
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.workers import worker

PAUSE = 0.3  # seconds: of the models for a batch, and of each write to S3
BATCHES = 8


class SlowModels(FakeModels):
    """Models that take a while, during which other threads run."""

    def enrich(self, tickets: Sequence[RawTicket], **options: Any) -> list[EnrichmentData | EnrichmentError]:
        """As Models.enrich."""
        time.sleep(PAUSE)
        return super().enrich(tickets, **options)


class Tickets:
    """Uploads tickets to a stack, and finds out what became of them."""

    def __init__(self, stack: EmbeddedStack) -> None:
        self._outputs = stack.outputs
        self._s3, self._sqs, self._dynamodb = (stack.client(name) for name in ("s3", "sqs", "dynamodb"))
        for queue in ("QueueUrl", "DlqUrl"):
            self._sqs.purge_queue(QueueUrl=self._outputs[queue])

    def upload(self, number: int) -> list[str]:
        """Upload this number of tickets; returns their ids."""
        names = [f"overlap-{uuid.uuid4()}" for _ in range(number)]
        for name in names:
            ticket = {
                "ticket_id": name,
                "subject": "Cannot log in",
                "body": "The page says that my password is wrong, and the mail to reset it never comes.",
                "created_at": 1_790_000_000,
                "customer_id": "C-1",
            }
            self._s3.put_object(Bucket=self._outputs["RawBucket"], Key=f"{name}.json", Body=json.dumps(ticket).encode())
        eventually(lambda: self.depth() == number)  # so that all batches are full
        return names

    def depth(self) -> int:
        """Number of messages in the queue."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self._sqs.get_queue_attributes(QueueUrl=self._outputs["QueueUrl"], AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)

    def stored(self) -> set[str]:
        """Ids of all stored tickets."""
        pages = self._dynamodb.get_paginator("scan").paginate(TableName=self._outputs["TableName"])
        return {item["ticket_id"]["S"] for page in pages for item in page["Items"] if "s3_key" in item}

    def versions(self, name: str) -> int:
        """How often the object of a ticket was written."""
        found = self._s3.list_object_versions(Bucket=self._outputs["EnrichedBucket"], Prefix=f"{name}.json")
        return len(found.get("Versions", []))

    def rejected(self) -> int:
        """Number of messages in the DLQ."""
        return len(RejectedMessage.receive_all(self._sqs, self._outputs["DlqUrl"]))


@pytest.fixture
def tickets(stack: EmbeddedStack) -> Tickets:
    return Tickets(stack)


def timed(
    stack: EmbeddedStack, tickets: Tickets, monkeypatch: pytest.MonkeyPatch, batches: int
) -> tuple[float, Counter[str]]:
    """Seconds for BATCHES batches of ten with this number of batches at once; and the number of calls of each kind."""
    names = tickets.upload(10 * BATCHES)
    monkeypatch.setattr(polling, "_MAX_BATCHES", batches)

    def slow(operation: str) -> None:
        if operation == "PUT":
            time.sleep(PAUSE)

    with Proxy(stack.endpoint_url) as proxy:
        proxy.before = slow
        for name, value in stack.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("MODEL_BUNDLE", "file:///unused")
        settings, shutdown = WorkerSettings.read(), Shutdown(60)
        metrics, logger = Reporter(io.BytesIO()), make_logger("WARNING")
        poller = Poller(
            message_queues(settings, wait=1),
            build(settings, models=SlowModels(), metrics=metrics, logger=logger),
            shutdown,
            WorkerOptions(wait=1),
            metrics=metrics,
            logger=logger,
            batches=metrics,
        )

        def watch() -> None:
            try:
                eventually(lambda: tickets.depth() == 0)
            finally:
                shutdown.request()

        begin = time.monotonic()
        watcher = threading.Thread(target=watch)
        watcher.start()
        poller.run()
        watcher.join()
        seconds = time.monotonic() - begin
    assert tickets.stored() >= set(names)
    return seconds, Counter(proxy.calls)


def test_calls_overlap_with_the_models_and_are_few(
    stack: EmbeddedStack, tickets: Tickets, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):  # other tests that begin or end in between make one of the two slower
        alone, _ = timed(stack, tickets, monkeypatch, 1)
        together, calls = timed(stack, tickets, monkeypatch, 3)
        if together < 0.8 * alone:
            break
    # One at a time, a batch takes two pauses; together, as long as the models take, which is one.
    assert together < 0.8 * alone
    del calls["ReceiveMessage"], calls["GetQueueAttributes"]
    assert calls == {
        "GET": 10 * BATCHES,
        "PUT": 10 * BATCHES,
        "PutItem": 10 * BATCHES,
        "BatchGetItem": 2 * BATCHES,
        "DeleteMessageBatch": BATCHES,
    }


def test_killed_process_loses_none_of_its_batches(
    stack: EmbeddedStack, tickets: Tickets, bundle: Path, tmp_path: Path
) -> None:
    names = tickets.upload(40)
    settings = {**stack.environment(), "MODEL_BUNDLE": bundle.as_uri(), "BUNDLE_CACHE_DIR": str(tmp_path / "cache")}
    killed = threading.Event()

    def hold(operation: str) -> None:
        if operation == "PutItem":
            killed.wait(120)

    with Proxy(stack.endpoint_url) as proxy:
        proxy.before = hold
        settings["AWS_ENDPOINT_URL"] = proxy.url
        with worker(settings, tmp_path / "log", "--visibility-timeout", "6") as running:
            # The first batch is being stored, the second one too or in the models, the third one has been read.
            eventually(lambda: proxy.calls.count("GET") >= 30)
            child = running.child()
            assert child is not None
            os.kill(child, signal.SIGKILL)
            killed.set()
            eventually(lambda: tickets.depth() == 0, 120)
    assert tickets.stored() >= set(names)
    assert tickets.rejected() == 0
    assert max(map(tickets.versions, names)) <= 2, "only what was in flight is stored again, and once"
    died = [line for line in running.log.read_text().splitlines() if "a process exited unexpectedly" in line]
    assert [len(json.loads(line)["message_ids"]) for line in died] == [30]
