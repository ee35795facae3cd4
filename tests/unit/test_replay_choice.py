"""Which dead letters are meant by --reason, --match, --older-than, --newer-than and --message-id."""

from __future__ import annotations

import json
from typing import Any

import pytest

from handler.replay.choice import Choice, ExpressionInvalid, Match, milliseconds
from handler.replay.letter import Letter
from tests.replay_fakes import letter, text

NOTIFICATION = json.dumps({"Records": [{"s3": {"bucket": {"name": "tickets-raw"}, "object": {"key": "2026/a.json"}}}]})
ATTRIBUTES: dict[str, Any] = {
    "source": text("mail"),
    "size": text("7", "Number"),
    "share": text("0.5", "Number.float"),
    "odd": text("many", "Number"),
    "raw": {"DataType": "Binary", "BinaryValue": b"\x00\x01"},
}
MOVED = {"attributes": {"moved": {"dataType": "String", "stringValue": "yes"}}, "errors": [{"stage": "store"}]}


def stored(**fields: Any) -> Letter:
    return letter(body=NOTIFICATION, attributes=ATTRIBUTES, reason="throttled", rejection=MOVED, **fields)


@pytest.mark.parametrize(
    ("expression", "is_taken"),
    [
        ("body.Records[0].s3.object.key == '2026/a.json'", True),
        ("starts_with(body.Records[0].s3.object.key, '2025/')", False),
        ("attributes.source == 'mail'", True),
        ("attributes.size > `6`", True),
        ("attributes.share < `0.5`", False),
        ("attributes.odd == 'many'", True),
        ("attributes.raw == 'AAE='", True),
        ("attributes.moved == 'yes'", True),
        ("attributes.Reason == 'throttled' && reason == 'throttled'", True),
        ("rejection.errors[?stage == 'store']", True),
        ("rejection.errors[?stage == 'fetch']", False),
        ("message_id == 'm-1'", True),
        ("body.nothing", False),
        ("attributes.nothing || `0`", True),  # as JMESPath has it, 0 is true
        ("`[]`", False),
        ("''", False),
    ],
)
def test_match_sees_body_attributes_and_rejection(expression: str, is_taken: bool) -> None:
    assert Match(expression).takes(stored()) is is_taken


def test_a_body_that_is_no_json_is_a_text() -> None:
    assert Match("contains(body, 'lost my')").takes(letter(body="Dear support, I lost my password"))


@pytest.mark.parametrize("body", ["[" * 100_000, "nul", "\ud800", '{"a": NaN}'])
def test_no_body_makes_a_choice_fail(body: str) -> None:
    assert not Match("body.a.b == 'x'").takes(letter(body=body))


@pytest.mark.parametrize("expression", ["", "body.", "no_such_function(body)", "length(body, body)", "a ||"])
def test_an_expression_that_means_nothing_is_said_in_one_line(expression: str) -> None:
    with pytest.raises(ExpressionInvalid) as caught:
        Match(expression)
    assert "\n" not in str(caught.value)


def test_an_unknown_function_in_a_branch_is_noticed_when_it_is_reached() -> None:
    match = Match("body.a && nothing(body.a)")
    assert not match.takes(letter(body="{}"))
    with pytest.raises(ExpressionInvalid, match="nothing"):
        match.takes(letter(body='{"a": 1}'))


def test_a_message_of_another_shape_is_no_match_and_its_text_is_not_quoted() -> None:
    match = Match("contains(body.subject, 'x')")
    assert match.takes(letter(body='{"subject": "xyz"}'))
    assert not match.takes(letter(body='{"subject": 4711}'))
    assert not match.takes(letter(body="{}"))
    assert (match.misfits, match.misfit) == (2, "contains() cannot take number")


def test_everything_is_meant_where_nothing_is_said() -> None:
    assert Choice().is_all
    assert Choice().takes(letter(system={"SentTimestamp": "?"}))


def test_reasons_and_the_group_without_one() -> None:
    choice = Choice(reasons=frozenset({"throttled", "redriven"}))
    assert not choice.is_all
    assert [choice.takes(found) for found in (stored(), letter(), letter(reason="object_gone"))] == [True, True, False]


def test_times_take_the_first_moment_and_leave_the_last() -> None:
    choice = Choice(after=1000, before=2000)
    assert [choice.takes(letter(sent_at=moment)) for moment in (999, 1000, 1999, 2000)] == [False, True, True, False]
    assert not choice.takes(letter(system={"SentTimestamp": "?"}))


def test_a_message_is_named_by_its_id_here_or_where_it_failed() -> None:
    found = letter("dead-1", reason="x", rejection={"message_id": "live-1"})
    names = ["dead-1", "live-1", "dead-2"]
    assert [Choice(message_ids=frozenset({name})).takes(found) for name in names] == [True, True, False]


def test_all_parts_of_a_choice_must_be_true() -> None:
    choice = Choice(reasons=frozenset({"throttled"}), match=Match("attributes.size == `7`"), before=2000)
    assert choice.takes(stored(sent_at=1000))
    assert not choice.takes(stored(sent_at=3000))
    assert not choice.takes(letter(reason="throttled", sent_at=1000))


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("90s", 910_000),
        ("10m", 400_000),
        ("1970-01-01T00:00:02Z", 2000),
        ("1970-01-01T01:00:02+01:00", 2000),
        ("1970-01-02", 86_400_000),
        ("1970-01-01T00:00:02", 2000),
    ],
)
def test_times_are_said_as_ages_or_in_iso_8601(said: str, meant: int) -> None:
    assert milliseconds(said, lambda: 1000.0) == meant


@pytest.mark.parametrize("said", ["", "2", "h", "2y", "-2h", "yesterday", "2h "])
def test_other_times_are_refused(said: str) -> None:
    with pytest.raises(ExpressionInvalid, match="neither like 90s"):
        milliseconds(said)
