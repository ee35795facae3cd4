"""The account of a scenario: what became of every message that was sent, looked up in the stores and dead letters."""

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
from handler.local import EmbeddedStack
from tests.support.traffic import Message, Wanted

# The last digit of an embedding depends on how rows are grouped; a confidence has no digits cut off.
_EMBEDDING = 2e-7
_PROBABILITY = 1e-6
_CHECKED_IN_THE_TABLE = ("intent", "urgency", "sentiment", "summary", "processed_at", "model_version", "needs_review")


@dataclass
class Account:
    """Messages by what became of them; each is counted once, and `wrong` says of the others what is not as it must be.

    `again` are further messages about a ticket, `nothing` those with nothing to enrich, `twice` dead letters that
    came more than once, `superseded` versions of objects that no item names.
    """

    name: str
    sent: int
    enriched: int = 0
    again: int = 0
    nothing: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    twice: int = 0
    superseded: int = 0
    seconds: float = 0.0
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def adds_up(self) -> bool:
        """Whether every message is accounted for."""
        return self.sent == self.enriched + self.again + self.nothing + self.rejected.total() + len(self.wrong)

    def line(self) -> str:
        """The stats, for people."""
        reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(self.rejected.items()))
        head = (
            f"{self.name}: {self.sent} messages = {self.enriched} enriched + {self.again} about the same tickets"
            f" + {self.nothing} with nothing to do + {self.rejected.total()} dead letters"
            f"{f' ({reasons})' if reasons else ''} + {len(self.wrong)} lost or wrong; {self.seconds:.0f} s"
        )
        parts = [head]
        if self.twice or self.superseded:
            parts.append(f"  dead letters that came twice: {self.twice}; superseded object versions: {self.superseded}")
        if self.notes:
            parts.append("  " + ", ".join(f"{what}: {number}" for what, number in self.notes.items()))
        return "\n".join(parts)


class Reference:
    """What the library itself says of a ticket, without any fault; each text is asked for once."""

    def __init__(self, enricher: Enricher) -> None:
        self.enricher = enricher
        self._known: dict[str, dict[str, Any]] = {}

    def learn(self, tickets: Iterable[Wanted]) -> None:
        """Enriches what is not known yet, all together."""
        new = {_text_of(t.fields): t for t in tickets if _text_of(t.fields) not in self._known}
        results = self.enricher.enrich([ticket_from_object(t.fields) for t in new.values()])
        for text, result in zip(new, results, strict=True):
            assert isinstance(result, EnrichmentData)
            self._known[text] = result.model_dump(mode="json")

    def of(self, ticket: Wanted) -> dict[str, Any]:
        """The enrichment of a ticket that was learned."""
        return self._known[_text_of(ticket.fields)]


class Auditor:
    """Looks into the stores and the dead-letter queue of a stack, past every fault."""

    def __init__(self, stack: EmbeddedStack, reference: Reference) -> None:
        self._outputs = stack.outputs
        self._s3, self._sqs, self._dynamodb = (stack.client(name) for name in ("s3", "sqs", "dynamodb"))
        self._reference = reference

    def account(self, name: str, messages: Sequence[Message], ids: Mapping[str, str]) -> Account:
        """Accounts for messages; `ids` are SQS's own of those that were sent, by their marks."""
        account = Account(name, len(messages))
        wanted = {ticket.name: ticket for message in messages for ticket in message.wanted}
        self._reference.learn(wanted.values())
        items = self._items()
        bad: dict[tuple[str, int], str] = {}
        with ThreadPoolExecutor(4) as pool:
            verdicts = pool.map(lambda ticket: self._verdict(ticket, items.get(ticket.name)), wanted.values())
            bad = {ticket: verdict for ticket, verdict in zip(wanted, verdicts, strict=True) if verdict}
        letters = self._letters()
        seen: set[tuple[str, int]] = set()
        for message in messages:
            self._judge(account, message, letters.pop(message.mark, []), ids, bad, seen)
        account.wrong += [f"{mark}: a dead letter that nobody sent" for mark in letters]
        account.wrong += [f"{found}: an item of no ticket that should be enriched" for found in items.keys() - wanted]
        account.superseded = self._versions() - len(items)
        return account

    def _judge(
        self,
        account: Account,
        message: Message,
        letters: Sequence[Mapping[str, Any]],
        ids: Mapping[str, str],
        bad: Mapping[tuple[str, int], str],
        seen: set[tuple[str, int]],
    ) -> None:
        names = [ticket.name for ticket in message.wanted]
        faults = [f"{name}: {bad[name]}" for name in names if name in bad]
        faults += [fault for letter in letters if (fault := _fault(letter, message, ids.get(message.mark)))]
        if bool(letters) != bool(message.reasons):
            faults.append("it should be dead" if message.reasons else "it should not be dead")
        account.twice += max(0, len(letters) - 1)
        if faults:
            account.wrong.append(f"{message.mark}: {'; '.join(faults)}")
        elif letters:
            account.rejected[_reason(letters[0]) or "redriven by SQS"] += 1
        elif not names:
            account.nothing += 1
        elif set(names) <= seen:
            account.again += 1
        else:
            account.enriched += 1
        seen.update(names)

    def _verdict(self, ticket: Wanted, item: Mapping[str, Any] | None) -> str | None:
        """What is wrong with a ticket in the stores, or None."""
        if item is None:
            return "it is not in the table"
        if (item["content_sha256"], item["s3_key"]) != (ticket.sha256, ticket.key):
            return "the item is of other content or names another object"
        with self._s3.get_object(
            Bucket=self._outputs["EnrichedBucket"], Key=item["s3_key"], VersionId=item["s3_version_id"]
        )["Body"] as stream:
            stored = json.load(stream)
        found, expected = stored.pop("enrichment"), self._reference.of(ticket)
        passed = {k: v for k, v in ticket.fields.items() if k not in {"metadata", "priority", "enrichment"}}
        if {name: stored.get(name) for name in passed} != passed:
            return "the object has other fields than were sent"
        if any(item[name] != found[name] for name in _CHECKED_IN_THE_TABLE):
            return "the item differs from its object"
        return _difference(found, expected)

    def _items(self) -> dict[tuple[str, int], dict[str, Any]]:
        read = TypeDeserializer().deserialize
        pages = self._dynamodb.get_paginator("scan").paginate(TableName=self._outputs["TableName"])
        items = [{name: read(value) for name, value in item.items()} for page in pages for item in page["Items"]]
        return {(item["ticket_id"], int(item["created_at"])): item for item in items}

    def _versions(self) -> int:
        pages = self._s3.get_paginator("list_object_versions").paginate(Bucket=self._outputs["EnrichedBucket"])
        return sum(len(page.get("Versions", [])) for page in pages)

    def _letters(self) -> dict[str, list[dict[str, Any]]]:
        url, letters = self._outputs["DlqUrl"], dict[str, list[dict[str, Any]]]()
        while found := self._sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages"):
            entries = [{"Id": str(n), "ReceiptHandle": letter["ReceiptHandle"]} for n, letter in enumerate(found)]
            self._sqs.delete_message_batch(QueueUrl=url, Entries=entries)
            for letter in found:
                letters.setdefault(_mark(letter), []).append(letter)
        return letters


def _mark(letter: Mapping[str, Any]) -> str:
    attributes = letter.get("MessageAttributes", {})
    if "Number" in attributes:
        return str(attributes["Number"]["StringValue"])
    # S3's own notification: its first record names the object, encoded.
    return unquote_plus(json.loads(letter["Body"])["Records"][0]["s3"]["object"]["key"])


def _reason(letter: Mapping[str, Any]) -> str | None:
    attribute = letter.get("MessageAttributes", {}).get("Reason")
    return None if attribute is None else str(attribute["StringValue"])


def _fault(letter: Mapping[str, Any], message: Message, message_id: str | None) -> str | None:
    """What is wrong with a dead letter of a message, or None."""
    reason = _reason(letter)
    if reason not in message.reasons:
        return f"it is dead because of {reason}"
    if message.body is not None and letter["Body"] != message.body:
        return "the dead letter has another body"
    if reason is None:
        return None
    rejection = json.loads(letter["MessageAttributes"]["Rejection"]["StringValue"])
    if message_id is not None and rejection["message_id"] != message_id:
        return "the dead letter names another message"
    codes = [error["error"] for error in rejection["errors"]]
    if not codes or codes[0] != reason or not all(e["detail"] and e["stage"] for e in rejection["errors"]):
        return f"the dead letter explains {reason} by {codes}"
    return None


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Where an enrichment differs from another, but for the time it was made at."""
    if found.keys() != expected.keys():
        return "it has other fields"
    for name, value in expected.items():
        if name == "processed_at":
            continue
        if not _same(found[name], value, _EMBEDDING if name == "embedding" else _PROBABILITY):
            return f"{name} is not what the library says"
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
