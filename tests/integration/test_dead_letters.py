"""What lies in the dead-letter queue says why, and holds everything that came; on the embedded stack's SQS."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from handler.aws.dead_letters import SqsDeadLetters
from handler.dlq.message import DlqMessage
from handler.errors import ServiceFailed
from handler.local import EmbeddedStack
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
def letters(stack: EmbeddedStack, queues: tuple[str, str]) -> SqsDeadLetters:
    return SqsDeadLetters(stack.client("sqs"), *queues)


def take(stack: EmbeddedStack, url: str, **options: Any) -> dict[str, Any]:
    sqs = stack.client("sqs")
    (message,) = sqs.receive_message(QueueUrl=url, MessageAttributeNames=["All"], AttributeNames=["All"], **options)[
        "Messages"
    ]
    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return dict(message)


def rejection(message: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(message["MessageAttributes"]["Rejection"]["StringValue"]))


def size(message: Mapping[str, Any]) -> int:
    """As SQS counts: the body, and of each attribute name, type and value."""
    total = len(message["Body"].encode())
    for name, attribute in message.get("MessageAttributes", {}).items():
        value = attribute.get("BinaryValue") or attribute["StringValue"].encode()
        total += len(name.encode()) + len(attribute["DataType"].encode()) + len(value)
    return total


def attribute(text: str, kind: str = "String") -> dict[str, Any]:
    return {"dataType": kind, "stringValue": text, "stringListValues": [], "binaryListValues": []}


def test_attributes_of_all_types_survive_with_the_body_and_the_reason(
    stack: EmbeddedStack, letters: SqsDeadLetters, queues: tuple[str, str]
) -> None:
    own = {
        "text": {"DataType": "String", "StringValue": "grün 🎫"},
        "number": {"DataType": "Number", "StringValue": "12.50"},
        "kind": {"DataType": "Number.float", "StringValue": "1"},
        "bytes": {"DataType": "Binary", "BinaryValue": b"\x00\xff\x10"},
        "image": {"DataType": "Binary.png", "BinaryValue": b"\x89PNG"},
    }
    stack.client("sqs").send_message(QueueUrl=queues[0], MessageBody="not JSON ☃", MessageAttributes=own)
    (received,) = sqs_event([take(stack, queues[0])], "arn:aws:sqs:us-east-1:123456789012:q")["Records"]
    letters.reject(received, [REASON], "schema_violation")
    message = take(stack, queues[1])
    assert message["Body"] == "not JSON ☃"
    attributes = message["MessageAttributes"]
    assert attributes.pop("Reason") == {"DataType": "String", "StringValue": "schema_violation"}
    told = json.loads(attributes.pop("Rejection")["StringValue"])
    assert attributes == own
    assert told.pop("rejected_at").endswith("Z")
    sent = int(received["attributes"]["SentTimestamp"])
    assert told == {"message_id": received["messageId"], "first_sent": sent, "errors": [REASON]}


def test_what_is_beyond_ten_attributes_moves_into_the_rejection(
    stack: EmbeddedStack, letters: SqsDeadLetters, queues: tuple[str, str]
) -> None:
    own = {f"a{i}": attribute(str(i)) for i in range(9)}
    own["bytes"] = {"dataType": "Binary", "binaryValue": base64.b64encode(b"\xff").decode()}
    letters.reject(record("x") | {"messageAttributes": own}, [REASON], "schema_violation")
    message = take(stack, queues[1])
    assert set(message["MessageAttributes"]) == {f"a{i}" for i in range(8)} | {"Reason", "Rejection"}
    assert rejection(message)["attributes"] == {"a8": own["a8"], "bytes": own["bytes"]}


def test_message_group_and_trace_header_are_kept(
    stack: EmbeddedStack, letters: SqsDeadLetters, queues: tuple[str, str]
) -> None:
    trace = "Root=1-5759e988-bd862e3fe1be46a994272793"
    system = {"MessageGroupId": "tenant-7", "AWSTraceHeader": trace, "SentTimestamp": "1795166102000"}
    letters.reject(record("x") | {"attributes": system}, [REASON], "schema_violation")
    found = take(stack, queues[1])["Attributes"]
    assert (found["MessageGroupId"], found["AWSTraceHeader"]) == ("tenant-7", trace)


@pytest.mark.parametrize("names", [{"Reason"}, {"Rejection"}, {"Reason", "Rejection"}], ids=str)
def test_a_sender_s_own_reason_survives_rejections_and_a_replay(
    stack: EmbeddedStack, letters: SqsDeadLetters, queues: tuple[str, str], names: set[str]
) -> None:
    own = {name: attribute("refund") for name in names}
    letters.reject(record("x") | {"messageAttributes": own}, [REASON], "schema_violation")
    message = take(stack, queues[1])
    assert message["MessageAttributes"]["Reason"]["StringValue"] == "schema_violation"
    assert rejection(message)["attributes"] == own
    assert DlqMessage.from_boto3(message).sender_attributes == {
        name: {"DataType": "String", "StringValue": "refund"} for name in names
    }


@pytest.mark.parametrize(
    "odd",
    [
        {"dataType": "Binary", "binaryValue": "no base64!"},
        {"dataType": "Binary"},
        {"dataType": "String", "stringValue": ""},
        {"stringValue": "of no type"},
    ],
)
def test_what_sqs_would_not_take_moves_there_too(
    stack: EmbeddedStack, letters: SqsDeadLetters, queues: tuple[str, str], odd: dict[str, str]
) -> None:
    letters.reject(record("x") | {"messageAttributes": {"odd": odd, "good": attribute("1")}}, [REASON], "unexpected")
    message = take(stack, queues[1])
    assert set(message["MessageAttributes"]) == {"good", "Reason", "Rejection"}
    assert rejection(message)["attributes"] == {"odd": odd}


def test_a_replayed_message_has_only_its_newest_reason(
    stack: EmbeddedStack, letters: SqsDeadLetters, queues: tuple[str, str]
) -> None:
    letters.reject(record("x", "first") | {"messageAttributes": {"a": attribute("1")}}, [REASON], "object_gone")
    (replayed,) = sqs_event([take(stack, queues[1])], "arn:aws:sqs:us-east-1:123456789012:q")["Records"]
    letters.reject(replayed, [REASON], "schema_violation")
    message = take(stack, queues[1])
    assert set(message["MessageAttributes"]) == {"a", "Reason", "Rejection"}
    assert message["MessageAttributes"]["Reason"]["StringValue"] == "schema_violation"
    assert rejection(message)["message_id"] == replayed["messageId"] != "first"
    assert "attributes" not in rejection(message)


def test_many_errors_are_cut_to_a_length_that_people_read(
    stack: EmbeddedStack, letters: SqsDeadLetters, queues: tuple[str, str]
) -> None:
    letters.reject(record("x"), [REASON | {"s3_key": str(i)} for i in range(1000)], "schema_violation")
    told = rejection(take(stack, queues[1]))
    assert len(json.dumps(told)) <= 16 * 1024
    assert len(told["errors"]) > 50
    assert [error["s3_key"] for error in told["errors"][:2]] == ["0", "1"]
    assert told["errors_left_out"] == 1000 - len(told["errors"])


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
def test_a_body_near_the_limit_is_sent_with_as_much_of_the_reason_as_fits(
    stack: EmbeddedStack, letters: SqsDeadLetters, queues: tuple[str, str], room: int, expected: set[str]
) -> None:
    body = "ü" * ((LIMIT - room) // 2)
    letters.reject(record(body), [REASON] * 5, "schema_violation")
    message = take(stack, queues[1])
    assert message["Body"] == body
    assert size(message) <= LIMIT
    assert set(message.get("MessageAttributes", {})) == expected
    if "Rejection" in expected:
        told = rejection(message)
        assert len(told["errors"]) + told.get("errors_left_out", 0) == 5
        assert ("errors_left_out" in told) == (room == 400)


def test_no_attribute_of_the_sender_is_given_up_for_the_reason(
    stack: EmbeddedStack, letters: SqsDeadLetters, queues: tuple[str, str]
) -> None:
    own = {f"a{i}": attribute("1") for i in range(10)}
    letters.reject(record("x" * (LIMIT - 200)) | {"messageAttributes": own}, [REASON], "schema_violation")
    message = take(stack, queues[1])
    assert set(message["MessageAttributes"]) == set(own)
    assert size(message) <= LIMIT


def test_a_record_without_a_body_is_sent_as_it_is(
    stack: EmbeddedStack, letters: SqsDeadLetters, queues: tuple[str, str]
) -> None:
    letters.reject({"eventSource": "aws:s3"}, [REASON], "message_invalid")
    message = take(stack, queues[1])
    assert json.loads(message["Body"]) == {"eventSource": "aws:s3"}
    assert rejection(message)["message_id"] is None


def test_a_queue_that_is_not_there_is_a_transient_error(stack: EmbeddedStack, queues: tuple[str, str]) -> None:
    letters = SqsDeadLetters(stack.client("sqs"), queues[0], queues[1] + "-gone")
    with pytest.raises(ServiceFailed, match=r"^SendMessage: ") as caught:
        letters.reject(record("x"), [REASON], "schema_violation")
    assert caught.value.transient


def test_putting_off_sets_the_visibility(
    stack: EmbeddedStack, letters: SqsDeadLetters, queues: tuple[str, str]
) -> None:
    sqs = stack.client("sqs")
    sqs.send_message(QueueUrl=queues[0], MessageBody="x")
    (first,) = sqs.receive_message(QueueUrl=queues[0], VisibilityTimeout=600)["Messages"]
    letters.defer(record("x") | {"receiptHandle": first["ReceiptHandle"]}, 0)
    again = take(stack, queues[0], WaitTimeSeconds=2)
    assert again["MessageId"] == first["MessageId"]


@pytest.mark.parametrize("handle", [None, "expired"])
def test_putting_off_what_cannot_be_is_of_no_consequence(letters: SqsDeadLetters, handle: str | None) -> None:
    unknown = record("x") | {"receiptHandle": handle}
    if handle is None:
        del unknown["receiptHandle"]
    letters.defer(unknown, 5)
