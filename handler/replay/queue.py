"""The queues of a replay: the port, its adapter for SQS, and what can go wrong with them, in one line for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from handler.cli.errors import error_line as aws_error_line
from handler.replay.letter import MOST_BYTES, Letter

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

__all__ = ["Queue", "QueueFacts", "ReplayError", "ReplayRefused", "Sent", "SqsQueue", "error_line"]

_T = TypeVar("_T")

_RIGHTS: Final = (
    "the role needs sqs:GetQueueAttributes on both queues, sqs:ReceiveMessage, sqs:DeleteMessage and "
    "sqs:ChangeMessageVisibility on the source, and sqs:SendMessage on the destination"
)
_QUEUE: Final = "check the queue's name, AWS_DEFAULT_REGION and the credentials"
# Beside those of handler.cli.errors.
_REMEDIES: Final = {
    "AWS.SimpleQueueService.NonExistentQueue": _QUEUE,
    "AccessDenied": _RIGHTS,
    "AccessDeniedException": _RIGHTS,
    "InvalidAddress": _QUEUE,
    "NoSuchBucket": "check the bucket's name and the credentials",
    "OverLimit": "SQS hides no more messages at a time; choose fewer by --limit, or wait until others are done",
    "QueueDoesNotExist": _QUEUE,
}


class ReplayError(Exception):
    """A replay cannot go on: one line that names the remedy."""

    exit_code = 1


class ReplayRefused(ReplayError):
    """A replay does not begin, because of how it was asked for."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFacts:
    """What a queue says of itself; its three numbers of messages are SQS's estimates."""

    arn: str
    visible: int = 0
    hidden: int = 0
    delayed: int = 0
    dead_letter_arn: str | None = None
    most_bytes: int = MOST_BYTES

    @property
    def name(self) -> str:
        """The queue's name."""
        return self.arn.rpartition(":")[2]

    @property
    def is_fifo(self) -> bool:
        """Whether the queue keeps an order."""
        return self.name.endswith(".fifo")


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one entry: the new message's id, or SQS's code and words, and whether to try it again."""

    message_id: str | None
    error: str = ""
    transient: bool = False


class Queue(Protocol):
    """A queue that hands out messages for a time; every call may raise ReplayError."""

    def facts(self) -> QueueFacts:
        """Asks the queue."""
        ...

    def receive(self, hidden: int, wait: int) -> Sequence[Letter]:
        """Waits so many seconds for up to ten messages, which are then hidden from others for `hidden` seconds."""
        ...

    def send(self, entries: Sequence[Mapping[str, Any]]) -> list[Sent]:
        """Sends up to ten messages of at most 1 MiB together and says what became of each, in their order."""
        ...

    def delete(self, receipts: Sequence[str]) -> list[bool]:
        """Deletes up to ten messages and says of each whether the queue confirms it."""
        ...

    def hide(self, receipts: Sequence[str], seconds: int) -> list[bool]:
        """Hides up to ten messages for so many seconds from now on, and says of each whether the queue confirms it."""
        ...


class SqsQueue:
    """Queue over SQS, by its URL, its ARN or its name. Raises ReplayError."""

    def __init__(self, client: SQSClient, place: str) -> None:
        self._client = client
        if "/" in place:
            self.url = place
        else:
            answer = _asked("GetQueueUrl", client.get_queue_url, QueueName=place.rpartition(":")[2])
            self.url = answer["QueueUrl"]

    def facts(self) -> QueueFacts:
        """As Queue.facts."""
        get = self._client.get_queue_attributes
        found = _asked("GetQueueAttributes", get, QueueUrl=self.url, AttributeNames=["All"])["Attributes"]
        return QueueFacts(
            arn=found["QueueArn"],
            visible=int(found.get("ApproximateNumberOfMessages", 0)),
            hidden=int(found.get("ApproximateNumberOfMessagesNotVisible", 0)),
            delayed=int(found.get("ApproximateNumberOfMessagesDelayed", 0)),
            dead_letter_arn=json.loads(found.get("RedrivePolicy") or "{}").get("deadLetterTargetArn"),
            most_bytes=min(MOST_BYTES, int(found.get("MaximumMessageSize", MOST_BYTES))),
        )

    def receive(self, hidden: int, wait: int) -> Sequence[Letter]:
        """As Queue.receive."""
        answer = _asked(
            "ReceiveMessage",
            self._client.receive_message,
            QueueUrl=self.url,
            MaxNumberOfMessages=10,
            WaitTimeSeconds=wait,
            VisibilityTimeout=hidden,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        return [Letter.from_message(message) for message in answer.get("Messages", [])]

    def send(self, entries: Sequence[Mapping[str, Any]]) -> list[Sent]:
        """As Queue.send. An entry that the answer does not name counts as failed."""
        numbered = [{**entry, "Id": str(number)} for number, entry in enumerate(entries)]
        answer = _asked("SendMessageBatch", self._client.send_message_batch, QueueUrl=self.url, Entries=numbered)
        sent = {entry["Id"]: Sent(entry["MessageId"]) for entry in answer.get("Successful", [])}
        for entry in answer.get("Failed", []):
            words = f"{entry.get('Code', '')}: {entry.get('Message', '')}"
            sent.setdefault(entry["Id"], Sent(None, words, transient=not entry.get("SenderFault", False)))
        return [sent.get(entry["Id"], Sent(None, "SQS did not say what became of it")) for entry in numbered]

    def delete(self, receipts: Sequence[str]) -> list[bool]:
        """As Queue.delete."""
        entries: Any = [{"Id": str(number), "ReceiptHandle": receipt} for number, receipt in enumerate(receipts)]
        delete = self._client.delete_message_batch
        return _confirmed(entries, _asked("DeleteMessageBatch", delete, QueueUrl=self.url, Entries=entries))

    def hide(self, receipts: Sequence[str], seconds: int) -> list[bool]:
        """As Queue.hide."""
        entries: Any = [
            {"Id": str(number), "ReceiptHandle": receipt, "VisibilityTimeout": seconds}
            for number, receipt in enumerate(receipts)
        ]
        hide = self._client.change_message_visibility_batch
        return _confirmed(entries, _asked("ChangeMessageVisibilityBatch", hide, QueueUrl=self.url, Entries=entries))


def error_line(error: ClientError | BotoCoreError, operation: str) -> str:
    """An error of AWS in one line, with its remedy where one is known."""
    return aws_error_line(error, _REMEDIES, operation)


def _asked(operation: str, call: Callable[..., _T], **arguments: Any) -> _T:
    try:
        return call(**arguments)
    except (ClientError, BotoCoreError) as error:
        raise ReplayError(error_line(error, operation)) from error


def _confirmed(entries: Sequence[Mapping[str, Any]], answer: Any) -> list[bool]:
    done = {entry["Id"] for entry in answer.get("Successful", [])}
    return [entry["Id"] in done for entry in entries]
