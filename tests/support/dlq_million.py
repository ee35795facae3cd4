"""The memory of a backfill of a million keys, as JSON: python -m tests.support.dlq_million AUDIT_FILE

Blocks are counted during the whole run; bytes, which are expensive to trace, over the last 30,000 keys. S3 and SQS are
replaced by fakes that make pages of keys and count messages, so that only the backfill is measured.
"""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from handler.aws.sqs import SendResult
from handler.dlq.audit import Audit
from handler.dlq.backfill import Backfill, list_objects
from handler.dlq.options import Options
from handler.dlq.replay import RateLimiter
from tests.support.dlq_queues import FakeQueue, FakeShutdown

KEYS = 1_000_000


class CountingQueue(FakeQueue):
    """Only counts messages; calls the function in `at` when it has counted that many."""

    def __init__(self, at: Mapping[int, Callable[[], object]]) -> None:
        super().__init__()
        self.count = 0
        self._actions = at

    def send(self, entries: Sequence[Any]) -> list[SendResult]:
        self.count += len(entries)
        if self.count in self._actions:
            self._actions[self.count]()
        return [SendResult("id")] * len(entries)


class Pages:
    """An S3 client and its paginator, of a bucket with a million keys."""

    def get_paginator(self, name: str) -> Pages:
        assert name == "list_objects_v2"
        return self

    def paginate(self, *, Bucket: str, Prefix: str) -> Iterator[dict[str, Any]]:  # noqa: N803
        assert Bucket == "tickets-raw"
        modified = datetime.fromtimestamp(1_795_000_000, UTC)
        for page in range(0, KEYS, 1000):
            keys = (f"{Prefix}{number:07}.json" for number in range(page, page + 1000))
            yield {"Contents": [{"Key": key, "Size": 900, "ETag": '"abc"', "LastModified": modified} for key in keys]}


def main(path: Path) -> None:
    """Run the backfill and print the numbers."""
    blocks: list[int] = []
    queue = CountingQueue(
        {
            10_000: lambda: blocks.append(sys.getallocatedblocks()),
            970_000: tracemalloc.start,
            990_000: lambda: blocks.append(sys.getallocatedblocks()),
        }
    )
    client: Any = Pages()
    with Audit(path, {"source": "s3://tickets-raw/2026/", "destination": "live"}) as audit:
        work = Backfill("tickets-raw", queue, Options(), audit, RateLimiter(None, FakeShutdown()))
        work.run(list_objects(client, "tickets-raw", "2026/"), lambda stats: None)
    grown, peak = tracemalloc.get_traced_memory()
    numbers = {"sent": queue.count, "replayed": work.stats.replayed, "blocks_grown": blocks[1] - blocks[0]}
    print(json.dumps({**numbers, "bytes_grown": grown, "bytes_peak": peak}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
