"""Backfill: enriches stored raw tickets again, for example after a new bundle. It does not use the DLQ.

For each key, it sends the notification that S3 sent when the object was put. S3 lists keys in byte order, so a run only
needs the last key to continue, and a million keys take no more memory than ten. After a kill, at most one batch is sent
twice, and the handler skips tickets that it has already enriched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote_plus

import pydantic_core
from botocore.exceptions import BotoCoreError, ClientError

from handler.aws.errors import from_aws
from handler.aws.sqs import Queue
from handler.dlq.audit import Audit
from handler.dlq.errors import DlqError, RequestInvalid
from handler.dlq.message import timestamp
from handler.dlq.options import Options
from handler.dlq.replay import RateLimiter, send_batch
from handler.dlq.scan import Stats

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["Backfill", "list_objects", "notification", "parse_location"]

_MAX_FAILURES: Final = 1000  # after that, the run stops: other keys would fail for the same cause


def parse_location(url: str) -> tuple[str, str]:
    """The bucket and the prefix of `s3://bucket/prefix`. Raises RequestInvalid."""
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise RequestInvalid(f"{url!r} does not look like s3://bucket/prefix")
    return bucket, prefix


def list_objects(client: S3Client, bucket: str, prefix: str, after: str = "") -> Iterator[Mapping[str, Any]]:
    """The objects of S3's listing, in the order of their keys, after the key `after`. Raises ServiceFailed."""
    paginator = client.get_paginator("list_objects_v2")
    start: dict[str, Any] = {"StartAfter": after} if after else {}
    try:
        for page in paginator.paginate(Bucket=bucket, Prefix=prefix, **start):
            yield from page.get("Contents", [])
    except (ClientError, BotoCoreError) as error:
        raise from_aws(error, "ListObjectsV2") from error


def notification(bucket: str, item: Mapping[str, Any]) -> str:
    """The body of S3's notification for an object; `item` is an entry of S3's listing, or has only a Key."""
    described: dict[str, Any] = {"key": quote_plus(item["Key"], safe="/")}
    if "Size" in item:
        described |= {"size": item["Size"], "eTag": item.get("ETag", "").strip('"')}
    record = {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventTime": timestamp(item.get("LastModified")),
        "eventName": "ObjectCreated:Put",
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "dlq-replay",
            "bucket": {"name": bucket, "arn": f"arn:aws:s3:::{bucket}"},
            "object": described,
        },
    }
    return pydantic_core.to_json({"Records": [record]}).decode()


class Backfill:
    """Sends the notifications of objects to a queue, counted in `stats`; `last_key` is the last key sent."""

    def __init__(self, bucket: str, queue: Queue, options: Options, audit: Audit, limiter: RateLimiter) -> None:
        self.stats = Stats()
        self.last_key = audit.history.last_key
        self._bucket = bucket
        self._queue = queue
        self._options = options
        self._audit = audit
        self._limiter = limiter

    def run(self, objects: Iterable[Mapping[str, Any]], on_progress: Callable[[Stats], None]) -> None:
        """Send the keys that failed in earlier runs, then `objects`, which the caller lists after the last key.

        Raises DlqError, Throttled or ServiceFailed; the audit file then says where to continue.
        """
        retries = ({"Key": key} for key in sorted(self._audit.history.failed_keys))
        self._send_all(retries, on_progress, are_retries=True)
        self._send_all(self._select(objects), on_progress, are_retries=False)

    def _select(self, objects: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        for item in objects:
            self.stats.scanned += 1
            modified = item.get("LastModified")
            is_folder = item["Key"].endswith("/") and not item.get("Size")  # the S3 console makes them
            if not is_folder and self._options.filter.includes_time(
                int(modified.timestamp() * 1000) if modified else None
            ):
                yield item

    def _send_all(
        self, items: Iterable[Mapping[str, Any]], on_progress: Callable[[Stats], None], *, are_retries: bool
    ) -> None:
        limit = self._options.limit
        limited = islice(items, None if limit is None else max(0, limit - self.stats.selected))
        while not self.stats.interrupted and (batch := list(islice(limited, self._limiter.batch_size))):
            self._limiter.wait(len(batch))
            if self._limiter.shutdown.is_requested:
                self.stats.interrupted = True
                return
            self.stats.selected += len(batch)
            if not self._options.dry_run:
                self._send(batch, are_retries=are_retries)
            on_progress(self.stats)

    def _send(self, batch: Sequence[Mapping[str, Any]], *, are_retries: bool) -> None:
        entries = [{"MessageBody": notification(self._bucket, item)} for item in batch]
        sent, failed = [], []
        for item, result in zip(batch, send_batch(self._queue, entries, self._limiter.shutdown), strict=True):
            if result.message_id is None:
                self.stats.add_failure(item["Key"], result.error)
                failed.append({"key": item["Key"], "error": result.error})
            else:
                sent.append(item["Key"])
        self.stats.replayed += len(sent)
        # The failures first: a run that continues after the last key must know them.
        self._audit.write("failed", failed)
        if are_retries:
            self._audit.write("enqueued", [{"count": len(sent), "failed_before": sent}])
        else:
            self.last_key = batch[-1]["Key"]
            self._audit.write("enqueued", [{"count": len(sent), "last_key": self.last_key}])
        if self.stats.failed >= _MAX_FAILURES:
            raise DlqError(f"{self.stats.failed} keys failed; find the cause, then run again with the same --audit")
