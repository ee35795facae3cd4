"""The ticket schema: valid and invalid tickets, and errors that never quote what a customer wrote."""

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import enrichment
from enrichment import EnrichedTicket, EnrichmentData, RawTicket, TicketInvalid, TicketMetadata, enriched_json
from enrichment.ticket import enriched_ticket_schema, parse_ticket, ticket_from_object

CANARY = "Zx9-canary-7Q"
FIELDS: dict[str, Any] = {
    "ticket_id": "T-1",
    "subject": "Printer",
    "body": "It does not print.",
    "created_at": 1_767_225_600,
    "customer_id": "C-1",
}
ENRICHMENT = EnrichmentData(
    embedding=[0.0] * 384,
    intent="bug_report",
    intent_confidence=0.5,
    urgency="low",
    urgency_confidence=1.0,
    sentiment="NEUTRAL",
    sentiment_confidence=0.25,
    summary="It does not print.",
    processed_at="2026-01-01T00:00:00.123Z",
    model_version="compact-int8@0123456789ab",
    scores={"intent": {"bug_report": 1.0}},
    needs_review=False,
    truncated=[],
)


def _raw(**changes: Any) -> bytes:
    fields = {name: value for name, value in {**FIELDS, **changes}.items() if value is not ...}
    return json.dumps(fields).encode()


def _with(name: str, literal: str) -> bytes:
    """A ticket with this literal JSON as the value of the field `name`."""
    return _raw(**{name: "@@"}).replace(b'"@@"', literal.encode("utf-8", "surrogatepass"))


def _error(raw: bytes | str) -> TicketInvalid:
    with pytest.raises(TicketInvalid) as caught:
        parse_ticket(raw)
    return caught.value


def test_plain_ticket_gets_the_defaults() -> None:
    ticket = parse_ticket(_raw())
    assert ticket == RawTicket(
        **FIELDS, priority=None, metadata=TicketMetadata(source="unknown", language=None, tags=[])
    )


@pytest.mark.parametrize("name", ["ticket_id", "customer_id"])
@pytest.mark.parametrize(("length", "is_valid"), [(0, False), (1, True), (256, True), (257, False)])
def test_ids_have_1_to_256_characters(name: str, length: int, *, is_valid: bool) -> None:
    raw = _raw(**{name: "ü" * length})
    if is_valid:
        assert getattr(parse_ticket(raw), name) == "ü" * length
    else:
        assert str(_error(raw)).startswith(f"{name}: String should have at ")


@pytest.mark.parametrize("name", ["ticket_id", "customer_id", "subject", "body", "created_at"])
@pytest.mark.parametrize("value", [..., None, [], {}, True, 1.5], ids=str)
def test_missing_or_mistyped_required_field_is_rejected(name: str, value: Any) -> None:
    if name in {"subject", "body"} and value is None:
        assert getattr(parse_ticket(_raw(**{name: None})), name) == ""
    else:
        assert str(_error(_raw(**{name: value}))).startswith(f"{name}: ")


@pytest.mark.parametrize("literal", ["0", "-0", "1", "253402300799"])
def test_created_at_accepts_whole_seconds(literal: str) -> None:
    assert parse_ticket(_with("created_at", literal)).created_at == int(literal)


@pytest.mark.parametrize(
    "literal", ["-1", "253402300800", str(2**53), "1.0", "1e3", "true", "false", '"5"', "null", "1e999", "1" * 400]
)
def test_created_at_rejects_everything_else(literal: str) -> None:
    message = str(_error(_with("created_at", literal)))
    assert message.startswith("created_at: ") or "range of a double" in message


@pytest.mark.parametrize(
    ("value", "hinted"),
    [(253_402_300_799, None), (253_402_300_800, True), (1_767_225_600_000, True), (253_402_300_800_000, False)],
)
def test_created_at_in_milliseconds_gets_a_hint(value: int, *, hinted: bool | None) -> None:
    if hinted is None:
        assert parse_ticket(_raw(created_at=value)).created_at == value
    else:
        assert ("milliseconds" in str(_error(_raw(created_at=value)))) == hinted


@pytest.mark.parametrize(
    ("given_priority", "expected"),
    [
        ("critical", "critical"),
        ("HIGH", "high"),
        (" Medium ", "medium"),
        ("low", "low"),
        (None, None),
        ("urgent", None),
        ("", None),
        (1, None),
        (True, None),
        (["high"], None),
        ({"level": "high"}, None),
    ],
    ids=str,
)
def test_unknown_priority_counts_as_absent(given_priority: Any, expected: str | None) -> None:
    assert parse_ticket(_raw(priority=given_priority)).priority == expected


@pytest.mark.parametrize("value", [None, {}, {"source": None, "language": None, "tags": None}], ids=str)
def test_null_metadata_gets_the_defaults(value: Any) -> None:
    assert parse_ticket(_raw(metadata=value)).metadata == TicketMetadata(source="unknown", language=None, tags=[])


def test_unknown_metadata_fields_are_kept() -> None:
    metadata = {"source": "chat", "language": "de", "tags": ["vip"], "channel": {"id": 7}}
    ticket = parse_ticket(_raw(metadata=metadata))
    assert ticket.metadata.model_dump() == {name: metadata[name] for name in ("source", "language", "tags")}
    assert json.loads(enriched_json(ticket, ENRICHMENT))["metadata"] == metadata


@pytest.mark.parametrize("value", [[], "mail", 5, {"tags": "vip"}, {"tags": [1]}, {"source": 5}], ids=str)
def test_mistyped_metadata_is_rejected(value: Any) -> None:
    assert str(_error(_raw(metadata=value))).startswith("metadata")


def test_error_names_only_fields_of_the_schema() -> None:
    assert str(_error(_raw(metadata={"tags": ["a", 5], CANARY: 1}))) == "metadata.tags: Input should be a valid string"
    message = str(_error(_raw(ticket_id="", created_at=True, subject=5)))
    assert [part.partition(":")[0] for part in message.split("; ")] == ["ticket_id", "subject", "created_at"]
    with pytest.raises(TicketInvalid) as caught:
        ticket_from_object(dict([*FIELDS.items(), (CANARY.encode(), 1)]))
    assert str(caught.value) == "ticket: Keys should be strings"


def test_default_tags_are_not_shared() -> None:
    first, second = parse_ticket(_raw()), parse_ticket(_raw())
    first.metadata.tags.append("vip")
    assert second.metadata.tags == []


@pytest.mark.parametrize(
    "extra",
    [
        {"order": {"id": 5, "lines": [1, 2.5, None, True]}},
        {"model_dump": 1, "model_fields": 2, "copy": 3, "__class__": "x", "__dict__": {}, "model_config": None},
        {"": "empty name", "ключ": "значение", "a" * 1000: 1},
        {"large": 10**300, "small": -(10**300), "fine": 5e-324},
    ],
    ids=["nested", "method names", "unusual names", "large numbers"],
)
def test_unknown_fields_pass_through(extra: dict[str, Any]) -> None:
    stored = json.loads(enriched_json(parse_ticket(_raw(**extra)), ENRICHMENT))
    assert {name: stored[name] for name in extra} == extra


@pytest.mark.parametrize(
    "literal",
    [
        "12345678901234567.25",
        "0.1000000000000000000001",
        "1.50",
        "1.0",
        "-0",
        "-0.0",
        "1e400",
        "-1E+999",
        "1e-999",
        "1" + "0" * 400,
        "9" * 4000,
        '[1.0, {"a": -0}]',
        '"\\u00fc\\/\\ud83d\\ude00"',
        '{"a":1,"a":2.0}',
        "{ }",
        "[ ]",
    ],
    ids=lambda literal: literal[:24],
)
def test_unknown_values_are_kept_character_for_character(literal: str) -> None:
    stored = enriched_json(parse_ticket(_with("x", literal)), ENRICHMENT)
    assert b',"x":' + literal.encode() + b',"enrichment":' in stored
    inside = _raw(metadata="@@").replace(b'"@@"', b'{"source": "mail", "x" : ' + literal.encode() + b" }")
    assert b'"tags":[],"x":' + literal.encode() + b"}" in enriched_json(parse_ticket(inside), ENRICHMENT)


def test_the_last_of_equal_names_counts_and_line_ends_are_removed() -> None:
    raw = _raw()[:-1] + b',\r\n"x": 1,\n\t"\\u0078"\n:\n[2.0,\n "a b"], "priority": "low", "priority": "high"}\n'
    stored = enriched_json(parse_ticket(raw), ENRICHMENT)
    assert stored.count(b'"x":') == 1
    assert b',"x":[2.0, "a b"],"enrichment":' in stored
    assert b"\n" not in stored
    assert parse_ticket(raw).priority == "high"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(CANARY) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.just(CANARY) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
ODD_NAMES = st.text(max_size=4) | st.sampled_from(['"', "\\", '\\"', "{", "]", ",", ":"])


@given(st.dictionaries(ODD_NAMES, JSON_VALUES, max_size=5), st.sampled_from([None, 1]))
def test_unknown_fields_read_back_as_from_json(fields: dict[str, Any], indent: int | None) -> None:
    fields = {name: value for name, value in fields.items() if name not in {*NAMES}}
    raw = json.dumps({**FIELDS, **fields, "metadata": fields}, indent=indent).encode()
    try:
        ticket = parse_ticket(raw)
    except TicketInvalid:
        return  # NaN, half of a surrogate pair, or one of the metadata's own fields
    stored = json.loads(enriched_json(ticket, ENRICHMENT))
    assert {name: stored[name] for name in fields} == fields
    assert {name: stored["metadata"][name] for name in fields} == fields


@pytest.mark.parametrize("value", [None, "old", {"intent": "login_issue"}, {"embedding": ["1e999"]}], ids=str)
def test_incoming_enrichment_is_dropped(value: Any) -> None:
    ticket = parse_ticket(_raw(enrichment=value))
    assert "enrichment" not in ticket.model_dump()
    assert json.loads(enriched_json(ticket, ENRICHMENT))["enrichment"] == ENRICHMENT.model_dump(exclude={"shadow"})


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not valid JSON"),
        (b"  \n", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{'ticket_id': 'T'}", "not valid JSON"),
        (_raw() + b"{}", "not valid JSON"),
        (_with("x", "NaN"), "not valid JSON"),
        (_with("x", "-Infinity"), "not valid JSON"),
        (_with("x", '"\\ud83d"'), "not valid JSON"),
        (_with("x", "1" * 5000), "not valid JSON"),
        (_with("x", "[" * 100_000 + "]" * 100_000), "not valid JSON"),
        (_with("x", "[" * 1_000_000), "not valid JSON"),
        (_raw().replace(b"Printer", b"Print\xff"), "not UTF-8"),
        (_raw().decode().encode("utf-16"), "not UTF-8"),
        (_with("x", '"\ud83d"'), "not UTF-8"),
        (b"[]", "JSON array"),
        (b'"ticket"', "JSON string"),
        (b"5", "JSON number"),
        (b"5.5", "JSON number"),
        (b"null", "JSON null"),
        (b"true", "JSON boolean"),
        (b"{}", "ticket_id: Field required"),
    ],
)
def test_invalid_input_error_says_why(raw: bytes, reason: str) -> None:
    assert reason in str(_error(raw))


def test_str_is_parsed_like_its_bytes() -> None:
    assert parse_ticket(_raw(body="ü 😀").decode()) == parse_ticket(_raw(body="ü 😀"))
    assert "not UTF-8" in str(_error(_raw().decode().replace("Printer", "\ud83d")))


def test_byte_order_mark_is_ignored() -> None:
    assert parse_ticket(b"\xef\xbb\xbf" + _raw()) == parse_ticket("\ufeff" + _raw().decode()) == parse_ticket(_raw())


@pytest.mark.parametrize("depth", [1, 190])
def test_parsed_ticket_can_be_serialized(depth: int) -> None:
    ticket = parse_ticket(_with("x", "[" * depth + "]" * depth))
    assert json.loads(enriched_json(ticket, ENRICHMENT))["x"] is not None


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"x": math.nan}, "range of a double"),
        ({"x": (1, math.inf)}, "range of a double"),
        ({"x": {"y": 2**1024}}, "range of a double"),
        ({"x": "\udc00"}, "surrogate"),
        ({"x": [{"\udc00": 1}]}, "surrogate"),
        ({"body": "\ud800"}, "surrogate"),
        ({"ticket_id": "\ud800"}, "surrogate"),
        ({5: "x"}, "Keys should be strings"),
    ],
    ids=str,
)
def test_decoded_objects_have_the_same_limits(extra: dict[Any, Any], reason: str) -> None:
    with pytest.raises(TicketInvalid, match=reason):
        ticket_from_object({**FIELDS, **extra})


def test_deeply_nested_object_is_rejected() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(TicketInvalid, match="nested deeper than 200"):
        ticket_from_object({**FIELDS, "x": deep})


def test_error_has_the_ticket_id_if_it_is_valid() -> None:
    assert _error(_raw(created_at=-1)).ticket_id == "T-1"
    assert _error(_with("created_at", "1e999")).ticket_id == "T-1"
    assert _error(_raw(ticket_id=5)).ticket_id is None
    assert _error(_raw(ticket_id="x" * 257)).ticket_id is None
    assert _error(b"{").ticket_id is None


NAMES = [*FIELDS, "priority", "metadata", "enrichment", CANARY]


@given(st.dictionaries(st.sampled_from(NAMES), JSON_VALUES), st.integers(0, 400), st.sampled_from([b"", b"\xff", b"}"]))
def test_any_input_is_parsed_or_rejected_without_quoting_it(fields: Any, cut: int, noise: bytes) -> None:
    raw = json.dumps({**FIELDS, "subject": CANARY, **fields}).encode()
    raw = raw[:cut] + noise + raw[cut:]
    try:
        ticket = parse_ticket(raw)
    except TicketInvalid as error:
        chain: BaseException | None = error
        while chain is not None:
            assert CANARY not in str(chain)
            assert CANARY not in repr(chain)
            chain = chain.__cause__
    else:
        json.loads(enriched_json(ticket, ENRICHMENT).decode())


def test_pydantic_errors_hide_their_input() -> None:
    with pytest.raises(ValueError, match="ticket_id") as caught:
        RawTicket.model_validate({**FIELDS, "ticket_id": [CANARY], "metadata": CANARY})
    assert CANARY not in str(caught.value)


def test_enriched_ticket_is_flat_and_round_trips() -> None:
    ticket = parse_ticket(_raw(order=5, priority="HIGH"))
    stored = enriched_json(ticket, ENRICHMENT)
    assert list(json.loads(stored))[-1] == "enrichment"
    parsed = EnrichedTicket.model_validate_json(stored)
    assert parsed.enrichment == ENRICHMENT
    assert enriched_json(RawTicket.model_validate(parsed.model_dump(exclude={"enrichment"})), ENRICHMENT) == stored
    assert parsed.model_extra == {"order": 5}


@pytest.mark.parametrize(
    "change",
    [
        {"embedding": [0.0] * 383},
        {"intent_confidence": 1.01},
        {"urgency": "urgent"},
        {"sentiment": "positive"},
        {"processed_at": "2026-01-01T00:00:00+00:00"},
        {"schema_version": 2},
        {"surprise": 1},
    ],
    ids=str,
)
def test_invalid_enrichment_is_rejected(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        EnrichmentData.model_validate({**ENRICHMENT.model_dump(), **change})


def test_committed_schema_equals_the_generated_one() -> None:
    committed = Path(enrichment.__file__).with_name("enriched_ticket.schema.json").read_text()
    assert committed == enriched_ticket_schema(), (
        'regenerate it: python -c "from enrichment.ticket import enriched_ticket_schema as s; print(s(), end=str())" '
        "> enrichment/enriched_ticket.schema.json"
    )


def test_stored_ticket_matches_the_schema() -> None:
    schema = json.loads(enriched_ticket_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    stored = json.loads(enriched_json(parse_ticket(_raw(extra=1)), ENRICHMENT))
    validator.validate(stored)
    for name in ("ticket_id", "enrichment"):
        assert not validator.is_valid({key: value for key, value in stored.items() if key != name})
    assert not validator.is_valid({**stored, "created_at": -1})
