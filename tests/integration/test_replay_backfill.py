"""`dlq-replay --from-s3` on the embedded stack: stored tickets are sent once more, and a run that was ended goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner, Result

from handler.local import EmbeddedStack
from handler.messages import StoredTicket, references
from handler.replay import command as replay
from tests.support.proxy import Proxy

KEYS = ["2026/a b+c.json", *(f"2026/{number:03}.json" for number in range(40)), "2026/ü/€.json"]


class Store:
    """A bucket of its own with tickets in it, and a queue for them."""

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
        place = ["--from-s3", f"s3://{self.bucket}/2026/"]
        return CliRunner().invoke(replay.app, [*place, *arguments], env=environment, catch_exceptions=False)

    def keys(self) -> list[str]:
        """The keys that the messages of the queue name, which are taken out of it."""
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
    assert result.stdout == "42 of 42 chosen tickets sent (43 looked at)\n"
    assert sorted(store.keys()) == sorted(KEYS)


def test_a_dry_run_counts(store: Store) -> None:
    result = store.run("--dry-run", "--newer-than", "1h", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["chosen"] == 42
    assert json.loads(store.run("--dry-run", "--older-than", "1h", "--json").stdout)["chosen"] == 0
    assert store.keys() == []


def test_another_bucket_than_the_function_reads_is_refused(store: Store) -> None:
    result = store.run("--yes", raw_bucket="tickets-raw")
    assert result.exit_code == 2
    assert "the function reads tickets-raw (RAW_BUCKET)" in result.stderr
    assert store.run("--yes", "--force", "--limit", "3", raw_bucket="tickets-raw").exit_code == 0
    assert len(store.keys()) == 3


def test_a_limited_run_goes_on_where_it_ended(store: Store, tmp_path: Path) -> None:
    audit = ["--yes", "--audit", str(tmp_path / "audit")]
    assert store.run(*audit, "--limit", "17").exit_code == 0
    result = store.run(*audit)
    assert "17 were sent by earlier runs; going on after" in result.stderr
    assert result.stdout == "25 of 25 chosen tickets sent (25 looked at)\n"
    assert sorted(store.keys()) == sorted(KEYS)
    assert store.run(*audit).stdout == "0 of 0 chosen tickets sent (0 looked at)\n"


def test_where_the_queue_fails_the_next_run_goes_on(store: Store, tmp_path: Path) -> None:
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
    assert result.stdout == "20 of 30 chosen tickets sent (31 looked at)\n"
    store.sqs.create_queue(QueueName=store.bucket)
    assert store.run(*audit).exit_code == 0
    assert sorted(arrived + store.keys()) == sorted(KEYS)


def test_without_an_audit_file_a_broken_run_says_how_far_it_came(store: Store) -> None:
    with Proxy(store.stack.endpoint_url) as proxy:

        def vanish(operation: str) -> None:
            if operation == "SendMessageBatch" and proxy.calls.count(operation) == 2:
                store.delete()

        proxy.before = vanish
        result = store.run("--yes", endpoint_url=proxy.url)
    store.sqs.create_queue(QueueName=store.bucket)
    assert result.exit_code == 1
    assert "the last key was '2026/009.json'; with --audit FILE" in result.stderr


def test_a_bucket_that_does_not_exist_is_said_in_one_line(store: Store) -> None:
    result: Any = CliRunner().invoke(
        replay.app,
        ["--from-s3", "s3://no-such-bucket-here/", "--yes"],
        env={**store.stack.environment(), "QUEUE_URL": store.queue, "RAW_BUCKET": ""},
    )
    assert result.exit_code == 1
    assert "ListObjectsV2: NoSuchBucket" in result.stderr
