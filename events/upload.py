"""What `make demo` uploads to the raw bucket: synthetic tickets, among them broken and unusual ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from events.generator import TicketGenerator

__all__ = ["Upload", "make_uploads"]


@dataclass(frozen=True)
class Upload:
    """One object to upload. `broken` is the Reason with which it must be rejected; None: it must be enriched."""

    key: str
    body: bytes
    broken: str | None = None
    note: str | None = None


def make_uploads(count: int, seed: int) -> list[Upload]:
    """Return `count` uploads; eight of them are unusual or broken, as they occur in real buckets."""
    tickets = TicketGenerator(seed=seed, start=1_790_000_000)
    made = [next(tickets) for _ in range(count - 4)]
    uploads = [Upload(f"2026/{ticket['ticket_id']}.json", _json(ticket)) for ticket in made]
    odd = dict(made[0], ticket_id="ODD-KEY")
    empty = dict(made[1], ticket_id="EMPTY-BODY", body="")
    missing = {name: value for name, value in made[2].items() if name != "customer_id"}
    uploads[0] = Upload("from mail/Re: a+b & more.json", _json(odd), note="a key with spaces and +")
    uploads[1] = Upload("2026/empty-body.json", _json(empty), note="an empty body")
    uploads[2] = Upload(uploads[3].key, uploads[3].body, note="the same ticket twice")
    return [
        Upload("broken/deleted.json", _json(made[4]), broken="object_gone", note="deleted before it is read"),
        *uploads,
        Upload("broken/not-json.json", b"Dear support, I lost my password", broken="schema_violation", note="not JSON"),
        Upload("broken/no-customer.json", _json(missing), broken="schema_violation", note="a field is missing"),
        Upload(
            "broken/latin-1.json", "{'subject': 'Grüße'}".encode("latin-1"), broken="schema_violation", note="not UTF-8"
        ),
    ]


def _json(ticket: Mapping[str, Any]) -> bytes:
    return json.dumps(ticket).encode()
