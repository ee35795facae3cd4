"""Uploaded tickets are stored with the library's results; invalid ones are in the DLQ with their reason."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

from enrichment.ticket import EnrichmentData, RawTicket
from events.generator import TicketGenerator
from tests.endtoend.pipeline import Pipeline, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from enrichment import Enricher
    from tests.endtoend.cloud import Cloud
    from tests.endtoend.pipeline import Stored

_NOT_COMPARED = {"processed_at"}
_IN_THE_TABLE = ("intent", "urgency", "sentiment", "summary", "needs_review", "model_version", "processed_at")


def test_tickets_are_enriched(pipeline: Pipeline, enricher: Enricher, cloud: Cloud) -> None:
    raw = {f"many/{t['ticket_id']} +&.json": json.dumps(t).encode() for t in made(cloud.tickets, seed=4)}
    assert len(raw) == cloud.tickets
    pipeline.put(raw)
    wait_until(lambda: pipeline.is_finished(raw), "every ticket has an item, and the queue is empty")
    stored = pipeline.stored("many/")
    assert stored.keys() == raw.keys()
    expected = enricher.enrich([RawTicket.model_validate_json(body) for body in raw.values()])
    for (key, body), enrichment in zip(raw.items(), expected, strict=True):
        assert isinstance(enrichment, EnrichmentData)
        check(stored[key], body, enrichment)
    assert pipeline.depth("DlqUrl") == 0


def test_rejected_messages_are_in_the_dlq(pipeline: Pipeline) -> None:
    good, whole, broken = made(3, seed=5)
    del broken["customer_id"]
    objects = {
        "poison/good.json": good,
        "poison/not-json.json": b"My password, it is lost",
        "poison/no-customer.json": broken,
        "poison/too-large.json": {**whole, "body": "x" * 1_048_577},
    }
    pipeline.put({k: body if isinstance(body, bytes) else json.dumps(body).encode() for k, body in objects.items()})
    wait_until(lambda: pipeline.depth("DlqUrl") == 3, "three messages are in the DLQ")
    wait_until(lambda: pipeline.depth() == 0, "the queue is empty")
    messages = pipeline.rejected_messages()
    reasons = {error["s3_key"]: message for message in messages for error in message.rejection["errors"]}
    assert {key: message.attributes["Reason"] for key, message in reasons.items()} == {
        "poison/not-json.json": "schema_violation",
        "poison/no-customer.json": "schema_violation",
        "poison/too-large.json": "object_too_large",
    }
    for key, message in reasons.items():
        (record,) = json.loads(message.body)["Records"]
        assert (
            record["s3"]["object"]["key"] == key
        )  # the original notification, so that a replay processes the object again
    assert pipeline.stored("poison/").keys() == {"poison/good.json"}


def made(count: int, seed: int) -> list[dict[str, Any]]:
    """Generated tickets; the same seed gives the same tickets."""
    generator = TicketGenerator(seed=seed, start=1_790_000_000)
    return [next(generator) for _ in range(count)]


def check(found: Stored, raw: bytes, expected: EnrichmentData) -> None:
    """Assert that both stores have the raw ticket's fields and the library's results."""
    item, ticket, sent = found.item, found.ticket, json.loads(raw)
    enrichment: Mapping[str, Any] = ticket["enrichment"]
    normal = RawTicket.model_validate_json(raw).model_dump(
        mode="json", exclude_unset=True
    )  # for example a priority's case
    assert {name: ticket[name] for name in sent} == {name: normal[name] for name in sent}
    assert item["content_sha256"] == hashlib.sha256(raw).hexdigest()
    assert (item["ticket_id"], item["created_at"]) == (sent["ticket_id"], sent["created_at"])
    assert {name: item[name] for name in _IN_THE_TABLE} == {name: enrichment[name] for name in _IN_THE_TABLE}
    assert "embedding" not in item
    wanted = expected.model_dump(mode="json", exclude={"shadow"})
    assert enrichment.keys() == wanted.keys()
    for name in wanted.keys() - _NOT_COMPARED:
        assert same(enrichment[name], wanted[name]), f"{sent['ticket_id']}: {name}"


def same(found: Any, expected: Any) -> bool:
    """Equal except for the last digits of floats: another batch sums in another order."""
    if isinstance(expected, float):
        return math.isclose(found, expected, abs_tol=1e-3)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)
