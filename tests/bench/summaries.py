"""Whether extractive summaries hold the sentence that an agent needs most.

tests/parity/summaries.jsonl has tickets of our own with the index of that sentence, and of public tickets, which are
not in the repository, only a hash (of subject, a newline and the body) with the index. `make eval` measures these:

    python -m tests.bench.summaries tickets_public.jsonl .bundles/compact

The weights of enrichment/summary/merit.py were fitted to these tickets; with the fit on four fifths of the authors,
0.95 of the others had it, with a fit without the last 14 of our own 12 of these 14.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Final

from enrichment import Enricher, EnrichmentData, RawTicket
from enrichment.summary.extractive import plain
from enrichment.text import read_ticket, sentences

BUDGET: Final = 0.85
MARKED: Final[list[dict[str, Any]]] = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "parity" / "summaries.jsonl").read_text(encoding="utf-8").splitlines()
]


def public_rows(file: Path) -> list[dict[str, Any]]:
    """The marked public tickets: subject, body, and the index of the sentence. Raises ValueError if one is missing."""
    needed = {row["sha256"]: row["needed"] for row in MARKED if "sha256" in row}
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        digest = hashlib.sha256(f"{row['subject']}\n{row['body']}".encode()).hexdigest()[:16]
        if digest in needed:
            rows.append({"subject": row["subject"], "body": row["body"], "needed": needed[digest]})
    if len(rows) != len(needed):
        raise ValueError(f"{file} has {len(rows)} of the {len(needed)} marked tickets")
    return rows


def share_that_keeps(enricher: Enricher, rows: list[dict[str, Any]]) -> float:
    """The share of tickets whose summary, of at most 50 tokens, has the marked sentence."""
    tickets = [
        RawTicket(ticket_id="T", customer_id="C", created_at=0, subject=str(row["subject"]), body=str(row["body"]))
        for row in rows
    ]
    held = 0
    for ticket, row, found in zip(tickets, rows, enricher.enrich(tickets), strict=True):
        assert isinstance(found, EnrichmentData)
        assert enricher._encoder.count_tokens(found.summary) <= 50
        text = read_ticket(ticket.subject, ticket.body)
        needed = sentences(text.text, text.begin)[int(row["needed"])]
        held += plain(text.text[needed.start : needed.end]).rstrip(".,;:!?") in found.summary
    return held / len(rows)


def main() -> int:
    """Print the share of the public tickets; returns 1 if it is under the budget."""
    file, bundle = map(Path, sys.argv[1:])
    rows = public_rows(file)
    share = share_that_keeps(Enricher.open(bundle), rows)
    sys.stdout.write(f"summaries with the sentence needed most: {share:.3f} of {len(rows)} (at least {BUDGET})\n")
    return int(share < BUDGET)


if __name__ == "__main__":
    sys.exit(main())
