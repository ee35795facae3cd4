"""`make cost`: measures the time per ticket on this machine and prices a million tickets on AWS, by item.

The handler runs on as many cores as Lambda provides with the given memory, against the embedded stack; if that is less
than one core, the time is scaled up. It runs with one enriched object per ticket and with one per batch, in turns, and
the puts of both are counted. Prices are those of us-east-1 when this was written; check them, and set others with
--price.
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


INDEXES: Final = 2  # of the table; both have every attribute of an item
OPTION: Final = "ENRICHED_OBJECTS=batch"


@dataclass(frozen=True)
class Measured:
    """Per ticket: milliseconds of a warm function, the models' part, bytes of log, write units of its item, puts."""

    milliseconds: float
    model_milliseconds: float
    log_bytes: float
    write_units: float
    enriched_puts: float


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


def measure(bundle: Path, memory: int, batch: int, batches: int) -> dict[str, Measured]:
    """Run the handler on batches of synthetic tickets, with each value of ENRICHED_OBJECTS in turns."""
    modes = ("ticket", "batch")
    milliseconds: dict[str, list[float]] = {mode: [] for mode in modes}
    logs, found, log = dict.fromkeys(modes, ""), {}, io.StringIO()
    with EmbeddedStack() as stack, tempfile.TemporaryDirectory() as cache:
        threads = cores(memory)
        # This does not affect the stack's process, which already runs.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        os.environ.update(stack.environment())
        os.environ.update(MODEL_BUNDLE=bundle.resolve().as_uri(), BUNDLE_CACHE_DIR=cache, INTRA_OP_THREADS=str(threads))
        with contextlib.redirect_stdout(log):
            from handler.app import build  # imported here because the logger keeps the first stdout that it sees
            from handler.models import open_models
            from handler.settings import Settings

            settings = {mode: Settings.read(enriched_objects=mode) for mode in modes}
            models = open_models(settings["ticket"], lambda: stack.client("s3")).models
            handlers = {mode: build(settings[mode], models=models) for mode in modes}
            sent = {mode: events(stack, mode, batch, WARM_UP + batches) for mode in modes}
            for number in range(WARM_UP + batches):
                for mode, handler in handlers.items():
                    event = next(sent[mode])
                    log.truncate(log.seek(0))
                    begin = time.perf_counter()
                    handler(event, Context())
                    milliseconds[mode].append((time.perf_counter() - begin) * 1000)
                    logs[mode] += log.getvalue() if number >= WARM_UP else ""
        items = stack.client("dynamodb").get_paginator("scan").paginate(TableName=stack.outputs["TableName"])
        units: dict[str, list[int]] = {mode: [] for mode in modes}
        for item in (item for page in items for item in page["Items"]):
            units[item["s3_key"]["S"].partition("/")[0]].append(write_units(item))
        puts = enriched_puts(stack)
    # Below one core, Lambda runs the function for part of the time only.
    share = max(1.0, MB_PER_CPU / memory) / batch
    for mode in modes:
        found[mode] = Measured(
            # The median, because other work on this machine is not billed by Lambda.
            milliseconds=share * statistics.median(milliseconds[mode][WARM_UP:]),
            model_milliseconds=share * statistics.median(map(model_milliseconds, batch_metrics(logs[mode]))),
            log_bytes=len(logs[mode].encode()) / (batch * batches),
            write_units=statistics.fmean(units[mode]),
            enriched_puts=puts[mode] / (batch * (WARM_UP + batches)),
        )
    return found


def enriched_puts(stack: EmbeddedStack) -> dict[str, int]:
    """The number of objects that were written, by the setting; every put has made a version."""
    puts = {"ticket": 0, "batch": 0}
    pages = stack.client("s3").get_paginator("list_object_versions").paginate(Bucket=stack.outputs["EnrichedBucket"])
    for entry in (entry for page in pages for entry in page.get("Versions", [])):
        puts["ticket" if entry["Key"].startswith("ticket/") else "batch"] += 1
    return puts


def write_units(item: Mapping[str, Any]) -> int:
    """The write units of an item in DynamoDB's JSON: one per 1,024 bytes that have begun."""
    return -(-sum(len(name.encode()) + attribute_bytes(value) for name, value in item.items()) // 1024)


def attribute_bytes(attribute: Mapping[str, Any]) -> int:
    """The size of a value, by the rules in DynamoDB's documentation (a number: half its digits and two)."""
    ((kind, value),) = attribute.items()
    if kind == "S":
        return len(value.encode())
    if kind == "N":
        return len(value.strip("-0.").replace(".", "")) // 2 + 2
    if kind == "M":
        return 3 + sum(1 + len(name.encode()) + attribute_bytes(member) for name, member in value.items())
    if kind == "L":
        return 3 + sum(1 + attribute_bytes(member) for member in value)
    return 1  # BOOL and NULL


def batch_metrics(log: str) -> Iterator[dict[str, Any]]:
    """The EMF metrics of each batch."""
    lines = (json.loads(line) for line in log.splitlines() if line.startswith("{"))
    return (line for line in lines if "TicketsPerBatch" in line)


def model_milliseconds(line: Mapping[str, Any]) -> float:
    """The models' time for a batch: all stages except those that wait for AWS."""
    waits = {"FetchLatency", "StoreLatency"}
    return sum(sum(value) for name, value in line.items() if name.endswith("Latency") and name not in waits)


def events(stack: EmbeddedStack, folder: str, batch: int, count: int) -> Iterator[dict[str, Any]]:
    """SQS events with a batch of notifications each; their tickets are put into the bucket, in a folder.

    Each folder has the same texts, but tickets of its own.
    """
    s3, bucket, tickets = stack.client("s3"), stack.outputs["RawBucket"], TicketGenerator(seed=1, start=1_795_000_000)
    for number in range(count):
        records = []
        for place in range(batch):
            key, ticket = f"{folder}/{number}-{place}.json", next(tickets)
            ticket["ticket_id"] = f"{ticket['ticket_id']}-{folder}"
            s3.put_object(Bucket=bucket, Key=key, Body=json.dumps(ticket).encode())
            place_of_it = {"bucket": {"name": bucket}, "object": {"key": key}}
            body = json.dumps({"Records": [{"eventName": "ObjectCreated:Put", "s3": place_of_it}]})
            records.append({"messageId": key, "body": body, "attributes": {}, "eventSource": "aws:sqs"})
        yield {"Records": records}


def priced(found: Measured, memory: int, batch: float, prices: Mapping[str, float]) -> dict[str, float]:
    """USD per million tickets by item, with one raw object and one message per ticket."""
    return {
        "Lambda, time": found.milliseconds / 1000 * memory / 1024 * MILLION * prices["gb-second"],
        "Lambda, requests": prices["lambda-requests"] / batch,
        "SQS (send, receive, delete)": prices["sqs-requests"] * (1 + 2 / batch),
        "S3, puts of raw tickets": prices["s3-puts"],
        "S3, puts of enriched tickets": prices["s3-puts"] * found.enriched_puts,
        "S3, gets of raw tickets": prices["s3-gets"],
        "DynamoDB, writes": prices["dynamodb-writes"] * found.write_units * (1 + INDEXES),
        "DynamoDB, reads": prices["dynamodb-reads"] * 3,  # the item, and twice its tombstone
        "CloudWatch, logs": found.log_bytes * MILLION / 1e9 * prices["logs-gb"],
    }


def biggest(bill: Mapping[str, float]) -> tuple[str, float]:
    """What costs most, with its USD; the puts of S3 count together."""
    puts = {name: usd for name, usd in bill.items() if name.startswith("S3, puts ")}
    together = {"S3 puts": sum(puts.values())} | {name: usd for name, usd in bill.items() if name not in puts}
    return max(together.items(), key=lambda entry: entry[1])


def table(bills: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The bills side by side, with their sums."""
    width = max(map(len, bills["ticket"]))
    lines = [f"{'USD per million tickets':{width}}  one object per ticket  one object per batch"]
    rows = {name: (bills["ticket"][name], bills["batch"][name]) for name in bills["ticket"]}
    rows["sum"] = (sum(bills["ticket"].values()), sum(bills["batch"].values()))
    return lines + [f"{name:{width}}  {one:21.2f}  {other:20.2f}" for name, (one, other) in rows.items()]


def advice(found: Mapping[str, Measured], bills: Mapping[str, Mapping[str, float]], batch: int) -> list[str]:
    """The biggest item in plain words, and what the option saves and costs."""
    name, usd = biggest(bills["ticket"])
    total = sum(bills["ticket"].values())
    saved = total - sum(bills["batch"].values())
    puts = {mode: measured.enriched_puts for mode, measured in found.items()}
    objects = MILLION * puts["batch"]
    puts_of = f"{puts['batch']:.2f} puts of enriched objects a ticket instead of {puts['ticket']:.2f}"
    return [
        f"The biggest item is {name}: {usd:.2f} of {total:.2f} USD ({usd / total:.0%}).",
        f"{OPTION} (parameter EnrichedObjects) makes {puts_of},",
        f"as counted here with batches of {batch}: {saved:.2f} USD less per million tickets ({saved / total:.0%}).",
        "Reading a ticket costs the same: one get, of a range. Forgetting one writes its object again, after a list of",
        f"all objects: {objects:,.0f} of a million tickets, in {-(-objects // 1000):,.0f} requests.",
    ]


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
        found = {mode: replace(measured, milliseconds=given.milliseconds) for mode, measured in found.items()}
        where = "as given"
    bills = {mode: priced(measured, given.memory, given.batch, prices) for mode, measured in found.items()}
    times = found["ticket"]
    lines = [f"{given.memory} MB, batches of {given.batch}: {times.milliseconds:.1f} ms a ticket, {where}"]
    lines += [f"Of it the models take {times.model_milliseconds:.1f} ms; S3 and DynamoDB are an emulator's here.", ""]
    lines += [*table(bills), "", *advice(found, bills, given.batch), ""]
    lines += ["Prices of us-east-1, without free tiers, storage, metrics, cold starts and data transfer: check them."]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
