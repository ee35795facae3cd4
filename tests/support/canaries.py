"""Messages that consist of canary strings, one per outcome: no canary may appear in logs, metrics or DLQ attributes.

Ticket ids and object keys are allowed there, so they contain no canary; everything else is customer data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tests.support.cases import Answer, RejectedMessage
from tests.support.fakes import notification, ticket

WORD = "canary"
FIELDS = {
    "subject": "Canary-subject. My canary cannot log in!",
    "body": "Canary-body one. The canary of my canary is locked out, and canary@example.com too.\n\nRegards, Canary",
    "customer_id": "canary-customer",
    "priority": "canary-priority",
    "metadata": {"source": "canary-source", "language": "canary", "tags": ["canary-tag"], "canary-key": "canary"},
    "canary_field": {"canary": ["canary"]},
}


def valid(ticket_id: str, **fields: Any) -> dict[str, Any]:
    """A ticket of canaries that conforms to the schema."""
    return {**ticket(ticket_id), **FIELDS, **fields}


BROKEN: dict[str, bytes] = {
    "wrong-type.json": json.dumps(valid("canary-id", created_at="canary-time")).encode(),
    "wrong-metadata.json": json.dumps(valid("canary-id", metadata={"tags": "canary", "source": ["canary"]})).encode(),
    "missing.json": b'{"ticket_id": "canary-id", "canary-field": "canary"}',
    "not-json.json": b'{"ticket_id": "canary-id", canary',
    "half-a-text.json": b'{"ticket_id": "canary',
    "bare-word.json": b"canary",
    "text.json": b'"canary"',
    "number.json": b'{"ticket_id": "canary-id", "canary": NaN}',
    "surrogate.json": b'{"ticket_id": "canary-id", "canary": "canary\\ud800canary"}',
    "not-utf8.json": b'{"ticket_id": "canary-\xff-id"}',
    "too-large.json": b'{"canary": "' + b"canary" * 200_000 + b'"}',
}
"""Objects that are rejected, by key."""

REFUSED: dict[str, str] = {
    "text": "the canary is no JSON",
    "bare-word": "canary",
    "array": '["canary"]',
    "no-id": json.dumps({name: value for name, value in valid("x").items() if name != "ticket_id"}),
    "inline": json.dumps(valid("canary-id", customer_id=7)),
    "event": json.dumps(notification("k", event="canary:Canary")),
    "event-of-s3": json.dumps(notification("k", event="ObjectTagging:canary")),
    "sns": json.dumps({"Type": "Notification", "Message": "canary", "Subject": "canary"}),
    "bridge": json.dumps({"source": "aws.s3", "detail-type": "canary", "detail": {"canary": "canary"}}),
    "bucket": json.dumps(notification("k", bucket="canary-bucket")),
}
"""Messages that are rejected, by message id."""

SKIPPED: dict[str, str] = {
    "test-event": json.dumps({"Event": "s3:TestEvent", "canary": "canary"}),
    "removed": json.dumps(notification("k", event="ObjectRemoved:canary")),
}
"""Messages that are skipped, by message id."""


def assert_no_canary(answer: Answer, messages: Iterable[RejectedMessage]) -> None:
    """Assert that neither the log (including metrics) nor an attribute of a DLQ message contains a canary."""
    assert WORD not in answer.log.lower()
    for message in messages:
        for name, value in message.attributes.items():
            assert WORD not in name.lower()
            assert WORD not in str(value).lower()
