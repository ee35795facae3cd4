"""Tests of the fault suite's reconciliation: it reports each kind of lost or wrong message, and none in a clean run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from enrichment import Enricher
from handler.local import EmbeddedStack
from tests.support.fakes import event, record
from tests.support.reconciliation import Reconciler, Reconciliation, Reference
from tests.support.stack_harness import StackHarness, deployed
from tests.support.traffic import Message, Traffic

REASON = {"Reason": {"DataType": "String", "StringValue": "message_invalid"}}


class Run:
    """Two valid messages and an invalid one, processed normally; tests then damage the results."""

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
            number = {"stringValue": message.marker, "dataType": "Number"}
            harness.invoke(event(record(message.body, f"id-{message.marker}", messageAttributes={"Number": number})))

    def reconcile(self, messages: list[Message] | None = None) -> Reconciliation:
        ids = {message.marker: f"id-{message.marker}" for message in self.messages}
        return Reconciler(self.stack, self.reference).reconcile("test", messages or self.messages, ids)

    def key(self) -> dict[str, Any]:
        ticket_id, created_at = self.good.expected[0].name
        return {"ticket_id": {"S": ticket_id}, "created_at": {"N": str(created_at)}}

    def change(self, field: str, value: Any) -> None:
        """Write another value into the object and refer to that version in the item."""
        key = self.good.expected[0].key
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

    def send_to_dlq(self, marker: str, body: str, **attributes: Any) -> None:
        number = {"Number": {"DataType": "Number", "StringValue": marker}}
        self.sqs.send_message(QueueUrl=self.outputs["DlqUrl"], MessageBody=body, MessageAttributes=number | attributes)


@pytest.fixture
def run(bundle: Path, enricher: Enricher, tmp_path: Path) -> Iterator[Run]:
    with EmbeddedStack() as stack, deployed(stack, bundle, tmp_path) as harness:
        yield Run(stack, harness, enricher)


def test_clean_run_is_balanced(run: Run) -> None:
    again = Message("again", "body", expected=run.good.expected)
    nothing = Message("nothing", "body")
    reconciliation = run.reconcile([*run.messages, again, nothing])
    assert reconciliation.is_balanced
    assert (reconciliation.enriched, reconciliation.duplicates, reconciliation.ignored, reconciliation.errors) == (
        2,
        1,
        1,
        [],
    )
    assert reconciliation.rejected == {"message_invalid": 1}
    assert (
        "5 messages = 2 enriched + 1 about the same tickets + 1 with nothing to do + 1 in the DLQ"
        in reconciliation.line()
    )


@pytest.mark.parametrize(
    ("damage", "message_part"),
    [
        (lambda run: run.dynamodb.delete_item(TableName=run.outputs["TableName"], Key=run.key()), "not in the table"),
        (lambda run: run.set("content_sha256", "0" * 64), "another content hash"),
        (lambda run: run.set("intent", "login"), "differs from its object"),
        (lambda run: run.change("scores", {}), "scores differs from the library's result"),
        (lambda run: run.change("embedding", [0.05] * 384), "embedding differs from the library's result"),
        (lambda run: run.change("more", 1), "other fields"),
        (lambda run: run.send_to_dlq(run.good.marker, "x", **REASON), "should not be in the DLQ"),
        (lambda run: run.send_to_dlq("7000", "x", **REASON), "an unknown message in the DLQ"),
        (lambda run: run.sqs.purge_queue(QueueUrl=run.outputs["DlqUrl"]), "it should be in the DLQ"),
    ],
)
def test_damage_is_reported(run: Run, damage: Callable[[Run], object], message_part: str) -> None:
    damage(run)
    reconciliation = run.reconcile()
    (wrong,) = reconciliation.errors
    assert message_part in wrong


def test_wrong_reason_is_reported(run: Run) -> None:
    run.sqs.purge_queue(QueueUrl=run.outputs["DlqUrl"])
    run.send_to_dlq(run.bad.marker, "not JSON")
    assert "it is in the DLQ with reason None" in run.reconcile().errors[0]
    other = {"Reason": {"DataType": "String", "StringValue": "object_gone"}}
    run.send_to_dlq(run.bad.marker, "not JSON", **other)
    assert "it is in the DLQ with reason object_gone" in run.reconcile().errors[0]


def test_unexpected_item_is_reported(run: Run) -> None:
    reconciliation = run.reconcile([run.other, run.bad])
    assert any("an item that belongs to no expected ticket" in wrong for wrong in reconciliation.errors)
    assert not reconciliation.is_balanced
