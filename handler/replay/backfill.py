"""Stored raw tickets into the queue once more: a backfill of history, or everything anew after a new bundle.

Each key becomes the notification that S3 sent when the object was put. S3 lists keys in the order of their bytes, so
the last one that was sent is all that a resumed backfill has to know, and a million take no more memory than ten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote_plus

import pydantic_core
from botocore.exceptions import BotoCoreError, ClientError

from handler.replay.audit import Audit
from handler.replay.choice import Choice
from handler.replay.letter import timestamp
from handler.replay.look import Halt, Tally
from handler.replay.queue import Queue, ReplayError, ReplayRefused, error_line
from handler.replay.run import Pace, send_entries

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["Backfill", "Place", "list_objects", "notification", "parse_place"]

_MOST_FAILURES: Final = 1000  # something is wrong then that more keys will not mend


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket and the beginning of its keys."""

    bucket: str
    prefix: str


def parse_place(text: str) -> Place:
    """The place of `s3://bucket/prefix`. Raises ReplayRefused."""
    scheme, _, rest = text.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise ReplayRefused(f"{text!r} is not like s3://bucket/prefix")
    return Place(bucket, prefix)


def list_objects(client: S3Client, place: Place, after: str = "") -> Iterator[Mapping[str, Any]]:
    """The objects of a place, from S3's list, in the order of their keys; those after `after`. Raises ReplayError."""
    paginator = client.get_paginator("list_objects_v2")
    arguments: Any = {"Bucket": place.bucket, "Prefix": place.prefix, **({"StartAfter": after} if after else {})}
    try:
        for page in paginator.paginate(**arguments):
            yield from page.get("Contents", [])
    except (ClientError, BotoCoreError) as error:
        raise ReplayError(error_line(error, "ListObjectsV2")) from error


def notification(place: Place, item: Mapping[str, Any]) -> str:
    """What S3 sent, or would have sent, when the object was put; `item` is an entry of S3's list, or only has a Key."""
    modified = item.get("LastModified")
    entry: dict[str, Any] = {"key": quote_plus(item["Key"], safe="/")}
    if "Size" in item:
        entry |= {"size": item["Size"], "eTag": item.get("ETag", "").strip('"')}
    record = {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventTime": timestamp(modified),
        "eventName": "ObjectCreated:Put",
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "dlq-replay",
            "bucket": {"name": place.bucket, "arn": f"arn:aws:s3:::{place.bucket}"},
            "object": entry,
        },
    }
    return pydantic_core.to_json({"Records": [record]}).decode()


class Backfill:
    """Sends the notifications of objects to a queue. Of a choice it heeds the times, by LastModified."""

    def __init__(
        self,
        place: Place,
        queue: Queue,
        choice: Choice,
        *,
        audit: Audit,
        pace: Pace,
        halt: Halt,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> None:
        self.tally = Tally()
        self.last_key = audit.journal.last_key
        self._place = place
        self._queue = queue
        self._choice = choice
        self._audit = audit
        self._pace = pace
        self._halt = halt
        self._limit = limit
        self._dry_run = dry_run

    def run(self, objects: Iterable[Mapping[str, Any]], advance: Callable[[Tally], None]) -> Tally:
        """Sends what an earlier run could not, and then `objects`, which begin after its last key.

        `advance` hears of every batch. Raises ReplayError; the audit then says where to go on.
        """
        before = sorted(self._audit.journal.failed_keys)
        for items in (({"Key": key} for key in before), self._chosen(objects)):
            chosen = islice(items, self._left())
            while batch := list(islice(chosen, self._pace.most_entries)):
                self._pace.wait(len(batch))
                if self._halt.is_requested:
                    self.tally.interrupted = True
                    return self.tally
                self._send(batch)
                advance(self.tally)
        return self.tally

    def _left(self) -> int | None:
        return None if self._limit is None else max(0, self._limit - self.tally.chosen)

    def _chosen(self, objects: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        for item in objects:
            self.tally.looked += 1
            modified = item.get("LastModified")
            is_folder = item["Key"].endswith("/") and not item.get("Size")  # consoles make them; no ticket is empty
            if not is_folder and self._choice.covers(int(modified.timestamp() * 1000) if modified else None):
                yield item

    def _send(self, batch: Sequence[Mapping[str, Any]]) -> None:
        """Sends a batch. A kill in here sends it twice, and the handler skips what it has enriched already."""
        self.tally.chosen += len(batch)
        if self._dry_run:
            return
        entries = [{"MessageBody": notification(self._place, item)} for item in batch]
        failed = []
        for item, sent in zip(batch, send_entries(self._queue, entries, self._halt), strict=True):
            if sent.message_id is None:
                self.tally.fail(item["Key"], sent.error)
                failed.append({"key": item["Key"], "error": sent.error})
        self.tally.replayed += len(batch) - len(failed)
        self._write(batch, failed)
        if self.tally.failed >= _MOST_FAILURES:
            raise ReplayError(f"{self.tally.failed} keys failed, so something is wrong; mend it, and start again")

    def _write(self, batch: Sequence[Mapping[str, Any]], failed: Sequence[Mapping[str, Any]]) -> None:
        # The failures first: a run that goes on after the last key must know of them.
        self._audit.write("failed", failed)
        lost = {line["key"] for line in failed}
        arrived = [item["Key"] for item in batch if item["Key"] not in lost]
        if batch[0]["Key"] in self._audit.journal.failed_keys:
            self._audit.write("enqueued", [{"count": len(arrived), "failed_before": arrived}])
        else:
            self.last_key = batch[-1]["Key"]
            self._audit.write("enqueued", [{"count": len(arrived), "last_key": self.last_key}])
