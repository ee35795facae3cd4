"""A DLQ message has its reason and the complete original message; tested on the embedded stack's SQS."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from handler.aws.dead_letters import SqsDeadLetters
from handler.aws.sqs import Queue
from handler.dlq.message import DlqMessage
from handler.errors import ServiceFailed
from handler.local import EmbeddedStack
from handler.settings import Lane
from handler.worker.invocation import sqs_event
from tests.support.fakes import record

LIMIT = 1024 * 1024
REASON = {"error": "schema_violation", "detail": "customer_id: Field required", "stage": "validate", "s3_key": "a.json"}


@pytest.fixture(scope="module")
def queues(stack: EmbeddedStack) -> Iterator[tuple[str, str]]:
    sqs = stack.client("sqs")
    urls = [sqs.create_queue(QueueName=f"letters-{name}")["QueueUrl"] for name in ("source", "dead")]
    yield urls[0], urls[1]
    for url in urls:
        sqs.delete_queue(QueueUrl=url)


@pytest.fixture
def dead_letters(stack: EmbeddedStack, queues: tuple[str, str]) -> SqsDeadLetters:
    return SqsDeadLetters(stack.client("sqs"), [Lane(*queues)])


def receive(stack: EmbeddedStack, url: str, **options: Any) -> dict[str, Any]:
    sqs = stack.client("sqs")
    (message,) = sqs.receive_message(QueueUrl=url, MessageAttributeNames=["All"], AttributeNames=["All"], **options)[
        "Messages"
    ]
    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return dict(message)


def rejection(message: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(message["MessageAttributes"]["Rejection"]["StringValue"]))


def size(message: Mapping[str, Any]) -> int:
    """The size as SQS counts it: the body, and each attribute's name, type and value."""
    total = len(message["Body"].encode())
    for name, attribute in message.get("MessageAttributes", {}).items():
        value = attribute.get("BinaryValue") or attribute["StringValue"].encode()
        total += len(name.encode()) + len(attribute["DataType"].encode()) + len(value)
    return total


def attribute(text: str, kind: str = "String") -> dict[str, Any]:
    return {"dataType": kind, "stringValue": text, "stringListValues": [], "binaryListValues": []}


def test_body_attributes_and_reason_are_sent(
    stack: EmbeddedStack, dead_letters: SqsDeadLetters, queues: tuple[str, str]
) -> None:
    own = {
        "text": {"DataType": "String", "StringValue": "grün 🎫"},
        "number": {"DataType": "Number", "StringValue": "12.50"},
        "kind": {"DataType": "Number.float", "StringValue": "1"},
        "bytes": {"DataType": "Binary", "BinaryValue": b"\x00\xff\x10"},
        "image": {"DataType": "Binary.png", "BinaryValue": b"\x89PNG"},
    }
    stack.client("sqs").send_message(QueueUrl=queues[0], MessageBody="not JSON ☃", MessageAttributes=own)
    (received,) = sqs_event([receive(stack, queues[0])], "arn:aws:sqs:us-east-1:123456789012:q")["Records"]
    dead_letters.reject(received, [REASON], "schema_violation")
    message = receive(stack, queues[1])
    assert message["Body"] == "not JSON ☃"
    attributes = message["MessageAttributes"]
    assert attributes.pop("Reason") == {"DataType": "String", "StringValue": "schema_violation"}
    rejection_sent = json.loads(attributes.pop("Rejection")["StringValue"])
    assert attributes == own
    assert rejection_sent.pop("rejected_at").endswith("Z")
    sent = int(received["attributes"]["SentTimestamp"])
    assert rejection_sent == {"message_id": received["messageId"], "first_sent": sent, "errors": [REASON]}


def test_attributes_above_ten_move_into_rejection(
    stack: EmbeddedStack, dead_letters: SqsDeadLetters, queues: tuple[str, str]
) -> None:
    own = {f"a{i}": attribute(str(i)) for i in range(9)}
    own["bytes"] = {"dataType": "Binary", "binaryValue": base64.b64encode(b"\xff").decode()}
    dead_letters.reject(record("x") | {"messageAttributes": own}, [REASON], "schema_violation")
    message = receive(stack, queues[1])
    assert set(message["MessageAttributes"]) == {f"a{i}" for i in range(8)} | {"Reason", "Rejection"}
    assert rejection(message)["attributes"] == {"a8": own["a8"], "bytes": own["bytes"]}


def test_message_group_and_trace_header_are_kept(
    stack: EmbeddedStack, dead_letters: SqsDeadLetters, queues: tuple[str, str]
) -> None:
    trace = "Root=1-5759e988-bd862e3fe1be46a994272793"
    system = {"MessageGroupId": "tenant-7", "AWSTraceHeader": trace, "SentTimestamp": "1795166102000"}
    dead_letters.reject(record("x") | {"attributes": system}, [REASON], "schema_violation")
    found = receive(stack, queues[1])["Attributes"]
    assert (found["MessageGroupId"], found["AWSTraceHeader"]) == ("tenant-7", trace)


@pytest.mark.parametrize(
    "names", [{"Reason"}, {"Rejection"}, {"Reason", "Rejection"}], ids=lambda names: "-".join(sorted(names))
)
def test_a_sender_s_own_reason_survives_rejections_and_a_replay(
    stack: EmbeddedStack, dead_letters: SqsDeadLetters, queues: tuple[str, str], names: set[str]
) -> None:
    own = {name: attribute("refund") for name in names}
    dead_letters.reject(record("x") | {"messageAttributes": own}, [REASON], "schema_violation")
    message = receive(stack, queues[1])
    assert message["MessageAttributes"]["Reason"]["StringValue"] == "schema_violation"
    assert rejection(message)["attributes"] == own
    assert DlqMessage.from_boto3(message).sender_attributes == {
        name: {"DataType": "String", "StringValue": "refund"} for name in names
    }


@pytest.mark.parametrize(
    "invalid",
    [
        {"dataType": "Binary", "binaryValue": "no base64!"},
        {"dataType": "Binary"},
        {"dataType": "String", "stringValue": ""},
        {"stringValue": "of no type"},
    ],
)
def test_attributes_invalid_for_sqs_move_into_rejection(
    stack: EmbeddedStack, dead_letters: SqsDeadLetters, queues: tuple[str, str], invalid: dict[str, str]
) -> None:
    dead_letters.reject(
        record("x") | {"messageAttributes": {"invalid": invalid, "good": attribute("1")}}, [REASON], "unexpected"
    )
    message = receive(stack, queues[1])
    assert set(message["MessageAttributes"]) == {"good", "Reason", "Rejection"}
    assert rejection(message)["attributes"] == {"invalid": invalid}


def test_replayed_message_has_only_the_latest_reason(
    stack: EmbeddedStack, dead_letters: SqsDeadLetters, queues: tuple[str, str]
) -> None:
    dead_letters.reject(record("x", "first") | {"messageAttributes": {"a": attribute("1")}}, [REASON], "object_gone")
    (replayed,) = sqs_event([receive(stack, queues[1])], "arn:aws:sqs:us-east-1:123456789012:q")["Records"]
    dead_letters.reject(replayed, [REASON], "schema_violation")
    message = receive(stack, queues[1])
    assert set(message["MessageAttributes"]) == {"a", "Reason", "Rejection"}
    assert message["MessageAttributes"]["Reason"]["StringValue"] == "schema_violation"
    assert rejection(message)["message_id"] == replayed["messageId"] != "first"
    assert "attributes" not in rejection(message)


def test_rejection_with_many_errors_is_truncated(
    stack: EmbeddedStack, dead_letters: SqsDeadLetters, queues: tuple[str, str]
) -> None:
    dead_letters.reject(record("x"), [REASON | {"s3_key": str(i)} for i in range(1000)], "schema_violation")
    rejection_sent = rejection(receive(stack, queues[1]))
    assert len(json.dumps(rejection_sent)) <= 16 * 1024
    assert len(rejection_sent["errors"]) > 50
    assert [error["s3_key"] for error in rejection_sent["errors"][:2]] == ["0", "1"]
    assert rejection_sent["errors_left_out"] == 1000 - len(rejection_sent["errors"])


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (1000, {"Reason", "Rejection"}),
        (400, {"Reason", "Rejection"}),
        (100, {"Reason"}),
        (10, set()),
        (0, set()),
    ],
)
def test_reason_is_shortened_for_a_body_near_the_size_limit(
    stack: EmbeddedStack, dead_letters: SqsDeadLetters, queues: tuple[str, str], room: int, expected: set[str]
) -> None:
    body = "ü" * ((LIMIT - room) // 2)
    dead_letters.reject(record(body), [REASON] * 5, "schema_violation")
    message = receive(stack, queues[1])
    assert message["Body"] == body
    assert size(message) <= LIMIT
    assert set(message.get("MessageAttributes", {})) == expected
    if "Rejection" in expected:
        rejection_sent = rejection(message)
        assert len(rejection_sent["errors"]) + rejection_sent.get("errors_left_out", 0) == 5
        assert ("errors_left_out" in rejection_sent) == (room == 400)


def test_sender_attributes_take_precedence_over_the_reason(
    stack: EmbeddedStack, dead_letters: SqsDeadLetters, queues: tuple[str, str]
) -> None:
    own = {f"a{i}": attribute("1") for i in range(10)}
    dead_letters.reject(record("x" * (LIMIT - 200)) | {"messageAttributes": own}, [REASON], "schema_violation")
    message = receive(stack, queues[1])
    assert set(message["MessageAttributes"]) == set(own)
    assert size(message) <= LIMIT


def test_record_without_body_is_sent_as_json(
    stack: EmbeddedStack, dead_letters: SqsDeadLetters, queues: tuple[str, str]
) -> None:
    dead_letters.reject({"eventSource": "aws:s3"}, [REASON], "message_invalid")
    message = receive(stack, queues[1])
    assert json.loads(message["Body"]) == {"eventSource": "aws:s3"}
    assert rejection(message)["message_id"] is None


def test_missing_queue_is_a_transient_error(stack: EmbeddedStack, queues: tuple[str, str]) -> None:
    dead_letters = SqsDeadLetters(stack.client("sqs"), [Lane(queues[0], queues[1] + "-gone")])
    with pytest.raises(ServiceFailed, match=r"^SendMessage: ") as caught:
        dead_letters.reject(record("x"), [REASON], "schema_violation")
    assert caught.value.transient


def test_defer_sets_the_visibility_timeout(
    stack: EmbeddedStack, dead_letters: SqsDeadLetters, queues: tuple[str, str]
) -> None:
    sqs = stack.client("sqs")
    sqs.send_message(QueueUrl=queues[0], MessageBody="x")
    (first,) = sqs.receive_message(QueueUrl=queues[0], VisibilityTimeout=600)["Messages"]
    dead_letters.defer(record("x") | {"receiptHandle": first["ReceiptHandle"]}, 0)
    again = receive(stack, queues[0], WaitTimeSeconds=2)
    assert again["MessageId"] == first["MessageId"]


@pytest.mark.parametrize("handle", [None, "expired"])
def test_defer_ignores_invalid_receipt_handles(dead_letters: SqsDeadLetters, handle: str | None) -> None:
    unknown = record("x") | {"receiptHandle": handle}
    if handle is None:
        del unknown["receiptHandle"]
    dead_letters.defer(unknown, 5)


@pytest.fixture
def lanes(stack: EmbeddedStack) -> Iterator[list[Lane]]:
    sqs = stack.client("sqs")
    names = ("live", "live-dlq", "bulk", "bulk-dlq")
    urls = [sqs.create_queue(QueueName=f"lanes-{name}")["QueueUrl"] for name in names]
    yield [Lane(*urls[:2]), Lane(*urls[2:])]
    for url in urls:
        sqs.delete_queue(QueueUrl=url)


def received(stack: EmbeddedStack, url: str) -> dict[str, Any]:
    """A record as Lambda makes it of a message in this queue."""
    sqs = stack.client("sqs")
    sqs.send_message(QueueUrl=url, MessageBody="x")
    messages = sqs.receive_message(QueueUrl=url, VisibilityTimeout=600, MessageSystemAttributeNames=["All"])["Messages"]
    (record,) = sqs_event(messages, Queue(sqs, url).attributes().arn)["Records"]
    return dict(record)


def depth(stack: EmbeddedStack, url: str) -> tuple[int, int]:
    found = Queue(stack.client("sqs"), url).attributes()
    return found.visible, found.in_flight


def test_each_record_is_settled_in_its_own_queue(stack: EmbeddedStack, lanes: list[Lane]) -> None:
    dead_letters = SqsDeadLetters(stack.client("sqs"), lanes)
    records = [received(stack, lane.queue_url) for lane in (*lanes, *lanes, *lanes)]
    for lane, rejected in zip(lanes, records, strict=False):
        dead_letters.reject(rejected, [REASON], "schema_violation")
        assert rejection(receive(stack, lane.dlq_url))["message_id"] == rejected["messageId"]
        assert depth(stack, lane.queue_url) == (0, 3)
    for deferred in records[2:4]:
        dead_letters.defer(deferred, 0)
    assert [depth(stack, lane.queue_url) for lane in lanes] == [(1, 2)] * 2
    assert dead_letters.delete([*records[:2], *records[4:]]) == [True] * 4
    assert [depth(stack, lane.queue_url) for lane in lanes] == [(1, 0)] * 2


def test_record_of_an_unknown_queue_stays_there(
    stack: EmbeddedStack, lanes: list[Lane], queues: tuple[str, str]
) -> None:
    dead_letters = SqsDeadLetters(stack.client("sqs"), lanes)
    unknown = received(stack, queues[0])
    with pytest.raises(ServiceFailed, match=r"letters-source, which is not in QUEUE_URL; add it$") as caught:
        dead_letters.reject(unknown, [REASON], "schema_violation")
    assert caught.value.transient
    dead_letters.defer(unknown, 0)
    assert dead_letters.delete([unknown]) == [False]
    assert depth(stack, queues[0]) == (0, 1)
    assert [depth(stack, lane.dlq_url) for lane in lanes] == [(0, 0)] * 2
    # With one queue, the records of any other are taken for its own, as those of the sample events.
    only = SqsDeadLetters(stack.client("sqs"), [Lane(queues[0], lanes[0].dlq_url)])
    only.reject({**unknown, "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:sample"}, [REASON], "object_gone")
    assert depth(stack, lanes[0].dlq_url) == (1, 0)
    assert only.delete([unknown]) == [True]


def test_delete_confirms_each_message(
    stack: EmbeddedStack, dead_letters: SqsDeadLetters, queues: tuple[str, str]
) -> None:
    sqs = stack.client("sqs")
    records = []
    for number in range(12):
        sqs.send_message(QueueUrl=queues[0], MessageBody=str(number))
        (message,) = sqs.receive_message(QueueUrl=queues[0], VisibilityTimeout=600)["Messages"]
        records.append(record("x") | {"receiptHandle": message["ReceiptHandle"]})
    unknown = record("x") | {"receiptHandle": "unknown"}
    assert dead_letters.delete([*records[:10], unknown, records[10]]) == [True] * 10 + [False, True]
    assert depth(stack, queues[0])[1] == 1
    gone = SqsDeadLetters(sqs, [Lane(queues[0] + "-gone", queues[1])])
    assert gone.delete(records[11:]) == [False]
    assert dead_letters.delete([{"body": "x"}]) == [False]
    assert dead_letters.delete(records[11:]) == [True]
