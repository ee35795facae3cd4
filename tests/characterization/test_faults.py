"""Cases that no sample event covers: missing services, the last receive, and concurrent versions of one ticket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.characterization.harness import Event, Product
from tests.characterization.observation import observed
from tests.characterization.snapshots import Snapshots

SENT = 1_795_166_102_000  # milliseconds
VERSIONS = 10


MISSING = {"no-dlq": "DLQ_URL", "no-enriched-bucket": "ENRICHED_BUCKET", "no-table": "TABLE_NAME"}


@pytest.fixture(scope="module", params=MISSING)
def broken(request: pytest.FixtureRequest, product: Product) -> tuple[str, Product]:
    setting = MISSING[request.param]
    return request.param, product.with_settings(**{setting: product.environment[setting] + "-gone"})


@pytest.mark.parametrize("route", ["handler", "worker"])
def test_missing_service_keeps_the_messages(
    route: str, broken: tuple[str, Product], product: Product, snapshots: Snapshots
) -> None:
    """The messages stay in the queue, and nothing is stored without its commit."""
    fault, faulty = broken
    event = Event.load("mixed")
    run = faulty.through_handler(event) if route == "handler" else faulty.through_worker(event)
    behaviour, _ = observed(product, run)
    snapshots.check(f"faults/{fault}-{route}", "behaviour", behaviour)


def test_last_receive_sends_the_message_to_the_dlq(product: Product, snapshots: Snapshots) -> None:
    """A message that fails at its last receive goes to the DLQ with its reason."""
    faulty = product.with_settings(TABLE_NAME="gone")
    event = Event.load("one-ticket")
    (record,) = event.records
    last = record | {"attributes": record["attributes"] | {"ApproximateReceiveCount": "5"}}
    run = faulty.through_handler(Event("last", [last], event.objects))
    behaviour, _ = observed(product, run)
    snapshots.check("faults/last-receive", "behaviour", behaviour)


@pytest.mark.parametrize("newest", [0, VERSIONS // 2, VERSIONS - 1])
def test_newest_of_many_versions_is_kept(newest: int, product: Product) -> None:
    """Versions of one ticket in one batch are written concurrently, so the condition of the put decides."""
    records = [_version(number, SENT + (VERSIONS if number == newest else -number)) for number in range(VERSIONS)]
    product.empty()
    assert product.invoke({"Records": records}) == {"batchItemFailures": []}
    (item,) = product.items()
    assert (item["subject"]["S"], item["source_modified"]["N"]) == (f"version {newest}", str(SENT + VERSIONS))
    _, body = product.object(item["s3_key"]["S"], item["s3_version_id"]["S"])
    assert json.loads(body)["subject"] == f"version {newest}"


def _version(number: int, sent: int) -> dict[str, Any]:
    ticket = {
        "ticket_id": "VERSIONS",
        "subject": f"version {number}",
        "body": "",
        "created_at": 1,
        "customer_id": "C-1",
    }
    return {
        "messageId": f"m-{number}",
        "receiptHandle": f"h-{number}",
        "body": json.dumps(ticket),
        "attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": str(sent)},
        "messageAttributes": {},
        "eventSource": "aws:sqs",
    }
