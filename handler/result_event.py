"""The result event: what others are told about a committed ticket. It has ids and labels, never text of a customer.

The item in the table carries the parts of the event that it would not have otherwise (`event_attribute`). Two senders
build the same event: on AWS, the EventBridge Pipe of template.yaml, from the table's stream; elsewhere, the worker's
webhook, from an outbox (handler.worker.webhook). docs/events.md explains both.

Numbers are strings of digits, because the stream has them as strings and a pipe cannot convert them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from handler.ports import Known, Placed, Write

__all__ = [
    "Change",
    "ResultEvent",
    "batch_place",
    "batch_text",
    "change_by",
    "event_attribute",
    "event_of_correction",
    "event_of_item",
    "result_event_schema",
]

Change = Literal["new", "updated", "enriched_again", "corrected"]
Text = Annotated[str, Field(min_length=1)]
Decimal = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?$")]

_UNKNOWN_LANGUAGE: Final = "und"  # the code of ISO 639-2 for an undetermined language
_REASONS: Final = ("language", "intent", "urgency", "sentiment")


class _Model(BaseModel):
    # Built at the first use: without an outbox the function never needs them, and its start should not pay for them.
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, protected_namespaces=(), defer_build=True
    )


class Confidence(_Model):
    """The confidence per task, from 0 to 1; 1 for a label that the sender or a person decided."""

    intent: Decimal
    urgency: Decimal
    sentiment: Decimal


class ReviewReasons(_Model):
    """Why a person should look at the ticket: its language is unknown to the models, or a task is uncertain."""

    language: bool
    intent: bool
    urgency: bool
    sentiment: bool


class BatchObject(_Model):
    """The place of an enriched ticket in an object that holds several: a range of bytes, for a ranged read."""

    key: Text
    offset: Annotated[str, Field(pattern=r"^[0-9]+$", description="of the ticket's first byte")]
    length: Annotated[str, Field(pattern=r"^[0-9]+$", description="in bytes")]


class ResultEvent(_Model):
    """A ticket was committed: its labels are in the table, and the enriched ticket is in S3."""

    schema_version: Literal["1"] = "1"
    event_id: Annotated[
        str, Field(pattern=r"^[0-9a-f]{32}$", description="one per commit; a repeated event has the same id")
    ]
    change: Annotated[
        Change,
        Field(
            description="new: the first result of this ticket; updated: the ticket's own content changed; "
            "enriched_again: the same content, for example by a new model bundle; corrected: a person corrected a label"
        ),
    ]
    ticket_id: Text
    created_at: Annotated[str, Field(pattern=r"^[0-9]+$", description="Unix time in seconds, of the ticket")]
    intent: Text
    urgency: Literal["critical", "high", "medium", "low"]
    sentiment: Literal["POSITIVE", "NEGATIVE", "NEUTRAL"]
    confidence: Confidence
    needs_review: bool
    review_reasons: ReviewReasons
    language: Annotated[
        str, Field(pattern=r"^([a-z]{2}|und)$", description="ISO 639-1; und if the text is too short to tell")
    ]
    s3_key: Annotated[Text, Field(description="the enriched ticket's key in the enriched bucket")]
    s3_version_id: Annotated[Text, Field(description="its version")]
    model_version: Text
    processed_at: Annotated[Text, Field(description="when the ticket was enriched: UTC, ISO 8601")]
    s3_batch: Annotated[
        BatchObject | None,
        Field(
            description="only with ENRICHED_OBJECTS=batch, and only from the webhook: there is no object s3_key, the "
            "ticket is in this one; read its current version"
        ),
    ] = None


def change_by(known: Known | None, write: Write) -> Change:
    """What a write changes, if `known` is the state that it replaces."""
    if known is None:
        return "new"
    return "updated" if known.content_sha256 != write.content_sha256 else "enriched_again"


def event_attribute(write: Write, version_id: str, change: Change, placed: Placed | None = None) -> dict[str, Any]:
    """The attribute `event` of an item, in DynamoDB's JSON. All of its members always exist, as a pipe requires."""
    ticket, found = write.ticket, write.enrichment
    key = write.key if placed is None else placed.key
    commit = (ticket.ticket_id, ticket.created_at, key, version_id, change)
    return _attribute(commit, change, found.language, found.review_reasons)


def event_of_correction(item: Mapping[str, Any]) -> dict[str, Any]:
    """The attribute `event` of an item whose labels a person has just corrected, both in DynamoDB's JSON."""
    names = [item[name]["S"] for name in ("s3_key", "s3_version_id")]
    times = sorted((task, each["M"]["at"]["S"]) for task, each in item["corrections"]["M"].items())
    commit = (item["ticket_id"]["S"], int(item["created_at"]["N"]), *names, "corrected", times)
    reasons = [reason["S"] for reason in item["review_reasons"]["L"]]
    return _attribute(commit, "corrected", item.get("language", {}).get("S"), reasons)


def _attribute(commit: Sequence[Any], change: Change, language: str | None, reasons: Collection[str]) -> dict[str, Any]:
    return {
        "M": {
            "id": {"S": hashlib.sha256(json.dumps(commit).encode()).hexdigest()[:32]},
            "change": {"S": change},
            "language": {"S": language or _UNKNOWN_LANGUAGE},
            "review_reasons": {"M": {name: {"BOOL": name in reasons} for name in _REASONS}},
        }
    }


def event_of_item(item: Mapping[str, Any]) -> ResultEvent:
    """The event of an item in DynamoDB's JSON: the same as the pipe's InputTemplate in template.yaml."""
    event = item["event"]["M"]
    return ResultEvent(
        event_id=event["id"]["S"],
        change=event["change"]["S"],
        ticket_id=item["ticket_id"]["S"],
        created_at=item["created_at"]["N"],
        intent=item["intent"]["S"],
        urgency=item["urgency"]["S"],
        sentiment=item["sentiment"]["S"],
        confidence=Confidence(**{name: item[f"{name}_confidence"]["N"] for name in Confidence.model_fields}),
        needs_review=item["needs_review"]["BOOL"],
        review_reasons=ReviewReasons(**{name: value["BOOL"] for name, value in event["review_reasons"]["M"].items()}),
        language=event["language"]["S"],
        s3_key=item["s3_key"]["S"],
        s3_version_id=item["s3_version_id"]["S"],
        model_version=item["model_version"]["S"],
        processed_at=item["processed_at"]["S"],
        s3_batch=_batch_object(item),
    )


def _batch_object(item: Mapping[str, Any]) -> BatchObject | None:
    place = batch_place(item.get("s3_batch", {}).get("S"))
    return None if place is None else BatchObject(key=place[0], offset=str(place[1]), length=str(place[2]))


def batch_text(key: str, offset: int, length: int) -> str:
    """An item's attribute `s3_batch`, as `batch_place` reads it."""
    return f"{key}:{offset}+{length}"


def batch_place(text: str | None) -> tuple[str, int, int] | None:
    """The key, the offset and the length in an item's attribute `s3_batch`; None without one.

    It is one string, KEY:OFFSET+LENGTH, because members of a map would need more bytes of the item.
    """
    if text is None:
        return None
    key, _, numbers = text.rpartition(":")
    offset, _, length = numbers.partition("+")
    return key, int(offset), int(length)


def result_event_schema() -> str:
    """The JSON Schema of the event, which is committed as events/schemas/result_event.json."""
    return json.dumps(ResultEvent.model_json_schema(), indent=2, sort_keys=True) + "\n"
