"""Raw and enriched tickets.

Validation is strict where a wrong value would be stored permanently (`ticket_id`, `created_at`) and lenient where
strictness would only lose a ticket (an unknown priority counts as absent). Unknown fields are kept as JSON text: their
numbers keep all digits, and they take no more memory than their text.
"""

from __future__ import annotations

import codecs
import json
import math
import threading
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from enrichment.errors import TicketInvalid
from enrichment.json_members import join, member, other_members

__all__ = [
    "MAX_CREATED_AT",
    "SCHEMA_VERSION",
    "EnrichedTicket",
    "EnrichmentData",
    "RawTicket",
    "ShadowLabels",
    "TicketMetadata",
    "enriched_json",
    "enriched_ticket_schema",
    "parse_ticket",
    "ticket_from_object",
]

SCHEMA_VERSION: Final = 1
MAX_CREATED_AT: Final = 253_402_300_799
"""The end of the year 9999 in Unix time, the last moment that datetime, SQL and ISO 8601 can express."""

_MAX_BITS: Final = 1024  # of an integer: the largest double has as many
_MAX_DEPTH: Final = 200  # the JSON parser's limit; the serializer's is only slightly higher
# One ticket is parsed at a time: its parsed form may need sixty times the memory of its JSON, until it is validated.
_PARSING: Final = threading.Lock()
_PRIORITIES: Final = ("critical", "high", "medium", "low")

Priority = Literal["critical", "high", "medium", "low"]
Sentiment = Literal["POSITIVE", "NEGATIVE", "NEUTRAL"]
Identifier = Annotated[str, Field(min_length=1, max_length=256)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class _Model(BaseModel):
    # Errors are written to logs and message attributes, so they must never contain customer text.
    model_config = ConfigDict(hide_input_in_errors=True, extra="allow")

    # The unknown fields of a ticket that was read from JSON, as text. Those of a decoded object are in model_extra.
    _unread: bytes = PrivateAttr(default=b"")


class TicketMetadata(_Model):
    """Where a ticket came from. All fields are optional; unknown ones are kept."""

    source: str = "unknown"
    language: str | None = None
    tags: list[str] = Field(default_factory=list)

    @field_validator("source", "language", "tags", mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any, info: Any) -> Any:
        if value is not None:
            return value
        return cls.model_fields[info.field_name].get_default(call_default_factory=True)


class RawTicket(_Model):
    """A ticket as stored in the raw bucket."""

    ticket_id: Identifier
    subject: str
    body: str
    created_at: Annotated[int, Field(strict=True, ge=0, le=MAX_CREATED_AT, description="Unix time in seconds")]
    customer_id: Identifier
    priority: Priority | None = None
    metadata: TicketMetadata = Field(default_factory=TicketMetadata)

    @field_validator("subject", "body", mode="before")
    @classmethod
    def _null_is_empty(cls, value: Any) -> Any:
        return "" if value is None else value

    @field_validator("created_at", mode="before")
    @classmethod
    def _milliseconds_get_a_hint(cls, value: Any) -> Any:
        if isinstance(value, int) and MAX_CREATED_AT < value <= 1000 * MAX_CREATED_AT:
            raise PydanticCustomError(
                "milliseconds",
                "Input should be less than or equal to {limit}; it looks like milliseconds, and seconds are expected",
                {"limit": MAX_CREATED_AT},
            )
        return value

    @field_validator("priority", mode="before")
    @classmethod
    def _known_priority_or_none(cls, value: Any) -> str | None:
        if isinstance(value, str) and value.strip().lower() in _PRIORITIES:
            return value.strip().lower()
        return None

    @field_validator("metadata", mode="before")
    @classmethod
    def _null_metadata_is_absent(cls, value: Any) -> Any:
        return {} if value is None else value


class ShadowLabels(_Model):
    """The labels that a second bundle gives the ticket, and the tasks in which they differ from the ticket's labels."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, protected_namespaces=(), defer_build=True)

    model_version: Annotated[str, Field(description="of the second bundle")]
    intent: str
    intent_confidence: Probability
    urgency: Priority
    urgency_confidence: Annotated[Probability, Field(description="1.0 if the ticket's own priority was used")]
    sentiment: Sentiment
    sentiment_confidence: Probability
    differs: list[Literal["intent", "urgency", "sentiment"]]


class EnrichmentData(_Model):
    """The models' results for one ticket."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, protected_namespaces=())

    embedding: Annotated[
        list[float], Field(min_length=384, max_length=384, description="unit length; all zero for an empty text")
    ]
    intent: str
    intent_confidence: Probability
    urgency: Priority
    urgency_confidence: Annotated[Probability, Field(description="1.0 if the ticket's own priority was used")]
    sentiment: Sentiment
    sentiment_confidence: Probability
    summary: str
    processed_at: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]
    model_version: Annotated[str, Field(description="<bundle name>@<first 12 hexadecimal digits of its digest>")]
    embedding_model: Annotated[
        str | None,
        Field(
            description="<encoder name>@<12 hexadecimal digits>; only embeddings of the same one can be compared; null "
            "before December 2026"
        ),
    ] = None
    scores: Annotated[
        dict[str, dict[str, Probability]],
        Field(description="per task the probability of every label, from the text alone"),
    ]
    needs_review: Annotated[
        bool, Field(description="the labels are too uncertain together, or the models do not support the language")
    ]
    review_reasons: Annotated[
        list[Literal["language", "intent", "urgency", "sentiment"]],
        Field(description="why needs_review is true: the language, or the tasks that are uncertain"),
    ] = Field(default_factory=list)
    language: Annotated[
        str | None,
        Field(pattern=r"^[a-z]{2}$", description="ISO 639-1, as detected; null for a text too short to tell"),
    ] = None
    truncated: Annotated[list[str], Field(description="tasks that saw only the beginning of the text")]
    schema_version: Literal[1] = SCHEMA_VERSION
    shadow: Annotated[
        ShadowLabels | SkipJsonSchema[None],
        Field(
            description="absent unless a second bundle labels the tickets too",
            json_schema_extra=lambda schema: schema.pop("default"),
        ),
    ] = None


class EnrichedTicket(RawTicket):
    """The fields of the raw ticket, and its enrichment."""

    model_config = ConfigDict(defer_build=True)  # the function writes what it knows to be one, see enriched_json

    enrichment: EnrichmentData


def enriched_json(ticket: RawTicket, enrichment: EnrichmentData) -> bytes:
    """The object to store: UTF-8 JSON with the raw ticket's fields, then `enrichment`."""
    members = {
        name: pydantic_core.to_json(value) for name, value in ticket.model_dump().items() if name != "enrichment"
    }
    metadata = {name: pydantic_core.to_json(value) for name, value in ticket.metadata.model_dump().items()}
    members["metadata"] = join(metadata, ticket.metadata._unread)  # noqa: SLF001
    whole = join(members, ticket._unread)  # noqa: SLF001
    results = enrichment.model_dump(exclude={"shadow"} if enrichment.shadow is None else None)
    return whole[:-1] + b',"enrichment":' + pydantic_core.to_json(results) + b"}"


def parse_ticket(raw: bytes | str) -> RawTicket:
    """Reads one ticket from JSON; an incoming `enrichment` is dropped, other unknown fields are kept.

    Unknown fields are not in `model_extra` but kept as they were written, for enriched_json. Raises TicketInvalid,
    whose message names the fields and what is wrong with them, but never their values.
    """
    # Some Windows tools write a byte order mark; RFC 8259 allows parsers to ignore it.
    raw = raw.removeprefix(codecs.BOM_UTF8) if isinstance(raw, bytes) else raw.removeprefix("\ufeff")
    with _PARSING:
        return _parse(raw)


def _parse(raw: bytes | str) -> RawTicket:
    try:
        raw = raw.encode() if isinstance(raw, str) else raw
        data = pydantic_core.from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        if isinstance(raw, str) or not _is_utf8(raw):
            raise TicketInvalid("the ticket is not UTF-8; store it as UTF-8 JSON") from None
        raise TicketInvalid(f"the ticket is not valid JSON: {_without_input(error)}") from error
    if not isinstance(data, dict):
        return ticket_from_object(data)
    fields = {name: value for name, value in data.items() if name in RawTicket.model_fields}
    metadata = data.get("metadata")
    if isinstance(metadata, dict):
        fields["metadata"] = {name: value for name, value in metadata.items() if name in TicketMetadata.model_fields}
    ticket = ticket_from_object(fields)
    if len(fields) < len(data):
        ticket._unread = other_members(raw, {*RawTicket.model_fields, "enrichment"})  # noqa: SLF001
    if isinstance(metadata, dict) and len(fields["metadata"]) < len(metadata):
        unread = other_members(member(raw, "metadata"), TicketMetadata.model_fields)
        ticket.metadata._unread = unread  # noqa: SLF001
    return ticket


def ticket_from_object(data: object) -> RawTicket:
    """As parse_ticket, from decoded JSON."""
    if not isinstance(data, Mapping):
        raise TicketInvalid(f"the ticket is a JSON {_json_type(data)}, not an object")
    fields = {name: value for name, value in data.items() if name != "enrichment"}
    ticket_id = fields.get("ticket_id")
    known_id = ticket_id if isinstance(ticket_id, str) and 0 < len(ticket_id) <= 256 and _is_utf8(ticket_id) else None
    _refuse_what_json_cannot_hold(fields, known_id)
    try:
        return RawTicket.model_validate(fields)
    except ValidationError as error:
        raise TicketInvalid(_summary_of(error), ticket_id=known_id) from None


def enriched_ticket_schema() -> str:
    """The JSON Schema of an enriched ticket, which is committed next to this module."""
    return json.dumps(EnrichedTicket.model_json_schema(mode="serialization"), indent=2, sort_keys=True) + "\n"


def _summary_of(error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_url=False, include_context=False, include_input=False)[:5]:
        # Keys in `metadata` may be customer text: name only those that the schema defines.
        place = ".".join(str(p) for p in item["loc"] if p in RawTicket.model_fields or p in TicketMetadata.model_fields)
        parts.append(f"{place or 'ticket'}: {item['msg']}")
    return "; ".join(parts)


def _refuse_what_json_cannot_hold(fields: Mapping[str, object], ticket_id: str | None) -> None:
    """Rejects values that can be parsed but not serialized again: infinity (1e999), huge integers, deep nesting."""
    stack: list[tuple[object, int]] = [(value, 1) for value in (*fields, *fields.values())]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, Mapping):
            stack += [(value, depth + 1) for value in (*item, *item.values())]
        elif isinstance(item, list | tuple):
            stack += [(value, depth + 1) for value in item]
        elif isinstance(item, str) and not _is_utf8(item):
            raise TicketInvalid("a text holds half of a surrogate pair", ticket_id=ticket_id)
        elif (isinstance(item, float) and not math.isfinite(item)) or (
            isinstance(item, int) and item.bit_length() > _MAX_BITS
        ):
            raise TicketInvalid("a number is beyond the range of a double", ticket_id=ticket_id)
        if depth > _MAX_DEPTH:
            raise TicketInvalid(f"the ticket is nested deeper than {_MAX_DEPTH} levels", ticket_id=ticket_id)


def _is_utf8(text: bytes | str) -> bool:
    try:
        text.decode() if isinstance(text, bytes) else text.encode()
    except UnicodeError:
        return False
    return True


def _without_input(error: ValueError) -> str:
    # jiter's messages contain a position and a rule ("expected value at line 1 column 3"), never a value.
    return str(error).splitlines()[0][:200]


def _json_type(data: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(data), "value")
