"""Every sample event through the handler with real clients and models, on the stack created from template.yaml."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from handler.local import EmbeddedStack
from handler.metrics import OUTCOMES
from tests.support.cases import Case, load_cases, run_case
from tests.support.fakes import context, event, notification, record, ticket
from tests.support.stack_harness import StackHarness, deployed


@pytest.fixture(scope="module")
def harness(stack: EmbeddedStack, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackHarness]:
    with deployed(stack, bundle, tmp_path_factory.mktemp("cache")) as found:
        yield found


@pytest.mark.parametrize("case", load_cases(), ids=lambda case: case.name)
def test_sample_event(case: Case, harness: StackHarness) -> None:
    answer = run_case(case, harness.invoke, harness)
    logged = [line["outcome"] for line in answer.lines() if line.get("message") == "ticket"]
    (metrics,) = [line for line in answer.lines() if "TicketsPerBatch" in line]
    assert {name: metrics[name] for name in OUTCOMES.values()} == {
        name: [float(logged.count(outcome))] for outcome, name in OUTCOMES.items()
    }


def test_enriched_ticket_is_skipped_and_not_written_again(harness: StackHarness, stack: EmbeddedStack) -> None:
    harness.put_object("again.json", json.dumps(ticket("AGAIN-1")).encode())
    body = notification("again.json", bucket=harness.raw_bucket)
    harness.invoke(event(record(body)))
    first = harness.item("AGAIN-1", 1_795_165_200)
    answer = harness.invoke(event(record(body, "m-2")))
    assert [line["note"] for line in answer.tickets("m-2")] == ["already enriched"]
    assert first is not None
    assert harness.item("AGAIN-1", 1_795_165_200) == first
    versions = stack.client("s3").list_object_versions(Bucket=stack.outputs["EnrichedBucket"], Prefix="again.json")
    assert [version["VersionId"] for version in versions["Versions"]] == [first["s3_version_id"]]


def test_message_without_time_left_is_deferred(harness: StackHarness, stack: EmbeddedStack) -> None:
    sqs, url = stack.client("sqs"), stack.outputs["QueueUrl"]
    sqs.purge_queue(QueueUrl=url)
    sqs.send_message(QueueUrl=url, MessageBody=json.dumps(ticket("LATE-1")))
    (message,) = sqs.receive_message(QueueUrl=url)["Messages"]
    assert "Messages" not in sqs.receive_message(QueueUrl=url)
    received = record(message["Body"], message["MessageId"]) | {"receiptHandle": message["ReceiptHandle"]}
    # Enough time to fetch, none for the models.
    answer = harness.handler(event(received), context(lambda: 0.0))
    assert answer == {"batchItemFailures": [{"itemIdentifier": message["MessageId"]}]}
    assert "Messages" not in sqs.receive_message(QueueUrl=url)
    # Long before the queue's visibility timeout of six minutes: after half to all of 30 s.
    deadline = time.monotonic() + 60
    while not (found := sqs.receive_message(QueueUrl=url, WaitTimeSeconds=2).get("Messages")):
        assert time.monotonic() < deadline
    assert [again["MessageId"] for again in found] == [message["MessageId"]]
    sqs.purge_queue(QueueUrl=url)


def test_lambda_imports_this_handler(harness: StackHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "handler.main", None)  # removed again at the end, because it refers to this stack
    del sys.modules["handler.main"]
    module = importlib.import_module("handler.main")
    assert module.lambda_handler(event(record({"Event": "s3:TestEvent"})), context()) == {"batchItemFailures": []}
