"""How SQS's answers are read: entry by entry, and every error in one line with its remedy."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ConnectTimeoutError, NoCredentialsError
from botocore.stub import Stubber

from handler.replay.queue import ReplayError, SqsQueue, error_line

URL = "https://sqs.us-east-1.amazonaws.com/123456789012/dead"
ARN = "arn:aws:sqs:us-east-1:123456789012:dead"


def test_each_entry_has_its_own_answer(sqs: Any, stub: Stubber) -> None:
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
    answers = SqsQueue(sqs, URL).send(entries)
    assert [answer.message_id for answer in answers] == [None, None, "new-c", None]
    assert [answer.transient for answer in answers] == [False, True, False, False]
    assert answers[0].error == "InvalidMessageContents: no"
    assert "did not say" in answers[3].error


def test_only_what_is_confirmed_counts_as_deleted_or_hidden(sqs: Any, stub: Stubber) -> None:
    answer = {
        "Successful": [{"Id": "1"}],
        "Failed": [{"Id": "0", "SenderFault": True, "Code": "ReceiptHandleIsInvalid"}],
    }
    stub.add_response("delete_message_batch", answer)
    stub.add_response("change_message_visibility_batch", answer)
    queue = SqsQueue(sqs, URL)
    assert queue.delete(["r0", "r1", "r2"]) == [False, True, False]
    assert queue.hide(["r0", "r1", "r2"], 30) == [False, True, False]


def test_a_queue_is_known_by_its_name_or_its_arn(sqs: Any, stub: Stubber) -> None:
    for place in ("dead", ARN):
        stub.add_response("get_queue_url", {"QueueUrl": URL}, {"QueueName": "dead"})
        assert SqsQueue(sqs, place).url == URL


def test_facts_are_what_the_attributes_say(sqs: Any, stub: Stubber) -> None:
    stub.add_response(
        "get_queue_attributes",
        {
            "Attributes": {
                "QueueArn": ARN + ".fifo",
                "ApproximateNumberOfMessages": "7",
                "ApproximateNumberOfMessagesNotVisible": "2",
                "ApproximateNumberOfMessagesDelayed": "1",
                "MaximumMessageSize": "262144",
                "RedrivePolicy": '{"deadLetterTargetArn": "arn:other", "maxReceiveCount": "5"}',
            }
        },
    )
    stub.add_response("get_queue_attributes", {"Attributes": {"QueueArn": ARN}})
    queue = SqsQueue(sqs, URL)
    full, bare = queue.facts(), queue.facts()
    assert (full.name, full.is_fifo, full.visible, full.hidden, full.delayed) == ("dead.fifo", True, 7, 2, 1)
    assert (full.most_bytes, full.dead_letter_arn) == (262144, "arn:other")
    assert (bare.name, bare.is_fifo, bare.visible, bare.dead_letter_arn) == ("dead", False, 0, None)
    assert bare.most_bytes == 1024 * 1024


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("AccessDenied", "the role needs"),
        ("QueueDoesNotExist", "check the queue's name"),
        ("ExpiredToken", "renew"),
        ("OverLimit", "--limit"),
    ],
)
def test_an_error_names_its_remedy_in_one_line(sqs: Any, stub: Stubber, code: str, remedy: str) -> None:
    stub.add_client_error("receive_message", code, "two\nlines")
    with pytest.raises(ReplayError) as caught:
        SqsQueue(sqs, URL).receive(30, 1)
    assert str(caught.value).startswith(f"ReceiveMessage: {code}: two lines; ")
    assert remedy in str(caught.value)
    assert caught.value.exit_code == 1


def test_errors_without_an_answer_are_said_too() -> None:
    assert "set AWS_PROFILE" in error_line(NoCredentialsError(), "AWS")
    assert "AWS_ENDPOINT_URL" in error_line(ConnectTimeoutError(endpoint_url="http://127.0.0.1:1"), "SendMessageBatch")
    assert "\n" not in error_line(ConnectTimeoutError(endpoint_url="x\ny"), "SendMessageBatch")
