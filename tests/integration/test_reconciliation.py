"""The fault suite's own eyes: each kind of loss and of falsehood is seen and named, and a clean run has none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from enrichment import Enricher
from handler.local import EmbeddedStack
from tests.support.fakes import event, record
from tests.support.reconciliation import Account, Auditor, Reference
from tests.support.stack_harness import StackHarness, deployed
from tests.support.traffic import Message, Traffic

REASON = {"Reason": {"DataType": "String", "StringValue": "message_invalid"}}


class Run:
    """Two good messages and a bad one, invoked as they should be; then something is done to what they left."""

    def __init__(self, stack: EmbeddedStack, harness: StackHarness, enricher: Enricher) -> None:
        self.stack, self.harness, self.reference = stack, harness, Reference(enricher)
        self.outputs = stack.outputs
        self.s3, self.sqs, self.dynamodb = (stack.client(name) for name in ("s3", "sqs", "dynamodb"))
        self.sqs.purge_queue(QueueUrl=self.outputs["DlqUrl"])
        traffic = Traffic(1, harness.raw_bucket)
        self.good, self.other = traffic.inline(), traffic.inline()
        self.bad = traffic.sent("not JSON", reasons=["message_invalid"])
        self.messages = [self.good, self.other, self.bad]
        for message in self.messages:
            assert message.body is not None
            number = {"stringValue": message.mark, "dataType": "Number"}
            harness.invoke(event(record(message.body, f"id-{message.mark}", messageAttributes={"Number": number})))

    def account(self, messages: list[Message] | None = None) -> Account:
        ids = {message.mark: f"id-{message.mark}" for message in self.messages}
        return Auditor(self.stack, self.reference).account("test", messages or self.messages, ids)

    def key(self) -> dict[str, Any]:
        ticket_id, created_at = self.good.wanted[0].name
        return {"ticket_id": {"S": ticket_id}, "created_at": {"N": str(created_at)}}

    def change(self, field: str, value: Any) -> None:
        """Writes another value into the object and names that version in the item."""
        key = self.good.wanted[0].key
        stored = json.loads(self.s3.get_object(Bucket=self.outputs["EnrichedBucket"], Key=key)["Body"].read())
        stored["enrichment"][field] = value
        put = self.s3.put_object(Bucket=self.outputs["EnrichedBucket"], Key=key, Body=json.dumps(stored).encode())
        self.set("s3_version_id", put["VersionId"])

    def set(self, name: str, value: str) -> None:
        self.dynamodb.update_item(
            TableName=self.outputs["TableName"],
            Key=self.key(),
            UpdateExpression=f"SET {name} = :value",
            ExpressionAttributeValues={":value": {"S": value}},
        )

    def bury(self, mark: str, body: str, **attributes: Any) -> None:
        number = {"Number": {"DataType": "Number", "StringValue": mark}}
        self.sqs.send_message(QueueUrl=self.outputs["DlqUrl"], MessageBody=body, MessageAttributes=number | attributes)


@pytest.fixture
def run(bundle: Path, enricher: Enricher, tmp_path: Path) -> Iterator[Run]:
    with EmbeddedStack() as stack, deployed(stack, bundle, tmp_path) as harness:
        yield Run(stack, harness, enricher)


def test_clean_run_is_balanced(run: Run) -> None:
    again = Message("again", "body", wanted=run.good.wanted)
    nothing = Message("nothing", "body")
    account = run.account([*run.messages, again, nothing])
    assert account.adds_up
    assert (account.enriched, account.again, account.nothing, account.wrong) == (2, 1, 1, [])
    assert account.rejected == {"message_invalid": 1}
    assert (
        "5 messages = 2 enriched + 1 about the same tickets + 1 with nothing to do + 1 dead letters" in account.line()
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: run.dynamodb.delete_item(TableName=run.outputs["TableName"], Key=run.key()), "not in the table"),
        (lambda run: run.set("content_sha256", "0" * 64), "of other content"),
        (lambda run: run.set("intent", "login"), "differs from its object"),
        (lambda run: run.change("scores", {}), "scores is not what the library says"),
        (lambda run: run.change("embedding", [0.05] * 384), "embedding is not what the library says"),
        (lambda run: run.change("more", 1), "other fields"),
        (lambda run: run.bury(run.good.mark, "x", **REASON), "should not be dead"),
        (lambda run: run.bury("7000", "x", **REASON), "nobody sent"),
        (lambda run: run.sqs.purge_queue(QueueUrl=run.outputs["DlqUrl"]), "should be dead"),
    ],
)
def test_damage_is_reported(run: Run, damage: Callable[[Run], object], said: str) -> None:
    damage(run)
    account = run.account()
    (wrong,) = account.wrong
    assert said in wrong


def test_wrong_reason_is_reported(run: Run) -> None:
    run.sqs.purge_queue(QueueUrl=run.outputs["DlqUrl"])
    run.bury(run.bad.mark, "not JSON")
    assert "dead because of None" in run.account().wrong[0]
    other = {"Reason": {"DataType": "String", "StringValue": "object_gone"}}
    run.bury(run.bad.mark, "not JSON", **other)
    assert "dead because of object_gone" in run.account().wrong[0]


def test_unexpected_item_is_reported(run: Run) -> None:
    account = run.account([run.other, run.bad])
    assert any("an item of no ticket" in wrong for wrong in account.wrong)
    assert not account.adds_up
