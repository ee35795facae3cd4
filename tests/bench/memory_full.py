"""Peak memory of a full bundle: `python -m tests.bench.memory_full BUNDLE`.

First a batch of ten tickets of about 80 tokens; then the same 50 batches of different sizes and lengths four times,
with the memory recorded after each batch: a difference between rounds is growth.
"""

from __future__ import annotations

import json
import random
import statistics
import sys

import psutil

from enrichment import Bundle, Enricher
from enrichment.encoder import Encoder
from enrichment.ticket import ticket_from_object
from events.generator import TicketGenerator
from tests.bench.__main__ import tickets_of_eighty_tokens
from tests.bench.memory import peak_mb

if __name__ == "__main__":
    enricher = Enricher.open(sys.argv[1], threads=2)
    process = psutil.Process()
    enricher.enrich(tickets_of_eighty_tokens(Encoder.open(Bundle.open(sys.argv[1]), threads=2), 10))
    peak = peak_mb()
    rounds = []
    for number in range(4):
        tickets, sizes = TicketGenerator(seed=1, start=1_790_000_000), random.Random(1)
        after = []
        for count in range(50):
            batch = [ticket_from_object(next(tickets)) for _ in range(sizes.choice((1, 1, 2, 3)))]
            if count % 10 == 0:  # fills the encoder's longest input
                batch[0] = batch[0].model_copy(update={"body": batch[0].body * 200})
            enricher.enrich(batch)
            after.append(process.memory_info().rss / 1e6)
        rounds.append((statistics.median(after), max(after)))
        sys.stderr.write(
            f"{50 * (number + 1)} batches: median {rounds[-1][0]:.0f} MB, at most {rounds[-1][1]:.0f} MB\n"
        )
    metrics = {
        "peak_of_ten": peak,
        "peak": peak_mb(),
        "medians": [m for m, _ in rounds],
        "largest": [m for _, m in rounds],
    }
    sys.stdout.write(json.dumps(metrics) + "\n")
