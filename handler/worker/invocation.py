"""One invocation as made by Lambda's event source mapping for SQS: the event, the context and the response."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["AnswerMalformed", "InvocationContext", "failed_ids", "function_arn", "sqs_event"]

Message = Mapping[str, Any]
"""A message as returned by boto3's receive_message."""


class AnswerMalformed(Exception):
    """The handler's response is invalid, so Lambda treats every message of the batch as failed."""


def sqs_event(messages: Sequence[Message], queue_arn: str) -> dict[str, Any]:
    """The event that Lambda builds from messages received from the queue with that ARN."""
    return {"Records": [_record(message, queue_arn) for message in messages]}


def failed_ids(answer: Any, sent: Collection[str]) -> frozenset[str]:
    """The ids of the failed messages in the handler's response; `sent` are the ids that were sent to it.

    No response, or one without failures, means that all succeeded. Raises AnswerMalformed where Lambda would treat the
    whole batch as failed: an identifier that is missing, empty or not in `sent`, or a response of another type.
    """
    if answer is None:
        return frozenset()
    if not isinstance(answer, Mapping):
        raise AnswerMalformed(f"the handler answered with {type(answer).__name__} instead of an object")
    failures = answer.get("batchItemFailures")
    if failures is None:
        return frozenset()
    if not isinstance(failures, list):
        raise AnswerMalformed(f"batchItemFailures is {type(failures).__name__} instead of a list")
    found = set()
    for failure in failures:
        name = failure.get("itemIdentifier") if isinstance(failure, Mapping) else None
        if not isinstance(name, str) or name not in sent:
            raise AnswerMalformed("batchItemFailures names a message that was not sent")
        found.add(name)
    return frozenset(found)


def function_arn(queue_arn: str, name: str) -> str:
    """The ARN of a function with that name in the queue's account and region."""
    _, partition, _, region, account, _ = queue_arn.split(":", 5)
    return f"arn:{partition}:lambda:{region}:{account}:function:{name}"


@dataclass(frozen=True, kw_only=True)
class InvocationContext:
    """Lambda's `context`; `time_left` returns the remaining seconds of this invocation.

    The names, and memory as a string, are those of Lambda's runtime client for Python.
    """

    function_name: str
    invoked_function_arn: str
    memory_limit_in_mb: str
    time_left: Callable[[], float]
    aws_request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    function_version: str = "$LATEST"
    log_group_name: str | None = None
    log_stream_name: str | None = None
    identity: None = None
    client_context: None = None

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the invocation times out, never negative."""
        return max(0, int(self.time_left() * 1000))


def _record(message: Message, queue_arn: str) -> dict[str, Any]:
    record = {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": {name: str(value) for name, value in message.get("Attributes", {}).items()},
        "messageAttributes": {name: _attribute(value) for name, value in message.get("MessageAttributes", {}).items()},
        "md5OfBody": message["MD5OfBody"],
        "eventSource": "aws:sqs",
        "eventSourceARN": queue_arn,
        "awsRegion": queue_arn.split(":")[3],
    }
    if "MD5OfMessageAttributes" in message:
        record["md5OfMessageAttributes"] = message["MD5OfMessageAttributes"]
    return record


def _attribute(value: Mapping[str, Any]) -> dict[str, Any]:
    """A message attribute; boto3 decodes binary values, an event is JSON and contains them as base64."""
    attribute: dict[str, Any] = {}
    if "StringValue" in value:
        attribute["stringValue"] = value["StringValue"]
    if "BinaryValue" in value:
        attribute["binaryValue"] = _base64(value["BinaryValue"])
    # SQS has no lists yet ("not implemented; reserved for future use"), but Lambda sends the fields with empty lists.
    attribute["stringListValues"] = list(value.get("StringListValues", ()))
    attribute["binaryListValues"] = [_base64(item) for item in value.get("BinaryListValues", ())]
    attribute["dataType"] = value["DataType"]
    return attribute


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")
