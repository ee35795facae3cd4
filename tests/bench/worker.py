"""The worker's throughput, compared with what the library and the emulator allow on the same cores.

    python -m tests.bench.worker --bundle BUNDLE [--tickets 600] [--rounds 3]

Three rates, in tickets per second, measured alternately: of the library alone; of the emulator alone, for the calls
that the worker makes, sent by a client that does nothing else; and of a worker process with the emulator, both on these
cores. The worker can be no faster than the slower of the first two, and has to share the cores with the emulator. The
last line is a JSON object with the median of each rate, and CPU milliseconds per ticket: these are meaningful on a busy
machine too, where a program with more processes gets a larger share of the cores.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import psutil

from enrichment import Enricher
from enrichment.ticket import ticket_from_object
from events.generator import TicketGenerator
from handler.local import EmbeddedStack
from handler.local.emulator import REGION
from tests.support.workers import worker

BATCH: Final = 10
CONNECTIONS: Final = 4  # enough to keep the emulator busy
WARM_UP: Final = 0.1  # share of the tickets during which connections are opened and the models' memory grows


def main() -> int:
    """Measure and print the rates."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.worker", description="Measure the worker's throughput."
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--tickets", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    made = list(islice(TicketGenerator(seed=13, start=1_790_000_000), options.tickets))
    enricher = Enricher.open(options.bundle)
    rates: dict[str, list[float]] = {"library": [], "emulator": [], "worker": []}
    cpu: dict[str, list[float]] = {"library": [], "emulator": [], "worker": []}
    # Checking signatures would cost the emulator time that AWS does not take from the client's cores.
    with EmbeddedStack(emulator={"AUTH": "false"}) as stack, tempfile.TemporaryDirectory() as scratch:
        environment = stack.environment() | {
            "MODEL_BUNDLE": options.bundle.resolve().as_uri(),
            "BUNDLE_CACHE_DIR": scratch,
            "INTRA_OP_THREADS": "",  # all cores, as the library
        }
        assert stack.pid is not None
        emulator = psutil.Process(stack.pid)
        for _ in range(options.rounds):
            begin = time.process_time()
            rates["library"].append(library_rate(enricher, made))
            cpu["library"].append((time.process_time() - begin) * 1000 / len(made))
            upload(stack, environment, made)
            before = cpu_seconds(emulator)
            rate, milliseconds = worker_rate(environment, Path(scratch) / "log", len(made))
            rates["worker"].append(rate)
            cpu["worker"].append(milliseconds)
            cpu["emulator"].append((cpu_seconds(emulator) - before) * 1000 / len(made))
            replay = Replay(stack, environment)
            upload(stack, environment, made)
            rates["emulator"].append(replay.rate(len(made)))
            sys.stderr.write(f"{ {name: round(values[-1], 1) for name, values in rates.items()} }\n")
    found = {name: statistics.median(values) for name, values in rates.items()}
    found |= {f"{name}_cpu_ms": statistics.median(values) for name, values in cpu.items()}
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def library_rate(enricher: Enricher, made: list[dict[str, Any]]) -> float:
    """Tickets per second of the library, in batches of ten."""
    tickets = [ticket_from_object(each) for each in made]
    enricher.enrich(tickets[:BATCH])
    begin = time.perf_counter()
    for first in range(0, len(tickets), BATCH):
        enricher.enrich(tickets[first : first + BATCH])
    return len(tickets) / (time.perf_counter() - begin)


def upload(stack: EmbeddedStack, environment: Mapping[str, str], made: list[dict[str, Any]]) -> None:
    """Upload tickets under new ids; the queue is filled with their notifications."""
    run = uuid.uuid4().hex[:8]
    for each in made:
        ticket = {**each, "ticket_id": f"{run}-{each['ticket_id']}"}
        key = f"2026/{ticket['ticket_id']}.json"
        stack.client("s3").put_object(Bucket=environment["RAW_BUCKET"], Key=key, Body=json.dumps(ticket).encode())


def worker_rate(environment: Mapping[str, str], log: Path, tickets: int) -> tuple[float, float]:
    """Tickets per second of a worker that finds its queue full, by its log; and its CPU milliseconds per ticket."""
    with worker(environment, log) as running:
        running.wait_until('"message":"a process is ready"')
        child = psutil.Process(running.child())
        before = cpu_seconds(child)
        done: list[float] = []
        while len(done) < tickets:
            assert running.process.poll() is None, log.read_text()
            time.sleep(0.5)  # reading the log takes time from the worker
            done = list(times_of_stored_tickets(log))
        milliseconds = (cpu_seconds(child) - before) * 1000 / tickets
    first = int(WARM_UP * tickets)
    return (tickets - first) / (done[tickets - 1] - done[first - 1]), milliseconds


def times_of_stored_tickets(log: Path) -> Iterator[float]:
    """When tickets were stored, in order, as Unix time."""
    for line in log.read_text().splitlines(keepends=True):
        entry = json.loads(line) if line.endswith("\n") else {}
        if entry.get("message") == "ticket" and "s3_key" in entry:  # not the bucket's test event
            assert entry["outcome"] == "done", line
            yield datetime.fromisoformat(entry["timestamp"]).timestamp()


class Replay:
    """The calls of the worker, with the objects and items that it stored, sent with plain HTTP."""

    def __init__(self, stack: EmbeddedStack, environment: Mapping[str, str]) -> None:
        self._address = stack.endpoint_url.removeprefix("http://")
        self._raw, self._enriched = environment["RAW_BUCKET"], environment["ENRICHED_BUCKET"]
        self._table, self._queue = environment["TABLE_NAME"], environment["QUEUE_URL"]
        items = stack.client("dynamodb").scan(TableName=self._table, Limit=50)["Items"]
        self._stored: list[tuple[dict[str, Any], bytes]] = []
        for item in items:
            key = {"Bucket": self._enriched, "Key": item["s3_key"]["S"]}
            self._stored.append((item, stack.client("s3").get_object(**key)["Body"].read()))

    def rate(self, tickets: int) -> float:
        """Tickets per second of the emulator."""
        batches = [BATCH] * (tickets // BATCH)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            begin = time.perf_counter()
            done = sum(pool.map(self._batch, batches))
            return done / (time.perf_counter() - begin)

    def _batch(self, size: int) -> int:
        connection = http.client.HTTPConnection(self._address)
        try:
            request = {
                "QueueUrl": self._queue,
                "MaxNumberOfMessages": size,
                "WaitTimeSeconds": 1,
                "VisibilityTimeout": 30,
                "MessageSystemAttributeNames": ["All"],
                "MessageAttributeNames": ["All"],
            }
            messages = self._json(connection, "sqs", "AmazonSQS.ReceiveMessage", request).get("Messages", [])
            records = [json.loads(message["Body"])["Records"][0] for message in messages]
            raw = [self._call(connection, "GET", f"/{self._raw}/{each['s3']['object']['key']}") for each in records]
            names = [json.loads(each)["ticket_id"] for each in raw]
            found = (self._stored * BATCH)[: len(names)]
            self._read(connection, [(name, number) for name in names for number in ("1790000000", "-4")])
            for name, (_, body) in zip(names, found, strict=True):
                self._call(connection, "PUT", f"/{self._enriched}/{quote(name)}", body)
            for name, (item, _) in zip(names, found, strict=True):
                put = {
                    "TableName": self._table,
                    "Item": {**item, "ticket_id": {"S": f"replay-{name}"}},
                    "ConditionExpression": "attribute_not_exists(content_sha256) OR attribute_not_exists(s3_key)",
                }
                self._json(connection, "dynamodb", "DynamoDB_20120810.PutItem", put)
            self._read(connection, [(name, "-4") for name in names])
            entries = [{"Id": str(n), "ReceiptHandle": each["ReceiptHandle"]} for n, each in enumerate(messages)]
            self._json(connection, "sqs", "AmazonSQS.DeleteMessageBatch", {"QueueUrl": self._queue, "Entries": entries})
            return len(messages)
        finally:
            connection.close()

    def _read(self, connection: http.client.HTTPConnection, keys: list[tuple[str, str]]) -> None:
        wanted = [{"ticket_id": {"S": name}, "created_at": {"N": number}} for name, number in keys]
        request = {"RequestItems": {self._table: {"Keys": wanted, "ConsistentRead": True}}}
        self._json(connection, "dynamodb", "DynamoDB_20120810.BatchGetItem", request)

    def _json(
        self, connection: http.client.HTTPConnection, service: str, target: str, request: Mapping[str, Any]
    ) -> Any:
        headers = {"X-Amz-Target": target, "Content-Type": "application/x-amz-json-1.0"}
        return json.loads(self._call(connection, "POST", "/", json.dumps(request).encode(), service, headers))

    def _call(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes = b"",
        service: str = "s3",
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        scope = f"test/20261126/{REGION}/{service}/aws4_request"  # the emulator finds the service by it
        authorization = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"
        connection.request(method, path, body, {"Authorization": authorization, **(headers or {})})
        answer = connection.getresponse()
        found = answer.read()
        assert answer.status < 300, found
        return found


if __name__ == "__main__":
    sys.exit(main())
