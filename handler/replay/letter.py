"""A message of the dead-letter queue, and what it becomes when it is sent again.

The handler's `Reason` and `Rejection` are taken off, and what it had to move into `Rejection` becomes attributes again.
Three marks are added: `ReplayCount`, `OriginalMessageId` (the first one's, however often it is replayed), `ReplayedAt`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, Self

__all__ = ["MOST_BYTES", "REDRIVEN", "Ancestor", "Letter", "LetterUnsendable", "Parcel", "batches", "pack", "timestamp"]

REDRIVEN: Final = "redriven"  # the group of those without a reason: SQS itself moved them
MOST_BYTES: Final = 1024 * 1024  # of a message with its attributes, and of a whole batch
_MOST_ENTRIES: Final = 10
_MOST_ATTRIBUTES: Final = 10
_EXPLANATIONS: Final = frozenset({"Reason", "Rejection"})
# In the order in which they get the room there is. The time goes without first: SQS's own SentTimestamp says the same.
_MARKS: Final = ("ReplayCount", "OriginalMessageId", "ReplayedAt")

Attribute = Mapping[str, Any]
"""One attribute as boto3 has it: DataType with StringValue or BinaryValue."""


class LetterUnsendable(Exception):
    """SQS would not take this message; it stays where it is."""


@dataclass(frozen=True)
class Ancestor:
    """What an earlier run sent without marks, for want of room: which message it was first, and its count then."""

    original_id: str
    replay_count: int


@dataclass(frozen=True)
class Letter:
    """A message as it was received; `system` holds SQS's own attributes."""

    message_id: str
    receipt: str
    body: str
    attributes: Mapping[str, Attribute]
    system: Mapping[str, str]

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Self:
        """The letter in an entry of boto3's receive_message."""
        return cls(
            message_id=message["MessageId"],
            receipt=message["ReceiptHandle"],
            body=message.get("Body", ""),
            attributes=message.get("MessageAttributes", {}),
            system=message.get("Attributes", {}),
        )

    @property
    def reason(self) -> str:
        """The handler's code, or REDRIVEN."""
        return _text(self.attributes.get("Reason")) or REDRIVEN

    @property
    def sent_at(self) -> int | None:
        """Milliseconds: when it was rejected; a redriven one keeps the time at which it was first sent."""
        digits = str(self.system.get("SentTimestamp", ""))
        return int(digits) if re.fullmatch("[0-9]{1,18}", digits) else None

    @cached_property
    def rejection(self) -> Mapping[str, Any]:
        """The handler's explanation; empty where there is none that can be read."""
        try:
            found = json.loads(_text(self.attributes.get("Rejection")) or "{}")
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def own(self) -> Mapping[str, Attribute]:
        """The sender's attributes, as boto3 sends them, and nothing of the handler's or of ours."""
        return {name: value for name, value in self._unexplained.items() if name not in _MARKS}

    @property
    def source_id(self) -> str:
        """The id that the message had in the queue where it failed."""
        found = self.rejection.get("message_id")
        return found if isinstance(found, str) and found else self.message_id

    def ancestor(self, unmarked: Mapping[str, Ancestor]) -> Ancestor:
        """Where it comes from: by its marks, else by what is known of those that were sent without."""
        known = unmarked.get(self.source_id)
        count = _text(self._unexplained.get("ReplayCount"))
        original = _text(self._unexplained.get("OriginalMessageId"))
        return Ancestor(
            original or (known.original_id if known else self.source_id),
            int(count) if re.fullmatch("[0-9]{1,9}", count) else (known.replay_count if known else 0),
        )

    @cached_property
    def _unexplained(self) -> Mapping[str, Attribute]:
        moved = self.rejection.get("attributes")
        back = {name: _restored(value) for name, value in moved.items()} if isinstance(moved, dict) else {}
        there = {name: _sendable(value) for name, value in self.attributes.items()}
        found = {**{name: value for name, value in back.items() if value is not None}, **there}
        return {name: value for name, value in found.items() if name not in _EXPLANATIONS}


@dataclass(frozen=True)
class Parcel:
    """A letter made ready: `entry` is that of SendMessageBatch without its Id, `size` in bytes as SQS counts them."""

    letter: Letter
    entry: Mapping[str, Any]
    size: int
    ancestor: Ancestor
    left_out: tuple[str, ...]

    @property
    def replay_count(self) -> int:
        """How often it has been replayed, this time included."""
        return self.ancestor.replay_count + 1


def pack(letter: Letter, ancestor: Ancestor, *, fifo: bool, most_bytes: int = MOST_BYTES) -> Parcel:
    """Makes a letter ready for a queue. Raises LetterUnsendable.

    The sender's attributes go first: where ten of them, or a body of the largest size, leave no room, marks are left
    out and named.
    """
    if len(letter.own) > _MOST_ATTRIBUTES:
        raise LetterUnsendable(f"it has {len(letter.own)} attributes of its own, and SQS takes {_MOST_ATTRIBUTES}")
    if not letter.body:
        raise LetterUnsendable("its body is empty, and SQS takes no such message")
    count = ancestor.replay_count + 1
    marks: dict[str, Attribute] = {
        "ReplayCount": {"DataType": "Number", "StringValue": str(count)},
        "OriginalMessageId": {"DataType": "String", "StringValue": ancestor.original_id},
        "ReplayedAt": {"DataType": "String", "StringValue": timestamp()},
    }
    attributes, size = dict(letter.own), len(letter.body.encode()) + _size(letter.own)
    for name in _MARKS:
        more = _size({name: marks[name]})
        if len(attributes) < _MOST_ATTRIBUTES and size + more <= most_bytes:
            attributes[name], size = marks[name], size + more
    entry = {"MessageBody": letter.body, **({"MessageAttributes": attributes} if attributes else {})}
    if "AWSTraceHeader" in letter.system:
        trace = {"DataType": "String", "StringValue": letter.system["AWSTraceHeader"]}
        entry["MessageSystemAttributes"] = {"AWSTraceHeader": trace}
    if "MessageGroupId" in letter.system:  # a FIFO queue's order, or a standard queue's fairness
        entry["MessageGroupId"] = letter.system["MessageGroupId"]
    if fifo:
        # Not the original's, which SQS would drop within five minutes. But the same at a second try of this replay.
        entry["MessageDeduplicationId"] = f"{letter.message_id}-replay-{count}"
    return Parcel(letter, entry, size, ancestor, tuple(name for name in _MARKS if name not in attributes))


def batches(parcels: Iterable[Parcel], most_entries: int = _MOST_ENTRIES) -> Iterator[list[Parcel]]:
    """Cuts parcels into batches that SQS takes: ten entries at most, and 1 MiB."""
    batch: list[Parcel] = []
    for parcel in parcels:
        if batch and (
            len(batch) >= min(most_entries, _MOST_ENTRIES)
            or parcel.size + sum(other.size for other in batch) > MOST_BYTES
        ):
            yield batch
            batch = []
        batch.append(parcel)
    if batch:
        yield batch


def timestamp(moment: datetime | None = None) -> str:
    """A moment, by default now, in UTC, as ISO 8601 with milliseconds and Z."""
    found = datetime.now(UTC) if moment is None else moment.astimezone(UTC)
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(attribute: Attribute | None) -> str:
    value = (attribute or {}).get("StringValue")
    return value if isinstance(value, str) else ""


def _sendable(attribute: Attribute) -> Attribute:
    """What SQS gave, without the empty lists that it adds and refuses to take."""
    return {name: attribute[name] for name in ("DataType", "StringValue", "BinaryValue") if name in attribute}


def _restored(moved: Any) -> Attribute | None:
    """An attribute from the form that it has in a Lambda event; None for what never was one of SQS's."""
    kind = moved.get("dataType") if isinstance(moved, dict) else None
    if not isinstance(kind, str):
        return None
    if not kind.startswith("Binary"):
        text = moved.get("stringValue")
        return {"DataType": kind, "StringValue": text} if isinstance(text, str) and text else None
    try:
        return {"DataType": kind, "BinaryValue": base64.b64decode(moved["binaryValue"], validate=True)}
    except (KeyError, TypeError, binascii.Error):
        return None


def _size(attributes: Mapping[str, Attribute]) -> int:
    parts = [part for name, value in attributes.items() for part in (name, *value.values())]
    return sum(len(part.encode() if isinstance(part, str) else part) for part in parts)
