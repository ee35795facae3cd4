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
AT_ONCE = 8  # most of the time they wait
BATCH = 10
VISIBILITY_TIMEOUT = 2  # seconds after which the messages of a killed process are visible again


@dataclass
class Fate:
    """What happened to the messages of one run; bodies are unique, so they identify messages."""

    seed: int
    phase: str
    operation: str = ""
    sent: int = 0
    lost: set[str] = field(default_factory=set)
    twice: Counter[str] = field(default_factory=Counter)
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
        self.fate = Fate(seed, self.random.choice(["before", "after", "later"]), with_audit=self.audit is not None)
        self.dead, self.live = self._queues(f"killed-{seed}")
        self.messages = [f"{seed}/{number}" for number in range(self.random.randint(11, 45))]
        self.has_filter = self.random.random() < 0.3
        # Attributes of both queues; then, for every ten messages, receive, and send and delete if one is selected;
        # finally a receive that returns nothing, after which it is too late to kill it.
        tens = [range(len(self.messages))[first : first + BATCH] for first in range(0, len(self.messages), BATCH)]
        calls = 2 + sum(1 + 2 * any(self._is_selected(number) for number in ten) for ten in tens) + 1
        self.death = self.random.randint(3, calls - (self.fate.phase == "later"))

    def go(self) -> Fate:
        """Put the messages there, kill the process, and count what is where."""
        self._put()
        self._kill()
        while self._in_flight():  # the messages of the killed process
            time.sleep(0.1)
        if self.audit:
            self._start(self.stack.endpoint_url)
            self.fate.exit_code = self.starter.wait()
        self._count(self._taken(self.live), self._taken(self.dead))
        for url in (self.live, self.dead):
            self.sqs.delete_queue(QueueUrl=url)
        return self.fate

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
        self.fate.sent = len(self.messages)
        self.fate.unselected = sum(not self._is_selected(number) for number in range(len(self.messages)))

    def _has_no_reason(self, number: int) -> bool:
        """One message in three looks as if SQS had moved it: it has no Reason."""
        return number % 3 == 0

    def _is_selected(self, number: int) -> bool:
        return not (self.has_filter and self._has_no_reason(number))

    def _start(self, endpoint_url: str) -> int:
        settings = {name: value for name, value in self.stack.environment().items() if name.startswith("AWS_")}
        queues = {"DLQ_URL": self.dead, "QUEUE_URL": self.live, "AWS_ENDPOINT_URL": endpoint_url}
        options = [
            "replay",
            "--yes",
            "--visibility-timeout",
            str(VISIBILITY_TIMEOUT),
            "--wait",
            "1",
            "--empty-polls",
            "1",
        ]
        options += ["--reason", "throttled"] if self.has_filter else []
        options += ["--audit", str(self.audit)] if self.audit else []
        return self.starter.start(options, {**settings, **queues})

    def _kill(self) -> None:
        with Proxy(self.stack.endpoint_url) as proxy:

            def at(phase: str, operation: str) -> None:
                if len(proxy.calls) != self.death or phase != self.fate.phase:
                    return
                self.fate.operation = operation
                os.kill(process, signal.SIGKILL)
                raise Unanswered

            def after(operation: str) -> None:
                at("after", operation)
                if len(proxy.calls) == self.death and self.fate.phase == "later":
                    self.fate.operation = operation
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
        self.fate.lost = set(self.messages) - set(there)
        self.fate.twice = there - Counter(self.messages)
        self.fate.replayed, self.fate.left = len(live), len(dead)
        for message in live:
            marks = message["MessageAttributes"]
            self.fate.unmarked += set(marks) != {"ReplayCount", "OriginalMessageId", "ReplayedAt"}


def test_100_kills_lose_nothing_and_duplicate_at_most_one_batch(
    stack: EmbeddedStack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    starters: queue.SimpleQueue[Starter] = queue.SimpleQueue()

    def run(seed: int) -> Fate:
        starter = starters.get()
        try:
            return Run(stack, starter, seed, tmp_path).go()
        finally:
            starters.put(starter)

    with ExitStack() as running, ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in range(AT_ONCE):
            starters.put(running.enter_context(Starter()))
        fates = list(pool.map(run, range(RUNS)))
    with capsys.disabled():
        print(_report(fates, time.monotonic() - begun))  # noqa: T201
    for fate in fates:
        assert not fate.lost, fate
        assert fate.twice.total() <= BATCH, fate
        assert max(fate.twice.values(), default=1) == 1, fate  # no message arrives three times
        assert fate.unmarked == 0, fate
        assert fate.exit_code == 0, fate
        assert fate.replayed + fate.left == fate.sent + fate.twice.total(), fate
    # If all kills came before the first send, this would prove nothing.
    assert {fate.operation for fate in fates} >= {"ReceiveMessage", "SendMessageBatch", "DeleteMessageBatch"}
    assert any(fate.twice for fate in fates)
    for fate in fates:
        if fate.with_audit:  # all selected messages are gone, and only the batch being sent at the kill came twice
            assert fate.left == fate.unselected, fate
            assert not fate.twice or fate.phase == "later" or fate.operation == "SendMessageBatch", fate


def _report(fates: list[Fate], seconds: float) -> str:
    lines = [f"\n{len(fates)} runs of dlq-replay killed by SIGKILL, seeds 0 to {len(fates) - 1}, in {seconds:.0f} s"]
    for name, some in (
        ("without an audit file", [fate for fate in fates if not fate.with_audit]),
        ("resumed with one", [fate for fate in fates if fate.with_audit]),
    ):
        sent, twice = sum(fate.sent for fate in some), sum(fate.twice.total() for fate in some)
        replayed, left = sum(fate.replayed for fate in some), sum(fate.left for fate in some)
        lost = sum(len(fate.lost) for fate in some)
        most = max(fate.twice.total() for fate in some)
        lines.append(
            f"  {name}: {len(some)} runs, {sent} messages = {replayed} sent + {left} still in the DLQ - {twice} twice"
            f" (at most {most} in a run) + {lost} lost"
        )
    points = Counter(f"{fate.phase} {fate.operation}" for fate in fates)
    return "\n".join([*lines, "  killed " + ", ".join(f"{point}: {number}" for point, number in points.most_common())])
