"""The queue that the worker reads: the port, and its adapter over handler.aws.sqs."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol, cast

from botocore.exceptions import BotoCoreError

from handler.aws.clients import client_factory
from handler.aws.sqs import Queue, QueueAttributes, tens
from handler.errors import MessageError
from handler.settings import Settings
from handler.worker.invocation import Message

__all__ = ["MessageQueue", "SqsDepth", "SqsMessageQueue", "SqsVisibility"]

_DEPTH_INTERVAL: Final = 60.0  # seconds, at most, between two reads of the queue's depth


class MessageQueue(Protocol):
    """A queue with visibility timeouts, like SQS."""

    def attributes(self) -> QueueAttributes:
        """Reads the queue's attributes. Raises Throttled or ServiceFailed."""
        ...

    def receive(self, count: int, visibility_timeout: int) -> Sequence[Message]:
        """Waits for messages and returns up to `count`; `visibility_timeout` is in seconds.

        Raises Throttled or ServiceFailed.
        """
        ...

    def delete(self, messages: Sequence[Message]) -> list[Message]:
        """Deletes messages and returns those whose deletion was not confirmed."""
        ...

    def change_visibility(self, messages: Sequence[Message], seconds: int) -> list[Message]:
        """Sets the visibility timeout of messages and returns those for which that failed."""
        ...


class SqsMessageQueue:
    """MessageQueue over SQS; `wait` is the length of a long poll in seconds, at most 20."""

    def __init__(self, settings: Settings, wait: int) -> None:
        self._wait = wait
        client = client_factory(settings.aws_endpoint_url)
        # One attempt: the poller does its own retries and logs them once. A long poll returns when its wait is over.
        self._receiving = Queue(client("sqs", read_timeout=wait + 10, attempts=1), settings.queue_url)
        # Short calls must fail quickly: a process that shuts down has only seconds.
        self._settling = Queue(client("sqs", read_timeout=3, attempts=1), settings.queue_url)

    def attributes(self) -> QueueAttributes:
        """As MessageQueue.attributes."""
        return self._settling.attributes()

    def receive(self, count: int, visibility_timeout: int) -> Sequence[Message]:
        """As MessageQueue.receive."""
        received = self._receiving.receive(wait=self._wait, visibility_timeout=visibility_timeout, max_messages=count)
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
        self._queue: Queue | None = None

    def prepare(self) -> None:
        """Creates the client in another thread: it takes a second, which is much of a short visibility timeout."""
        threading.Thread(target=self, args=([], 0), daemon=True).start()

    def __call__(self, receipts: Sequence[str], seconds: int) -> list[bool]:
        """True for each receipt handle that SQS confirms; at most ten."""
        try:
            with self._lock:
                if self._queue is None:
                    client = client_factory(self._settings.aws_endpoint_url)
                    self._queue = Queue(client("sqs", read_timeout=3, attempts=1), self._settings.queue_url)
            return self._queue.change_visibility(receipts, seconds) if receipts else []
        except (MessageError, BotoCoreError):  # the process reports what is wrong with the configuration
            return [False] * len(receipts)


class SqsDepth:
    """Reads the queue's attributes, for the metrics of its depth; in one thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._queue: Queue | None = None

    def read(self) -> QueueAttributes | None:
        """The attributes, or None if they cannot be read: the processes report what is wrong."""
        try:
            if self._queue is None:
                client = client_factory(self._settings.aws_endpoint_url)
                self._queue = Queue(client("sqs", read_timeout=3, attempts=1), self._settings.queue_url)
            return self._queue.attributes()
        except (MessageError, BotoCoreError):
            return None

    def watch(self, report: Callable[[QueueAttributes | None], None]) -> None:
        """Reads and reports them once a minute in another thread, as long as this process runs."""

        def watch() -> None:
            while True:
                report(self.read())
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
