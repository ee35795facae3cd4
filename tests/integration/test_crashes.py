"""Tickets that kill their process: the worker's, and the function's behind an event source mapping. Both are real."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from handler.local import EmbeddedStack
from tests.runtime.proxy import LambdaProxy
from tests.support.cases import RejectedMessage
from tests.support.function_process import FunctionProcess
from tests.support.proxy import Proxy
from tests.support.workers import ProcessKiller, worker

DEADLY = Path(__file__).resolve().parents[1] / "support" / "deadly"
_SECONDS = 240.0  # generous for busy machines


class Tickets:
    """Sends inline tickets to a stack's queue, and finds out what became of them."""

    def __init__(self, stack: EmbeddedStack) -> None:
        self._outputs = stack.outputs
        self._sqs, self._dynamodb = stack.client("sqs"), stack.client("dynamodb")
        for queue in ("QueueUrl", "DlqUrl"):
            self._sqs.purge_queue(QueueUrl=self._outputs[queue])

    def send(self, *subjects: str) -> list[str]:
        """Send tickets with these subjects; returns their ids."""
        names = [f"{subject}-{uuid.uuid4()}" for subject in subjects]
        bodies = [json.dumps(_ticket(name, subject)) for name, subject in zip(names, subjects, strict=True)]
        for start in range(0, len(bodies), 10):
            entries = [{"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies[start : start + 10])]
            self._sqs.send_message_batch(QueueUrl=self._outputs["QueueUrl"], Entries=entries)
        return names

    def depth(self) -> int:
        """Number of messages in the queue."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self._sqs.get_queue_attributes(QueueUrl=self._outputs["QueueUrl"], AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)

    def wait_until_empty(self) -> None:
        """Wait until no message is in the queue."""
        deadline = time.monotonic() + _SECONDS
        while self.depth():
            assert time.monotonic() < deadline, f"{self.depth()} messages are left"
            time.sleep(0.1)

    def stored(self, names: Sequence[str]) -> set[str]:
        """Which of these tickets are stored."""
        pages = self._dynamodb.get_paginator("scan").paginate(TableName=self._outputs["TableName"])
        return {item["ticket_id"]["S"] for page in pages for item in page["Items"] if "s3_key" in item} & set(names)

    def rejected(self) -> dict[str, str]:
        """Reasons in the DLQ by ticket id; a message without a reason was moved by SQS itself."""
        found = RejectedMessage.receive_all(self._sqs, self._outputs["DlqUrl"])
        return {
            json.loads(each.body)["ticket_id"]: str(each.attributes.get("Reason", "moved by SQS")) for each in found
        }


def _ticket(name: str, subject: str) -> dict[str, Any]:
    body = "The page says that my password is wrong, and the mail to reset it never comes. Please help me soon."
    return {"ticket_id": name, "subject": subject, "body": body, "created_at": 1_790_000_000, "customer_id": "CUST-1"}


def environment(stack: EmbeddedStack, bundle: Path, folder: Path) -> dict[str, str]:
    return {
        **stack.environment(),
        "MODEL_BUNDLE": bundle.as_uri(),
        "BUNDLE_CACHE_DIR": str(folder / "cache"),
        "INTRA_OP_THREADS": "1",
        "NUM_WORKERS": "2",
        "PYTHONPATH": str(DEADLY),
    }


def test_worker_stores_200_tickets_and_rejects_the_one_that_kills_its_process(
    stack: EmbeddedStack, bundle: Path, tmp_path: Path
) -> None:
    tickets = Tickets(stack)
    names = tickets.send(*["good"] * 87, "segfault", *["good"] * 113)
    with worker(environment(stack, bundle, tmp_path), tmp_path / "log", "--visibility-timeout", "3") as running:
        tickets.wait_until_empty()
        assert psutil.Process(running.process.pid).children()
    good = [name for name in names if name.startswith("good")]
    (deadly,) = set(names) - set(good)
    assert tickets.stored(names) == set(good)
    assert tickets.rejected() == {deadly: "crashed"}
    lines = [json.loads(line) for line in running.log.read_text().splitlines()]
    died = [line for line in lines if line["message"].startswith("a process exited unexpectedly")]
    assert len(died) == 4
    assert len(died[-1]["message_ids"]) == 1, "it ran alone, after its neighbours were deleted"
    before = [line for line in lines if line["message"] == "messages that were received before"]
    assert any(len(line["message_ids"]) > 1 and not line["suspects"] for line in before)


@pytest.fixture
def mapped(bundle: Path, tmp_path: Path) -> Iterator[tuple[EmbeddedStack, LambdaProxy]]:
    """A stack whose event source mapping calls function processes of this machine."""
    settings: dict[str, str] = {}
    make: Any = lambda: FunctionProcess(settings, tmp_path / "log", timeout=15)  # noqa: E731
    with LambdaProxy(make, size=2) as proxy:
        emulator = {"MINISTACK_LAMBDA_PROXY_ticket-enrichment": proxy.url}
        with EmbeddedStack(emulator=emulator) as stack:
            settings |= environment(stack, bundle, tmp_path)
            stack.client("sqs").set_queue_attributes(
                QueueUrl=stack.outputs["QueueUrl"], Attributes={"VisibilityTimeout": "5"}
            )
            yield stack, proxy


def _enable(stack: EmbeddedStack) -> None:
    # MiniStack keeps a template's MaximumConcurrency as a string, which its poller cannot compare.
    client = stack.client("lambda")
    (mapping,) = client.list_event_source_mappings()["EventSourceMappings"]
    client.update_event_source_mapping(UUID=mapping["UUID"], Enabled=True, ScalingConfig={"MaximumConcurrency": 2})


def test_function_stores_200_tickets_and_rejects_the_one_that_kills_its_process(
    mapped: tuple[EmbeddedStack, LambdaProxy], tmp_path: Path
) -> None:
    stack, proxy = mapped
    tickets = Tickets(stack)
    names = tickets.send(*["good"] * 87, "killed", *["good"] * 113)
    _enable(stack)
    tickets.wait_until_empty()
    good = [name for name in names if name.startswith("good")]
    (deadly,) = set(names) - set(good)
    assert tickets.stored(names) == set(good)
    assert tickets.rejected() == {deadly: "crashed"}
    results = Counter(invocation.error_type for invocation in proxy.invocations)
    assert results.keys() == {None, "Runtime.ExitError"}
    # More on a machine so slow that a message is delivered again while its batch is processed.
    assert results["Runtime.ExitError"] >= 4
    assert "could not be noted" not in (tmp_path / "log").read_text()


def test_random_kills_reject_no_ticket(stack: EmbeddedStack, bundle: Path, tmp_path: Path) -> None:
    tickets, settings = Tickets(stack), environment(stack, bundle, tmp_path)
    with Proxy(stack.endpoint_url) as proxy:
        settings |= {"AWS_ENDPOINT_URL": proxy.url, "NUM_WORKERS": "1"}
        with worker(settings, tmp_path / "log", "--visibility-timeout", "3") as running:
            running.wait_until("a process is ready")
            killer = ProcessKiller(proxy, running.child, random.Random(7), 4, longest=100)
            names = tickets.send(*["good"] * 200)
            tickets.wait_until_empty()
    assert tickets.stored(names) == set(names)
    assert tickets.rejected() == {}
    assert len(killer.kills) == 4
