"""`dlq-replay backfill` on the embedded stack: stored tickets are sent again, and an interrupted run is resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner, Result

from handler.dlq import command
from handler.local import EmbeddedStack
from handler.messages import StoredTicket, references
from tests.support.proxy import Proxy

KEYS = ["2026/a b+c.json", *(f"2026/{number:03}.json" for number in range(40)), "2026/ü/€.json"]


class Store:
    """A bucket with tickets, and a queue for them."""

    def __init__(self, stack: EmbeddedStack) -> None:
        self.stack = stack
        self.s3, self.sqs = stack.client("s3"), stack.client("sqs")
        self.bucket = f"replay-{uuid4().hex[:12]}"
        self.s3.create_bucket(Bucket=self.bucket)
        for key in [*KEYS, "2025/another.json", "2026/"]:
            self.s3.put_object(Bucket=self.bucket, Key=key, Body=b"" if key.endswith("/") else b"{}")
        self.queue = self.sqs.create_queue(QueueName=self.bucket)["QueueUrl"]

    def delete(self) -> None:
        self.sqs.delete_queue(QueueUrl=self.queue)

    def run(self, *arguments: str, endpoint_url: str | None = None, raw_bucket: str = "") -> Result:
        settings = {name: value for name, value in self.stack.environment().items() if name.startswith("AWS_")}
        endpoint = {"AWS_ENDPOINT_URL": endpoint_url} if endpoint_url else {}
        environment = {**settings, **endpoint, "QUEUE_URL": self.queue, "DLQ_URL": "", "RAW_BUCKET": raw_bucket}
        location = ["backfill", f"s3://{self.bucket}/2026/"]
        return CliRunner().invoke(command.app, [*location, *arguments], env=environment, catch_exceptions=False)

    def keys(self) -> list[str]:
        """The keys in the queue's messages, which are deleted."""
        found: list[str] = []
        while messages := self.sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                for reference in references(message["Body"]):
                    assert isinstance(reference, StoredTicket)
                    assert reference.bucket == self.bucket
                    found.append(reference.key)
                self.sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
        return found


@pytest.fixture
def store(stack: EmbeddedStack) -> Iterator[Store]:
    made = Store(stack)
    yield made
    made.delete()


def test_every_stored_ticket_is_sent_once(store: Store) -> None:
    result = store.run("--yes", raw_bucket=store.bucket)
    assert result.exit_code == 0, result.output
    assert result.stdout == "42 of 42 selected tickets sent (43 scanned)\n"
    assert sorted(store.keys()) == sorted(KEYS)


def test_dry_run_counts(store: Store) -> None:
    result = store.run("--dry-run", "--newer-than", "1h", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["chosen"] == 42
    assert json.loads(store.run("--dry-run", "--older-than", "1h", "--json").stdout)["chosen"] == 0
    assert store.keys() == []


def test_bucket_that_the_function_does_not_read_exits_2(store: Store) -> None:
    result = store.run("--yes", raw_bucket="tickets-raw")
    assert result.exit_code == 2
    assert "the function reads tickets-raw (RAW_BUCKET)" in result.stderr
    assert store.run("--yes", "--force", "--limit", "3", raw_bucket="tickets-raw").exit_code == 0
    assert len(store.keys()) == 3


def test_next_run_continues_after_the_limit(store: Store, tmp_path: Path) -> None:
    audit = ["--yes", "--audit", str(tmp_path / "audit")]
    assert store.run(*audit, "--limit", "17").exit_code == 0
    result = store.run(*audit)
    assert "17 were sent by earlier runs; continuing after" in result.stderr
    assert result.stdout == "25 of 25 selected tickets sent (25 scanned)\n"
    assert sorted(store.keys()) == sorted(KEYS)
    assert store.run(*audit).stdout == "0 of 0 selected tickets sent (0 scanned)\n"


def test_next_run_continues_after_a_failing_queue(store: Store, tmp_path: Path) -> None:
    audit = ["--yes", "--audit", str(tmp_path / "audit")]
    arrived: list[str] = []
    with Proxy(store.stack.endpoint_url) as proxy:

        def vanish(operation: str) -> None:
            if operation == "SendMessageBatch" and proxy.calls.count(operation) == 3:
                arrived.extend(store.keys())
                store.delete()

        proxy.before = vanish
        result = store.run(*audit, endpoint_url=proxy.url)
    assert result.exit_code == 1
    assert "SendMessageBatch: " in result.stderr
    assert "check the queue's name" in result.stderr
    assert result.stdout == "20 of 30 selected tickets sent (31 scanned)\n"
    store.sqs.create_queue(QueueName=store.bucket)
    assert store.run(*audit).exit_code == 0
    assert sorted(arrived + store.keys()) == sorted(KEYS)


def test_failed_run_without_an_audit_file_names_its_last_key(store: Store) -> None:
    with Proxy(store.stack.endpoint_url) as proxy:

        def vanish(operation: str) -> None:
            if operation == "SendMessageBatch" and proxy.calls.count(operation) == 2:
                store.delete()

        proxy.before = vanish
        result = store.run("--yes", endpoint_url=proxy.url)
    store.sqs.create_queue(QueueName=store.bucket)
    assert result.exit_code == 1
    assert "the last key was '2026/009.json'; with --audit FILE" in result.stderr


def test_missing_bucket_exits_1_with_one_line(store: Store) -> None:
    result: Any = CliRunner().invoke(
        command.app,
        ["backfill", "s3://no-such-bucket-here/", "--yes"],
        env={**store.stack.environment(), "QUEUE_URL": store.queue, "RAW_BUCKET": ""},
    )
    assert result.exit_code == 1
    assert "ListObjectsV2: NoSuchBucket" in result.stderr
