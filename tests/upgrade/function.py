"""The function with a constant model result, in a process of its own: handles the event on standard input.

Runs with the code of whichever release PYTHONPATH names. The last line that it prints is the response; what is in the
environment variable MODEL_VERSION is the model version of the results.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from enrichment.errors import EnrichmentError
from enrichment.ticket import EnrichmentData, RawTicket
from handler.app import build
from handler.settings import Settings


class Models:
    """Knows every answer."""

    version = os.environ["MODEL_VERSION"]

    def enrich(self, tickets: Sequence[RawTicket], **_options: Any) -> list[EnrichmentData | EnrichmentError]:
        return [self._data(ticket) for ticket in tickets]

    def _data(self, ticket: RawTicket) -> EnrichmentData:
        fields: dict[str, Any] = {
            "embedding": [1.0] + [0.0] * 383,
            "intent": "payment_issue",
            "intent_confidence": 0.9,
            "urgency": "high",
            "urgency_confidence": 0.8,
            "sentiment": "NEGATIVE",
            "sentiment_confidence": 0.7,
            "summary": f"The summary of {ticket.ticket_id}.",
            "processed_at": "2026-11-20T09:00:00.000Z",
            "model_version": self.version,
            "scores": {"intent": {"payment_issue": 0.9}},
            "needs_review": True,
            "truncated": ["summary"],
        }
        # Later releases have more, with defaults or without.
        later = {"language": "en", "review_reasons": ["intent"]}
        fields |= {name: value for name, value in later.items() if name in EnrichmentData.model_fields}
        return EnrichmentData(**fields)


def main() -> None:
    """Print the code's folder, logs and metrics, and the response."""
    import handler

    sys.stdout.write(f"{handler.__file__}\n")
    context = SimpleNamespace(
        function_name="ticket-enrichment",
        memory_limit_in_mb=2048,
        invoked_function_arn="arn:aws:lambda:us-east-1:000000000000:function:ticket-enrichment",
        aws_request_id="request",
        get_remaining_time_in_millis=lambda: 60_000,
    )
    read: Any = getattr(Settings, "read", Settings)  # be79fe2 reads the environment when it makes an object
    response = build(read(), models=Models())(json.load(sys.stdin), context)
    sys.stdout.write(f"{json.dumps(response)}\n")


if __name__ == "__main__":
    main()
