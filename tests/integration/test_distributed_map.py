"""deploy/engines/distributed-map.yaml: the states of one batch, with real JSONata, SQS and handler.

No emulator has ItemBatcher, so the Map state itself is not run: its reader and batcher are stood in for by a listing of
the embedded stack's bucket.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonata
import pytest
from samtranslator.yaml_helper import yaml_parse

from events.generator import TicketGenerator
from handler.messages import StoredTicket, references
from tests.characterization.harness import Product

TEMPLATE = yaml_parse((Path(__file__).parents[2] / "deploy/engines/distributed-map.yaml").read_text(encoding="utf-8"))
MACHINE = TEMPLATE["Resources"]["Backfill"]["Properties"]["Definition"]["States"]["Each batch"]
KEYS = ["2026/", "2026/a b+c.json", "2026/ü/€&=%2F.json", "2026/plain.json", "2026/quote\"'.json"]


class Batch:
    """Interprets the states of the item processor; waits take no time."""

    def __init__(self, bucket: str, queue: str, send: Callable[..., dict[str, Any]]) -> None:
        self._substitutions = {"RawBucket": bucket, "QueueUrl": queue}
        self._send = send
        self.waits: list[float] = []

    def run(self, items: list[dict[str, Any]]) -> tuple[str, Any]:
        """Name and cause of the state that ends the batch."""
        states = MACHINE["ItemProcessor"]["States"]
        variables: dict[str, Any] = {}
        name, data = MACHINE["ItemProcessor"]["StartAt"], {"Items": items}
        while True:
            state, known = states[name], {"input": data}
            match state["Type"]:
                case "Task":
                    assert state["Resource"].endswith(":sqs:sendMessageBatch")
                    known["result"] = self._send(**self._value(state["Arguments"], known, variables))
                    data = known["result"]
                case "Choice":
                    found = [c for c in state["Choices"] if self._value(c["Condition"], known, variables) is True]
                    name = found[0]["Next"] if found else state["Default"]
                    continue
                case "Wait":
                    self.waits.append(self._value(state["Seconds"], known, variables))
                case "Succeed" | "Fail":
                    return name, self._value(state.get("Cause"), known, variables)
            assigned = {key: self._value(value, known, variables) for key, value in state.get("Assign", {}).items()}
            variables |= assigned
            name = state["Next"]

    def _value(self, value: Any, states: dict[str, Any], variables: dict[str, Any]) -> Any:
        if isinstance(value, dict):
            return {key: self._value(each, states, variables) for key, each in value.items()}
        if not isinstance(value, str):
            return value
        for key, text in self._substitutions.items():
            value = value.replace(f"${{{key}}}", text)
        if not value.startswith("{%"):
            return value
        expression = jsonata.Jsonata(value.removeprefix("{%").removesuffix("%}"))
        for key, each in {"states": states, **variables}.items():
            expression.assign(key, each)
        return expression.evaluate(None)


def listed(product: Product, prefix: str) -> list[dict[str, Any]]:
    """The items as the Map state's reader gives them."""
    found = product.s3.list_objects_v2(Bucket=product.environment["RAW_BUCKET"], Prefix=prefix)["Contents"]
    return [
        {
            "Etag": item["ETag"],
            "Key": item["Key"],
            "LastModified": int(item["LastModified"].timestamp()),
            "Size": item["Size"],
            "StorageClass": "STANDARD",
        }
        for item in found
    ]


def test_objects_of_a_prefix_are_enriched_by_the_function(product: Product) -> None:
    raw, generator = product.environment["RAW_BUCKET"], TicketGenerator(seed=2, start=1_790_000_000)
    for key in KEYS:
        product.s3.put_object(Bucket=raw, Key=key, Body=json.dumps(next(generator)))
    product.s3.put_object(Bucket=raw, Key="2026/folder/", Body=b"")
    product.empty()
    items = listed(product, "2026/")
    assert len(items) == len(KEYS) + 1
    batch = Batch(raw, product.queue, product.sqs.send_message_batch)
    assert batch.run(items) == ("Done", None)
    messages = product.take(product.queue)
    found = [reference for message in messages for reference in references(message["Body"])]
    assert all(isinstance(reference, StoredTicket) for reference in found)
    assert sorted(reference.key for reference in found if isinstance(reference, StoredTicket)) == sorted(KEYS)
    etags = {item["Key"]: item["Etag"].strip('"') for item in items}
    times = {item["Key"]: item["LastModified"] * 1000 for item in items}
    for each in found:
        assert isinstance(each, StoredTicket)
        assert (each.bucket, each.etag, each.event_time) == (raw, etags[each.key], times[each.key])
    records = [
        {
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
            "body": message["Body"],
            "attributes": message["Attributes"],
            "messageAttributes": {},
            "eventSource": "aws:sqs",
        }
        for message in messages
    ]
    assert product.invoke({"Records": records}) == {"batchItemFailures": []}
    assert sorted(item["s3_key"]["S"] for item in product.items()) == sorted(KEYS)


def test_refused_messages_are_sent_again(product: Product) -> None:
    sent: list[list[str]] = []

    def send(QueueUrl: str, Entries: list[dict[str, str]]) -> dict[str, Any]:  # noqa: N803 - as in SQS
        sent.append([entry["Id"] for entry in Entries])
        return {"Failed": [{"Id": entry["Id"]} for entry in Entries if len(sent) < 3 and entry["Id"] in {"m1", "m2"}]}

    items = [{"Key": f"{n}", "Etag": '"e"', "LastModified": 1, "Size": 1} for n in range(4)]
    batch = Batch("bucket", "queue", send)
    assert batch.run(items) == ("Done", None)
    assert sent == [["m0", "m1", "m2", "m3"], ["m1", "m2"], ["m1", "m2"]]
    assert batch.waits == [2, 4]


@pytest.mark.parametrize("refused", [1, 4])
def test_batch_fails_if_messages_stay_refused(refused: int) -> None:
    def send(QueueUrl: str, Entries: list[dict[str, str]]) -> dict[str, Any]:  # noqa: N803 - as in SQS
        return {"Failed": [{"Id": entry["Id"]} for entry in Entries[:refused]]}

    items = [{"Key": f"{n}", "Etag": '"e"', "LastModified": 1, "Size": 1} for n in range(4)]
    cause = f"{refused} messages were refused; start the execution again"
    assert Batch("bucket", "queue", send).run(items) == ("Not sent", cause)


def test_batch_without_tickets_sends_nothing() -> None:
    folder = {"Key": "2026/", "Etag": '"e"', "LastModified": 1, "Size": 0}
    assert Batch("bucket", "queue", pytest.fail).run([folder]) == ("Done", None)


def test_map_fits_the_processor() -> None:
    assert MACHINE["ItemReader"]["Arguments"]["Prefix"] == "{% $states.input.prefix %}"
    assert MACHINE["ItemBatcher"] == {"MaxItemsPerBatch": 10}  # as many as SQS takes in one request
    assert MACHINE["ToleratedFailurePercentage"] == 0
