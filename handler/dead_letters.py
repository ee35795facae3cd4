"""Sending a message to the dead-letter queue with its reason, and putting off one that failed.

What lies in that queue says why: the attribute `Reason` is a stable code, `Rejection` a JSON object with the errors,
the stage, the original message's id and the time. The body and the sender's own attributes stay as they were.
"""

from __future__ import annotations

import base64
import binascii
import json
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from handler.errors import from_aws

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

__all__ = ["DeadLetters", "SqsDeadLetters", "backoff_seconds"]

_MAX_ATTRIBUTES: Final = 10
_MAX_REJECTION: Final = 16 * 1024  # characters; the message as a whole is limited to 1 MiB
_MAX_VISIBILITY: Final = 900


class DeadLetters(Protocol):
    """Settles messages that were not processed."""

    def reject(self, record: Mapping[str, Any], reasons: Sequence[Mapping[str, Any]], code: str) -> None:
        """Sends a record of an SQS event to the dead-letter queue. Raises Throttled or ServiceFailed."""
        ...

    def put_off(self, record: Mapping[str, Any], seconds: int) -> None:
        """Makes a failed message visible again after so many seconds; errors are of no consequence."""
        ...


class SqsDeadLetters:
    """DeadLetters over SQS."""

    def __init__(self, client: SQSClient, queue_url: str, dlq_url: str) -> None:
        self._client = client
        self._queue_url = queue_url
        self._dlq_url = dlq_url

    def reject(self, record: Mapping[str, Any], reasons: Sequence[Mapping[str, Any]], code: str) -> None:
        """As DeadLetters.reject; attributes beyond SQS's ten move into `Rejection`."""
        kept, moved = _attributes(record)
        rejection: dict[str, Any] = {
            "message_id": record.get("messageId"),
            "rejected_at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "errors": list(reasons),
            **({"attributes": moved} if moved else {}),
        }
        while len(text := json.dumps(rejection)) > _MAX_REJECTION and len(rejection["errors"]) > 1:
            rejection["errors"] = rejection["errors"][: len(rejection["errors"]) // 2]
        kept["Reason"] = {"DataType": "String", "StringValue": code}
        kept["Rejection"] = {"DataType": "String", "StringValue": text}
        try:
            self._client.send_message(QueueUrl=self._dlq_url, MessageBody=_body(record), MessageAttributes=kept)
        except (ClientError, BotoCoreError) as error:
            raise from_aws(error, "SendMessage") from error

    def put_off(self, record: Mapping[str, Any], seconds: int) -> None:
        """As DeadLetters.put_off. Where it fails, the queue's own visibility timeout does the same, only later."""
        try:
            self._client.change_message_visibility(
                QueueUrl=self._queue_url, ReceiptHandle=record["receiptHandle"], VisibilityTimeout=seconds
            )
        except (ClientError, BotoCoreError, KeyError):
            return


def backoff_seconds(receive_count: int) -> int:
    """How long a failed message waits, by how often it was received: full jitter up to 2, 4, 8 ... 900 s."""
    ceiling = min(_MAX_VISIBILITY, 2 ** min(max(receive_count, 1), 10))
    return random.randint(1, ceiling)  # noqa: S311 - spreads load, guards no secret


def _body(record: Mapping[str, Any]) -> str:
    body = record.get("body")
    # A record without a body comes from no queue; SQS takes no empty one.
    return body if isinstance(body, str) and body else json.dumps(record, default=str)


def _attributes(record: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record's own message attributes as SendMessage takes them, and those for which there is no room."""
    kept: dict[str, Any] = {}
    moved: dict[str, Any] = {}
    for name, attribute in (record.get("messageAttributes") or {}).items():
        if name in {"Reason", "Rejection"}:  # from an earlier rejection, replayed by hand
            continue
        value = _value(attribute)
        if value is None or len(kept) >= _MAX_ATTRIBUTES - 2:
            moved[name] = attribute
        else:
            kept[name] = value
    return kept, moved


def _value(attribute: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = attribute.get("dataType", "")
    if kind.startswith("Binary"):
        try:
            return {"DataType": kind, "BinaryValue": base64.b64decode(attribute["binaryValue"], validate=True)}
        except (KeyError, TypeError, binascii.Error):
            return None
    text = attribute.get("stringValue")
    return {"DataType": kind, "StringValue": text} if kind and text else None
