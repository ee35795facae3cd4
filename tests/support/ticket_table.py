"""A table and a bucket of enriched tickets in this process, filled as the function does it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from enrichment import EnrichmentData, RawTicket, enriched_json
from handler.aws.storage import AwsTicketSink
from handler.ports import Known, Write
from handler.tickets.repository import Item, TicketRepository

__all__ = ["VERSION", "Harness", "table_definition", "ticket_table"]

REPOSITORY = Path(__file__).resolve().parents[2]
PLACES = count(1)
VERSION = "compact-int8@0123456789ab"


@dataclass
class Harness:
    """A table and a bucket, both named `place`, with the sink that fills them and a record of AWS calls.

    `before` is called with the name and parameters of each call before it is made, and may raise.
    """

    dynamodb: Any
    s3: Any
    place: str
    before: Callable[[str, dict[str, Any]], object] = lambda _name, _params: None
    queries: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    times: Iterator[int] = field(default_factory=lambda: count(1))

    @property
    def repository(self) -> TicketRepository:
        return TicketRepository(self.dynamodb, lambda: self.s3, table=self.place, bucket=self.place)

    @property
    def sink(self) -> AwsTicketSink:
        return AwsTicketSink(self.s3, self.dynamodb, self.place, self.place)

    def store(
        self,
        ticket_id: str,
        created_at: int = 1000,
        *,
        vector: tuple[float, ...] = (1.0,),
        body: str = "First line.\n\nSecond line.",
        **labels: Any,
    ) -> str:
        """Stores a ticket as the function does; the vector is padded with zeros. Returns its key."""
        ticket = RawTicket(
            ticket_id=ticket_id,
            subject=labels.pop("subject", f"about {ticket_id}"),
            body=body,
            created_at=created_at,
            customer_id="C-1",
        )
        fields: dict[str, Any] = {
            "embedding": [*vector, *([0.0] * (384 - len(vector)))],
            "intent": "bug_report",
            "intent_confidence": 0.75,
            "urgency": "low",
            "urgency_confidence": 1.0,
            "sentiment": "NEUTRAL",
            "sentiment_confidence": 0.5,
            "summary": f"Summary of {ticket_id}.",
            "processed_at": "2026-11-21T10:00:00.000Z",
            "model_version": VERSION,
            "scores": {
                "intent": {"bug_report": 0.75, "login_issue": 0.2, "payment_issue": 0.05},
                "urgency": {"critical": 0.0, "high": 0.0, "medium": 0.0, "low": 1.0},
                "sentiment": {"NEGATIVE": 0.25, "NEUTRAL": 0.5, "POSITIVE": 0.25},
            },
            "needs_review": False,
            "truncated": [],
        }
        enrichment = EnrichmentData(**(fields | labels))
        key = f"{ticket_id}/{created_at}.json"
        (known,) = self.sink.known([(ticket_id, created_at)])
        assert known is None or isinstance(known, Known)
        content = hashlib.sha256(body.encode()).hexdigest()
        stored = enriched_json(ticket, enrichment)
        assert self.sink.store(Write(ticket, enrichment, stored, key, content, next(self.times), known=known))
        return key

    def item(self, ticket_id: str) -> Item:
        (item,) = self.repository.with_id(ticket_id)
        return item

    def forget_calls(self) -> None:
        self.calls.clear()
        self.queries.clear()


@contextmanager
def ticket_table(clients: tuple[Any, Any], patch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """Yields an empty table as in the template and a bucket, to which the environment variables also point.

    `clients` are those of DynamoDB and S3, in this process.
    """
    made = Harness(*clients, place=f"tickets-{next(PLACES)}")
    for name in ("TABLE_NAME", "ENRICHED_BUCKET"):
        patch.setenv(name, made.place)
    for name in ("FORCE_COLOR", "COLUMNS", "RESULT_WEBHOOK"):
        patch.delenv(name, raising=False)
    made.dynamodb.create_table(TableName=made.place, **table_definition())
    made.s3.create_bucket(Bucket=made.place)
    made.s3.put_bucket_versioning(Bucket=made.place, VersioningConfiguration={"Status": "Enabled"})

    def record(params: dict[str, Any], model: Any, **_: Any) -> None:
        made.calls.append(model.name)
        if model.name == "Query":
            made.queries.append(params)
        made.before(model.name, params)

    for client in clients:
        client.meta.events.register("provide-client-params", record)
    yield made
    for client in clients:
        client.meta.events.unregister("provide-client-params", record)


@cache
def table_definition() -> dict[str, Any]:
    """The table's definition in the template."""
    resources = yaml_parse((REPOSITORY / "template.yaml").read_text(encoding="utf-8"))["Resources"]
    names = ("AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode")
    return {name: resources["TicketTable"]["Properties"][name] for name in names}
