"""A DLQ message as it was received, and the message that a replay sends for it.

If the handler rejected a message, it has the attributes `Reason` (a stable code) and `Rejection` (JSON); if SQS moved
it, after too many receives, it has neither. A replay sends body and attributes as the original sender wrote them:
`Reason` and `Rejection` are removed, and attributes that the handler moved into `Rejection`, because SQS allows ten
only or because the sender used one of these two names, become attributes again. As far as there is room, a replay adds
`ReplayCount`, `OriginalMessageId` (the id at the first delivery, however many replays followed), `FirstSentTimestamp`
(its time, which orders the versions of an inline ticket) and `ReplayedAt`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, Self

from handler.aws.sqs import (
    MAX_ATTRIBUTES,
    MAX_BYTES,
    MAX_ENTRIES,
    Attribute,
    QueueAttributes,
    attribute_bytes,
    attribute_from_event,
    system_attributes,
)
from handler.messages import FIRST_SENT

__all__ = ["NO_REASON", "DlqMessage", "Lineage", "Outgoing", "Unsendable", "batches", "prepare", "timestamp"]

NO_REASON: Final = "redriven"
"""The name of messages without a `Reason` in the output and in --reason: SQS moved them by its redrive policy."""

_HANDLER_ATTRIBUTES: Final = frozenset({"Reason", "Rejection"})
# In order of importance. ReplayedAt is left out first: SQS's SentTimestamp has the same information.
_REPLAY_ATTRIBUTES: Final = ("ReplayCount", FIRST_SENT, "OriginalMessageId", "ReplayedAt")


class Unsendable(Exception):
    """SQS would not accept the message; it stays in the DLQ."""


@dataclass(frozen=True)
class Lineage:
    """The id of a message at its first delivery, and how many times it has been replayed."""

    original_id: str
    replay_count: int


@dataclass(frozen=True)
class DlqMessage:
    """A received DLQ message; `system` holds SQS's own attributes, such as SentTimestamp."""

    message_id: str
    receipt: str
    body: str
    attributes: Mapping[str, Attribute]
    system: Mapping[str, str]

    @classmethod
    def from_boto3(cls, message: Mapping[str, Any]) -> Self:
        """Convert a message of boto3's receive_message."""
        return cls(
            message_id=message["MessageId"],
            receipt=message["ReceiptHandle"],
            body=message.get("Body", ""),
            attributes=message.get("MessageAttributes", {}),
            system=message.get("Attributes", {}),
        )

    @property
    def reason(self) -> str:
        """The handler's reason code, or NO_REASON."""
        return _text(self.attributes.get("Reason")) or NO_REASON

    @property
    def sent_at(self) -> int | None:
        """Milliseconds: the time of the rejection, or of the first delivery if SQS moved the message."""
        digits = str(self.system.get("SentTimestamp", ""))
        return int(digits) if re.fullmatch("[0-9]{1,18}", digits) else None

    @cached_property
    def rejection(self) -> Mapping[str, Any]:
        """The content of `Rejection`; empty if there is none, or if it is not a JSON object."""
        try:
            found = json.loads(_text(self.attributes.get("Rejection")) or "{}")
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def source_id(self) -> str:
        """The message's id in the queue where it failed."""
        found = self.rejection.get("message_id")
        return found if isinstance(found, str) and found else self.message_id

    @property
    def first_sent(self) -> int | None:
        """Milliseconds: when the message was sent first, however many replays followed."""
        known = _text(self._restored.get(FIRST_SENT)) or str(self.rejection.get("first_sent", ""))
        if re.fullmatch("[0-9]{1,18}", known):
            return int(known)
        # The handler's copy in the DLQ is a new message; one that SQS moved keeps its time.
        return None if "Rejection" in self.attributes or "Reason" in self.attributes else self.sent_at

    @cached_property
    def sender_attributes(self) -> Mapping[str, Attribute]:
        """The original sender's attributes, in the form that boto3 sends."""
        return {name: value for name, value in self._restored.items() if name not in _REPLAY_ATTRIBUTES}

    def lineage(self, recorded: Mapping[str, Lineage]) -> Lineage:
        """Read the lineage from the attributes, or from `recorded` if an earlier replay had no room for them."""
        known = recorded.get(self.source_id, Lineage(self.source_id, 0))
        count = _text(self._restored.get("ReplayCount"))
        return Lineage(
            _text(self._restored.get("OriginalMessageId")) or known.original_id,
            int(count) if re.fullmatch("[0-9]{1,9}", count) else known.replay_count,
        )

    @cached_property
    def _restored(self) -> Mapping[str, Attribute]:
        """All attributes except the handler's, with those that it moved into `Rejection`."""
        moved = self.rejection.get("attributes")
        found = {name: attribute_from_event(value) for name, value in moved.items()} if isinstance(moved, dict) else {}
        for name, value in self.attributes.items():
            if name in _HANDLER_ATTRIBUTES:
                continue
            # SQS returns empty lists next to the value, but does not accept them.
            found[name] = {key: value[key] for key in ("DataType", "StringValue", "BinaryValue") if key in value}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Outgoing:
    """A message that is ready to send: the entry of SendMessageBatch without its Id, and its size as SQS counts it."""

    message: DlqMessage
    lineage: Lineage
    entry: Mapping[str, Any]
    size: int
    left_out: tuple[str, ...]
    """The replay attributes that did not fit."""


def prepare(message: DlqMessage, lineage: Lineage, destination: QueueAttributes) -> Outgoing:
    """The message that a replay sends to `destination`. Raises Unsendable.

    Body, sender's attributes, MessageGroupId and AWSTraceHeader are kept. The sender's attributes have priority: the
    replay attributes are left out if there are already ten, or if they would exceed SQS's maximum message size.
    """
    attributes = dict(message.sender_attributes)
    if len(attributes) > MAX_ATTRIBUTES:
        raise Unsendable(f"it has {len(attributes)} attributes of its own, and SQS allows {MAX_ATTRIBUTES}")
    if not message.body:
        raise Unsendable("its body is empty, which SQS does not allow")
    count = lineage.replay_count + 1
    ours: dict[str, Attribute] = {
        "ReplayCount": {"DataType": "Number", "StringValue": str(count)},
        "OriginalMessageId": _string(lineage.original_id),
        "ReplayedAt": _string(timestamp()),
    }
    size = len(message.body.encode()) + attribute_bytes(attributes)
    if message.first_sent is not None:
        ours[FIRST_SENT] = {"DataType": "Number", "StringValue": str(message.first_sent)}
    for name in _REPLAY_ATTRIBUTES:
        if name not in ours:
            continue
        more = attribute_bytes({name: ours[name]})
        if len(attributes) < MAX_ATTRIBUTES and size + more <= destination.max_message_bytes:
            attributes[name], size = ours[name], size + more
    entry: dict[str, Any] = {"MessageBody": message.body}
    if attributes:
        entry["MessageAttributes"] = attributes
    entry |= system_attributes(message.system)
    if destination.is_fifo:
        # The original id would make SQS drop a replay within five minutes. This one is the same if the send is retried.
        entry["MessageDeduplicationId"] = f"{message.message_id}-replay-{count}"
    left_out = tuple(name for name in _REPLAY_ATTRIBUTES if name in ours and name not in attributes)
    return Outgoing(message, lineage, entry, size, left_out)


def batches(messages: Iterable[Outgoing], max_entries: int = MAX_ENTRIES) -> Iterator[list[Outgoing]]:
    """Cut messages into batches within SQS's limits: ten entries and 1 MiB."""
    batch: list[Outgoing] = []
    size = 0
    for message in messages:
        if batch and (len(batch) >= min(max_entries, MAX_ENTRIES) or size + message.size > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += message.size
    if batch:
        yield batch


def timestamp(moment: datetime | None = None) -> str:
    """A time, by default now, in UTC, as ISO 8601 with milliseconds and Z."""
    found = datetime.now(UTC) if moment is None else moment.astimezone(UTC)
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(attribute: Attribute | None) -> str:
    value = (attribute or {}).get("StringValue")
    return value if isinstance(value, str) else ""


def _string(value: str) -> Attribute:
    return {"DataType": "String", "StringValue": value}
