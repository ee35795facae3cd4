"""The deployed system as seen from outside: puts tickets into the bucket and reads the results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from boto3.dynamodb.types import TypeDeserializer

from handler.aws.batch_objects import BatchRange, read_enriched
from handler.result_event import batch_place
from tests.endtoend.deployment import Deployment
from tests.support.cases import Answer, RejectedMessage

_SECONDS = 240.0  # generous for busy machines; waits end as soon as their condition holds
_DEPTHS = (
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesNotVisible",
    "ApproximateNumberOfMessagesDelayed",
)


@dataclass(frozen=True)
class Stored:
    """One enriched ticket: its item as plain values, and the object version that the item refers to."""

    item: Mapping[str, Any]
    ticket: Mapping[str, Any]


class Pipeline:
    """A deployment and its function's log."""

    def __init__(self, deployment: Deployment, log: Callable[[], str]) -> None:
        self.deployment = deployment
        self.log = log
        self._outputs = deployment.outputs
        self._s3, self._sqs, self._dynamodb = (deployment.client(name) for name in ("s3", "sqs", "dynamodb"))

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Put objects into the raw bucket concurrently."""
        bucket = self._outputs["RawBucket"]
        with ThreadPoolExecutor(8) as pool:
            puts = [pool.submit(self._s3.put_object, Bucket=bucket, Key=k, Body=body) for k, body in objects.items()]
        for put in puts:
            put.result()

    def done(self) -> set[str]:
        """Keys of all tickets in the table."""
        return {item["s3_key"] for item in self._items()}

    def is_finished(self, keys: Iterable[str]) -> bool:
        """Whether all these tickets are stored and the queue is empty."""
        # The queue's depth is cheap to read, the whole table is not.
        return self.depth() == 0 and self.done() >= set(keys)

    def stored(self, prefix: str) -> dict[str, Stored]:
        """The enriched tickets with this key prefix, by key, read from both stores."""
        items = [item for item in self._items() if item["s3_key"].startswith(prefix)]
        with ThreadPoolExecutor(8) as pool:
            return dict(zip((item["s3_key"] for item in items), pool.map(self._stored, items), strict=True))

    def lines(self, key: str) -> list[dict[str, Any]]:
        """The function's log lines for the ticket with this key, oldest first."""
        entries = Answer(None, self.log()).lines()
        return [entry for entry in entries if entry.get("message") == "ticket" and entry.get("s3_key") == key]

    def rejected_messages(self) -> list[RejectedMessage]:
        """Receive and delete all messages of the DLQ."""
        return RejectedMessage.receive_all(self._sqs, self._outputs["DlqUrl"])

    def depth(self, queue: str = "QueueUrl") -> int:
        """Number of messages in a queue, including those in flight and delayed."""
        found = self._sqs.get_queue_attributes(QueueUrl=self._outputs[queue], AttributeNames=list(_DEPTHS))
        return sum(int(found["Attributes"][name]) for name in _DEPTHS)

    def set_visibility(self, seconds: int) -> int:
        """Set the queue's visibility timeout and return the previous one."""
        url, name = self._outputs["QueueUrl"], "VisibilityTimeout"
        before = self._sqs.get_queue_attributes(QueueUrl=url, AttributeNames=[name])["Attributes"][name]
        self._sqs.set_queue_attributes(QueueUrl=url, Attributes={name: str(seconds)})
        return int(before)

    @contextmanager
    def without_notifications(self) -> Iterator[None]:
        """Disable the bucket's notifications for the duration of the block."""
        bucket = self._outputs["RawBucket"]
        configuration = self._s3.get_bucket_notification_configuration(Bucket=bucket)
        del configuration["ResponseMetadata"]
        assert configuration["QueueConfigurations"]
        self._s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration={})
        try:
            yield
        finally:
            self._s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=configuration)

    def _items(self) -> list[dict[str, Any]]:
        read = TypeDeserializer().deserialize
        pages = self._dynamodb.get_paginator("scan").paginate(TableName=self._outputs["TableName"], ConsistentRead=True)
        items = [item for page in pages for item in page["Items"]]
        # Items without a key count the failures of a message.
        return [{name: read(value) for name, value in item.items()} for item in items if "s3_key" in item]

    def _stored(self, item: Mapping[str, Any]) -> Stored:
        place = batch_place(item.get("s3_batch"))
        batch = None if place is None else BatchRange(*place)
        bucket = self._outputs["EnrichedBucket"]
        return Stored(item, json.loads(read_enriched(self._s3, bucket, item["s3_key"], item["s3_version_id"], batch)))


def wait_until(condition: Callable[[], bool], what: str, seconds: float = _SECONDS) -> None:
    """Poll until the condition holds. Raises AssertionError with `what` if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)
