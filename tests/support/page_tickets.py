"""Many made-up tickets in a table, written by the function's own adapter, with labels that need no model.

Storing ten thousand objects would take minutes, so only the newest tickets have one.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from starlette.testclient import TestClient

from enrichment import EnrichmentData, RawTicket, enriched_json
from events.generator import TicketGenerator
from handler.aws.storage import AwsTicketSink
from handler.ports import Write
from handler.tickets.page.app import create_app
from handler.tickets.page.views import Stores
from handler.tickets.repository import TicketRepository

__all__ = ["LABELS", "VERSION", "made_up_tickets", "made_up_write", "seconds_per_list", "store", "write_of"]

VERSION = "made-up@0123456789ab"
LABELS = {
    "intent": (
        "login_issue payment_issue bug_report feature_request account_management performance_issue security_concern "
        "data_request integration_help general_inquiry"
    ).split(),
    "urgency": ["critical", "high", "medium", "low"],
    "sentiment": ["POSITIVE", "NEGATIVE", "NEUTRAL"],
}
_DAY = 86400
_AT_ONCE = 25  # items of one BatchWriteItem


def made_up_tickets(count: int, *, newest: int, days: int, seed: int = 11) -> list[dict[str, Any]]:
    """Raw tickets, newest first: at `newest` (Unix seconds) and in the days before, fewer at night and on weekends."""
    chance, generator = random.Random(seed), TicketGenerator(seed, start=newest)
    times = {newest}
    while len(times) < count:
        moment = newest - int(chance.random() * days * _DAY)
        hour, weekday = moment % _DAY / 3600, datetime.fromtimestamp(moment, UTC).weekday()
        if chance.random() < (0.3 if weekday > 4 else 1) * (1 if 7 <= hour < 19 else 0.25):
            times.add(moment)
    return [next(generator) | {"created_at": moment} for moment in sorted(times, reverse=True)]


def made_up_write(raw: dict[str, Any], seed: int = 0, **fields: Any) -> Write:
    """A ticket with the labels that its text was written for, at made-up confidences; `fields` replace others."""
    chance = random.Random(f"{seed}{raw['ticket_id']}{raw['created_at']}")
    truth = raw.get("metadata", {}).get("truth", {task: labels[-1] for task, labels in LABELS.items()})
    found: dict[str, Any] = {"scores": {}}
    for task, labels in LABELS.items():
        best = max(chance.betavariate(6, 1.2), 0.3)
        others = [chance.random() ** 3 for _ in labels[1:]]
        rest = iter((1 - best) * other / sum(others) for other in others)
        found[task] = truth[task]
        found[f"{task}_confidence"] = best
        found["scores"][task] = {label: best if label == truth[task] else next(rest) for label in labels}
    unsure = [task for task in LABELS if found[f"{task}_confidence"] < 0.6]
    direction = [chance.gauss(0, 1) for _ in range(384)]
    length = sum(number * number for number in direction) ** 0.5
    text = " ".join(str(raw["body"]).split())
    made = {
        "embedding": [number / length for number in direction],
        "summary": text if len(text) <= 160 else text[:160].rsplit(" ", 1)[0] + ".",
        "processed_at": datetime.fromtimestamp(raw["created_at"] + 2, UTC).isoformat().replace("+00:00", ".250Z"),
        "model_version": VERSION,
        "needs_review": bool(unsure),
        "review_reasons": unsure,
        "language": raw.get("metadata", {}).get("language"),
        "truncated": [],
    }
    return write_of(RawTicket.model_validate(raw), EnrichmentData.model_validate(found | made | fields))


def write_of(ticket: RawTicket, enrichment: EnrichmentData) -> Write:
    """What the function stores of an enriched ticket."""
    key = f"inline/{ticket.ticket_id}/{ticket.created_at}.json"
    body = enriched_json(ticket, enrichment)
    return Write(ticket, enrichment, body, key, "0" * 64, ticket.created_at * 1000)


def store(
    dynamodb: Any, s3: Any, table: str, bucket: str, with_object: Sequence[Write], others: Sequence[Write] = ()
) -> None:
    """Stores tickets; the `others` have no object."""
    sink = AwsTicketSink(s3, dynamodb, bucket, table)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(sink.store, with_object))
        items = _Items()
        recorder: Any = AwsTicketSink(items, items, bucket, table)  # type: ignore[arg-type] # the three calls it needs
        for write in others:
            recorder.store(write)
        requests = [{"PutRequest": {"Item": item}} for item in items.put]
        parts = [requests[begin : begin + _AT_ONCE] for begin in range(0, len(requests), _AT_ONCE)]
        for answer in pool.map(lambda part: dynamodb.batch_write_item(RequestItems={table: part}), parts):
            assert not answer["UnprocessedItems"]


def seconds_per_list(repository: TicketRepository) -> float:
    """CPU seconds of this process until the page has answered with the list; the services are other processes."""
    links: list[str] = []
    unused: Any = None  # the list neither corrects nor searches
    app = create_app(Stores(repository, unused, unused), port=8700, announce=links.append)
    client = TestClient(app, "http://127.0.0.1:8700")
    client.get(links[-1])
    seconds = []
    for _ in range(5):
        begin = time.process_time()
        assert client.get("/").status_code == 200
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds)


class _Items:
    """Takes the place of both clients, and keeps the items."""

    def __init__(self) -> None:
        self.put: list[dict[str, Any]] = []

    def put_object(self, **_: Any) -> dict[str, Any]:
        return {"VersionId": "none"}

    def put_item(self, **put: Any) -> dict[str, Any]:
        self.put.append(put["Item"])
        return {}

    def get_item(self, **_: Any) -> dict[str, Any]:
        return {}
