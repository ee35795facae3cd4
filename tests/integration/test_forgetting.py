"""`tickets forget` while a worker processes replays: nothing of the forgotten tickets comes back, no other is lost.

A real `ticket-processor`, and the real command in processes of its own, with the permissions of docs/privacy.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest

from handler.local import EmbeddedStack
from tests.support.fakes import notification, ticket
from tests.support.workers import worker

PAGE = Path(__file__).resolve().parents[2] / "docs" / "privacy.md"
NAMES = [f"T-{number}" for number in range(6)]
FORGOTTEN, CUSTOMERS = {"T-2"}, {"T-4", "T-5"}
MARK = "a secret of"


@pytest.fixture(scope="module")
def stack() -> Iterator[EmbeddedStack]:
    """A separate stack: every queue is read to its end."""
    with EmbeddedStack() as embedded:
        yield embedded


@pytest.fixture(scope="module")
def operator(stack: EmbeddedStack) -> dict[str, str]:
    return operator_of(stack)


def operator_of(stack: EmbeddedStack) -> dict[str, str]:
    """The environment of a user with the documented permissions."""
    (policy,) = re.findall(r"```json\n(.+?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    table = stack.client("dynamodb").describe_table(TableName=stack.outputs["TableName"])["Table"]["TableArn"]
    ask = {"QueueUrl": stack.outputs["DlqUrl"], "AttributeNames": ["QueueArn"]}
    names = {
        "TABLE_ARN": table,
        "DLQ_ARN": stack.client("sqs").get_queue_attributes(**ask)["Attributes"]["QueueArn"],
        "RAW_BUCKET": stack.outputs["RawBucket"],
        "ENRICHED_BUCKET": stack.outputs["EnrichedBucket"],
    }
    document = re.sub("|".join(names), lambda found: names[found[0]], policy)
    # For AWS, the permission of an action includes its batches; MiniStack 1.5.33 asks for them separately.
    document = re.sub('"(sqs:(?:DeleteMessage|ChangeMessageVisibility))"', r'"\1", "\1Batch"', document)
    iam = stack.client("iam")
    iam.create_user(UserName="operator")
    iam.put_user_policy(UserName="operator", PolicyName="forget", PolicyDocument=document)
    key = iam.create_access_key(UserName="operator")["AccessKey"]
    own = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    return {**os.environ, **stack.environment(), **own}


def eventually(condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "handler.tickets", "forget", "--wait", "1", "--empty-polls", "1", *arguments]


def forget(environment: Mapping[str, str], audit: Path, *arguments: str) -> dict[str, Any]:
    """Runs the command; returns its totals."""
    line = command(*arguments, "--json", "--audit", str(audit))
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert MARK not in done.stdout + done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


class System:
    """What the tests send and read."""

    def __init__(self, stack: EmbeddedStack) -> None:
        self.outputs = stack.outputs
        self.s3, self.sqs, self.dynamodb = (stack.client(name) for name in ("s3", "sqs", "dynamodb"))

    def body(self, name: str) -> dict[str, Any]:
        customer = "C-77" if name in CUSTOMERS else "C-1"
        return ticket(name, customer_id=customer, body=f"It has not printed for {MARK} {name}, since last week.")

    def send(self, body: Any, queue: str = "QueueUrl") -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        self.sqs.send_message(QueueUrl=self.outputs[queue], MessageBody=text)

    def replay(self, name: str) -> None:
        """Delivers a ticket once more: the notification of its object, and a second ticket of this id, inline."""
        self.send(notification(quote_plus(f"{name}.json"), bucket=self.outputs["RawBucket"]))
        self.send({**self.body(name), "created_at": 7})

    def put(self, name: str) -> None:
        raw = json.dumps(self.body(name)).encode()
        self.s3.put_object(Bucket=self.outputs["RawBucket"], Key=f"{name}.json", Body=raw)  # S3 notifies the queue

    def stored(self) -> set[tuple[str, int]]:
        items = self.dynamodb.scan(TableName=self.outputs["TableName"], ConsistentRead=True)["Items"]
        found = {(item["ticket_id"]["S"], int(item["created_at"]["N"])) for item in items}
        return {name for name in found if name[1] >= 0}

    def texts(self) -> list[tuple[str, str]]:
        """Everything in the table, in both buckets in all versions, and in both queues, with its place."""
        parts = [("table", json.dumps(self.dynamodb.scan(TableName=self.outputs["TableName"])["Items"]))]
        for bucket in (self.outputs["RawBucket"], self.outputs["EnrichedBucket"]):
            for found in self.s3.list_object_versions(Bucket=bucket).get("Versions", []):
                place = {"Bucket": bucket, "Key": found["Key"], "VersionId": found["VersionId"]}
                parts.append((str(place), self.s3.get_object(**place)["Body"].read().decode()))
        for queue in ("QueueUrl", "DlqUrl"):
            ask = {"QueueUrl": self.outputs[queue], "MaxNumberOfMessages": 10, "VisibilityTimeout": 600}
            while messages := self.sqs.receive_message(**ask).get("Messages"):
                parts += [(queue, message["Body"]) for message in messages]
        return parts

    def is_drained(self) -> bool:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        ask = {"QueueUrl": self.outputs["QueueUrl"], "AttributeNames": names}
        return not sum(map(int, self.sqs.get_queue_attributes(**ask)["Attributes"].values()))


def test_nothing_of_forgotten_tickets_comes_back(
    stack: EmbeddedStack, operator: dict[str, str], bundle: Path, tmp_path: Path
) -> None:
    system = System(stack)
    audit = tmp_path / "forgotten.jsonl"
    own = {"MODEL_BUNDLE": bundle.as_uri(), "BUNDLE_CACHE_DIR": str(tmp_path)}
    is_over = threading.Event()
    rounds = 0

    def replay() -> None:
        nonlocal rounds
        while not is_over.is_set():
            for name in NAMES:
                system.replay(name)
            rounds += 1
            eventually(system.is_drained, "the worker keeps up")

    everything = {(name, created) for name in NAMES for created in (7, ticket()["created_at"])}
    gone = FORGOTTEN | CUSTOMERS
    with worker(stack.environment() | own, tmp_path / "worker.log") as running:
        for name in NAMES:
            system.put(name)
            system.send({**system.body(name), "created_at": "yesterday"}, "DlqUrl")  # a ticket that was rejected
        replaying = threading.Thread(target=replay)
        replaying.start()
        try:
            eventually(lambda: system.stored() == everything, "all tickets are stored")
            # The first run is killed as soon as it has begun.
            line = command("T-2", "--yes", "--audit", str(audit), "--empty-polls", "20")
            with subprocess.Popen(line, env=operator, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as killed:
                eventually(lambda: audit.exists() and "begin" in audit.read_text(), "the command has begun")
                killed.kill()
            # SQS shows the messages of the killed run again after their visibility timeout.
            totals = [forget(operator, audit, *target, "--yes") for target in (["T-2"], ["--customer", "C-77"])]
            assert [number["complete"] for number in totals] == [True] * 2
            assert totals[1]["tickets"] == 2
            before = rounds
            eventually(lambda: rounds >= before + 2, "replays go on")
        finally:
            is_over.set()
            replaying.join()
        eventually(system.is_drained, "the queue is empty")
        assert "crash" not in running.log.read_text()
    assert system.stored() == {(name, created) for name, created in everything if name not in gone}
    forget(operator, audit, "T-2", "--yes")  # for a DLQ message that was still in flight
    texts = system.texts()
    for name in NAMES:
        places = [place for place, text in texts if f"{MARK} {name}," in text]
        assert bool(places) == (name not in gone), (name, places)
    lines = [json.loads(line) for line in (tmp_path / "worker.log").read_text().splitlines() if line.startswith("{")]
    notes = {(found.get("ticket_id"), found["outcome"]) for found in lines if found.get("note") == "forgotten"}
    assert {outcome for _, outcome in notes} == {"skipped"}
    assert gone <= {name for name, _ in notes}
    written = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [line["event"] for line in written] == ["begin"] + ["begin", "end"] * 3
    assert all("operator" in line["by"] for line in written)
