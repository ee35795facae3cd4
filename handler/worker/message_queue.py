"""The queue that the worker reads: the port, and its adapter for SQS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from botocore.exceptions import BotoCoreError, ClientError

from handler.aws.clients import client_factory
from handler.aws.errors import from_aws
from handler.settings import Settings
from handler.worker.invocation import Message

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

__all__ = ["MessageQueue", "QueueAttributes", "SqsMessageQueue"]

_MOST_ENTRIES: Final = 10  # of one batch request


@dataclass(frozen=True, slots=True)
class QueueAttributes:
    """What the queue says of itself; `visibility` in seconds."""

    arn: str
    visibility: int


class MessageQueue(Protocol):
    """A queue that hands out messages for a time and forgets those that are deleted."""

    def attributes(self) -> QueueAttributes:
        """Asks the queue. Raises Throttled or ServiceFailed."""
        ...

    def receive(self, count: int, visibility_timeout: int) -> Sequence[Message]:
        """Waits for messages and takes up to `count`; `visibility_timeout` is in seconds.

        Raises Throttled or ServiceFailed.
        """
        ...

    def delete(self, messages: Sequence[Message]) -> list[Message]:
        """Deletes messages and returns those of which the queue did not say that it has."""
        ...

    def change_visibility(self, messages: Sequence[Message], seconds: int) -> list[Message]:
        """Hides messages for so many seconds from now on and returns those where that failed."""
        ...


class SqsMessageQueue:
    """MessageQueue over SQS; `wait` is how many seconds an empty queue is asked at a time (long poll, at most 20)."""

    def __init__(self, settings: Settings, wait: int) -> None:
        self._url = settings.queue_url
        self._wait = wait
        client = client_factory(settings.aws_endpoint_url)
        # One attempt: the poller retries by itself and logs it once. A long poll is answered when its wait is over.
        self._receiving: SQSClient = client("sqs", read_timeout=wait + 10, attempts=1)
        # Short calls must fail soon: a process that shuts down has only seconds.
        self._settling: SQSClient = client("sqs", read_timeout=3, attempts=1)

    def attributes(self) -> QueueAttributes:
        """As MessageQueue.attributes."""
        try:
            found = self._settling.get_queue_attributes(
                QueueUrl=self._url, AttributeNames=["QueueArn", "VisibilityTimeout"]
            )["Attributes"]
        except (ClientError, BotoCoreError) as error:
            raise from_aws(error, "GetQueueAttributes") from error
        return QueueAttributes(found["QueueArn"], int(found["VisibilityTimeout"]))

    def receive(self, count: int, visibility_timeout: int) -> Sequence[Message]:
        """As MessageQueue.receive."""
        try:
            answer = self._receiving.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=count,
                WaitTimeSeconds=self._wait,
                VisibilityTimeout=visibility_timeout,
                MessageSystemAttributeNames=["All"],
                MessageAttributeNames=["All"],
            )
        except (ClientError, BotoCoreError) as error:
            raise from_aws(error, "ReceiveMessage") from error
        return cast("Sequence[Message]", answer.get("Messages", []))

    def delete(self, messages: Sequence[Message]) -> list[Message]:
        """As MessageQueue.delete; an error of the call leaves the whole of its ten in doubt."""
        left: list[Message] = []
        for part in _tens(messages):
            entries: Any = _entries(part)
            try:
                answer = self._settling.delete_message_batch(QueueUrl=self._url, Entries=entries)
            except (ClientError, BotoCoreError):
                left += part
            else:
                left += _unconfirmed(part, answer)
        return left

    def change_visibility(self, messages: Sequence[Message], seconds: int) -> list[Message]:
        """As MessageQueue.hide."""
        left: list[Message] = []
        for part in _tens(messages):
            entries: Any = [{**entry, "VisibilityTimeout": seconds} for entry in _entries(part)]
            try:
                answer = self._settling.change_message_visibility_batch(QueueUrl=self._url, Entries=entries)
            except (ClientError, BotoCoreError):
                left += part
            else:
                left += _unconfirmed(part, answer)
        return left


def _tens(messages: Sequence[Message]) -> Iterator[list[Message]]:
    rest = iter(messages)
    while part := list(islice(rest, _MOST_ENTRIES)):
        yield part


def _entries(part: Sequence[Message]) -> list[dict[str, Any]]:
    # Numbers for ids: one receive may hold the same message twice, under two handles.
    return [{"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]} for number, message in enumerate(part)]


def _unconfirmed(part: Sequence[Message], answer: Mapping[str, Any]) -> list[Message]:
    """Those that are not among the successful ones: an answer names the others as `Failed`, or leaves them out."""
    done = {entry["Id"] for entry in answer.get("Successful", [])}
    return [message for number, message in enumerate(part) if str(number) not in done]
