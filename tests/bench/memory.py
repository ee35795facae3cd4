"""Peak memory over 1,000 tickets of all lengths: `python -m tests.bench.memory BUNDLE`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import psutil

from enrichment import Enricher
from enrichment.ticket import ticket_from_object
from events.generator import TicketGenerator


def peak_mb() -> float:
    """Peak memory of this process; not ru_maxrss, which a child inherits from its parent."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3  # type: ignore[index]  # the kernel always writes it


if __name__ == "__main__":
    enricher = Enricher.open(sys.argv[1])
    process = psutil.Process()
    tickets = TicketGenerator(seed=1, start=1_790_000_000)
    after = []
    for number in range(100):
        batch = [ticket_from_object(next(tickets)) for _ in range(10)]
        if number % 10 == 0:  # the worst case: ten tickets that fill all windows
            batch = [ticket.model_copy(update={"body": ticket.body * 200}) for ticket in batch]
        enricher.enrich(batch)
        after.append(process.memory_info().rss / 1e6)
    sys.stdout.write(json.dumps({"peak_mb": peak_mb(), "after_200": after[19], "after_1000": after[-1]}) + "\n")
