"""Simulated containers of the function in this process: each has its own handler and clients and polls a real queue."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import StringIO
from math import ceil
from typing import Any

import pytest

from handler import outcome
from handler.app import build
from handler.cli.shutdown import Shutdown
from handler.local import EmbeddedStack
from handler.metrics import Logger, make_logger
from handler.outcome import backoff_seconds
from handler.ports import Models
from handler.settings import WorkerSettings
from handler.worker.message_queue import SqsVisibility, message_queues
from handler.worker.polling import Poller
from handler.worker.reports import BatchReport, WorkerOptions
from handler.worker.watchdog import Watchdog
from tests.support.fakes import FakeMetrics, written_to
from tests.support.traffic import Message

CONCURRENCY = 6  # containers, which spend most of the time waiting
_STALLED_AFTER = 150.0  # seconds without any change of the queue, after which it counts as stalled


class Counts(FakeMetrics):
    """In-memory WorkerMetrics."""

    def __init__(self) -> None:
        super().__init__()
        self.invocations: Counter[str] = Counter()
        self.settled: Counter[str] = Counter()

    def invocation(self, result: str) -> None:
        """As PollMetrics.invocation."""
        self.invocations[result] += 1

    def messages(self, result: str, count: int) -> None:
        """As PollMetrics.messages."""
        self.settled[result] += count

    def message_age(self, queue: str, seconds: float) -> None:
        """As PollMetrics.message_age; not counted."""

    def receive_failed(self, code: str) -> None:
        """As PollMetrics.receive_failed."""
        self.errors["receive", code] += 1


class Containers:
    """Several containers with the given models, which run inside `running()`; `log` is what they logged.

    `url` is the AWS endpoint: a proxy's address or the stack's. `settings` are environment variables. Backoff times of
    failed messages are divided by `speedup`; the number of receives does not change.
    """

    def __init__(
        self,
        stack: EmbeddedStack,
        url: str,
        models: Models,
        *,
        options: WorkerOptions,
        settings: Mapping[str, str],
        speedup: int = 300,
    ) -> None:
        self.counts = [Counts() for _ in range(CONCURRENCY)]
        self.hung: list[int] = []
        self._environment = (
            stack.environment() | {"AWS_ENDPOINT_URL": url, "MODEL_BUNDLE": "file:///unused"} | dict(settings)
        )
        self._models, self._options, self._speedup = models, options, speedup
        self._shut_down = [Shutdown(20) for _ in range(CONCURRENCY)]
        self._log = StringIO()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let them poll for the duration of the block; batches in progress at its end are finished."""
        logger = make_logger("INFO")
        with pytest.MonkeyPatch.context() as patch, written_to(self._log):
            for name, value in self._environment.items():
                patch.setenv(name, value)
            patch.setattr(outcome, "backoff_seconds", lambda attempts: ceil(backoff_seconds(attempts) / self._speedup))
            settings = WorkerSettings.read()
            threads = []
            for number, (shutdown, counts) in enumerate(zip(self._shut_down, self.counts, strict=True)):
                batches = WatchedBatches(settings, partial(self.hung.append, number), logger)
                handler: Any = build(
                    settings,
                    models=self._models,
                    metrics=counts,
                    logger=logger,
                    on_settled=batches.batch_settled,
                )
                poller = Poller(
                    message_queues(settings, self._options.wait),
                    handler,
                    shutdown,
                    self._options,
                    metrics=counts,
                    logger=logger,
                    batches=batches,
                )
                threads.append(threading.Thread(target=poller.run))
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                for shutdown in self._shut_down:
                    shutdown.request()
                for thread in threads:
                    thread.join()

    @property
    def log(self) -> str:
        """What was logged."""
        return self._log.getvalue()

    def lines(self) -> list[dict[str, Any]]:
        """The log lines for tickets, one per attempt."""
        return [line for line in map(json.loads, self.log.splitlines()) if line["message"] == "ticket"]

    def tickets(self) -> Counter[str]:
        """Number of tickets by outcome, over all attempts."""
        return sum((counts.outcomes for counts in self.counts), Counter[str]())

    def errors(self) -> Counter[tuple[str, str]]:
        """Number of errors by outcome and code, over all attempts."""
        return sum((counts.errors for counts in self.counts), Counter[tuple[str, str]]())

    def invocations(self) -> Counter[str]:
        """Number of invocations by result."""
        return sum((counts.invocations for counts in self.counts), Counter[str]())


class WatchedBatches:
    """Watches the batches of a poller in this process, as the worker's parent does for its processes."""

    def __init__(self, settings: WorkerSettings, kill: Callable[[], None], logger: Logger) -> None:
        self._watchdog = Watchdog(SqsVisibility(settings), kill, logger)
        self._settled: set[str] = set()
        self._lock = threading.Lock()  # the watchdog's methods are called by one thread at a time
        self._changed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def batch_started(self, batch: BatchReport) -> None:
        """As BatchReports.batch_started."""
        with self._lock:
            self._watchdog.started(batch)
        self._changed.set()

    def batch_settled(self, receipts: Sequence[str]) -> None:
        """As Reporter.batch_settled."""
        with self._lock:
            self._settled.update(receipts)
            self._watchdog.settled(receipts)

    def is_settled(self, receipt: str) -> bool:
        """As BatchReports.is_settled."""
        return receipt in self._settled

    def batch_finished(self, batch: BatchReport) -> None:
        """As BatchReports.batch_finished."""
        with self._lock:
            self._watchdog.finished(batch.number)

    def _watch(self) -> None:
        while True:
            self._changed.wait(self._watchdog.seconds_until_due())
            self._changed.clear()
            with self._lock:
                self._watchdog.act()


class Sender:
    """Sends messages to the queue of a stack and waits until it is empty again."""

    def __init__(self, stack: EmbeddedStack) -> None:
        self._outputs = stack.outputs
        self._s3, self._sqs = stack.client("s3"), stack.client("sqs")
        self.ids: dict[str, str] = {}
        # S3's test event from the creation of the bucket notification.
        self._sqs.purge_queue(QueueUrl=self._outputs["QueueUrl"])

    def send(self, messages: Sequence[Message]) -> None:
        """Upload and send concurrently; messages that refer to an upload are sent after all uploads."""
        keys = {message.marker for message in messages if message.body is None}
        uploads: list[Message] = []
        alone: list[Message] = []
        later: list[Message] = []
        for message in messages:
            refers_to_upload = any(ticket.key in keys for ticket in message.expected)
            (uploads if message.body is None else later if refers_to_upload else alone).append(message)
        with ThreadPoolExecutor(2) as pool:
            done = [pool.submit(self._send, alone), pool.submit(self._upload, uploads)]
            for future in done:
                future.result()
        self._send(later)

    def _send(self, messages: Sequence[Message]) -> None:
        batch: list[dict[str, Any]] = []
        size = 0
        for message in messages:
            assert message.body is not None
            length = len(message.body.encode()) + 100
            if batch and (len(batch) == 10 or size + length > 1_000_000):
                self._flush(batch)
                batch, size = [], 0
            marker = {"Number": {"DataType": "Number", "StringValue": message.marker}}
            entry = {"Id": message.marker, "MessageBody": message.body, "DelaySeconds": message.delay}
            batch.append(entry | {"MessageAttributes": marker})
            size += length
        self._flush(batch)

    def _flush(self, batch: Sequence[Mapping[str, Any]]) -> None:
        if batch:
            answer = self._sqs.send_message_batch(QueueUrl=self._outputs["QueueUrl"], Entries=list(batch))
            assert len(answer["Successful"]) == len(batch), answer
            self.ids.update((entry["Id"], entry["MessageId"]) for entry in answer["Successful"])

    def _upload(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._s3.put_object(Bucket=self._outputs["RawBucket"], Key=message.marker, Body=message.upload)
            if message.gone:
                self._s3.delete_object(Bucket=self._outputs["RawBucket"], Key=message.marker)

    def depth(self) -> tuple[int, int]:
        """The number of visible messages, and of messages that are in flight or delayed."""
        names = [f"ApproximateNumberOfMessages{kind}" for kind in ("", "NotVisible", "Delayed")]
        found = self._sqs.get_queue_attributes(QueueUrl=self._outputs["QueueUrl"], AttributeNames=names)["Attributes"]
        visible, *others = (int(found.get(name, 0)) for name in names)
        return visible, sum(others)

    def wait_until_empty(self, progress: Callable[[], object] = lambda: None) -> None:
        """Wait until the queue is empty. Raises AssertionError if nothing changes for too long."""
        state: Any = None
        deadline = 0.0
        while (depth := self.depth()) != (0, 0):
            if (depth, progress()) != state:
                state, deadline = (depth, progress()), time.monotonic() + _STALLED_AFTER
            assert time.monotonic() < deadline, f"the queue does not become empty: {depth}"
            time.sleep(0.1)
