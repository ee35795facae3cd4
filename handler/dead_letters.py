"""Sending a message to the dead-letter queue with its reason, and putting off one that failed.

What lies in that queue says why: the attribute `Reason` is a stable code, `Rejection` a JSON object with the errors,
the stage, the original message's id and the time. The body and the sender's own attributes stay as they were.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from handler.aws.sqs import MAX_ATTRIBUTES, MAX_BYTES, Attribute, Queue, attribute_bytes, attribute_from_event
from handler.errors import MessageError

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

__all__ = ["DeadLetters", "SqsDeadLetters", "backoff_seconds"]

_MAX_REJECTION: Final = 16 * 1024  # characters; an attribute is read by people
_OURS: Final = frozenset({"Reason", "Rejection"})  # in a record: from an earlier rejection, replayed
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
        self._queue = Queue(client, queue_url)
        self._dlq = Queue(client, dlq_url)

    def reject(self, record: Mapping[str, Any], reasons: Sequence[Mapping[str, Any]], code: str) -> None:
        """As DeadLetters.reject; attributes beyond SQS's ten move into `Rejection`.

        A message that is as long as SQS allows leaves little room: its errors are shortened, then left out, and one
        without room for even the code is sent as it came.
        """
        body = _body(record)
        self._dlq.send_one(body, _with_reason(record, reasons, code, MAX_BYTES - len(body.encode())))

    def put_off(self, record: Mapping[str, Any], seconds: int) -> None:
        """As DeadLetters.put_off. Where it fails, the queue's own visibility timeout does the same, only later."""
        try:
            self._queue.change_visibility_one(record["receiptHandle"], seconds)
        except (MessageError, KeyError):
            return


def backoff_seconds(receive_count: int) -> int:
    """How long a failed message waits, by how often it was received: full jitter up to 2, 4, 8 ... 900 s."""
    ceiling = min(_MAX_VISIBILITY, 2 ** min(max(receive_count, 1), 10))
    # From the system: containers that Lambda restores from one snapshot would all have the same state of `random`.
    return random.SystemRandom().randint(1, ceiling)


def _body(record: Mapping[str, Any]) -> str:
    body = record.get("body")
    # A record without a body comes from no queue; SQS takes no empty one.
    return body if isinstance(body, str) and body else json.dumps(record, default=str)


def _with_reason(
    record: Mapping[str, Any], reasons: Sequence[Mapping[str, Any]], code: str, room: int
) -> dict[str, Any]:
    """The record's attributes with `Reason` and `Rejection`, in `room` bytes."""
    theirs = {name: value for name, value in (record.get("messageAttributes") or {}).items() if name not in _OURS}
    own = {
        name: value
        for name, value in ((name, attribute_from_event(theirs[name])) for name in theirs)
        if value is not None
    }
    kept: dict[str, Attribute] = dict(list(own.items())[: MAX_ATTRIBUTES - len(_OURS)])
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
        if attribute_bytes(full) <= room and (len(text) <= _MAX_REJECTION or len(errors) <= 1):
            return full
    # Better no explanation than one that costs the sender's own attributes.
    return kept if attribute_bytes(kept) <= room and not moved else own


def _ever_fewer(reasons: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Mapping[str, Any]]]:
    while reasons:
        yield reasons
        reasons = reasons[: len(reasons) // 2]
    yield ()


def _text(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}
