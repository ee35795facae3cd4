"""The outcomes of tickets: from the worker's log, and from S3, DynamoDB and the DLQ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from handler.aws.batch_objects import BatchRange, read_enriched
from handler.local import EmbeddedStack
from handler.settings import listed

__all__ = ["Stats", "dead_letters", "stored_tickets"]


@dataclass
class Stats:
    """Outcomes by key, as the worker logs them; a key that was uploaded twice has two outcomes."""

    outcomes: dict[str, list[str]] = field(default_factory=dict)
    handler_ms: list[float] = field(default_factory=list)
    stored_at: dict[str, float] = field(default_factory=dict)
    attempts_failed: int = 0

    def read(self, line: str) -> None:
        """Reads one line of the worker's log; lines that are not about a ticket are ignored."""
        try:
            entry = json.loads(line)
        except ValueError:
            return
        if not isinstance(entry, dict) or entry.get("message") != "ticket" or "s3_key" not in entry:
            return
        if entry["outcome"] == "failed":  # it will be retried
            self.attempts_failed += 1
            return
        key = entry["s3_key"]
        self.outcomes.setdefault(key, []).append(entry["outcome"])
        if entry["outcome"] == "done":
            self.handler_ms.append(sum(entry["milliseconds"].values()))
            self.stored_at[key] = datetime.fromisoformat(entry["timestamp"]).timestamp()

    def counts(self) -> Counter[str]:
        """The number of uploads per outcome."""
        return Counter(outcome for outcomes in self.outcomes.values() for outcome in outcomes)


def stored_tickets(stack: EmbeddedStack, environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Enriched tickets by key; only those whose item refers to the same ticket in S3."""
    found: dict[str, dict[str, Any]] = {}
    s3 = stack.client("s3")
    for page in stack.client("dynamodb").get_paginator("scan").paginate(TableName=environment["TABLE_NAME"]):
        for item in page["Items"]:
            if "s3_key" not in item:  # it counts the failures of a message
                continue
            key, version = item["s3_key"]["S"], item["s3_version_id"]["S"]
            body = read_enriched(s3, environment["ENRICHED_BUCKET"], key, version, BatchRange.in_item(item))
            ticket = json.loads(body)
            if ticket["ticket_id"] == item["ticket_id"]["S"] and len(ticket["enrichment"]["embedding"]) == 384:
                found[key] = ticket
    return found


def dead_letters(stack: EmbeddedStack, environment: Mapping[str, str]) -> dict[str, str]:
    """The reasons of the DLQ messages, by the key of the object that each message names."""
    found: dict[str, str] = {}
    sqs = stack.client("sqs")
    for url in listed(environment["DLQ_URL"]):
        while messages := sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"], VisibilityTimeout=60
        ).get("Messages"):
            for message in messages:
                attributes = message.get("MessageAttributes", {})
                if "Rejection" in attributes:
                    for error in json.loads(attributes["Rejection"]["StringValue"])["errors"]:
                        found[error.get("s3_key", "")] = attributes["Reason"]["StringValue"]
    return found
