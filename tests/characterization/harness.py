"""Runs the product for the characterization tests, and reads its stores and queues.

This is the only file of these tests that imports the project. Commands are looked up by name in pyproject.toml, so
moving a module changes only the imports below and MODULES.
"""

from __future__ import annotations

import base64
import copy
import importlib
import io
import json
import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from handler.app import build
from handler.cli.shutdown import Shutdown
from handler.local import EmbeddedStack
from handler.metrics import make_logger
from handler.settings import Settings, WorkerSettings
from handler.worker.message_queue import message_queues
from handler.worker.polling import Poller
from handler.worker.reports import Reporter, WorkerOptions

REPOSITORY = Path(__file__).resolve().parents[2]
EVENTS = REPOSITORY / "events"
EVENT_BUCKET = "tickets-raw"  # the raw bucket's name in all sample events
MODULES = {"enrichment": "enrichment", "demo": "handler.local.demo"}  # started with `python -m`
SCRIPTS: dict[str, str] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "scripts"
]

__all__ = [
    "EVENTS",
    "EVENT_BUCKET",
    "Event",
    "Finished",
    "Product",
    "Run",
    "get",
    "run_command",
    "run_demo",
    "ticket_processor",
    "wait_until",
]


@dataclass(frozen=True)
class Event:
    """A sample event, and the objects that must be in the raw bucket."""

    name: str
    records: list[dict[str, Any]]
    objects: dict[str, bytes]

    @classmethod
    def load(cls, name: str) -> Self:
        """Reads events/NAME.json and events/expected/NAME.json."""
        event = json.loads((EVENTS / f"{name}.json").read_text(encoding="utf-8"))
        expected = json.loads((EVENTS / "expected" / f"{name}.json").read_text(encoding="utf-8"))
        return cls(name, event["Records"], {spec["key"]: _object(spec) for spec in expected["objects"]})


@dataclass(frozen=True)
class Run:
    """The result of processing an event: the answer, the log, and the message ids in order."""

    answer: Any
    log: str
    message_ids: list[str]


@dataclass(frozen=True)
class Finished:
    """A finished command."""

    code: int
    out: str
    err: str

    def rows(self) -> list[Any]:
        """Its standard output, parsed as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


class Product:
    """The Lambda handler and the worker on their own embedded stack, with real clients and the compact bundle."""

    def __init__(self, stack: EmbeddedStack, environment: dict[str, str]) -> None:
        self.environment = environment
        self.s3, self.sqs, self.dynamodb = (stack.client(name) for name in ("s3", "sqs", "dynamodb"))
        # The bucket notifies the deployed queue of each upload, so the worker gets a separate queue for sample events.
        self.queue = self.sqs.create_queue(QueueName="characterization")["QueueUrl"]
        self._start(environment)

    @classmethod
    @contextmanager
    def started(cls, bundle: Path, cache: Path) -> Iterator[Self]:
        """Starts the stack and everything on it; stops it after the block."""
        with EmbeddedStack() as stack:
            own = {"MODEL_BUNDLE": bundle.as_uri(), "BUNDLE_CACHE_DIR": str(cache), "INTRA_OP_THREADS": "1"}
            yield cls(stack, stack.environment() | own)

    def with_settings(self, **settings: str) -> Self:
        """Another handler and worker on the same stack with other settings, such as a bucket that does not exist."""
        found = copy.copy(self)
        found._start(self.environment | settings)
        return found

    def _start(self, environment: dict[str, str]) -> None:
        with in_environment(environment):
            self._handler = build(Settings.read())
            self._worker = _Worker(WorkerSettings.read(queue_url=self.queue))
        # The first batch reports the cold start; afterwards, metrics do not depend on the order of the tests.
        self.first = self.through_handler(Event.load("s3-test-event"))

    def through_handler(self, event: Event, *, clean: bool = True) -> Run:
        """Invokes the Lambda handler with the event; with `clean`, stores and queues are emptied first."""
        if clean:
            self.prepare(event)
        records = [{**record, "body": self._with_our_bucket(record["body"])} for record in event.records]
        with _captured_log() as log:
            answer = self.invoke({"Records": records})
        return Run(answer, log.getvalue(), [record["messageId"] for record in records])

    def invoke(self, event: Any) -> Any:
        """Invokes the Lambda handler with any event, and returns its answer."""
        return self._handler(event, _Context())

    def through_worker(self, event: Event) -> Run:
        """Sends the event's messages to a queue and lets the worker process one batch; the answer is what remains."""
        self.prepare(event)
        ids = self.send(event)
        with _captured_log() as log:
            self._worker.one_batch()
        return Run({"messages left in the queue": self._remaining()}, log.getvalue(), ids)

    def prepare(self, event: Event) -> None:
        """Empties stores and queues, and uploads the event's objects to the raw bucket."""
        for name, body in event.objects.items():
            self.s3.put_object(Bucket=self.environment["RAW_BUCKET"], Key=name, Body=body)
        self.empty()

    def empty(self) -> None:
        """Removes all enriched tickets and all messages."""
        for key in self.items(whole=False):
            self.dynamodb.delete_item(TableName=self.environment["TABLE_NAME"], Key=key)
        for found in self.versions():
            version = {"Key": found["Key"], "VersionId": found["VersionId"]}
            self.s3.delete_object(Bucket=self.environment["ENRICHED_BUCKET"], **version)
        for queue in (self.queue, self.environment["QUEUE_URL"], self.environment["DLQ_URL"]):
            self.sqs.purge_queue(QueueUrl=queue)

    def send(self, event: Event, queue: str | None = None) -> list[str]:
        """Sends the event's messages to a queue, the worker's by default; returns their new ids."""
        entries = [
            {
                "Id": str(number),
                "MessageBody": self._with_our_bucket(record["body"]),
                "MessageAttributes": {name: _sent(value) for name, value in record["messageAttributes"].items()},
            }
            for number, record in enumerate(event.records)
        ]
        sent = self.sqs.send_message_batch(QueueUrl=queue or self.queue, Entries=entries)["Successful"]
        return [answer["MessageId"] for answer in sorted(sent, key=lambda answer: int(answer["Id"]))]

    def items(self, *, whole: bool = True) -> list[dict[str, Any]]:
        """All items of the table in DynamoDB's format, sorted by id and time; or only their keys."""
        names = {} if whole else {"ProjectionExpression": "ticket_id, created_at"}
        pages = self.dynamodb.get_paginator("scan").paginate(
            TableName=self.environment["TABLE_NAME"], ConsistentRead=True, **names
        )
        found = [item for page in pages for item in page["Items"]]
        return sorted(found, key=lambda item: (item["ticket_id"]["S"], int(item["created_at"]["N"])))

    def versions(self) -> list[dict[str, Any]]:
        """Every object version in the bucket of enriched tickets."""
        pages = self.s3.get_paginator("list_object_versions").paginate(Bucket=self.environment["ENRICHED_BUCKET"])
        return [version for page in pages for version in page.get("Versions", [])]

    def object(self, key: str, version: str) -> tuple[str, bytes]:
        """Content type and bytes of one version of an enriched object."""
        found = self.s3.get_object(Bucket=self.environment["ENRICHED_BUCKET"], Key=key, VersionId=version)
        with found["Body"] as stream:
            return found["ContentType"], stream.read()

    def take(self, queue: str) -> list[dict[str, Any]]:
        """Receives and deletes all visible messages of a queue."""
        found: list[dict[str, Any]] = []
        while messages := self.sqs.receive_message(
            QueueUrl=queue,
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
        ).get("Messages"):
            for message in messages:
                self.sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
            found += messages
        return found

    def _remaining(self) -> int:
        """Number of messages in the worker's queue; failed ones are temporarily invisible."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        counts = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=names)["Attributes"]
        return sum(map(int, counts.values()))

    def _with_our_bucket(self, text: str) -> str:
        return text.replace(EVENT_BUCKET, self.environment["RAW_BUCKET"])


class _Worker:
    """The parts of a `ticket-processor` process, in this process: handler, queue adapter and loop."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._logger = make_logger(settings.log_level)
        self._metrics = Reporter(io.BytesIO())
        self._handler = build(settings, metrics=self._metrics, logger=self._logger)
        self._queues = message_queues(settings, wait=1)

    def one_batch(self) -> None:
        shutdown = Shutdown(20)

        def last(event: Any, context: Any) -> Any:
            answer = self._handler(event, context)
            shutdown.request()  # the loop settles this batch and ends
            return answer

        options = WorkerOptions(wait=1, visibility_timeout=30, timeout=60)
        Poller(
            self._queues, last, shutdown, options, metrics=self._metrics, logger=self._logger, batches=self._metrics
        ).run()


class _Context:
    """Lambda's context."""

    function_name = "ticket-enrichment"
    function_version = "$LATEST"
    invoked_function_arn = "arn:aws:lambda:us-east-1:123456789012:function:ticket-enrichment"
    memory_limit_in_mb = "2048"
    aws_request_id = "characterization"

    def get_remaining_time_in_millis(self) -> int:
        return 60_000


# -- commands


def run_command(name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Finished:
    """Runs a command in this process: a console script of pyproject.toml, or one of MODULES."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with in_environment(environment), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        with redirect_stdout(out), redirect_stderr(err):
            code = _exit_code(_entry(name))
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return Finished(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))


def run_demo(bundle: Path, count: int) -> Finished:
    """Runs the demo, which starts a stack and a worker, as a separate process."""
    command = [sys.executable, "-m", MODULES["demo"], "--bundle", str(bundle), "--count", str(count)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    return Finished(done.returncode, done.stdout, done.stderr)


@contextmanager
def ticket_processor(environment: Mapping[str, str]) -> Iterator[tuple[int, Callable[[], Finished]]]:
    """Runs `ticket-processor` as a process; yields its health port, and a function that stops it and waits."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    module, _, function = SCRIPTS["ticket-processor"].partition(":")
    start = f"import sys; from {module} import {function} as main; sys.argv[1:] = ['--wait', '1']; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", start],
        cwd=REPOSITORY,
        env={**os.environ, **environment, "HEALTH_PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def end() -> Finished:
        process.terminate()
        return Finished(process.wait(60), *process.communicate())

    with process:
        try:
            yield port, end
        finally:
            process.kill()


def get(port: int, path: str) -> tuple[int, str]:
    """Status and text of a page of the worker; status 0 while nothing listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Waits for a condition. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition is still false after {seconds} s"
        time.sleep(0.05)


def _entry(name: str) -> Callable[[], Any]:
    if name in MODULES:
        # runpy warns about a __main__ module that another test has imported.
        sys.modules.pop(f"{MODULES[name]}.__main__", None)
        return lambda: runpy.run_module(MODULES[name], run_name="__main__", alter_sys=True)
    module, _, function = SCRIPTS[name].partition(":")
    found: Callable[[], Any] = getattr(importlib.import_module(module), function)
    return found


def _exit_code(run: Callable[[], Any]) -> int:
    try:
        run()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    return 0


# -- environment and log


@contextmanager
def in_environment(environment: Mapping[str, str]) -> Iterator[None]:
    """Sets the environment inside the block, and unsets all other settings."""
    known = {name.upper() for name in WorkerSettings.model_fields}
    with pytest.MonkeyPatch.context() as patch:
        for name in known - set(environment):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


@contextmanager
def _captured_log() -> Iterator[io.StringIO]:
    """Captures everything that the product writes: log lines, metrics and any other output."""
    log = io.StringIO()
    handler = make_logger("INFO").registered_handler
    assert isinstance(handler, logging.StreamHandler)
    before, handler.stream = handler.stream, log
    try:
        with redirect_stdout(log), redirect_stderr(log):
            yield log
    finally:
        handler.stream = before


def _object(spec: Mapping[str, Any]) -> bytes:
    if "base64" in spec:
        return base64.b64decode(spec["base64"])
    if "repeat" in spec:
        part = spec["repeat"]
        return f"{part['before']}{part['text'] * part['times']}{part['after']}".encode()
    body = spec["body"]
    return (body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)).encode()


def _sent(attribute: Mapping[str, Any]) -> dict[str, Any]:
    """A message attribute of an event's record in boto3's format."""
    kind = attribute["dataType"]
    if kind.startswith("Binary"):
        return {"DataType": kind, "BinaryValue": base64.b64decode(attribute["binaryValue"])}
    return {"DataType": kind, "StringValue": attribute["stringValue"]}
