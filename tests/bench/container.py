"""`make bench-lambda`: the image as Lambda runs it: its init compared with the torch baseline, and long tickets.

The container has template.yaml's memory and timeout. Its init, as reported by the runtime interface emulator, is
compared with importing and loading the torch baseline, alternately, both with all cores of this machine. The time of a
long ticket is measured with the number of cores that Lambda assigns for the memory. The exit code is 1 if a budget is
missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from events.generator import TicketGenerator
from handler.local import EmbeddedStack
from tests.bench.baseline import prepare
from tests.runtime.container import LambdaContainer, find_rie, remove_leftovers
from tests.runtime.deployed import Lambda, Metrics

REPOSITORY = Path(__file__).resolve().parents[2]
ROUNDS = 5
BATCHES = 20
SHARES = {"compact": 1 / 4, "full": 1 / 2}  # of the torch baseline's time, by the bundle's profile
BUNDLE = "/share/ticket-enrichment/bundle/bundle.json"
EARLIER = 0.75  # of the init of an earlier image
LIMIT_MS = 10_000  # Lambda's limit for init; the budget is half of it
STAGES = ("TokenizeLatency", "EncodeLatency", "ClassifyLatency", "SummarizeLatency")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench-lambda", description=__doc__)
    parser.add_argument("--image", default="ticket-enrichment:docker", help="the image (ticket-enrichment:docker)")
    parser.add_argument("--batches", type=int, default=BATCHES, help=f"batches of ten long tickets ({BATCHES})")
    parser.add_argument("--against", metavar="IMAGE", help="only compare the init with that of an earlier image")
    given = parser.parse_args()
    if given.against:
        remove_leftovers()
        with EmbeddedStack() as stack:
            images = [Lambda(stack, image, find_rie(), Metrics()) for image in (given.image, given.against)]
            return against_earlier(*images)
    models = REPOSITORY / ".bundles" / "baseline"
    models.mkdir(parents=True, exist_ok=True)
    prepare(models)
    remove_leftovers()
    with EmbeddedStack() as stack:
        function = Lambda(stack, given.image, find_rie(), Metrics())
        exit_codes = [start(function, models), tickets(function, given.batches)]
        return max(exit_codes)


def start(function: Lambda, models: Path) -> int:
    """Init of new containers compared with the torch baseline, alternately."""
    ours, limited, cpu, theirs = [], [], [], []
    for _ in range(ROUNDS):
        ours.append(init(function, None)[0])
        wall, used = init(function, function.function.cpus)
        limited.append(wall)
        cpu.append(used)
        begin = time.perf_counter()
        command = [sys.executable, "-m", "tests.bench.baseline", str(models)]
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
        theirs.append((time.perf_counter() - begin) * 1000)
    with environment(function, None) as container:
        profile = json.loads(container.run("cat", BUNDLE))["profile"]
    share, budget = statistics.median(ours) / statistics.median(theirs), SHARES[profile]
    worst = max(limited)
    ok = share <= budget, worst <= LIMIT_MS / 2
    sys.stdout.write(
        f"{label(ok[0])}  {profile}, init under RIE, compared with loading the torch baseline: {share:.3f} "
        f"(budget at most {budget:.3f})\n"
        f"        medians of {ROUNDS}: {statistics.median(ours):.0f} ms and {statistics.median(theirs):.0f} ms\n"
        f"{label(ok[1])}  {profile}, init with {function.function.cpus:.2f} cores, slowest of {ROUNDS}: "
        f"{worst:.0f} ms (budget half of Lambda's {LIMIT_MS} ms)\n"
        f"        its CPU, median: {statistics.median(cpu):.0f} ms\n"
    )
    sys.stdout.flush()
    return 0 if all(ok) else 1


def against_earlier(now: Lambda, earlier: Lambda) -> int:
    """Init of new containers of two images, alternately."""
    times: tuple[list[tuple[float, float]], list[tuple[float, float]]] = [], []
    for _ in range(3 * ROUNDS):
        for function, found in zip((now, earlier), times, strict=True):
            found.append(init(function, None))
    (ours, cpu), (before, cpu_before) = ([statistics.median(column) for column in zip(*t, strict=True)] for t in times)
    ok = ours <= EARLIER * before
    sys.stdout.write(
        f"{label(ok)}  init under RIE, compared with {earlier.function.image}: {ours / before:.3f} "
        f"(budget at most {EARLIER})\n"
        f"        medians of {3 * ROUNDS}: {ours:.0f} ms and {before:.0f} ms; "
        f"CPU with an empty invocation: {cpu:.0f} ms and {cpu_before:.0f} ms\n"
    )
    return 0 if ok else 1


def init(function: Lambda, cpus: float | None) -> tuple[float, float]:
    """Init of a new container in milliseconds: wall time from RIE's report, and CPU time from the cgroup."""
    with environment(function, cpus) as container:
        invocation = container.invoke({})
        if invocation.failed or invocation.init_ms is None:
            sys.exit(f"error: the function does not start:\n{invocation.log}")
        return invocation.init_ms, container.cpu_seconds() * 1000


def tickets(function: Lambda, batches: int) -> int:
    """Time per ticket in batches of ten long tickets: whole invocation, and only the models."""
    source = long_tickets()
    whole, models = [], []
    used = 0.0
    with environment(function, function.function.cpus) as container:
        for number in range(-2, batches):
            records = [record(next(source)) for _ in range(10)]
            invocation = container.invoke({"Records": records})
            if invocation.failed or invocation.response["batchItemFailures"]:
                sys.exit(f"error: a batch failed:\n{invocation.log}")
            if number < 0 or invocation.duration_ms is None:  # warm-up: the first invocations open connections
                used = container.cpu_seconds()
                continue
            (metrics,) = [f for f in logged(invocation.log) if "TicketsPerBatch" in f]
            assert metrics["TicketsDone"] == [10.0]
            whole.append(invocation.duration_ms / 10)
            models.append(sum(sum(metrics[stage]) for stage in STAGES) / 10)
        used = container.cpu_seconds() - used
        peak = container.memory_peak() / 1e6
    sys.stdout.write(
        f"long tickets in batches of 10, {function.function.memory_mb} MB and thus "
        f"{function.function.cpus:.2f} cores, {batches} batches:\n"
    )
    for name, times in (("invocation", whole), ("models only", models)):
        p99 = statistics.quantiles(times, n=100, method="inclusive")[98]
        sys.stdout.write(f"        {name}: median {statistics.median(times):.0f} ms per ticket, p99 {p99:.0f} ms\n")
    # An estimate for an idle machine: CPU time divided by the number of cores.
    cpu = used / batches / 10 * 1000
    share = cpu / function.function.cpus
    sys.stdout.write(f"        CPU: {cpu:.0f} ms per ticket, which takes {share:.0f} ms with these cores\n")
    sys.stdout.write(f"        peak memory of the container (cgroup): {peak:.0f} MB\n")
    return 0


def environment(function: Lambda, cpus: float | None) -> LambdaContainer:
    """A container with that many cores."""
    return LambdaContainer(function.function, rie=function.rie, environment=function.environment, cpus=cpus)


def long_tickets() -> Iterator[dict[str, Any]]:
    """Tickets whose text exceeds all windows of the models."""
    for made in TicketGenerator(seed=7, start=1_790_000_000):
        text = f"{made['body']} "
        yield {**made, "body": text * (12_000 // len(text) + 1)}


def record(ticket: dict[str, Any]) -> dict[str, Any]:
    """An SQS record with an inline ticket."""
    return {
        "messageId": f"m-{ticket['ticket_id']}",
        "receiptHandle": "handle",
        "body": json.dumps(ticket),
        "attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": "1795166102000"},
        "messageAttributes": {},
        "eventSource": "aws:sqs",
    }


def logged(log: str) -> list[dict[str, Any]]:
    """The JSON lines of a log."""
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]


def label(ok: bool) -> str:
    """The label of a result, as in `make bench`."""
    return "ok    " if ok else "MISSED"


if __name__ == "__main__":
    sys.exit(main())
