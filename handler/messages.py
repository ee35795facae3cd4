"""From an SQS record to the tickets that it speaks of.

A body may be an S3 notification (one or several objects), the same inside an SNS envelope, an EventBridge event of S3,
or a ticket itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import quote, unquote_plus

import pydantic_core

from handler.errors import MessageInvalid

__all__ = ["Deleted", "InlineTicket", "Reference", "StoredTicket", "inline_key", "references"]

_MAX_ENVELOPES: Final = 2  # SNS in SNS is nothing that AWS makes


@dataclass(frozen=True, slots=True)
class StoredTicket:
    """A raw ticket in a bucket; `key` is decoded."""

    bucket: str
    key: str


@dataclass(frozen=True, slots=True)
class InlineTicket:
    """A raw ticket that came in the message itself, as the JSON text that was sent."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Deleted:
    """Nothing to enrich: an object was removed, or S3 only tests the connection; `what` names it for the log."""

    what: str


Reference: TypeAlias = StoredTicket | InlineTicket | Deleted


def references(body: str) -> list[Reference]:
    """The tickets that a message's body refers to, at least one. Raises MessageInvalid, never with the body's text."""
    return _from_text(body, _MAX_ENVELOPES)


def inline_key(ticket_id: str, created_at: int) -> str:
    """The key that the enriched object of an inline ticket has: it mirrors no raw one."""
    return f"inline/{quote(ticket_id, safe='')}/{created_at}.json"


def _from_text(text: str, envelopes: int) -> list[Reference]:
    try:
        data = pydantic_core.from_json(text, allow_inf_nan=True)
    except ValueError as error:
        raise MessageInvalid("the message is not JSON; send an S3 notification or a ticket") from error
    if not isinstance(data, Mapping):
        raise MessageInvalid("the message is JSON, but not an object; send an S3 notification or a ticket")
    if data.get("Event") == "s3:TestEvent":
        return [Deleted("s3:TestEvent")]
    if data.get("Type") == "Notification" and isinstance(data.get("Message"), str):
        if not envelopes:
            raise MessageInvalid("the message is wrapped in too many SNS envelopes")
        return _from_text(data["Message"], envelopes - 1)
    if isinstance(data.get("Records"), list) and "ticket_id" not in data:
        return _from_records(data["Records"])
    if data.get("source") == "aws.s3" and "detail-type" in data:
        return [_from_eventbridge(data)]
    return [InlineTicket(text.encode("utf-8", "surrogatepass"))]


def _from_records(records: list[Any]) -> list[Reference]:
    if not records:
        raise MessageInvalid("the notification has no records")
    found: list[Reference] = []
    for number, record in enumerate(records):
        try:
            event, s3 = record["eventName"], record["s3"]
            bucket, key = s3["bucket"]["name"], s3["object"]["key"]
        except (KeyError, TypeError, IndexError) as error:
            raise MessageInvalid(f"record {number} of the notification has no eventName, bucket or key") from error
        # Keys in S3's own notifications are URL-encoded, with + for a space; those of EventBridge are not.
        found.append(_reference(event, bucket, key, encoded=True))
    return list(dict.fromkeys(found))


def _from_eventbridge(data: Mapping[str, Any]) -> Reference:
    try:
        kind, detail = data["detail-type"], data["detail"]
        bucket, key = detail["bucket"]["name"], detail["object"]["key"]
    except (KeyError, TypeError, IndexError) as error:
        raise MessageInvalid("the EventBridge event has no detail with bucket and key") from error
    events = {"Object Created": "ObjectCreated:*", "Object Deleted": "ObjectRemoved:*"}
    return _reference(events.get(kind, kind), bucket, key, encoded=False)


def _reference(event: Any, bucket: Any, key: Any, *, encoded: bool) -> Reference:
    if not all(isinstance(part, str) and part for part in (event, bucket, key)):
        raise MessageInvalid("the notification's event name, bucket or key is not a text")
    kind = event.removeprefix("s3:")
    if kind.startswith("ObjectCreated"):
        return StoredTicket(bucket, unquote_plus(key) if encoded else key)
    if kind.startswith(("ObjectRemoved", "LifecycleExpiration", "ObjectRestore:Delete")):
        return Deleted(f"s3:{kind}")
    raise MessageInvalid(f"events of this kind are not for this queue: {json.dumps(kind[:60])}")
