"""Reconciliation of a scenario: the outcome of every message that was sent, read from the stores and the DLQ."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

from boto3.dynamodb.types import TypeDeserializer

from enrichment import Enricher, EnrichmentData
from enrichment.ticket import ticket_from_object
from handler.aws.batch_objects import BatchRange, read_enriched
from handler.local import EmbeddedStack
from handler.result_event import batch_place
from tests.support.traffic import ExpectedTicket, Message

# The last digit of an embedding depends on the grouping of rows; confidences are not rounded.
_EMBEDDING = 2e-7
_PROBABILITY = 1e-6
_CHECKED_IN_THE_TABLE = ("intent", "urgency", "sentiment", "summary", "processed_at", "model_version", "needs_review")


@dataclass
class Reconciliation:
    """Messages by outcome, each counted once; `errors` describe the messages with a wrong outcome.

    `duplicates` are further messages about the same tickets, `ignored` those with nothing to enrich, `rejected_twice`
    is the number of repeated DLQ messages, `superseded` that of object versions that no item refers to, and `delay` the
    time from a commit to its event in seconds (99th percentile).
    """

    name: str
    sent: int
    enriched: int = 0
    duplicates: int = 0
    ignored: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    rejected_twice: int = 0
    superseded: int = 0
    seconds: float = 0.0
    events: int = 0
    delay: float = 0.0
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_balanced(self) -> bool:
        """Whether the counts add up to the number of messages sent."""
        return self.sent == self.enriched + self.duplicates + self.ignored + self.rejected.total() + len(self.errors)

    def line(self) -> str:
        """The counts as text."""
        reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(self.rejected.items()))
        head = (
            f"{self.name}: {self.sent} messages = {self.enriched} enriched + {self.duplicates} about the same tickets"
            f" + {self.ignored} with nothing to do + {self.rejected.total()} in the DLQ"
            f"{f' ({reasons})' if reasons else ''} + {len(self.errors)} lost or wrong; {self.seconds:.0f} s"
        )
        parts = [head]
        if self.events:
            parts.append(f"  {self.events} result events; from commit to event in {self.delay:.1f} s (p99)")
        if self.rejected_twice or self.superseded:
            parts.append(
                f"  repeated DLQ messages: {self.rejected_twice}; superseded object versions: {self.superseded}"
            )
        if self.notes:
            parts.append("  " + ", ".join(f"{what}: {number}" for what, number in self.notes.items()))
        return "\n".join(parts)


class Reference:
    """The library's own results, computed without faults, once per text."""

    def __init__(self, enricher: Enricher) -> None:
        self.enricher = enricher
        self._known: dict[str, dict[str, Any]] = {}

    def add(self, tickets: Iterable[ExpectedTicket]) -> None:
        """Enrich the tickets that are not known yet, in one batch."""
        new = {_text_of(t.fields): t for t in tickets if _text_of(t.fields) not in self._known}
        results = self.enricher.enrich([ticket_from_object(t.fields) for t in new.values()])
        for text, result in zip(new, results, strict=True):
            assert isinstance(result, EnrichmentData)
            self._known[text] = result.model_dump(mode="json", exclude={"shadow"})

    def of(self, ticket: ExpectedTicket) -> dict[str, Any]:
        """The enrichment of a ticket that was added."""
        return self._known[_text_of(ticket.fields)]


class Reconciler:
    """Reads the stores and the DLQ of a stack directly, without injected faults."""

    def __init__(self, stack: EmbeddedStack, reference: Reference) -> None:
        self._outputs = stack.outputs
        self._s3, self._sqs, self._dynamodb = (stack.client(name) for name in ("s3", "sqs", "dynamodb"))
        self._reference = reference

    def reconcile(self, name: str, messages: Sequence[Message], ids: Mapping[str, str]) -> Reconciliation:
        """Reconcile messages; `ids` are the SQS message ids by marker."""
        reconciliation = Reconciliation(name, len(messages))
        expected = {ticket.name: ticket for message in messages for ticket in message.expected}
        self._reference.add(expected.values())
        items = self.items()
        bad: dict[tuple[str, int], str] = {}
        with ThreadPoolExecutor(4) as pool:
            errors = pool.map(lambda ticket: self._ticket_error(ticket, items.get(ticket.name)), expected.values())
            bad = {ticket: error for ticket, error in zip(expected, errors, strict=True) if error}
        dlq_messages = self._dlq_messages()
        seen: set[tuple[str, int]] = set()
        for message in messages:
            self._classify(reconciliation, message, dlq_messages.pop(message.marker, []), ids, bad, seen)
        reconciliation.errors += [f"{marker}: an unknown message in the DLQ" for marker in dlq_messages]
        reconciliation.errors += [
            f"{found}: an item that belongs to no expected ticket" for found in items.keys() - expected
        ]
        reconciliation.superseded = self._versions() - len(items)
        return reconciliation

    def _classify(
        self,
        reconciliation: Reconciliation,
        message: Message,
        dlq_messages: Sequence[Mapping[str, Any]],
        ids: Mapping[str, str],
        bad: Mapping[tuple[str, int], str],
        seen: set[tuple[str, int]],
    ) -> None:
        names = [ticket.name for ticket in message.expected]
        faults = [f"{name}: {bad[name]}" for name in names if name in bad]
        faults += [
            fault
            for dlq_message in dlq_messages
            if (fault := _message_error(dlq_message, message, ids.get(message.marker)))
        ]
        if bool(dlq_messages) != bool(message.reasons):
            faults.append("it should be in the DLQ" if message.reasons else "it should not be in the DLQ")
        reconciliation.rejected_twice += max(0, len(dlq_messages) - 1)
        if faults:
            reconciliation.errors.append(f"{message.marker}: {'; '.join(faults)}")
        elif dlq_messages:
            reconciliation.rejected[_reason(dlq_messages[0]) or "moved by SQS"] += 1
        elif not names:
            reconciliation.ignored += 1
        elif set(names) <= seen:
            reconciliation.duplicates += 1
        else:
            reconciliation.enriched += 1
        seen.update(names)

    def _ticket_error(self, ticket: ExpectedTicket, item: Mapping[str, Any] | None) -> str | None:
        """What is wrong with a ticket in the stores, or None."""
        if item is None:
            return "it is not in the table"
        if (item["content_sha256"], item["s3_key"]) != (ticket.sha256, ticket.key):
            return "the item has another content hash or another object key"
        place = batch_place(item.get("s3_batch"))
        batch = None if place is None else BatchRange(*place)
        bucket = self._outputs["EnrichedBucket"]
        stored = json.loads(read_enriched(self._s3, bucket, item["s3_key"], item["s3_version_id"], batch))
        found, expected = stored.pop("enrichment"), self._reference.of(ticket)
        passed = {k: v for k, v in ticket.fields.items() if k not in {"metadata", "priority", "enrichment"}}
        if {name: stored.get(name) for name in passed} != passed:
            return "the object has fields other than those sent"
        if any(item[name] != found[name] for name in _CHECKED_IN_THE_TABLE):
            return "the item differs from its object"
        return _difference(found, expected)

    def items(self) -> dict[tuple[str, int], dict[str, Any]]:
        """The items of all tickets by their keys."""
        read = TypeDeserializer().deserialize
        pages = self._dynamodb.get_paginator("scan").paginate(TableName=self._outputs["TableName"])
        items = [{name: read(value) for name, value in item.items()} for page in pages for item in page["Items"]]
        # Items with a negative created_at count the failures of a message and belong to no ticket.
        return {(item["ticket_id"], int(item["created_at"])): item for item in items if item["created_at"] >= 0}

    def _versions(self) -> int:
        pages = self._s3.get_paginator("list_object_versions").paginate(Bucket=self._outputs["EnrichedBucket"])
        return sum(len(page.get("Versions", [])) for page in pages)

    def _dlq_messages(self) -> dict[str, list[dict[str, Any]]]:
        url, dlq_messages = self._outputs["DlqUrl"], dict[str, list[dict[str, Any]]]()
        while found := self._sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages"):
            entries = [
                {"Id": str(n), "ReceiptHandle": dlq_message["ReceiptHandle"]} for n, dlq_message in enumerate(found)
            ]
            self._sqs.delete_message_batch(QueueUrl=url, Entries=entries)
            for dlq_message in found:
                dlq_messages.setdefault(_marker(dlq_message), []).append(dlq_message)
        return dlq_messages


def _marker(dlq_message: Mapping[str, Any]) -> str:
    attributes = dlq_message.get("MessageAttributes", {})
    if "Number" in attributes:
        return str(attributes["Number"]["StringValue"])
    # An S3 notification: its first record has the object's key, URL-encoded.
    return unquote_plus(json.loads(dlq_message["Body"])["Records"][0]["s3"]["object"]["key"])


def _reason(dlq_message: Mapping[str, Any]) -> str | None:
    attribute = dlq_message.get("MessageAttributes", {}).get("Reason")
    return None if attribute is None else str(attribute["StringValue"])


def _message_error(dlq_message: Mapping[str, Any], message: Message, message_id: str | None) -> str | None:
    """What is wrong with a message's copy in the DLQ, or None."""
    reason = _reason(dlq_message)
    if reason not in message.reasons:
        return f"it is in the DLQ with reason {reason}"
    if message.body is not None and dlq_message["Body"] != message.body:
        return "the DLQ message has another body"
    if reason is None:
        return None
    rejection = json.loads(dlq_message["MessageAttributes"]["Rejection"]["StringValue"])
    if message_id is not None and rejection["message_id"] != message_id:
        return "the DLQ message has another message id"
    codes = [error["error"] for error in rejection["errors"]]
    if not codes or codes[0] != reason or not all(e["detail"] and e["stage"] for e in rejection["errors"]):
        return f"the DLQ message has reason {reason} but errors {codes}"
    return None


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Describe the first difference between two enrichments, ignoring processed_at."""
    if found.keys() != expected.keys():
        return "it has other fields"
    for name, value in expected.items():
        if name == "processed_at":
            continue
        if not _same(found[name], value, _EMBEDDING if name == "embedding" else _PROBABILITY):
            return f"{name} differs from the library's result"
    return None


def _same(found: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=0, abs_tol=tolerance)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_same(found[k], v, tolerance) for k, v in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(_same(a, b, tolerance) for a, b in zip(found, expected, strict=True))
    return bool(found == expected)


def _text_of(fields: Mapping[str, Any]) -> str:
    return json.dumps([fields["subject"], fields["body"], fields.get("priority")])
