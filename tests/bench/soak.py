"""`make soak`: thousands of tickets through the embedded stack and a real worker, whose memory must not grow.

    python -m tests.bench.soak --bundle BUNDLE [--tickets 5000] [--seed 5]

Samples the resident memory and the open files of the worker process, and compares the last quarter of the tickets with
the first. Every ticket's outcome is checked. The last line of stdout is one JSON object; the exit code is 1 if memory
or open files have grown, or an outcome is wrong.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from enrichment import Enricher
from handler.local import EmbeddedStack
from tests.support.containers import Sender
from tests.support.reconciliation import Reconciler, Reference
from tests.support.traffic import Message, Traffic
from tests.support.workers import Worker, worker

# The centres of the two quarters are three quarters of all tickets apart: with 5,000 tickets, a leak of 2 KB per ticket
# exceeds this. The limit is above the growth of the allocator's arenas (sixteen threads) during the first quarter.
MAX_MEMORY_GROWTH = 8.0  # MB
# A client keeps up to sixteen connections and opens them on demand, possibly late. A leak of one file per hundred
# tickets would be 37.
MAX_FILE_GROWTH = 8
MAX_WAITING_SHARE = 0.02  # of all messages: a longer queue would blur the progress of the samples


@dataclass(frozen=True, slots=True)
class Sample:
    """Measurements of the worker process at one moment; memory in MB."""

    done: int
    memory: float
    files: int


def main() -> int:
    """Run the soak test and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description="Run a soak test of the worker.")
    parser.add_argument("--bundle", type=Path, default=Path(".bundles/compact"))
    parser.add_argument("--tickets", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    models = Enricher.open(options.bundle)
    with (
        EmbeddedStack(emulator={"AUTH": "false"}) as stack,
        tempfile.TemporaryDirectory(prefix="ticket-soak-") as scratch,
    ):
        traffic, sender = Traffic(options.seed, stack.outputs["RawBucket"]), Sender(stack)
        messages = [traffic.uploaded() for _ in range(options.tickets)]
        environment = stack.environment() | {
            "MODEL_BUNDLE": options.bundle.resolve().as_uri(),
            "BUNDLE_CACHE_DIR": scratch,
            "INTRA_OP_THREADS": "",
        }
        with worker(environment, Path(scratch) / "log") as one:
            one.wait_until("a process is ready")
            samples, seconds = _soak(one, sender, messages)
        reconciliation = Reconciler(stack, Reference(models)).reconcile("soak", messages, {})
    reconciliation.seconds = seconds
    sys.stderr.write(f"{reconciliation.line()}\n")
    first, last = _quarters(samples, len(messages))
    memory = [round(statistics.median(s.memory for s in quarter), 1) for quarter in (first, last)]
    files = [max(s.files for s in quarter) for quarter in (first, last)]
    result = {
        "tickets": len(messages),
        "tickets_per_second": round(len(messages) / seconds, 1),
        "memory_mb": memory,
        "open_files": files,
        "samples": len(samples),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    more_memory, more_files = memory[1] - memory[0], files[1] - files[0]
    problems = [
        *(
            [f"memory grew by {more_memory:.1f} MB; the limit is {MAX_MEMORY_GROWTH:g}"]
            if more_memory > MAX_MEMORY_GROWTH
            else []
        ),
        *([f"{more_files} more open files; the limit is {MAX_FILE_GROWTH}"] if more_files > MAX_FILE_GROWTH else []),
        *reconciliation.errors[:5],
    ]
    for problem in problems:
        sys.stderr.write(f"soak: {problem}\n")
    return 1 if problems or not reconciliation.is_balanced else 0


def _soak(one: Worker, sender: Sender, messages: Sequence[Message]) -> tuple[list[Sample], float]:
    """Upload the messages no faster than they are enriched, until the queue is empty; return samples and seconds."""
    samples: list[Sample] = []
    over = threading.Event()
    child = one.child()
    assert child is not None
    process, sent = psutil.Process(child), 0

    def watch() -> None:
        while not over.wait(0.25):
            samples.append(Sample(sent - sum(sender.depth()), process.memory_info().rss / 1e6, process.num_fds()))

    watcher = threading.Thread(target=watch)
    started_at = time.monotonic()
    watcher.start()
    try:
        for first in range(0, len(messages), 20):
            part = messages[first : first + 20]
            sender.send(part)
            sent += len(part)
            while sum(sender.depth()) > MAX_WAITING_SHARE * len(messages):
                time.sleep(0.05)
            sys.stderr.write(f"\r{sent} of {len(messages)} tickets, {samples[-1].memory if samples else 0:.0f} MB ")
        sender.wait_until_empty()
        seconds = time.monotonic() - started_at
    finally:
        over.set()
        watcher.join()
        sys.stderr.write("\n")
    return samples, seconds


def _quarters(samples: Sequence[Sample], tickets: int) -> tuple[list[Sample], list[Sample]]:
    """The samples of the first and of the last quarter of the tickets.

    The first twentieth is excluded, because a process allocates connections, threads and the models' arena then.
    """
    first = [s for s in samples if tickets / 20 <= s.done <= tickets / 4]
    last = [s for s in samples if s.done >= tickets * 3 / 4]
    return first, last


if __name__ == "__main__":
    sys.exit(main())
