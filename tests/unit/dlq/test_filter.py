"""Which DLQ messages --reason, --match, --older-than, --newer-than and --message-id select."""

from __future__ import annotations

import json
from typing import Any

import pytest

from handler.cli.options import unix_time
from handler.dlq.errors import RequestInvalid
from handler.dlq.filter import Expression, Filter
from handler.dlq.message import DlqMessage
from tests.support.dlq_queues import dlq_message, text

NOTIFICATION = json.dumps({"Records": [{"s3": {"bucket": {"name": "tickets-raw"}, "object": {"key": "2026/a.json"}}}]})
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "source": text("mail"),
    "size": text("7", "Number"),
    "share": text("0.5", "Number.float"),
    "odd": text("many", "Number"),
    "raw": {"DataType": "Binary", "BinaryValue": b"\x00\x01"},
}
MOVED = {"attributes": {"moved": {"dataType": "String", "stringValue": "yes"}}, "errors": [{"stage": "store"}]}


def throttled(**fields: Any) -> DlqMessage:
    return dlq_message(body=NOTIFICATION, attributes=ATTRIBUTES, reason="throttled", rejection=MOVED, **fields)


@pytest.mark.parametrize(
    ("expression", "matches"),
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
        ("attributes.nothing || `0`", True),  # 0 is true in JMESPath
        ("`[]`", False),
        ("''", False),
    ],
)
def test_expression_sees_body_attributes_and_rejection(expression: str, matches: bool) -> None:
    assert Expression(expression).matches(throttled()) is matches


def test_body_that_is_not_json_is_a_string() -> None:
    assert Expression("contains(body, 'lost my')").matches(dlq_message(body="Dear support, I lost my password"))


@pytest.mark.parametrize("body", ["[" * 100_000, "nul", "\ud800", '{"a": NaN}'])
def test_no_body_raises(body: str) -> None:
    assert not Expression("body.a.b == 'x'").matches(dlq_message(body=body))


@pytest.mark.parametrize("expression", ["", "body.", "no_such_function(body)", "length(body, body)", "a ||"])
def test_invalid_expression_is_an_error_in_one_line(expression: str) -> None:
    with pytest.raises(ValueError) as caught:
        Expression(expression)
    assert "\n" not in str(caught.value)


def test_unknown_function_in_a_branch_is_an_error_when_it_is_evaluated() -> None:
    expression = Expression("body.a && nothing(body.a)")
    assert not expression.matches(dlq_message(body="{}"))
    with pytest.raises(RequestInvalid, match=r"--match: Unknown function: nothing\(\)"):
        expression.matches(dlq_message(body='{"a": 1}'))


def test_type_errors_are_counted_and_do_not_quote_the_message() -> None:
    expression = Expression("contains(body.subject, 'x')")
    assert expression.matches(dlq_message(body='{"subject": "xyz"}'))
    assert not expression.matches(dlq_message(body='{"subject": 4711}'))
    assert not expression.matches(dlq_message(body="{}"))
    assert (expression.type_errors, expression.type_error) == (2, "contains() does not accept number")


def test_empty_filter_selects_everything() -> None:
    assert Filter().is_empty
    assert Filter().selects(dlq_message(system={"SentTimestamp": "?"}))


def test_reasons_and_the_messages_without_one() -> None:
    found = [throttled(), dlq_message(), dlq_message(reason="object_gone")]
    selected = Filter(reasons=frozenset({"throttled", "redriven"}))
    assert not selected.is_empty
    assert [selected.selects(message) for message in found] == [True, True, False]


def test_times_include_the_start_and_exclude_the_end() -> None:
    selected = Filter(after=1000, before=2000)
    times = [999, 1000, 1999, 2000]
    assert [selected.selects(dlq_message(sent_at=time)) for time in times] == [False, True, True, False]
    assert not selected.selects(dlq_message(system={"SentTimestamp": "?"}))


def test_message_id_in_the_dlq_or_where_it_failed() -> None:
    message = dlq_message("dead-1", reason="x", rejection={"message_id": "live-1"})
    ids = ["dead-1", "live-1", "dead-2"]
    assert [Filter(message_ids=frozenset({name})).selects(message) for name in ids] == [True, True, False]


def test_all_conditions_must_be_true() -> None:
    selected = Filter(reasons=frozenset({"throttled"}), expression=Expression("attributes.size == `7`"), before=2000)
    assert selected.selects(throttled(sent_at=1000))
    assert not selected.selects(throttled(sent_at=3000))
    assert not selected.selects(dlq_message(reason="throttled", sent_at=1000))


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("90s", 910),
        ("10m", 400),
        ("1970-01-01T00:00:02Z", 2),
        ("1970-01-01T01:00:02+01:00", 2),
        ("1970-01-02", 86_400),
        ("1970-01-01T00:00:02", 2),
    ],
)
def test_times_are_ages_or_iso_8601(given: str, seconds: int) -> None:
    assert unix_time(given, lambda: 1000.0) == seconds


@pytest.mark.parametrize("given", ["", "2", "h", "2y", "-2h", "yesterday", "2h "])
def test_other_times_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match="neither like 90s"):
        unix_time(given)
