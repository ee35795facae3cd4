"""`dlq-replay` killed by SIGKILL at random points, 100 times: no message is lost, at most one batch arrives twice.

Each run has its own queues, messages and kill point, all derived from its seed. A proxy in front of the embedded stack
kills the process at a certain call: before SQS receives it, before the process receives SQS's answer, or a moment
later. Every second run has an audit file, with which a second process resumes it.
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from handler.local import EmbeddedStack
from tests.support.dlq_process import Starter
from tests.support.dlq_queues import text
from tests.support.proxy import Proxy, Unanswered

RUNS = 100
CONCURRENCY = 8  # they spend most of the time waiting
BATCH = 10
VISIBILITY_TIMEOUT = 2  # seconds after which the messages of a killed process are visible again
WAIT = 1  # seconds of a long poll; shorter than that, or the poll of a killed process could take them


@dataclass
class RunResult:
    """The outcome of one run's messages; bodies are unique, so they identify messages."""

    seed: int
    phase: str
    operation: str = ""
    sent: int = 0
    lost: set[str] = field(default_factory=set)
    duplicates: Counter[str] = field(default_factory=Counter)
    replayed: int = 0
    left: int = 0
    unselected: int = 0
    unmarked: int = 0
    with_audit: bool = False
    exit_code: int = 0


class Run:
    """One seeded run."""

    def __init__(self, stack: EmbeddedStack, starter: Starter, seed: int, folder: Path) -> None:
        self.stack = stack
        self.starter = starter
        self.sqs = stack.client("sqs")
        self.random = random.Random(seed)
        self.audit = folder / f"{seed}.jsonl" if seed % 2 else None
        self.result = RunResult(
            seed, self.random.choice(["before", "after", "later"]), with_audit=self.audit is not None
        )
        self.dead, self.live = self._queues(f"killed-{seed}")
        self.messages = [f"{seed}/{number}" for number in range(self.random.randint(11, 45))]
        self.has_filter = self.random.random() < 0.3
        # Attributes of both queues; then, for every ten messages, receive, and send and delete if one is selected;
        # finally a receive that returns nothing, after which it is too late to kill it.
        tens = [range(len(self.messages))[first : first + BATCH] for first in range(0, len(self.messages), BATCH)]
        calls = 2 + sum(1 + 2 * any(self._is_selected(number) for number in ten) for ten in tens) + 1
        self.kill_at = self.random.randint(3, calls - (self.result.phase == "later"))

    def execute(self) -> RunResult:
        """Send the messages, kill the process, and count the messages of both queues."""
        self._put()
        self._kill()
        while self._in_flight():  # the messages of the killed process
            time.sleep(0.1)
        if self.audit:
            self._start(self.stack.endpoint_url)
            self.result.exit_code = self.starter.wait()
        self._count(self._taken(self.live), self._taken(self.dead))
        for url in (self.live, self.dead):
            self.sqs.delete_queue(QueueUrl=url)
        return self.result

    def _queues(self, name: str) -> tuple[str, str]:
        dead = self.sqs.create_queue(QueueName=f"{name}-dlq")["QueueUrl"]
        arn = self.sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 5})
        return dead, self.sqs.create_queue(QueueName=name, Attributes={"RedrivePolicy": policy})["QueueUrl"]

    def _put(self) -> None:
        rejected = {"Reason": text("throttled"), "Rejection": text(json.dumps({"message_id": "first"}))}
        entries = [
            {
                "Id": str(number),
                "MessageBody": body,
                "MessageAttributes": {} if self._has_no_reason(number) else rejected,
            }
            for number, body in enumerate(self.messages)
        ]
        for first in range(0, len(entries), 10):
            self.sqs.send_message_batch(QueueUrl=self.dead, Entries=entries[first : first + 10])
        self.result.sent = len(self.messages)
        self.result.unselected = sum(not self._is_selected(number) for number in range(len(self.messages)))

    def _has_no_reason(self, number: int) -> bool:
        """One message in three looks as if SQS had moved it: it has no Reason."""
        return number % 3 == 0

    def _is_selected(self, number: int) -> bool:
        return not (self.has_filter and self._has_no_reason(number))

    def _start(self, endpoint_url: str) -> int:
        settings = {name: value for name, value in self.stack.environment().items() if name.startswith("AWS_")}
        queues = {"DLQ_URL": self.dead, "QUEUE_URL": self.live, "AWS_ENDPOINT_URL": endpoint_url}
        # A busy machine needs more time to kill a process during its last receive.
        factor = 3 if self.result.phase == "later" else 1
        options = ["replay", "--yes", "--visibility-timeout", str(factor * VISIBILITY_TIMEOUT)]
        options += ["--wait", str(factor * WAIT), "--empty-polls", "1"]
        options += ["--reason", "throttled"] if self.has_filter else []
        options += ["--audit", str(self.audit)] if self.audit else []
        return self.starter.start(options, {**settings, **queues})

    def _kill(self) -> None:
        with Proxy(self.stack.endpoint_url) as proxy:

            def at(phase: str, operation: str) -> None:
                if len(proxy.calls) != self.kill_at or phase != self.result.phase:
                    return
                self.result.operation = operation
                os.kill(process, signal.SIGKILL)
                raise Unanswered

            def after(operation: str) -> None:
                at("after", operation)
                if len(proxy.calls) == self.kill_at and self.result.phase == "later":
                    self.result.operation = operation
                    threading.Timer(self.random.uniform(0, 0.01), os.kill, (process, signal.SIGKILL)).start()

            proxy.before, proxy.after = lambda operation: at("before", operation), after
            process = self._start(proxy.url)
            assert self.starter.wait() == -signal.SIGKILL, "the process ended before it was killed"

    def _taken(self, url: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while messages := self.sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages"):
            entries = [{"Id": str(n), "ReceiptHandle": found["ReceiptHandle"]} for n, found in enumerate(messages)]
            self.sqs.delete_message_batch(QueueUrl=url, Entries=entries)
            found += messages
        return found

    def _in_flight(self) -> int:
        name = "ApproximateNumberOfMessagesNotVisible"
        return int(self.sqs.get_queue_attributes(QueueUrl=self.dead, AttributeNames=[name])["Attributes"][name])

    def _count(self, live: list[dict[str, Any]], dead: list[dict[str, Any]]) -> None:
        there = Counter(message["Body"] for message in live + dead)
        self.result.lost = set(self.messages) - set(there)
        self.result.duplicates = there - Counter(self.messages)
        self.result.replayed, self.result.left = len(live), len(dead)
        for message in live:
            # FirstSentTimestamp only where it is known: a rejection of these tests has none.
            marks = set(message["MessageAttributes"]) - {"FirstSentTimestamp"}
            self.result.unmarked += marks != {"ReplayCount", "OriginalMessageId", "ReplayedAt"}


def test_100_kills_lose_nothing_and_duplicate_at_most_one_batch(
    stack: EmbeddedStack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started_at = time.monotonic()
    starters: queue.SimpleQueue[Starter] = queue.SimpleQueue()

    def run(seed: int) -> RunResult:
        starter = starters.get()
        try:
            return Run(stack, starter, seed, tmp_path).execute()
        finally:
            starters.put(starter)

    with ExitStack() as running, ThreadPoolExecutor(CONCURRENCY) as pool:
        for _ in range(CONCURRENCY):
            starters.put(running.enter_context(Starter()))
        results = list(pool.map(run, range(RUNS)))
    with capsys.disabled():
        print(_summary(results, time.monotonic() - started_at))  # noqa: T201
    for result in results:
        assert not result.lost, result
        assert result.duplicates.total() <= BATCH, result
        assert max(result.duplicates.values(), default=1) == 1, result  # no message arrives three times
        assert result.unmarked == 0, result
        assert result.exit_code == 0, result
        assert result.replayed + result.left == result.sent + result.duplicates.total(), result
    # If all kills came before the first send, this would prove nothing.
    assert {result.operation for result in results} >= {"ReceiveMessage", "SendMessageBatch", "DeleteMessageBatch"}
    assert any(result.duplicates for result in results)
    for result in results:
        if result.with_audit:  # all selected messages are gone, and only the batch being sent at the kill came twice
            assert result.left == result.unselected, result
            assert not result.duplicates or result.phase == "later" or result.operation == "SendMessageBatch", result


def _summary(results: list[RunResult], seconds: float) -> str:
    lines = [
        f"\n{len(results)} runs of dlq-replay killed by SIGKILL, seeds 0 to {len(results) - 1}, in {seconds:.0f} s"
    ]
    for name, some in (
        ("without an audit file", [result for result in results if not result.with_audit]),
        ("resumed with one", [result for result in results if result.with_audit]),
    ):
        sent, duplicates = (
            sum(result.sent for result in some),
            sum(result.duplicates.total() for result in some),
        )
        replayed, left = sum(result.replayed for result in some), sum(result.left for result in some)
        lost = sum(len(result.lost) for result in some)
        most = max(result.duplicates.total() for result in some)
        lines.append(
            f"  {name}: {len(some)} runs, {sent} messages = {replayed} sent + {left} still in the DLQ"
            f" - {duplicates} twice (at most {most} in a run) + {lost} lost"
        )
    points = Counter(f"{result.phase} {result.operation}" for result in results)
    return "\n".join([*lines, "  killed " + ", ".join(f"{point}: {number}" for point, number in points.most_common())])
