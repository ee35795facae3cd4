"""Time from process start to the first enriched ticket: `python -m tests.bench.start library|handler BUNDLE`.

Prints the seconds of each step as one JSON object.
"""

from __future__ import annotations

import json
import sys
import time

BEGIN = time.perf_counter()
STEPS: dict[str, float] = {}
TICKET = {
    "ticket_id": "FIRST",
    "customer_id": "C-1",
    "created_at": 1_790_000_000,
    "subject": "Cannot export my invoices",
    "body": "Since Monday the export ends with an error. I tried two browsers and both give the same page. "
    "Our accountant needs the invoices by Friday, so please have a look soon.",
}


def step(name: str) -> None:
    """End a step."""
    STEPS[name] = time.perf_counter() - BEGIN - sum(STEPS.values())


def library(bundle: str) -> None:
    """Only the library."""
    from enrichment import Enricher, parse_ticket

    step("import")
    enricher = Enricher.open(bundle)
    step("open the bundle")
    [result] = enricher.enrich([parse_ticket(json.dumps(TICKET).encode())])
    assert result.intent  # type: ignore[union-attr]
    step("first ticket")


def handler(bundle: str) -> None:
    """The handler with its AWS clients; the ticket comes and goes in memory, so that no network is measured."""
    import tempfile

    from handler.app import build
    from handler.settings import Settings

    step("import")
    from tests.support.fakes import FakeSink

    with tempfile.TemporaryDirectory() as cache:
        settings = Settings(
            model_bundle=f"file://{bundle}",
            bundle_cache_dir=cache,
            raw_bucket="raw",
            enriched_bucket="enriched",
            table_name="tickets",
            queue_url="http://127.0.0.1:9/queue",
            dlq_url="http://127.0.0.1:9/dlq",
            aws_endpoint_url="http://127.0.0.1:9",
        )
        sink = FakeSink()
        handle = build(settings, sink=sink)
        step("clients, copy and open the bundle")
        record = {
            "messageId": "1",
            "receiptHandle": "1",
            "body": json.dumps(TICKET),
            "attributes": {},
            "eventSource": "aws:sqs",
        }
        answer = handle({"Records": [record]}, None)
    assert answer == {"batchItemFailures": []}, answer
    step("first ticket")


if __name__ == "__main__":
    {"library": library, "handler": handler}[sys.argv[1]](sys.argv[2])
    sys.stdout.write(json.dumps(STEPS) + "\n")
