"""The adapter that sends rejected messages to the DLQ with their reason, defers failed ones, and deletes others.

Two attributes of a DLQ message say why it was rejected: `Reason` is a stable code, `Rejection` a JSON object with the
errors and their stage, the original message id, the time, and when the message was sent first (`first_sent`, in
milliseconds). The body, the sender's attributes, MessageGroupId and AWSTraceHeader are kept; a sender's own attribute
`Reason` or `Rejection` moves into our `Rejection`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from handler.aws.sqs import (
    MAX_ATTRIBUTES,
    MAX_BYTES,
    Attribute,
    Queue,
    attribute_bytes,
    attribute_from_event,
    system_attributes,
    tens,
)
from handler.errors import MessageError, ServiceFailed, error_codes
from handler.messages import first_sent
from handler.settings import Lane

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

__all__ = ["SqsDeadLetters"]

_MAX_REJECTION: Final = 16 * 1024  # characters; an attribute is read by people
_OURS: Final = frozenset({"Reason", "Rejection"})


class SqsDeadLetters:
    """DeadLetters over SQS, for the queues in QUEUE_URL.

    A record belongs to the queue in its `eventSourceARN`. If there is only one queue, all records are of that queue.
    """

    def __init__(self, client: SQSClient, lanes: Sequence[Lane]) -> None:
        self._queues = [(Queue(client, lane.queue_url), Queue(client, lane.dlq_url)) for lane in lanes]
        # An ARN ends with :account:name, a URL with /account/name.
        self._by_name = {tuple(queue.url.split("/")[-2:]): (queue, dlq) for queue, dlq in self._queues}

    def reject(self, record: Mapping[str, Any], reasons: Sequence[Mapping[str, Any]], code: str) -> None:
        """As DeadLetters.reject; attributes beyond SQS's ten move into `Rejection`.

        Raises ServiceFailed for a record of a queue that is not in QUEUE_URL: the message stays there.
        If the message is close to SQS's size limit, some errors, then all errors are left out; if not even the code
        fits, the message is sent unchanged.
        """
        body = _body(record)
        attributes = _with_reason(record, reasons, code, MAX_BYTES - len(body.encode()))
        _, dlq = self._queues_of(record)
        dlq.send_one(body, attributes, system_attributes(record.get("attributes") or {}))

    def defer(self, record: Mapping[str, Any], seconds: int) -> None:
        """As DeadLetters.defer. If the call fails, the message is retried after the queue's visibility timeout."""
        try:
            queue, _ = self._queues_of(record)
            queue.change_visibility_one(record["receiptHandle"], seconds)
        except (MessageError, KeyError):
            return

    def delete(self, records: Sequence[Mapping[str, Any]]) -> list[bool]:
        """As DeadLetters.delete."""
        deleted: list[bool] = []
        for arn, same_queue in groupby(records, key=lambda record: record.get("eventSourceARN")):
            for part in tens(same_queue):
                try:
                    queue, _ = self._queues_of({"eventSourceARN": arn})
                    deleted += queue.delete([record["receiptHandle"] for record in part])
                except (MessageError, KeyError):
                    deleted += [False] * len(part)
        return deleted

    def _queues_of(self, record: Mapping[str, Any]) -> tuple[Queue, Queue]:
        """The queue of a record and its DLQ. Raises ServiceFailed: the setting can be corrected, so it is retried."""
        if len(self._queues) == 1:
            return self._queues[0]
        arn = str(record.get("eventSourceARN"))
        try:
            return self._by_name[tuple(arn.split(":")[-2:])]
        except KeyError:
            raise ServiceFailed(f"the message is from {arn}, which is not in QUEUE_URL; add it") from None


def _written_by_us(reason: object, rejection: object) -> frozenset[str]:
    """Which of the attributes `Reason` and `Rejection`, given as texts, the handler wrote; others are the sender's.

    A message that was redriven still has those of its earlier rejection.
    """
    try:
        found = json.loads(rejection) if isinstance(rejection, str) else None
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and "message_id" in found:
        return _OURS
    # A message close to the size limit gets a `Reason` alone.
    return frozenset({"Reason"}) if rejection is None and reason in error_codes() else frozenset()


def _body(record: Mapping[str, Any]) -> str:
    body = record.get("body")
    # SQS never delivers a record without a body, and does not accept an empty one.
    return body if isinstance(body, str) and body else json.dumps(record, default=str)


def _with_reason(
    record: Mapping[str, Any], reasons: Sequence[Mapping[str, Any]], code: str, room: int
) -> dict[str, Any]:
    """The record's attributes with `Reason` and `Rejection`, in `room` bytes."""
    given = record.get("messageAttributes") or {}
    earlier = _written_by_us(_string_value(given.get("Reason")), _string_value(given.get("Rejection")))
    theirs = {name: value for name, value in given.items() if name not in earlier}
    own = {
        name: value
        for name, value in ((name, attribute_from_event(theirs[name])) for name in theirs)
        if value is not None
    }
    free = [(name, value) for name, value in own.items() if name not in _OURS]
    kept: dict[str, Attribute] = dict(free[: MAX_ATTRIBUTES - len(_OURS)])
    moved = {name: value for name, value in theirs.items() if name not in kept}
    sent = first_sent(record)
    base: dict[str, Any] = {
        "message_id": record.get("messageId"),
        **({} if sent is None else {"first_sent": sent}),
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


def _string_value(attribute: Any) -> str | None:
    value = attribute.get("stringValue") if isinstance(attribute, Mapping) else None
    return value if isinstance(value, str) else None


def _text(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}
