"""The queues that the worker reads: the port, and its adapter over handler.aws.sqs."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, cast

from botocore.exceptions import BotoCoreError

from handler.aws.clients import client_factory
from handler.aws.sqs import Queue, QueueAttributes, tens
from handler.errors import MessageError
from handler.settings import Settings
from handler.worker.invocation import Message

__all__ = ["MessageQueue", "SqsDepth", "SqsMessageQueue", "SqsVisibility", "message_queues"]

_DEPTH_INTERVAL: Final = 60.0  # seconds, at most, between two reads of the queue's depth


class MessageQueue(Protocol):
    """A queue with visibility timeouts, like SQS."""

    @property
    def url(self) -> str:
        """The queue's URL."""
        ...

    def attributes(self) -> QueueAttributes:
        """Reads the queue's attributes. Raises Throttled or ServiceFailed."""
        ...

    def receive(self, count: int, visibility_timeout: int, *, wait: bool) -> Sequence[Message]:
        """Returns up to `count` messages, after a long poll if it is to `wait`; `visibility_timeout` is in seconds.

        Raises Throttled or ServiceFailed.
        """
        ...

    def delete(self, messages: Sequence[Message]) -> list[Message]:
        """Deletes messages and returns those whose deletion was not confirmed."""
        ...

    def change_visibility(self, messages: Sequence[Message], seconds: int) -> list[Message]:
        """Sets the visibility timeout of messages and returns those for which that failed."""
        ...


def message_queues(settings: Settings, wait: int) -> list[MessageQueue]:
    """The queues in QUEUE_URL, in order of priority; `wait` is the length of a long poll in seconds, at most 20."""
    client = client_factory(settings.aws_endpoint_url)
    # One attempt: the poller does its own retries and logs them once. A long poll returns when its wait is over.
    receiving = client("sqs", read_timeout=wait + 10, attempts=1)
    # Short calls must fail quickly: a process that shuts down has only seconds.
    settling = client("sqs", read_timeout=3, attempts=1)
    return [
        SqsMessageQueue(Queue(receiving, lane.queue_url), Queue(settling, lane.queue_url), wait)
        for lane in settings.lanes
    ]


class SqsMessageQueue:
    """MessageQueue over SQS; a long poll of `receiving` takes `wait` seconds, `settling` is for the other calls."""

    def __init__(self, receiving: Queue, settling: Queue, wait: int) -> None:
        self._receiving = receiving
        self._settling = settling
        self._wait = wait

    @property
    def url(self) -> str:
        """As MessageQueue.url."""
        return self._receiving.url

    def attributes(self) -> QueueAttributes:
        """As MessageQueue.attributes."""
        return self._settling.attributes()

    def receive(self, count: int, visibility_timeout: int, *, wait: bool) -> Sequence[Message]:
        """As MessageQueue.receive."""
        received = self._receiving.receive(
            wait=self._wait if wait else 0, visibility_timeout=visibility_timeout, max_messages=count
        )
        return cast("Sequence[Message]", received)

    def delete(self, messages: Sequence[Message]) -> list[Message]:
        """As MessageQueue.delete."""
        return _unconfirmed(messages, self._settling.delete)

    def change_visibility(self, messages: Sequence[Message], seconds: int) -> list[Message]:
        """As MessageQueue.change_visibility."""
        return _unconfirmed(messages, lambda receipts: self._settling.change_visibility(receipts, seconds))


class SqsVisibility:
    """Changes visibility timeouts by receipt handles; for any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._client: Any = None

    def prepare(self) -> None:
        """Creates the client in another thread: it takes a second, which is much of a short visibility timeout."""
        threading.Thread(target=self, args=("", [], 0), daemon=True).start()

    def __call__(self, queue_url: str, receipts: Sequence[str], seconds: int) -> list[bool]:
        """True for each receipt handle of that queue that SQS confirms; at most ten."""
        try:
            with self._lock:
                if self._client is None:
                    make = client_factory(self._settings.aws_endpoint_url)
                    self._client = make("sqs", read_timeout=3, attempts=1)
            return Queue(self._client, queue_url).change_visibility(receipts, seconds) if receipts else []
        except (MessageError, BotoCoreError):  # the process reports what is wrong with the configuration
            return [False] * len(receipts)


class SqsDepth:
    """Reads the queues' attributes, for the metrics of their depth; in one thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Any = None

    def read(self) -> dict[str, QueueAttributes | None]:
        """The attributes by the queue's name, or None if they cannot be read: the processes report what is wrong."""
        return {lane.name: self._read(lane.queue_url) for lane in self._settings.lanes}

    def _read(self, url: str) -> QueueAttributes | None:
        try:
            if self._client is None:
                make = client_factory(self._settings.aws_endpoint_url)
                self._client = make("sqs", read_timeout=3, attempts=1)
            return Queue(self._client, url).attributes()
        except (MessageError, BotoCoreError):
            return None

    def watch(self, report: Callable[[str, QueueAttributes | None], None]) -> None:
        """Reads and reports them once a minute in another thread, as long as this process runs."""

        def watch() -> None:
            while True:
                for name, attributes in self.read().items():
                    report(name, attributes)
                # The pods of a deployment start together.
                time.sleep(_DEPTH_INTERVAL * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, not for security

        threading.Thread(target=watch, daemon=True).start()


def _unconfirmed(messages: Sequence[Message], settle: Callable[[Sequence[str]], list[bool]]) -> list[Message]:
    """Calls `settle` for ten messages at a time; returns those that SQS does not confirm, all ten after an error."""
    left: list[Message] = []
    for part in tens(messages):
        try:
            done = settle([message["ReceiptHandle"] for message in part])
        except MessageError:
            left += part
        else:
            left += [message for message, is_done in zip(part, done, strict=True) if not is_done]
    return left
