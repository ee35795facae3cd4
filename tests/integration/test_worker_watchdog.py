"""Code that holds the interpreter lock, among nine good tickets, two processes, on the embedded stack.

The minute of issue 16 is shortened to a few seconds, and the visibility timeout with it: it stays far below that time.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from handler.local import EmbeddedStack
from handler.metrics import Logger
from handler.settings import WorkerSettings
from handler.worker import watchdog
from handler.worker.message_queue import SqsVisibility
from handler.worker.prometheus import PrometheusMetrics
from handler.worker.reports import WorkerOptions
from handler.worker.supervisor import Supervisor

# The worker's process, with a library that holds the interpreter lock for a ticket of that subject.
PROCESS = """
import ctypes
from enrichment import Enricher
from handler.worker import processor

enrich = Enricher.enrich

def enrich_slowly(self, tickets, **options):
    for ticket in tickets:
        if ticket.subject.startswith("hold "):
            ctypes.PyDLL(None).sleep(int(ticket.subject.split()[1]))
    return enrich(self, tickets, **options)

Enricher.enrich = enrich_slowly
processor.main()
"""


HANGS = "hold 600"


class Worker:
    """Two processes on the stack's queue, and what has been stored."""

    def __init__(self, stack: EmbeddedStack, log: Path, options: WorkerOptions) -> None:
        self._stack = stack
        self._settings = WorkerSettings.read()
        self.names: list[str] = []
        self.metrics, visibility = PrometheusMetrics(), SqsVisibility(self._settings)
        visibility.prepare()
        self.supervisor = Supervisor(
            lambda descriptor: [sys.executable, "-P", "-c", PROCESS, str(descriptor), options.dump()],
            2,
            options.grace,
            change_visibility=visibility,
            metrics=self.metrics,
            logger=Logger(service=str(uuid.uuid4()), level="INFO", logger_handler=logging.FileHandler(log)),
        )

    def send(self, *subjects: str) -> list[str]:
        """Sends tickets as one batch; returns their ids."""
        names = [f"watched-{uuid.uuid4()}" for _ in subjects]
        entries = [
            {"Id": str(number), "MessageBody": json.dumps(ticket(name, subject))}
            for number, (name, subject) in enumerate(zip(names, subjects, strict=True))
        ]
        self._stack.client("sqs").send_message_batch(QueueUrl=self._settings.queue_url, Entries=entries)
        return names

    def versions(self, name: str) -> int:
        """How often a ticket has been stored."""
        found = self._stack.client("s3").list_object_versions(
            Bucket=self._settings.enriched_bucket, Prefix=f"inline/{name}/"
        )
        return len(found.get("Versions", []))

    def run(self, subjects: list[str], seconds: float) -> tuple[int, set[str | None]]:
        """Sends tickets when the processes are ready, until all that do not hang are stored.

        Returns the exit code and what /readyz said meanwhile.
        """
        reasons, missing = set[str | None](), ["unsent"]

        def watch() -> None:
            deadline = time.monotonic() + 60
            while self.supervisor.not_ready() is not None and time.monotonic() < deadline:
                time.sleep(0.05)
            self.names = self.send(*subjects)
            missing[:] = [name for name, subject in zip(self.names, subjects, strict=True) if subject != HANGS]
            deadline = time.monotonic() + seconds
            while missing and time.monotonic() < deadline:
                reasons.add(self.supervisor.not_ready())
                missing[:] = [name for name in missing if not self.versions(name)]
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=watch)
        thread.start()
        code = self.supervisor.run()
        thread.join()
        assert missing == []
        return code, reasons


def ticket(name: str, subject: str) -> dict[str, Any]:
    body = "The page says that my password is wrong, and the mail to reset it never comes. Please help me soon."
    return {
        "ticket_id": name,
        "subject": subject,
        "body": body,
        "created_at": 1_790_000_000,
        "customer_id": "CUST-1",
    }


@pytest.fixture
def environment(stack: EmbeddedStack, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found = {
        **stack.environment(),
        "MODEL_BUNDLE": bundle.as_uri(),
        "BUNDLE_CACHE_DIR": str(tmp_path / "cache"),
        "INTRA_OP_THREADS": "1",
    }
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    stack.client("sqs").purge_queue(QueueUrl=found["QUEUE_URL"])
    return found


def test_batch_that_holds_the_lock_is_not_delivered_again(
    stack: EmbeddedStack, environment: dict[str, str], tmp_path: Path
) -> None:
    hold = 12
    worker = Worker(stack, tmp_path / "log", WorkerOptions(wait=1, visibility_timeout=4))
    code, _ = worker.run([*["good"] * 4, f"hold {hold}", *["good"] * 5], 5 * 2 * hold)
    assert code == 0, (tmp_path / "log").read_text()
    assert [worker.versions(name) for name in worker.names] == [1] * 10
    assert b'ticket_invocations_total{result="ok"} 1.0' in worker.metrics.text()
    assert environment["QUEUE_URL"]


def test_message_that_hangs_alone_twice_is_rejected(
    stack: EmbeddedStack, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqs, dlq = stack.client("sqs"), environment["DLQ_URL"]
    sqs.purge_queue(QueueUrl=dlq)
    monkeypatch.setattr(watchdog, "_OVERRUN", 0.5)
    worker = Worker(stack, tmp_path / "log", WorkerOptions(wait=1, visibility_timeout=3, timeout=4, grace=2))
    worker.send(HANGS)
    # It has hung once before.
    (message,) = sqs.receive_message(QueueUrl=environment["QUEUE_URL"], WaitTimeSeconds=5)["Messages"]
    back = {"QueueUrl": environment["QUEUE_URL"], "ReceiptHandle": message["ReceiptHandle"], "VisibilityTimeout": 0}
    sqs.change_message_visibility(**back)
    found: list[dict[str, Any]] = []

    def watch() -> None:
        deadline = time.monotonic() + 180
        while not found and time.monotonic() < deadline:
            found.extend(sqs.receive_message(QueueUrl=dlq, MessageAttributeNames=["All"]).get("Messages", []))
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch)
    thread.start()
    worker.supervisor.run()
    thread.join()
    (rejected,) = found
    assert rejected["MessageAttributes"]["Reason"]["StringValue"] == "crashed"
    errors = json.loads(rejected["MessageAttributes"]["Rejection"]["StringValue"])["errors"]
    assert "2 times" in errors[0]["detail"]
    assert b"ticket_process_restarts_total 3.0" in worker.metrics.text()


def test_batch_that_overruns_is_given_up_and_its_neighbours_are_stored(
    stack: EmbeddedStack, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "_OVERRUN", 1.0)
    worker = Worker(stack, tmp_path / "log", WorkerOptions(wait=1, visibility_timeout=4, timeout=8, grace=2))
    _, reasons = worker.run([HANGS, *["good"] * 9], 5 * 18)
    assert "a batch overruns its time" in reasons
    assert "a batch overruns its time; its process is killed" in (tmp_path / "log").read_text()
    stack.client("sqs").purge_queue(QueueUrl=environment["QUEUE_URL"])
