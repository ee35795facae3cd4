"""Peak memory of a full bundle: `python -m tests.bench.memory_full BUNDLE`.

First a batch of ten, each of about 80 tokens; then 200 batches of all sizes and lengths, with the memory noted.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import psutil

from enrichment import Bundle, Enricher
from enrichment.encoder import Encoder
from enrichment.ticket import ticket_from_object
from events.generator import TicketGenerator
from tests.bench.__main__ import tickets_of_eighty_tokens

if __name__ == "__main__":
    enricher = Enricher.open(sys.argv[1], threads=2)
    process = psutil.Process()
    enricher.enrich(tickets_of_eighty_tokens(Encoder.open(Bundle.open(sys.argv[1]), threads=2), 10))
    # Not ru_maxrss, which a child inherits from the process that started it.
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3  # type: ignore[index]  # the kernel always writes it
    tickets, sizes = TicketGenerator(seed=1, start=1_790_000_000), random.Random(1)
    after = []
    for number in range(200):
        batch = [ticket_from_object(next(tickets)) for _ in range(sizes.choice((1, 1, 2, 3)))]
        if number % 20 == 0:  # the longest source that the encoder reads
            batch[0] = batch[0].model_copy(update={"body": batch[0].body * 200})
        enricher.enrich(batch)
        after.append(process.memory_info().rss / 1e6)
        if number % 20 == 19:
            sys.stderr.write(f"{number + 1} batches: {after[-1]:.0f} MB\n")
    figures = {"peak_mb": peak, "after_50": max(after[:50]), "after_200": max(after[150:])}
    sys.stdout.write(json.dumps(figures) + "\n")
