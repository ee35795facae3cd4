"""Sending a message to the dead-letter queue with its reason, and deferring one that failed.

What lies in that queue says why: the attribute `Reason` is a stable code, `Rejection` a JSON object with the errors,
the stage, the original message's id and the time. The body and the sender's own attributes stay as they were.
"""

from __future__ import annotations

import base64
import binascii
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from handler.errors import from_aws

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

__all__ = ["DeadLetters", "SqsDeadLetters", "backoff_seconds"]

_MAX_MESSAGE: Final = 1024 * 1024  # bytes: the body together with names, types and values of its attributes
_MAX_ATTRIBUTES: Final = 10
_MAX_REJECTION: Final = 16 * 1024  # characters; an attribute is read by people
_OURS: Final = frozenset({"Reason", "Rejection"})  # in a record: from an earlier rejection, replayed
# Ceilings of the delays. With MAX_RECEIVE_COUNT 30 a message is retried for at least 11,265 s (29 delays, each at least
# half its ceiling), and for over two hours (7,215 s) if nine of those receives end in crashes instead.
_FIRST_DELAY: Final = 30
_LONGEST_DELAY: Final = 900


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
        """As DeadLetters.reject; attributes beyond SQS's ten move into `Rejection`.

        A message that is as long as SQS allows leaves little room: its errors are shortened, then left out, and one
        without room for even the code is sent as it came.
        """
        body = _body(record)
        try:
            self._client.send_message(
                QueueUrl=self._dlq_url,
                MessageBody=body,
                MessageAttributes=_with_reason(record, reasons, code, _MAX_MESSAGE - len(body.encode())),
            )
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


def backoff_seconds(attempts: int) -> int:
    """Seconds to wait after so many failed attempts: equal jitter, half to all of 30, 60, 120 ... 900 s.

    The half that is not random makes the sum of all delays outlast an outage, however unlucky a message is.
    """
    ceiling = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** min(max(attempts, 1) - 1, 10))
    # From the system: containers that Lambda restores from one snapshot would all have the same state of `random`.
    return random.SystemRandom().randint(ceiling // 2, ceiling)


def _body(record: Mapping[str, Any]) -> str:
    body = record.get("body")
    # A record without a body comes from no queue; SQS takes no empty one.
    return body if isinstance(body, str) and body else json.dumps(record, default=str)


def _with_reason(
    record: Mapping[str, Any], reasons: Sequence[Mapping[str, Any]], code: str, room: int
) -> dict[str, Any]:
    """The record's attributes with `Reason` and `Rejection`, in `room` bytes."""
    theirs = {name: value for name, value in (record.get("messageAttributes") or {}).items() if name not in _OURS}
    own = {name: value for name, value in ((name, _value(theirs[name])) for name in theirs) if value is not None}
    kept = dict(list(own.items())[: _MAX_ATTRIBUTES - len(_OURS)])
    moved = {name: value for name, value in theirs.items() if name not in kept}
    base: dict[str, Any] = {
        "message_id": record.get("messageId"),
        "rejected_at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        **({"attributes": moved} if moved else {}),
    }
    kept["Reason"] = _text(code)
    for errors in _ever_fewer(reasons):
        left_out = {"errors_left_out": len(reasons) - len(errors)} if len(errors) < len(reasons) else {}
        text = json.dumps({**base, "errors": list(errors), **left_out})
        full = {**kept, "Rejection": _text(text)}
        if _size(full) <= room and (len(text) <= _MAX_REJECTION or len(errors) <= 1):
            return full
    # Better no explanation than one that costs the sender's own attributes.
    return kept if _size(kept) <= room and not moved else own


def _ever_fewer(reasons: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Mapping[str, Any]]]:
    while reasons:
        yield reasons
        reasons = reasons[: len(reasons) // 2]
    yield ()


def _text(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}


def _size(attributes: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes that SQS counts: names, types and values."""
    parts = [part for name, value in attributes.items() for part in (name, *value.values())]
    return sum(len(part.encode() if isinstance(part, str) else part) for part in parts)


def _value(attribute: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = attribute.get("dataType", "")
    if kind.startswith("Binary"):
        try:
            return {"DataType": kind, "BinaryValue": base64.b64decode(attribute["binaryValue"], validate=True)}
        except (KeyError, TypeError, binascii.Error):
            return None
    text = attribute.get("stringValue")
    return {"DataType": kind, "StringValue": text} if kind and text else None
