"""Parsing of message bodies: which tickets a message refers to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from handler.errors import MessageInvalid
from handler.messages import Ignored, InlineTicket, StoredTicket, inline_key, number_attribute, references
from tests.support.fakes import notification, ticket


def sns(message: str) -> dict[str, Any]:
    return {"Type": "Notification", "MessageId": "n", "Message": message}


def eventbridge(kind: Any = "Object Created", key: Any = "a b+c%20.json") -> dict[str, Any]:
    return {"source": "aws.s3", "detail-type": kind, "detail": {"bucket": {"name": "b"}, "object": {"key": key}}}


def sized(key: str, size: Any) -> dict[str, Any]:
    body = notification(key)
    body["Records"][0]["s3"]["object"]["size"] = size
    return body


@pytest.mark.parametrize(
    ("encoded", "key"),
    [("plain.json", "plain.json"), ("a+b%2B%25.json", "a b+%.json"), ("%C3%BC/%E6%97%A5", "ü/日"), ("a%2Fb", "a/b")],
)
def test_s3_notification_keys_are_decoded(encoded: str, key: str) -> None:
    assert references(json.dumps(notification(encoded))) == [StoredTicket("tickets-raw", key)]


def test_eventbridge_keys_are_not_decoded() -> None:
    assert references(json.dumps(eventbridge())) == [StoredTicket("b", "a b+c%20.json")]


def test_repeated_objects_of_a_message_are_listed_once() -> None:
    found = references(json.dumps(notification("1", "2", "1")))
    assert found == [StoredTicket("tickets-raw", "1"), StoredTicket("tickets-raw", "2")]


@pytest.mark.parametrize(
    "name", ["ObjectCreated:Put", "s3:ObjectCreated:CompleteMultipartUpload", "ObjectCreated:Copy"]
)
def test_every_object_created_event_is_accepted(name: str) -> None:
    assert references(json.dumps(notification("k", event=name))) == [StoredTicket("tickets-raw", "k")]


def test_inline_ticket_keeps_its_bytes() -> None:
    body = '{ "ticket_id" : "Ü" }'
    assert references(body) == [InlineTicket(body.encode())]
    assert references(json.dumps(sns(body))) == [InlineTicket(body.encode())]


def test_a_byte_order_mark_before_a_body_is_ignored() -> None:
    body = json.dumps(ticket())
    assert references("\ufeff" + body) == references(body) == references(json.dumps(sns("\ufeff" + body)))
    assert references("\ufeff" + json.dumps(notification("k"))) == [StoredTicket("tickets-raw", "k")]


@pytest.mark.parametrize(("key", "size"), [("2026/", 1), ("2026/", None), ("2026", 0), ("2026/", "0")])
def test_only_empty_objects_that_end_in_a_slash_are_folder_markers(key: str, size: Any) -> None:
    assert references(json.dumps(sized(key, size))) == [StoredTicket("tickets-raw", key)]


def test_the_records_of_a_notification_are_bounded() -> None:
    assert len(references(json.dumps(notification(*map(str, range(100)))))) == 100
    with pytest.raises(MessageInvalid, match=r"101 records, at most 100 .* message of its own"):
        references(json.dumps(notification(*map(str, range(101)))))


@pytest.mark.parametrize(
    "more",
    [
        {"Event": "s3:TestEvent"},
        {"Type": "Notification", "Message": "hello"},
        notification("k"),
        eventbridge(),
    ],
    ids=["test-event", "sns", "s3", "eventbridge"],
)
def test_message_with_a_ticket_id_is_a_ticket(more: dict[str, Any]) -> None:
    body = json.dumps(ticket() | more)
    assert references(body) == [InlineTicket(body.encode())]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"Service": "Amazon S3", "Event": "s3:TestEvent"}, "s3:TestEvent"),
        (notification("k", event="ObjectRemoved:Delete"), "s3:ObjectRemoved"),
        (notification("k", event="s3:LifecycleExpiration:DeleteMarkerCreated"), "s3:LifecycleExpiration"),
        (notification("k", event="ObjectRestore:Delete"), "s3:ObjectRestore:Delete"),
        (eventbridge("Object Deleted"), "s3:ObjectRemoved"),
        (sns(json.dumps(sns(json.dumps({"Event": "s3:TestEvent"})))), "s3:TestEvent"),
        ({"Type": "SubscriptionConfirmation", "TopicArn": "arn", "Message": "m"}, "sns:SubscriptionConfirmation"),
        ({"Type": "UnsubscribeConfirmation", "TopicArn": "arn", "Message": "m"}, "sns:UnsubscribeConfirmation"),
        (sized("2026/", 0), "folder marker"),
        (sized("a+b%2F", 0), "folder marker"),
        (
            {**eventbridge(), "detail": {"bucket": {"name": "b"}, "object": {"key": "2026/", "size": 0}}},
            "folder marker",
        ),
    ],
)
def test_events_without_a_ticket_are_ignored(body: dict[str, Any], what: str) -> None:
    assert references(json.dumps(body)) == [Ignored(what)]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("\ud800", "not JSON"),
        ('{"a": "\\ud800"}', "not JSON"),
        ("[" * 5000, "not JSON"),
        ("[]", "not an object"),
        ("7", "not an object"),
        ('{"Records": []}', "no records"),
        ('{"Records": [1]}', "record 0 .* has no eventName"),
        ('{"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": [], "object": {}}}]}', "record 0"),
        (json.dumps(notification("a") | {"Records": [*notification("a")["Records"], {}]}), "record 1"),
        (json.dumps(notification("")), "not a string"),
        (json.dumps(eventbridge(key=None)), "not a string"),
        (json.dumps(eventbridge(kind=["Object Created"])), "not a string"),
        (json.dumps(eventbridge() | {"detail": None}), "no detail"),
        (json.dumps(eventbridge("Object Tags Added")), "events of this kind are not for this queue"),
        (json.dumps(notification("k", event="ObjectTagging:Put")), "s3:ObjectTagging events are not for this queue"),
        (json.dumps(notification("k", event="Secret")), "^events of this kind"),
        (json.dumps(sns(json.dumps(sns(json.dumps(sns("{}")))))), "too many SNS envelopes"),
        (json.dumps(sns("hello")), "not JSON"),
    ],
)
def test_invalid_message_error_is_one_line(body: str, error: str) -> None:
    with pytest.raises(MessageInvalid, match=error) as caught:
        references(body)
    assert "\n" not in str(caught.value)
    assert not caught.value.transient


def test_key_of_an_inline_ticket_is_quoted() -> None:
    assert inline_key("a/b c+%", 7) == "inline/a%2Fb%20c%2B%25/7.json"


@pytest.mark.parametrize(
    ("attributes", "value"),
    [
        ({"n": "12"}, 12),
        ({"n": 12}, 12),
        ({"n": "²"}, None),
        ({"n": "-1"}, None),
        ({"n": "9" * 5000}, None),
        ({}, None),
        ([], None),
        (None, None),
        ("n", None),
    ],
)
def test_number_attribute_is_an_integer_or_none(attributes: Any, value: int | None) -> None:
    assert number_attribute({"attributes": attributes}, "n") == value
    assert number_attribute({}, "n") is None
