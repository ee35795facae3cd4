"""Parses the body of an SQS message into references to tickets.

A body is an S3 notification (of one or several objects), an S3 notification in an SNS envelope, an S3 event from
EventBridge, or a ticket. A byte order mark at its beginning is ignored, as at the beginning of an object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, TypeAlias
from urllib.parse import quote, unquote_plus

import pydantic_core

from handler.errors import MessageInvalid

__all__ = [
    "FIRST_SENT",
    "MAX_KEY_BYTES",
    "Ignored",
    "InlineTicket",
    "Reference",
    "StoredTicket",
    "first_sent",
    "inline_key",
    "is_reserved",
    "number_attribute",
    "references",
]

MAX_KEY_BYTES: Final = 1024
"""The longest key that S3 accepts, in UTF-8."""

FIRST_SENT: Final = "FirstSentTimestamp"
"""Attribute of a replayed message: the SentTimestamp of its first delivery."""

_MAX_RECORDS: Final = 100  # of a notification; S3 sends one. More would delay the other messages of a batch.
_MAX_ENVELOPES: Final = 2  # AWS itself never nests SNS envelopes
# Groups of S3 events that need no enrichment. Logs name only the group, because the rest comes from the sender.
_REMOVALS: Final = ("ObjectRemoved", "LifecycleExpiration", "ObjectRestore:Delete")
_OTHERS: Final = (
    "IntelligentTiering",
    "LifecycleTransition",
    "ObjectAcl",
    "ObjectRestore",
    "ObjectTagging",
    "ReducedRedundancyLostObject",
    "Replication",
)
# SNS sends these when a subscription begins or ends. There is nothing to enrich in them.
_SNS_CONFIRMATIONS: Final = frozenset({"SubscriptionConfirmation", "UnsubscribeConfirmation"})
_OF_CORRECTIONS: Final = re.compile(r"corrections/[0-9a-f]{64}/")
_OF_BATCHES: Final = re.compile(r"batches/[0-9]{4}-[0-9]{2}-[0-9]{2}/[0-9]{9}-[0-9a-f]{6}-")
_FROM_EVENTBRIDGE: Final = {"Object Created": "ObjectCreated:*", "Object Deleted": "ObjectRemoved:*"}


@dataclass(frozen=True, slots=True)
class StoredTicket:
    """A raw ticket in a bucket; `key` is decoded.

    `etag` and `event_time` (milliseconds) are those of the version that the notification is about, if it has them. They
    do not count in comparisons: whatever the version, the object as it is now is read.
    """

    bucket: str
    key: str
    etag: str = field(default="", compare=False)
    event_time: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class InlineTicket:
    """A raw ticket in the message itself: its JSON as sent."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Ignored:
    """Nothing to enrich, e.g. a removed object or S3's test event; `what` names it in the log."""

    what: str


Reference: TypeAlias = StoredTicket | InlineTicket | Ignored


def references(body: str) -> list[Reference]:
    """The tickets that a body refers to, at least one. Raises MessageInvalid, whose text never quotes the body."""
    return _from_text(body, _MAX_ENVELOPES)


def inline_key(ticket_id: str, created_at: int) -> str:
    """The key of an inline ticket's enriched object, which has no raw object to take its key from."""
    return f"inline/{quote(ticket_id, safe='')}/{created_at}.json"


def is_reserved(key: str) -> bool:
    """Whether an enriched ticket may not have this key: other objects of the same bucket have such keys.

    Only `tickets correct` makes those of the log of corrections (handler.tickets.corrections): corrections/, then a
    SHA-256. Only the function makes those of several tickets (handler.aws.batch_objects).
    """
    return _OF_CORRECTIONS.match(key) is not None or _OF_BATCHES.match(key) is not None


def number_attribute(record: Mapping[str, Any], name: str) -> int | None:
    """A numeric system attribute of a record (SentTimestamp, ApproximateReceiveCount); None if absent or invalid."""
    attributes = record.get("attributes")
    text = str(attributes.get(name, "")) if isinstance(attributes, Mapping) else ""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def first_sent(record: Mapping[str, Any]) -> int | None:
    """When a message was sent first, in milliseconds; None if neither SQS nor an attribute says so.

    A replay is a new message, whose SentTimestamp is that of the replay. Its attribute FirstSentTimestamp has the first
    one; a message that SQS redrove from the DLQ still has the `Rejection` that the handler gave it.
    """
    sent = number_attribute(record, "SentTimestamp")
    if sent is None:
        return None
    attributes = record.get("messageAttributes")
    texts = {
        name: attribute["stringValue"]
        for name, attribute in (attributes.items() if isinstance(attributes, Mapping) else ())
        if isinstance(attribute, Mapping) and isinstance(attribute.get("stringValue"), str)
    }
    earlier = number_attribute({"attributes": texts}, FIRST_SENT)
    if earlier is None and "Rejection" in texts:
        try:
            rejection = pydantic_core.from_json(texts["Rejection"])
        except ValueError:
            rejection = None
        if isinstance(rejection, Mapping):
            earlier = number_attribute({"attributes": rejection}, "first_sent")
    return sent if earlier is None else min(sent, earlier)


def _from_text(text: str, envelopes: int) -> list[Reference]:
    try:
        raw = text.removeprefix("\ufeff").encode()
        data = pydantic_core.from_json(raw, allow_inf_nan=True)
    except ValueError as error:
        raise MessageInvalid("the message is not JSON; send an S3 notification or a ticket") from error
    if not isinstance(data, Mapping):
        raise MessageInvalid("the message is JSON, but not an object; send an S3 notification or a ticket")
    # What has a ticket_id is a ticket, even if it also has fields of a notification.
    if "ticket_id" not in data:
        found = _from_envelope(data, envelopes)
        if found is not None:
            return found
    return [InlineTicket(raw)]


def _from_envelope(data: Mapping[str, Any], envelopes: int) -> list[Reference] | None:
    """What a message of S3, SNS or EventBridge refers to; None if it is none of them."""
    if data.get("Event") == "s3:TestEvent":
        return [Ignored("s3:TestEvent")]
    kind = data.get("Type")
    if isinstance(kind, str) and kind in _SNS_CONFIRMATIONS and isinstance(data.get("TopicArn"), str):
        return [Ignored(f"sns:{kind}")]
    if kind == "Notification" and isinstance(data.get("Message"), str):
        if not envelopes:
            raise MessageInvalid("the message is wrapped in too many SNS envelopes")
        return _from_text(data["Message"], envelopes - 1)
    if isinstance(data.get("Records"), list):
        return _from_records(data["Records"])
    if data.get("source") == "aws.s3" and "detail-type" in data:
        return [_from_eventbridge(data)]
    return None


def _from_records(records: list[Any]) -> list[Reference]:
    if not records:
        raise MessageInvalid("the notification has no records")
    if len(records) > _MAX_RECORDS:
        raise MessageInvalid(
            f"the notification has {len(records)} records, at most {_MAX_RECORDS} are processed together; "
            "send each object in a message of its own, as dlq-replay backfill does"
        )
    found: list[Reference] = []
    for number, record in enumerate(records):
        try:
            event, s3 = record["eventName"], record["s3"]
            bucket, stored = s3["bucket"]["name"], s3["object"]
            key, size = stored["key"], stored.get("size")
        except (AttributeError, KeyError, TypeError) as error:
            raise MessageInvalid(f"record {number} of the notification has no eventName, bucket or key") from error
        # Keys in S3's own notifications are URL-encoded, with + for a space; those of EventBridge are not.
        reference = _reference(event, bucket, key, size, encoded=True)
        if isinstance(reference, StoredTicket):
            reference = replace(reference, **_version(stored.get("eTag"), record.get("eventTime")))
        found.append(reference)
    # Of several notifications about one object the last one counts.
    return list({reference: reference for reference in found}.values())


def _version(etag: Any, event_time: Any) -> dict[str, Any]:
    """The fields of StoredTicket that say which version a notification is about; none if one of them is not there."""
    try:
        moment = datetime.fromisoformat(event_time)
    except (TypeError, ValueError):
        return {}
    if moment.tzinfo is None or not isinstance(etag, str):
        return {}
    return {"etag": etag, "event_time": round(moment.timestamp() * 1000)}


def _from_eventbridge(data: Mapping[str, Any]) -> Reference:
    try:
        kind, detail = data["detail-type"], data["detail"]
        bucket, stored = detail["bucket"]["name"], detail["object"]
        key, size = stored["key"], stored.get("size")
    except (AttributeError, KeyError, TypeError) as error:
        raise MessageInvalid("the EventBridge event has no detail with bucket and key") from error
    event = _FROM_EVENTBRIDGE.get(kind, "another") if isinstance(kind, str) else kind
    return _reference(event, bucket, key, size, encoded=False)


def _reference(event: Any, bucket: Any, key: Any, size: Any, *, encoded: bool) -> Reference:
    if not all(isinstance(part, str) and part for part in (event, bucket, key)):
        raise MessageInvalid("the notification's event name, bucket or key is not a string")
    kind = event.removeprefix("s3:")
    if kind.startswith("ObjectCreated"):
        key = unquote_plus(key) if encoded else key
        if key.endswith("/") and size == 0:
            return Ignored("folder marker")  # the S3 console stores an empty object when someone creates a folder
        return StoredTicket(bucket, key)
    for family in _REMOVALS:
        if kind.startswith(family):
            return Ignored(f"s3:{family}")
    name = next((f"s3:{family} events" for family in _OTHERS if kind.startswith(family)), "events of this kind")
    raise MessageInvalid(f"{name} are not for this queue; notify it of s3:ObjectCreated:* only")
