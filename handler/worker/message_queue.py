"""The queue that the worker reads: the port, and its adapter over handler.aws.sqs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import boto3
from botocore.config import Config

from handler.aws.sqs import Queue, tens
from handler.errors import MessageError
from handler.settings import Settings
from handler.worker.invocation import Message

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

__all__ = ["MessageQueue", "QueueFacts", "SqsMessageQueue"]


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """What the queue says of itself; `visibility` in seconds."""

    arn: str
    visibility: int


class MessageQueue(Protocol):
    """A queue that hands out messages for a time and forgets those that are deleted."""

    def facts(self) -> QueueFacts:
        """Asks the queue. Raises Throttled or ServiceFailed."""
        ...

    def receive(self, count: int, hidden: int) -> Sequence[Message]:
        """Waits for messages and takes up to `count`, hidden from others for so many seconds.

        Raises Throttled or ServiceFailed.
        """
        ...

    def delete(self, messages: Sequence[Message]) -> list[Message]:
        """Deletes messages and returns those of which the queue did not say that it has."""
        ...

    def hide(self, messages: Sequence[Message], seconds: int) -> list[Message]:
        """Hides messages for so many seconds from now on and returns those where that failed."""
        ...


class SqsMessageQueue:
    """MessageQueue over SQS; `wait` is how many seconds an empty queue is asked at a time (long poll, at most 20)."""

    def __init__(self, settings: Settings, wait: int) -> None:
        self._wait = wait
        session = boto3.session.Session()
        # The poller tries again by itself, and says so once. SQS answers a long poll when its wait is over.
        self._receiving = Queue(_client(session, settings, read_timeout=wait + 10), settings.queue_url)
        # What is short must fail soon: a process that drains has seconds only.
        self._settling = Queue(_client(session, settings, read_timeout=3), settings.queue_url)

    def facts(self) -> QueueFacts:
        """As MessageQueue.facts."""
        found = self._settling.attributes()
        return QueueFacts(found.arn, found.visibility_timeout)

    def receive(self, count: int, hidden: int) -> Sequence[Message]:
        """As MessageQueue.receive."""
        received = self._receiving.receive(wait=self._wait, visibility_timeout=hidden, max_messages=count)
        return cast("Sequence[Message]", received)

    def delete(self, messages: Sequence[Message]) -> list[Message]:
        """As MessageQueue.delete."""
        return _unconfirmed(messages, self._settling.delete)

    def hide(self, messages: Sequence[Message], seconds: int) -> list[Message]:
        """As MessageQueue.hide."""
        return _unconfirmed(messages, lambda receipts: self._settling.change_visibility(receipts, seconds))


def _client(session: Any, settings: Settings, *, read_timeout: int) -> SQSClient:
    client: SQSClient = session.client(
        "sqs",
        endpoint_url=str(settings.aws_endpoint_url) if settings.aws_endpoint_url else None,
        config=Config(connect_timeout=2, read_timeout=read_timeout, retries={"total_max_attempts": 1}),
    )
    return client


def _unconfirmed(messages: Sequence[Message], settle: Callable[[Sequence[str]], list[bool]]) -> list[Message]:
    """Settle messages ten at a time and return those that SQS does not confirm; after an error, all of the ten."""
    left: list[Message] = []
    for part in tens(messages):
        try:
            done = settle([message["ReceiptHandle"] for message in part])
        except MessageError:
            left += part
        else:
            left += [message for message, is_done in zip(part, done, strict=True) if not is_done]
    return left
