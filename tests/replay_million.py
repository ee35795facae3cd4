"""The memory of a backfill of a million keys, as JSON: python -m tests.replay_million AUDIT_FILE

Blocks are counted all the way; bytes, which are costly to trace, over the last 30,000 keys. S3 and SQS are replaced by
what makes pages of keys and what counts messages, so that nothing is measured but the backfill.
"""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from handler.replay.audit import AuditFile
from handler.replay.backfill import Backfill, Place, list_objects
from handler.replay.choice import Choice
from handler.replay.queue import Sent
from handler.replay.run import Pace
from tests.replay_fakes import FakeHalt

KEYS = 1_000_000
PLACE = Place("tickets-raw", "2026/")


class Sink:
    """A queue that only counts; what stands in `at` is called when so many messages have come."""

    def __init__(self, at: Mapping[int, Callable[[], object]]) -> None:
        self.count = 0
        self._at = at

    def send(self, entries: Any) -> list[Sent]:
        """As Queue.send."""
        self.count += len(entries)
        if self.count in self._at:
            self._at[self.count]()
        return [Sent("id")] * len(entries)


class Pages:
    """An S3 client and its paginator, of a bucket with a million keys."""

    def get_paginator(self, name: str) -> Pages:
        """As boto3's."""
        assert name == "list_objects_v2"
        return self

    def paginate(self, *, Bucket: str, Prefix: str) -> Iterator[dict[str, Any]]:  # noqa: N803
        """Pages of a thousand keys."""
        assert Bucket == PLACE.bucket
        modified = datetime.fromtimestamp(1_795_000_000, UTC)
        for page in range(0, KEYS, 1000):
            keys = (f"{Prefix}{number:07}.json" for number in range(page, page + 1000))
            yield {"Contents": [{"Key": key, "Size": 900, "ETag": '"abc"', "LastModified": modified} for key in keys]}


def main(path: Path) -> None:
    """Runs the backfill and prints the figures."""
    blocks: list[int] = []
    queue: Any = Sink(
        {
            10_000: lambda: blocks.append(sys.getallocatedblocks()),
            970_000: tracemalloc.start,
            990_000: lambda: blocks.append(sys.getallocatedblocks()),
        }
    )
    client: Any = Pages()
    halt = FakeHalt()
    with AuditFile(path, {"source": "s3://tickets-raw/2026/", "destination": "live"}) as audit:
        work = Backfill(PLACE, queue, Choice(), audit=audit, pace=Pace(None, halt), halt=halt)
        work.run(list_objects(client, PLACE), lambda tally: None)
    grown, peak = tracemalloc.get_traced_memory()
    figures = {"sent": queue.count, "replayed": work.tally.replayed, "blocks_grown": blocks[1] - blocks[0]}
    print(json.dumps({**figures, "bytes_grown": grown, "bytes_peak": peak}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
