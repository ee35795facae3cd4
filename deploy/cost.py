"""`make cost`: measures the time per ticket on this machine and prices a million tickets on AWS, by item.

The handler runs on as many cores as Lambda provides with the given memory, against the embedded stack; if that is less
than one core, the time is scaled up. Prices are those of us-east-1 when this was written; check them, and set others
with --price.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from events.generator import TicketGenerator
from handler.local import EmbeddedStack

REPOSITORY: Final = Path(__file__).resolve().parents[1]
MB_PER_CPU: Final = 1769  # Lambda provides one vCPU per this much memory
MILLION: Final = 1_000_000
WARM_UP: Final = 3  # batches that are not measured
# USD in us-east-1: per GB-second (x86_64, first tier), per GB of logs, and per million of everything else.
PRICES: Final = {
    "gb-second": 0.0000166667,
    "lambda-requests": 0.20,
    "sqs-requests": 0.40,
    "s3-puts": 5.00,
    "s3-gets": 0.40,
    "dynamodb-writes": 0.625,
    "dynamodb-reads": 0.125,
    "logs-gb": 0.50,
}


@dataclass(frozen=True)
class Measured:
    """Per ticket: milliseconds of a warm function, the models' part of them, bytes of log, bytes of its item."""

    milliseconds: float
    model_milliseconds: float
    log_bytes: float
    item_bytes: float


class Context:
    """A minimal Lambda context."""

    function_name = "cost"
    memory_limit_in_mb = "0"
    invoked_function_arn = "arn:aws:lambda:us-east-1:000000000000:function:cost"
    aws_request_id = "cost"

    def get_remaining_time_in_millis(self) -> int:
        """The shortest timeout."""
        return 60_000


def cores(memory: int) -> int:
    """The whole cores that Lambda provides with this memory, at least one, at most those of this machine."""
    return max(1, min(memory // MB_PER_CPU, len(os.sched_getaffinity(0))))


def measure(bundle: Path, memory: int, batch: int, batches: int) -> Measured:
    """Run the handler on batches of synthetic tickets."""
    milliseconds, log = [], io.StringIO()
    with EmbeddedStack() as stack, tempfile.TemporaryDirectory() as cache:
        threads = cores(memory)
        # This does not affect the stack's process, which already runs.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        os.environ.update(stack.environment())
        os.environ.update(MODEL_BUNDLE=bundle.resolve().as_uri(), BUNDLE_CACHE_DIR=cache, INTRA_OP_THREADS=str(threads))
        with contextlib.redirect_stdout(log):
            from handler.app import build  # imported here because the logger keeps the first stdout that it sees
            from handler.settings import Settings

            handler = build(Settings.read())
            for number, event in enumerate(events(stack, batch, WARM_UP + batches)):
                if number == WARM_UP:
                    log.truncate(log.seek(0))
                begin = time.perf_counter()
                handler(event, Context())
                milliseconds.append((time.perf_counter() - begin) * 1000)
        items = stack.client("dynamodb").scan(TableName=stack.outputs["TableName"], Limit=100)["Items"]
        item = statistics.fmean(len(json.dumps(item)) for item in items)
    tickets = batch * batches
    # Below one core, Lambda runs the function for part of the time only.
    share = max(1.0, MB_PER_CPU / memory) / batch
    # The median, because other work on this machine is not billed by Lambda.
    whole = share * statistics.median(milliseconds[WARM_UP:])
    models = share * statistics.median(map(model_milliseconds, batch_metrics(log.getvalue())))
    return Measured(whole, models, len(log.getvalue().encode()) / tickets, item)


def batch_metrics(log: str) -> Iterator[dict[str, Any]]:
    """The EMF metrics of each batch."""
    lines = (json.loads(line) for line in log.splitlines() if line.startswith("{"))
    return (line for line in lines if "TicketsPerBatch" in line)


def model_milliseconds(line: Mapping[str, Any]) -> float:
    """The models' time for a batch: all stages except those that wait for AWS."""
    waits = {"FetchLatency", "StoreLatency"}
    return sum(sum(value) for name, value in line.items() if name.endswith("Latency") and name not in waits)


def events(stack: EmbeddedStack, batch: int, count: int) -> Iterator[dict[str, Any]]:
    """SQS events with a batch of notifications each; their tickets are put into the bucket."""
    s3, bucket, tickets = stack.client("s3"), stack.outputs["RawBucket"], TicketGenerator(seed=1, start=1_795_000_000)
    for number in range(count):
        records = []
        for place in range(batch):
            key = f"{number}-{place}.json"
            s3.put_object(Bucket=bucket, Key=key, Body=json.dumps(next(tickets)).encode())
            place_of_it = {"bucket": {"name": bucket}, "object": {"key": key}}
            body = json.dumps({"Records": [{"eventName": "ObjectCreated:Put", "s3": place_of_it}]})
            records.append({"messageId": key, "body": body, "attributes": {}, "eventSource": "aws:sqs"})
        yield {"Records": records}


def priced(found: Measured, memory: int, batch: float, prices: Mapping[str, float]) -> dict[str, float]:
    """USD per million tickets by item, with one object and one message per ticket."""
    units = -(-found.item_bytes // 1024)  # a write of the item, and one of its place in the index
    return {
        "Lambda, time": found.milliseconds / 1000 * memory / 1024 * MILLION * prices["gb-second"],
        "Lambda, requests": prices["lambda-requests"] / batch,
        "SQS (send, receive, delete)": prices["sqs-requests"] * (1 + 2 / batch),
        "S3, raw (put, get)": prices["s3-puts"] + prices["s3-gets"],
        "S3, enriched (put)": prices["s3-puts"],
        "DynamoDB, writes": prices["dynamodb-writes"] * units * 2,
        "DynamoDB, reads": prices["dynamodb-reads"] * 3,  # the item, and twice its tombstone
        "CloudWatch, logs": found.log_bytes * MILLION / 1e9 * prices["logs-gb"],
    }


def main() -> None:
    """Measure, and print the price of a million tickets."""
    parser = argparse.ArgumentParser(prog="make cost", description="Price a million tickets.")
    parser.add_argument("--bundle", type=Path, default=REPOSITORY / ".bundles" / "compact", help="the model bundle")
    parser.add_argument("--memory", type=int, default=2048, help="the function's memory in MB (2048)")
    parser.add_argument("--batch", type=int, default=10, help="tickets in a batch (10; see TicketsPerBatch)")
    parser.add_argument("--batches", type=int, default=20, help="batches to measure (20)")
    parser.add_argument("--milliseconds", type=float, help="time per ticket from your own dashboard")
    parser.add_argument("--price", action="append", default=[], metavar="NAME=USD", help=f"one of {', '.join(PRICES)}")
    given = parser.parse_args()
    try:
        prices = PRICES | {name: float(usd) for name, _, usd in (price.partition("=") for price in given.price)}
    except ValueError:
        sys.exit("error: a price is NAME=USD, such as gb-second=0.0000133334")
    if unknown := prices.keys() - PRICES.keys():
        sys.exit(f"error: there is no price {', '.join(sorted(unknown))}; there are {', '.join(PRICES)}")
    if not (given.bundle / "bundle.json").is_file():
        sys.exit(f"error: there is no model bundle in {given.bundle}; build it with `make bundle`")
    found = measure(given.bundle, given.memory, given.batch, given.batches)
    if os.getloadavg()[0] > (os.cpu_count() or 1):
        sys.stderr.write("warning: this machine is busy with other work, so the time is too long\n")
    where = f"measured here on {cores(given.memory)} of {os.cpu_count()} cores"
    if given.milliseconds is not None:
        found, where = replace(found, milliseconds=given.milliseconds), "as given"
    bill = priced(found, given.memory, given.batch, prices)
    width = max(map(len, bill))
    lines = [f"{given.memory} MB, batches of {given.batch}: {found.milliseconds:.1f} ms a ticket, {where}"]
    lines += [f"Of it the models take {found.model_milliseconds:.1f} ms; S3 and DynamoDB are an emulator's here.", ""]
    lines += [f"{name:{width}} {usd:8.2f}" for name, usd in bill.items()]
    lines += [f"{'USD per million tickets':{width}} {sum(bill.values()):8.2f}", ""]
    lines += ["Prices of us-east-1, without free tiers, storage, metrics, cold starts and data transfer: check them."]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
