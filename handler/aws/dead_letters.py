"""The adapter that sends rejected messages to the DLQ with their reason, and defers failed ones.

Two attributes of a DLQ message say why it was rejected: `Reason` is a stable code, `Rejection` a JSON object with the
errors and their stage, the original message id and the time. The body and the sender's attributes are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from handler.aws.sqs import MAX_ATTRIBUTES, MAX_BYTES, Attribute, Queue, attribute_bytes, attribute_from_event
from handler.errors import MessageError

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

__all__ = ["SqsDeadLetters"]

_MAX_REJECTION: Final = 16 * 1024  # characters; an attribute is read by people
_OURS: Final = frozenset({"Reason", "Rejection"})  # a redriven record still has those of its earlier rejection


class SqsDeadLetters:
    """DeadLetters over SQS."""

    def __init__(self, client: SQSClient, queue_url: str, dlq_url: str) -> None:
        self._queue = Queue(client, queue_url)
        self._dlq = Queue(client, dlq_url)

    def reject(self, record: Mapping[str, Any], reasons: Sequence[Mapping[str, Any]], code: str) -> None:
        """As DeadLetters.reject; attributes beyond SQS's ten move into `Rejection`.

        If the message is close to SQS's size limit, some errors, then all errors are left out; if not even the code
        fits, the message is sent unchanged.
        """
        body = _body(record)
        self._dlq.send_one(body, _with_reason(record, reasons, code, MAX_BYTES - len(body.encode())))

    def defer(self, record: Mapping[str, Any], seconds: int) -> None:
        """As DeadLetters.defer. If the call fails, the message is retried after the queue's visibility timeout."""
        try:
            self._queue.change_visibility_one(record["receiptHandle"], seconds)
        except (MessageError, KeyError):
            return


def _body(record: Mapping[str, Any]) -> str:
    body = record.get("body")
    # SQS never delivers a record without a body, and does not accept an empty one.
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
    for errors in _fewer_and_fewer(reasons):
        left_out = {"errors_left_out": len(reasons) - len(errors)} if len(errors) < len(reasons) else {}
        text = json.dumps({**base, "errors": list(errors), **left_out})
        full = {**kept, "Rejection": _text(text)}
        if attribute_bytes(full) <= room and (len(text) <= _MAX_REJECTION or len(errors) <= 1):
            return full
    # The sender's own attributes matter more than the explanation.
    return kept if attribute_bytes(kept) <= room and not moved else own


def _fewer_and_fewer(reasons: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Mapping[str, Any]]]:
    while reasons:
        yield reasons
        reasons = reasons[: len(reasons) // 2]
    yield ()


def _text(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}
