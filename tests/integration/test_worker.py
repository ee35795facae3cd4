"""The worker on the embedded stack with the real bundle: nothing is lost or processed twice, however it ends."""

from __future__ import annotations

import http.client
import io
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import uuid
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from handler import outcome
from handler.aws.sqs import QueueAttributes
from handler.cli.shutdown import Shutdown
from handler.errors import ServiceFailed
from handler.local import EmbeddedStack
from handler.settings import WorkerSettings
from handler.worker import breaker
from handler.worker.invocation import sqs_event
from handler.worker.message_queue import MessageQueue, SqsDepth, message_queues
from handler.worker.processor import process
from handler.worker.reports import Reporter, WorkerOptions
from tests.support.fault_injection import Call, ErrorResponse
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


def ticket(name: str) -> dict[str, Any]:
    return {
        "ticket_id": name,
        "subject": "Cannot log in since this morning",
        "body": "The page says that my password is wrong, and the mail to reset it never comes. Please help me soon.",
        "created_at": 1_790_000_000,
        "customer_id": "CUST-1",
    }


class Harness:
    """Access to the stack's stores and queues."""

    def __init__(self, stack: EmbeddedStack, bundle: Path, scratch: Path) -> None:
        self.stack = stack
        self.environment: dict[str, str] = {
            **stack.environment(),
            "MODEL_BUNDLE": bundle.as_uri(),
            "BUNDLE_CACHE_DIR": str(scratch),
            "INTRA_OP_THREADS": "1",
        }
        self.url = self.environment["QUEUE_URL"]
        self.purge()

    def purge(self) -> None:
        for url in (self.url, self.environment["DLQ_URL"]):
            self.stack.client("sqs").purge_queue(QueueUrl=url)

    def put(self, name: str) -> None:
        body = json.dumps(ticket(name)).encode()
        self.stack.client("s3").put_object(Bucket=self.environment["RAW_BUCKET"], Key=f"{name}.json", Body=body)

    def send(self, bodies: list[str]) -> None:
        for start in range(0, len(bodies), 10):
            entries = [{"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies[start : start + 10])]
            self.stack.client("sqs").send_message_batch(QueueUrl=self.url, Entries=entries)

    def item(self, name: str) -> dict[str, Any] | None:
        key = {"ticket_id": {"S": name}, "created_at": {"N": "1790000000"}}
        found = self.stack.client("dynamodb").get_item(TableName=self.environment["TABLE_NAME"], Key=key)
        item: dict[str, Any] | None = found.get("Item")
        return item

    def stored(self, names: list[str]) -> list[str]:
        pages = self.stack.client("dynamodb").get_paginator("scan")
        found = {
            item["ticket_id"]["S"]
            for page in pages.paginate(TableName=self.environment["TABLE_NAME"], ProjectionExpression="ticket_id")
            for item in page["Items"]
        }
        return [name for name in names if name in found]

    def waiting(self, url: str | None = None) -> tuple[int, int]:
        """Count the visible and the invisible messages."""
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        answer = self.stack.client("sqs").get_queue_attributes(QueueUrl=url or self.url, AttributeNames=list(names))
        visible, invisible = (int(answer["Attributes"][name]) for name in names)
        return visible, invisible

    def in_this_process(self, monkeypatch: pytest.MonkeyPatch, until: Callable[[], bool], **changes: str) -> Reports:
        """Run a worker process in this process until the condition holds, and return its reports."""
        for name, value in (self.environment | changes).items():
            monkeypatch.setenv(name, value)
        shutdown, stream = Shutdown(20), io.BytesIO()

        def watch() -> None:
            try:
                eventually(until)
            finally:
                shutdown.request()

        thread = threading.Thread(target=watch)
        thread.start()
        options = WorkerOptions(wait=0, visibility_timeout=5)
        assert process(WorkerSettings.read(), options, shutdown, Reporter(stream)) == 0
        thread.join()
        return [json.loads(line) for line in stream.getvalue().splitlines()]


Reports = list[dict[str, Any]]


@pytest.fixture(scope="module")
def harness(stack: EmbeddedStack, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    return Harness(stack, bundle, tmp_path_factory.mktemp("cache"))


class Worker:
    """A running `ticket-processor`."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self._port = port

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def is_ready(self) -> bool:
        return self.get("/readyz")[0] == HTTPStatus.OK

    def value(self, series: str) -> float:
        lines = self.get("/metrics")[1].splitlines()
        return float(next(line for line in lines if line.startswith(series)).rpartition(" ")[2])

    def children(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children()]


@contextmanager
def running(environment: Mapping[str, str], **settings: str) -> Iterator[Worker]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "handler.worker", "--wait", "1"],
        env={**os.environ, **environment, **settings, "HEALTH_PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        worker = Worker(process, port)
        try:
            eventually(worker.is_ready)
            yield worker
        finally:
            process.terminate()
            try:
                _, errors = process.communicate(timeout=60)
            finally:
                process.kill()
        assert (process.returncode, errors) == (0, "")


@pytest.fixture(scope="class")
def worker(harness: Harness) -> Iterator[Worker]:
    with running(harness.environment, NUM_WORKERS="2") as found:
        yield found


class TestRunning:
    """One worker with two processes; the tests after this class have the queue for themselves."""

    def test_upload_creates_item_and_enriched_object(self, harness: Harness, worker: Worker) -> None:
        names = [f"e2e {uuid.uuid4()}+{number}" for number in range(5)]
        done = worker.value('tickets_total{error_type="",outcome="done"}')
        deleted = worker.value('ticket_messages_total{result="deleted"}')
        for name in names:
            harness.put(name)
        eventually(lambda: harness.stored(names) == names)
        for name in names:
            item = harness.item(name)
            assert item is not None
            enriched = harness.stack.client("s3").get_object(
                Bucket=harness.environment["ENRICHED_BUCKET"], Key=f"{name}.json", VersionId=item["s3_version_id"]["S"]
            )
            found = json.load(enriched["Body"])
            assert {field: found[field] for field in ticket(name)} == ticket(name)
            assert found["enrichment"]["intent"] == item["intent"]["S"] == "login_issue"
            assert len(found["enrichment"]["embedding"]) == 384
        eventually(lambda: harness.waiting() == (0, 0))
        eventually(lambda: worker.value('tickets_total{error_type="",outcome="done"}') == done + 5)
        eventually(lambda: worker.value('ticket_messages_total{result="deleted"}') == deleted + 5)

    def test_metrics_include_all_processes(self, harness: Harness, worker: Worker) -> None:
        assert worker.get("/livez") == (200, "alive\n")
        assert worker.value("ticket_processes_ready") == 2
        assert worker.value("ticket_bundle_load_seconds_count") >= 2
        settled = worker.value('ticket_messages_total{result="deleted"}')
        harness.send(["not JSON"])
        harness.put(name := f"e2e {uuid.uuid4()}")
        eventually(lambda: worker.value('ticket_messages_total{result="deleted"}') == settled + 2)
        assert harness.stored([name]) == [name]
        assert worker.value('tickets_total{error_type="message_invalid",outcome="rejected"}') >= 1
        assert worker.value('ticket_stage_seconds_count{stage="store"}') > 0
        assert worker.get("/nothing")[0] == 404

    def test_depth_of_the_queue_and_age_of_messages_are_exported(self, harness: Harness, worker: Worker) -> None:
        name = harness.url.rpartition("/")[2]
        eventually(
            lambda: worker.value(f'ticket_queue_messages{{queue="{name}",state="visible"}}') >= 0
        )  # not NaN: it was read
        count = f'ticket_message_age_seconds_count{{queue="{name}"}}'
        received = worker.value(count)
        harness.send(["not JSON"])
        eventually(lambda: worker.value(count) == received + 1)
        assert worker.value('ticket_breaker_processes{state="closed"}') == 2
        assert worker.get("/startupz")[0] == 200

    def test_bundle_is_copied_once_per_container(self, harness: Harness, worker: Worker) -> None:
        assert worker.is_ready()
        (copy,) = Path(harness.environment["BUNDLE_CACHE_DIR"]).iterdir()
        assert "part" not in copy.name

    def test_killed_process_is_replaced(self, harness: Harness, worker: Worker) -> None:
        before, restarts = worker.children(), worker.value("ticket_process_restarts_total")
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: worker.value("ticket_process_restarts_total") == restarts + 1)
        eventually(worker.is_ready)
        after = worker.children()
        assert len(after) == 2
        assert before[0] not in after
        os.kill(
            before[1], signal.SIGTERM
        )  # a single process, from outside: it finishes its batch and is replaced as well
        eventually(lambda: worker.value("ticket_process_restarts_total") == restarts + 2)
        eventually(worker.is_ready)
        name = f"replaced-{uuid.uuid4()}"
        harness.put(name)
        eventually(lambda: harness.stored([name]) == [name])


def test_only_the_failed_message_stays_in_the_queue(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.purge()
    names = [f"partial-{uuid.uuid4()}" for _ in range(9)]
    bodies = [json.dumps(ticket(name)) for name in names]
    harness.send([*bodies[:4], "not JSON", *bodies[4:]])
    # It would be rejected; it fails because the DLQ cannot be reached.
    gone = harness.environment["DLQ_URL"] + "-gone"
    reports = harness.in_this_process(
        monkeypatch, lambda: harness.stored(names) == names and sum(harness.waiting()) == 1, DLQ_URL=gone
    )
    eventually(lambda: harness.waiting() == (1, 0), 60.0)  # deferred for 15 to 30 s
    (left,) = harness.stack.client("sqs").receive_message(QueueUrl=harness.url, VisibilityTimeout=0)["Messages"]
    assert left["Body"] == "not JSON"
    assert harness.waiting(harness.environment["DLQ_URL"]) == (0, 0)
    assert reports[1] == {"ready": True}
    calls = [call for report in reports for call in report.get("metrics", [])]
    assert sum(call[2] for call in calls if call[:2] == ["messages", "deleted"]) == 9


def test_receiving_stops_while_dynamodb_refuses_and_goes_on_afterwards(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.purge()
    monkeypatch.setattr(breaker, "_FIRST_WAIT", 0.2)
    monkeypatch.setattr(outcome, "backoff_seconds", lambda _attempts: 0)
    names = [f"outage-{uuid.uuid4()}" for _ in range(10)]
    harness.send([json.dumps(ticket(name)) for name in names])
    refused: list[str] = []

    def outage(call: Call) -> ErrorResponse | None:
        # A full batch, and a probe; botocore does not repeat a call that was denied.
        if call.name != "PutItem" or len(refused) >= 13:
            return None
        refused.append(call.subject)
        return ErrorResponse(400, "AccessDeniedException")

    with Proxy(harness.stack.endpoint_url, outage) as proxy:
        reports = harness.in_this_process(
            monkeypatch,
            lambda: harness.stored(names) == names and harness.waiting() == (0, 0),
            AWS_ENDPOINT_URL=proxy.url,
        )
    changes = [(report["breaker"], report["reason"]) for report in reports if "breaker" in report]
    found = [state for state, _ in changes]
    # More than one probe fails if the messages of the last one came back together with others.
    probes = found.count("half_open")
    assert found == ["open", *["half_open", "open"] * (probes - 1), "half_open", "closed"]
    assert 2 <= probes <= 4
    assert changes[0][1] == "no ticket can be stored (service_failed; the log names the service)"
    batches = [len(report["batch_started"]["receipts"]) for report in reports if "batch_started" in report]
    assert batches[:3] == [10, 3, 3]


def test_sigterm_loses_and_duplicates_nothing(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.purge()
    names = [f"drained-{uuid.uuid4()}" for _ in range(100)]
    is_ending = threading.Event()
    with Proxy(harness.stack.endpoint_url) as proxy:

        def hold(operation: str) -> None:
            # Both processes have received at most three batches each; so some tickets are left.
            if operation == "PutItem" and proxy.calls.count("PutItem") > 10:
                is_ending.wait(60)

        proxy.before = hold
        with running(harness.environment | {"AWS_ENDPOINT_URL": proxy.url}, NUM_WORKERS="2") as worker:
            harness.send([json.dumps(ticket(name)) for name in names])
            eventually(lambda: proxy.calls.count("PutItem") > 10)
            worker.process.send_signal(signal.SIGTERM)
            eventually(lambda: worker.get("/readyz")[0] == HTTPStatus.SERVICE_UNAVAILABLE)
            is_ending.set()
            worker.process.wait(60)
    left, in_flight = harness.waiting()
    assert in_flight == 0
    assert left > 0
    assert len(harness.stored(names)) + left == len(names)

    harness.in_this_process(monkeypatch, lambda: harness.waiting() == (0, 0))
    assert harness.stored(names) == names
    versions = harness.stack.client("s3").list_object_versions(
        Bucket=harness.environment["ENRICHED_BUCKET"], Prefix="inline/drained-"
    )["Versions"]
    assert sorted(version["Key"].split("/")[1] for version in versions) == sorted(names)


# -- the SQS adapter


def only_queue(settings: WorkerSettings, wait: int = 0) -> MessageQueue:
    (queue,) = message_queues(settings, wait)
    return queue


@pytest.fixture
def scratch_queue(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> MessageQueue:
    """A separate queue; the environment refers to it."""
    client = harness.stack.client("sqs")
    url = client.create_queue(QueueName=f"scratch-{uuid.uuid4()}", Attributes={"VisibilityTimeout": "77"})["QueueUrl"]
    for name, value in (harness.environment | {"QUEUE_URL": url}).items():
        monkeypatch.setenv(name, value)
    return only_queue(WorkerSettings.read())


def test_queue_attributes_are_read(scratch_queue: MessageQueue) -> None:
    attributes = scratch_queue.attributes()
    assert attributes.visibility_timeout == 77
    assert attributes.arn.startswith("arn:aws:sqs:us-east-1:000000000000:scratch-")
    assert attributes.max_receive_count is None


def test_depth_is_read_or_unknown(scratch_queue: MessageQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = SqsDepth(WorkerSettings.read()).read().values()
    assert found is not None
    assert (found.visible, found.in_flight, found.delayed) == (0, 0, 0)
    monkeypatch.setenv("QUEUE_URL", WorkerSettings.read().queue_url + "-gone")
    assert [*SqsDepth(WorkerSettings.read()).read().values()] == [None]


def test_max_receive_count_matches_the_queue(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in harness.environment.items():
        monkeypatch.setenv(name, value)
    settings = WorkerSettings.read()
    assert only_queue(settings).attributes().max_receive_count == settings.max_receive_count == 30


def test_delete_returns_the_messages_that_were_not_deleted(harness: Harness, scratch_queue: MessageQueue) -> None:
    url = WorkerSettings.read().queue_url
    client = harness.stack.client("sqs")
    for number in range(23):
        client.send_message(QueueUrl=url, MessageBody=str(number))
    messages = [message for _ in range(3) for message in scratch_queue.receive(10, visibility_timeout=50, wait=False)]
    assert (len(messages), harness.waiting(url)) == (23, (0, 23))
    bad = {**messages[14], "ReceiptHandle": "no handle"}
    assert scratch_queue.delete([*messages[:14], bad, *messages[15:]]) == [bad]
    assert harness.waiting(url) == (0, 1)
    assert scratch_queue.change_visibility([messages[14], bad], 0) == [bad]
    assert harness.waiting(url) == (1, 0)
    assert scratch_queue.delete([]) == []


def test_unreachable_queue_is_service_failed(scratch_queue: MessageQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    unreachable = only_queue(WorkerSettings.read())
    with pytest.raises(ServiceFailed, match=r"^ReceiveMessage: EndpointConnectionError$"):
        unreachable.receive(1, visibility_timeout=1, wait=True)
    with pytest.raises(ServiceFailed, match=r"^GetQueueAttributes: EndpointConnectionError$"):
        unreachable.attributes()
    message = {"MessageId": "1", "ReceiptHandle": "h"}
    assert unreachable.delete([message]) == [message]
    assert unreachable.change_visibility([message], 1) == [message]


# -- the event, compared with one from a real event source mapping


def test_event_equals_a_real_event_source_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    events: queue.Queue[dict[str, Any]] = queue.Queue()

    class Function(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = json.dumps({"batchItemFailures": [{"itemIdentifier": r["messageId"]} for r in event["Records"]]})
            self.send_response(HTTPStatus.OK)
            self.end_headers()
            self.wfile.write(answer.encode())
            events.put(event)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Function) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        proxy = {"MINISTACK_LAMBDA_PROXY_ticket-enrichment": f"http://127.0.0.1:{server.server_port}"}
        with EmbeddedStack(parameters={"MappingEnabled": "true"}, emulator=proxy) as stack:
            for name, value in stack.environment().items():
                monkeypatch.setenv(name, value)
            monkeypatch.setenv("MODEL_BUNDLE", "file:///unused")
            settings = WorkerSettings.read()
            stack.client("sqs").send_message(
                QueueUrl=settings.queue_url,
                MessageBody="grüße 🎟",
                MessageAttributes={
                    "text": {"DataType": "String", "StringValue": "ü"},
                    "number": {"DataType": "Number.float", "StringValue": "1.5"},
                    "bytes": {"DataType": "Binary.png", "BinaryValue": b"\x00\xff\x10"},
                },
                MessageSystemAttributes={
                    "AWSTraceHeader": {"DataType": "String", "StringValue": "Root=1-5759e988-bd862e3fe1be46a994272793"}
                },
            )
            records = [record for record in events.get(timeout=60)["Records"] if record["body"] == "grüße 🎟"]
            while not records:  # the bucket's test event arrives first
                records = [record for record in events.get(timeout=60)["Records"] if record["body"] == "grüße 🎟"]
            received = _receive_again(stack, settings, records[0])
        server.shutdown()
    delivered = records[0]
    # The same message, received again: a new receipt handle, and one more receive.
    assert received.pop("receiptHandle") != delivered.pop("receiptHandle")
    assert (
        delivered["attributes"].pop("ApproximateReceiveCount"),
        received["attributes"].pop("ApproximateReceiveCount"),
    ) == (
        "1",
        "2",
    )
    # Fields that Lambda sends and this emulated mapping omits.
    assert len(received.pop("md5OfMessageAttributes")) == 32
    for attribute in received["messageAttributes"].values():
        assert (attribute.pop("stringListValues"), attribute.pop("binaryListValues")) == ([], [])
    assert received == delivered
    assert {type(value) for value in delivered["attributes"].values()} == {str}


def _receive_again(stack: EmbeddedStack, settings: WorkerSettings, record: dict[str, Any]) -> dict[str, Any]:
    (mapping,) = stack.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    stack.client("lambda").update_event_source_mapping(UUID=mapping["UUID"], Enabled=False)
    messages = only_queue(settings, wait=5)
    held = {"MessageId": record["messageId"], "ReceiptHandle": record["receiptHandle"]}
    assert messages.change_visibility([held], 0) == []
    (message,) = messages.receive(10, visibility_timeout=30, wait=True)
    (received,) = sqs_event([message], messages.attributes().arn)["Records"]
    assert isinstance(messages.attributes(), QueueAttributes)
    return dict(json.loads(json.dumps(received)))
