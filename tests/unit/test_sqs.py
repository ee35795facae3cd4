"""The SQS adapter: partial failures per entry, and errors mapped by from_aws."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ConnectTimeoutError, NoCredentialsError
from botocore.stub import Stubber

from handler.aws.errors import from_aws
from handler.aws.sqs import Queue, attribute_bytes, attribute_from_event, tens
from handler.dlq.errors import describe
from handler.errors import ServiceFailed, Throttled

URL = "https://sqs.us-east-1.amazonaws.com/123456789012/dead"
ARN = "arn:aws:sqs:us-east-1:123456789012:dead"


def test_send_returns_one_result_per_entry(sqs: Any, stub: Stubber) -> None:
    entries = [{"MessageBody": body} for body in "abcd"]
    stub.add_response(
        "send_message_batch",
        {
            "Successful": [{"Id": "2", "MessageId": "new-c", "MD5OfMessageBody": ""}],
            "Failed": [
                {"Id": "0", "SenderFault": True, "Code": "InvalidMessageContents", "Message": "no"},
                {"Id": "1", "SenderFault": False, "Code": "InternalError", "Message": "busy"},
            ],
        },
        {"QueueUrl": URL, "Entries": [{**entry, "Id": str(n)} for n, entry in enumerate(entries)]},
    )
    results = Queue(sqs, URL).send(entries)
    assert [result.message_id for result in results] == [None, None, "new-c", None]
    assert [result.transient for result in results] == [False, True, False, False]
    assert results[0].error == "InvalidMessageContents: no"
    assert "does not mention" in results[3].error


def test_only_confirmed_entries_count_as_deleted_or_changed(sqs: Any, stub: Stubber) -> None:
    answer = {
        "Successful": [{"Id": "1"}],
        "Failed": [{"Id": "0", "SenderFault": True, "Code": "ReceiptHandleIsInvalid"}],
    }
    stub.add_response("delete_message_batch", answer)
    stub.add_response("change_message_visibility_batch", answer)
    queue = Queue(sqs, URL)
    assert queue.delete(["r0", "r1", "r2"]) == [False, True, False]
    assert queue.change_visibility(["r0", "r1", "r2"], 30) == [False, True, False]


def test_queue_is_found_by_name_arn_or_url(sqs: Any, stub: Stubber) -> None:
    for name in ("dead", ARN):
        stub.add_response("get_queue_url", {"QueueUrl": URL}, {"QueueName": "dead"})
        assert Queue.find(sqs, name).url == URL
    assert Queue.find(sqs, URL).url == URL


def test_queue_attributes_and_defaults(sqs: Any, stub: Stubber) -> None:
    stub.add_response(
        "get_queue_attributes",
        {
            "Attributes": {
                "QueueArn": ARN + ".fifo",
                "VisibilityTimeout": "77",
                "ApproximateNumberOfMessages": "7",
                "ApproximateNumberOfMessagesNotVisible": "2",
                "ApproximateNumberOfMessagesDelayed": "1",
                "MaximumMessageSize": "262144",
                "RedrivePolicy": '{"deadLetterTargetArn": "arn:other", "maxReceiveCount": "5"}',
            }
        },
    )
    stub.add_response("get_queue_attributes", {"Attributes": {"QueueArn": ARN}})
    queue = Queue(sqs, URL)
    full, bare = queue.attributes(), queue.attributes()
    assert (full.name, full.is_fifo, full.visible, full.in_flight, full.delayed) == ("dead.fifo", True, 7, 2, 1)
    assert (full.max_message_bytes, full.dead_letter_arn, full.visibility_timeout) == (262144, "arn:other", 77)
    assert (bare.name, bare.is_fifo, bare.visible, bare.dead_letter_arn) == ("dead", False, 0, None)
    assert bare.max_message_bytes == 1024 * 1024


def test_throttling_and_other_errors_have_different_types(sqs: Any, stub: Stubber) -> None:
    stub.add_client_error("receive_message", "ThrottlingException", "slow down")
    stub.add_client_error("receive_message", "InternalError", "busy")
    queue = Queue(sqs, URL)
    with pytest.raises(Throttled, match=r"^ReceiveMessage: ThrottlingException$"):
        queue.receive(wait=1, visibility_timeout=30)
    with pytest.raises(ServiceFailed, match=r"^ReceiveMessage: InternalError$"):
        queue.receive(wait=1, visibility_timeout=30)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("AccessDenied", "the role needs"),
        ("QueueDoesNotExist", "check the queue's name"),
        ("ExpiredToken", "renew"),
        ("OverLimit", "--limit"),
    ],
)
def test_dlq_replay_error_is_one_line_with_remedy(sqs: Any, stub: Stubber, code: str, remedy: str) -> None:
    stub.add_client_error("receive_message", code, "two\nlines")
    with pytest.raises(ServiceFailed) as caught:
        Queue(sqs, URL).receive(wait=1, visibility_timeout=30)
    assert describe(caught.value).startswith(f"ReceiveMessage: {code}: two lines; ")
    assert remedy in describe(caught.value)


def test_connection_errors_are_described() -> None:
    def described(error: Any, operation: str) -> str:
        mapped = from_aws(error, operation)
        mapped.__cause__ = error
        return describe(mapped)

    assert "set AWS_PROFILE" in described(NoCredentialsError(), "ReceiveMessage")
    assert "AWS_ENDPOINT_URL" in described(ConnectTimeoutError(endpoint_url="http://127.0.0.1:1"), "SendMessageBatch")
    assert "\n" not in described(ConnectTimeoutError(endpoint_url="x\ny"), "SendMessageBatch")


@pytest.mark.parametrize("value", [None, 3, {}, {"dataType": 3}, {"dataType": "String"}, {"dataType": "Binary"}])
def test_malformed_event_attribute_is_none(value: Any) -> None:
    assert attribute_from_event(value) is None


def test_size_of_attributes_counts_names_types_and_values() -> None:
    binary = {"DataType": "Binary", "BinaryValue": b"\x00\xff"}
    assert attribute_bytes({"é": {"DataType": "String", "StringValue": "é"}, "b": binary}) == 2 + 6 + 2 + 1 + 6 + 2


def test_tens_splits_into_groups_of_ten() -> None:
    assert [len(part) for part in tens(range(23))] == [10, 10, 3]
    assert list(tens([])) == []
