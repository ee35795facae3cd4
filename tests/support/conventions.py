"""Made-up tickets of a company with a convention of its own: whoever cannot log in is critical there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from enrichment import Enricher, EnrichmentData, RawTicket
from events.generator import Ticket, TicketGenerator

START = 1_700_000_000


def written_by(author: int, count: int, seed: int) -> list[Ticket]:
    """Tickets from every second template: the authors 0 and 1 have none in common."""
    generator = TicketGenerator(seed, start=START)
    generator._templates = generator._templates[author::2]
    return [ticket | {"priority": None} for ticket in islice(generator, count)]


def decided(ticket: Ticket) -> str:
    """The urgency that the company wants."""
    truth = ticket["metadata"]["truth"]
    return "critical" if truth["intent"] == "login_issue" else str(truth["urgency"])


def predicted(enricher: Enricher, tickets: Sequence[Ticket]) -> list[str]:
    """The urgency that a bundle gives."""
    raw = [RawTicket.model_validate(ticket) for ticket in tickets]
    results = enricher.enrich(raw)
    assert all(isinstance(result, EnrichmentData) for result in results)
    return [result.urgency for result in results if isinstance(result, EnrichmentData)]


def correction(ticket: Ticket, **labels: str) -> dict[str, Any]:
    """A line of the file that `tickets corrections` writes."""
    names = ("ticket_id", "created_at", "customer_id", "subject", "body")
    return {name: ticket[name] for name in names} | labels | {"at": "2026-11-26T10:00:00Z"}


def write_corrections(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    """Writes a corrections file."""
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path
