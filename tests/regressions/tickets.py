"""Tickets and SQS records for these tests."""

from __future__ import annotations

import json
from typing import Any

from enrichment import RawTicket, parse_ticket

CREATED = 1_772_380_800


def raw(ticket_id: str, subject: str, body: str, **fields: Any) -> dict[str, Any]:
    """A raw ticket."""
    return {
        "ticket_id": ticket_id,
        "subject": subject,
        "body": body,
        "created_at": CREATED,
        "customer_id": "CUST-77",
        **fields,
    }


def ticket(subject: str, body: str) -> RawTicket:
    """A parsed ticket."""
    return parse_ticket(json.dumps(raw("REG-1", subject, body)))


def record(body: Any, message_id: str = "m-0", **system: str) -> dict[str, Any]:
    """A record of an SQS event."""
    return {
        "messageId": message_id,
        "receiptHandle": f"handle-{message_id}",
        "body": body if isinstance(body, str) else json.dumps(body),
        "attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": "1772380801000", **system},
        "messageAttributes": {},
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:ticket-processing",
        "awsRegion": "us-east-1",
    }
