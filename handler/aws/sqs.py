"""All calls to SQS: those of the function, the worker and dlq-replay.

If a call fails completely, Throttled or ServiceFailed is raised (handler.aws.errors.from_aws). A batch call can also
succeed for only some of its entries. Each batch method therefore returns one result per entry, in the same order, and
an entry counts as done only if SQS lists it under `Successful`: a response can list the others under `Failed`, or omit
them.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from handler.aws.errors import from_aws
from handler.errors import ServiceFailed

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

__all__ = [
    "MAX_ATTRIBUTES",
    "MAX_BYTES",
    "MAX_ENTRIES",
    "Attribute",
    "MoveTask",
    "MoveTaskState",
    "Queue",
    "QueueAttributes",
    "SendResult",
    "attribute_bytes",
    "attribute_from_event",
    "system_attributes",
    "tens",
]

_T = TypeVar("_T")

MAX_BYTES: Final = 1024 * 1024  # of one message (body and attributes), and of all messages of a batch together
MAX_ENTRIES: Final = 10  # of a batch call
MAX_ATTRIBUTES: Final = 10  # of a message

Attribute = Mapping[str, Any]
"""A message attribute in boto3's form: DataType with StringValue or BinaryValue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueAttributes:
    """The attributes of a queue that are used here. The three numbers of messages are SQS's estimates."""

    arn: str
    visibility_timeout: int = 30  # seconds
    visible: int = 0
    in_flight: int = 0
    delayed: int = 0
    dead_letter_arn: str | None = None
    max_receive_count: int | None = None
    max_message_bytes: int = MAX_BYTES

    @property
    def name(self) -> str:
        """The queue's name."""
        return self.arn.rpartition(":")[2]

    @property
    def is_fifo(self) -> bool:
        """Whether it is a FIFO queue."""
        return self.name.endswith(".fifo")


@dataclass(frozen=True, slots=True)
class SendResult:
    """The result of one entry of a send: the new message's id, or SQS's error and whether a retry may help."""

    message_id: str | None
    error: str = ""
    transient: bool = False


class Queue:
    """One queue. Every method may raise Throttled or ServiceFailed; batch methods take up to ten entries."""

    def __init__(self, client: SQSClient, url: str) -> None:
        self._client = client
        self.url = url

    @classmethod
    def find(cls, client: SQSClient, name: str) -> Queue:
        """Find a queue by its URL, its ARN or its name."""
        if "/" in name:
            return cls(client, name)
        return cls(client, _call("GetQueueUrl", client.get_queue_url, QueueName=name.rpartition(":")[2])["QueueUrl"])

    def attributes(self) -> QueueAttributes:
        """Read the queue's attributes."""
        get = self._client.get_queue_attributes
        found = _call("GetQueueAttributes", get, QueueUrl=self.url, AttributeNames=["All"])["Attributes"]
        redrive = json.loads(found.get("RedrivePolicy") or "{}")
        return QueueAttributes(
            arn=found["QueueArn"],
            visibility_timeout=int(found.get("VisibilityTimeout", 30)),
            visible=int(found.get("ApproximateNumberOfMessages", 0)),
            in_flight=int(found.get("ApproximateNumberOfMessagesNotVisible", 0)),
            delayed=int(found.get("ApproximateNumberOfMessagesDelayed", 0)),
            dead_letter_arn=redrive.get("deadLetterTargetArn"),
            max_receive_count=int(redrive["maxReceiveCount"]) if "maxReceiveCount" in redrive else None,
            max_message_bytes=min(MAX_BYTES, int(found.get("MaximumMessageSize", MAX_BYTES))),
        )

    def receive(self, *, wait: int, visibility_timeout: int, max_messages: int = MAX_ENTRIES) -> list[Any]:
        """Receive messages, in boto3's form, with all their attributes; `wait` is the long poll in seconds."""
        answer = _call(
            "ReceiveMessage",
            self._client.receive_message,
            QueueUrl=self.url,
            MaxNumberOfMessages=max_messages,
            WaitTimeSeconds=wait,
            VisibilityTimeout=visibility_timeout,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        return list(answer.get("Messages", []))

    def send(self, entries: Sequence[Mapping[str, Any]]) -> list[SendResult]:
        """Send a batch; entries are those of SendMessageBatch without their Id."""
        numbered = [{**entry, "Id": str(number)} for number, entry in enumerate(entries)]
        answer = _call("SendMessageBatch", self._client.send_message_batch, QueueUrl=self.url, Entries=numbered)
        results = {entry["Id"]: SendResult(entry["MessageId"]) for entry in answer.get("Successful", [])}
        for entry in answer.get("Failed", []):
            error = f"{entry.get('Code', '')}: {entry.get('Message', '')}"
            results.setdefault(entry["Id"], SendResult(None, error, transient=not entry.get("SenderFault", False)))
        missing = SendResult(None, "SQS's answer does not mention this entry")
        return [results.get(entry["Id"], missing) for entry in numbered]

    def send_one(self, body: str, attributes: Mapping[str, Attribute], system: Mapping[str, Any] | None = None) -> None:
        """Send a single message; `system` are SendMessage's further parameters, as system_attributes gives them."""
        send: Callable[..., Any] = self._client.send_message
        _call("SendMessage", send, QueueUrl=self.url, MessageBody=body, MessageAttributes=attributes, **(system or {}))

    def delete(self, receipts: Sequence[str]) -> list[bool]:
        """Delete a batch by receipt handles; True where SQS confirms it."""
        return self._settle("DeleteMessageBatch", self._client.delete_message_batch, receipts)

    def change_visibility(self, receipts: Sequence[str], seconds: int) -> list[bool]:
        """Make a batch invisible for `seconds` from now; 0 makes it visible. True where SQS confirms it."""
        change = self._client.change_message_visibility_batch
        return self._settle("ChangeMessageVisibilityBatch", change, receipts, VisibilityTimeout=seconds)

    def change_visibility_one(self, receipt: str, seconds: int) -> None:
        """As change_visibility, for a single message."""
        change = self._client.change_message_visibility
        _call("ChangeMessageVisibility", change, QueueUrl=self.url, ReceiptHandle=receipt, VisibilityTimeout=seconds)

    def _settle(self, operation: str, method: Callable[..., Any], receipts: Sequence[str], **fields: Any) -> list[bool]:
        # The ids are numbers: one receive can return the same message twice, with two receipt handles.
        entries = [{"Id": str(number), "ReceiptHandle": receipt, **fields} for number, receipt in enumerate(receipts)]
        answer = _call(operation, method, QueueUrl=self.url, Entries=entries)
        confirmed = {entry["Id"] for entry in answer.get("Successful", [])}
        return [entry["Id"] in confirmed for entry in entries]


@dataclass(frozen=True, slots=True)
class MoveTaskState:
    """Progress of a move task; `total` is SQS's estimate. RUNNING, COMPLETED, CANCELLING, CANCELLED or FAILED."""

    status: str
    moved: int
    total: int
    failure: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the task has ended."""
        return self.status not in {"RUNNING", "CANCELLING"}


class MoveTask:
    """A StartMessageMoveTask from a DLQ to a queue; the constructor starts it. Raises Throttled or ServiceFailed."""

    def __init__(
        self, client: SQSClient, source_arn: str, destination_arn: str, max_per_second: int | None = None
    ) -> None:
        self._client = client
        self._source_arn = source_arn
        rate = {} if max_per_second is None else {"MaxNumberOfMessagesPerSecond": max_per_second}
        start: Callable[..., Any] = client.start_message_move_task
        answer = _call("StartMessageMoveTask", start, SourceArn=source_arn, DestinationArn=destination_arn, **rate)
        self._handle = answer["TaskHandle"]

    def state(self) -> MoveTaskState:
        """Ask SQS for the task's progress."""
        tasks = self._client.list_message_move_tasks
        results = _call("ListMessageMoveTasks", tasks, SourceArn=self._source_arn, MaxResults=10).get("Results", [])
        if not results:
            raise ServiceFailed(f"ListMessageMoveTasks: SQS no longer lists the task for {self._source_arn}")
        # SQS returns the handle of a running task only. It runs one task per source, so ours is the latest one.
        latest = max(results, key=lambda task: task.get("StartedTimestamp", 0))
        task = next((task for task in results if task.get("TaskHandle") == self._handle), latest)
        return MoveTaskState(
            task.get("Status", ""),
            task.get("ApproximateNumberOfMessagesMoved", 0),
            task.get("ApproximateNumberOfMessagesToMove", 0),
            task.get("FailureReason", ""),
        )

    def cancel(self) -> None:
        """Ask SQS to stop the task. Messages that were already moved stay in the destination."""
        _call("CancelMessageMoveTask", self._client.cancel_message_move_task, TaskHandle=self._handle)


def attribute_bytes(attributes: Mapping[str, Attribute]) -> int:
    """The size of message attributes as SQS counts it: names, types and values."""
    parts = [part for name, value in attributes.items() for part in (name, *value.values())]
    return sum(len(part.encode() if isinstance(part, str) else part) for part in parts)


def attribute_from_event(attribute: Any) -> Attribute | None:
    """Convert an attribute from the form of a Lambda event to boto3's; None if SQS would not accept it."""
    kind = attribute.get("dataType") if isinstance(attribute, Mapping) else None
    if not isinstance(kind, str):
        return None
    if not kind.startswith("Binary"):
        text = attribute.get("stringValue")
        return {"DataType": kind, "StringValue": text} if kind and isinstance(text, str) and text else None
    try:
        return {"DataType": kind, "BinaryValue": base64.b64decode(attribute["binaryValue"], validate=True)}
    except (KeyError, TypeError, binascii.Error):
        return None


def system_attributes(received: Mapping[str, str]) -> dict[str, Any]:
    """The parameters that give a message's copy the system attributes `received`, as far as a sender can set them.

    MessageGroupId is a FIFO queue's order and a standard queue's fairness; AWSTraceHeader connects traces.
    """
    parameters: dict[str, Any] = {}
    if trace_header := received.get("AWSTraceHeader"):
        header = {"DataType": "String", "StringValue": trace_header}
        parameters["MessageSystemAttributes"] = {"AWSTraceHeader": header}
    if group := received.get("MessageGroupId"):
        parameters["MessageGroupId"] = group
    return parameters


def tens(items: Iterable[_T]) -> Iterator[list[_T]]:
    """Cut items into lists of up to ten, the entries of a batch call."""
    rest = iter(items)
    while part := list(islice(rest, MAX_ENTRIES)):
        yield part


def _call(operation: str, method: Callable[..., Any], **arguments: Any) -> Any:
    try:
        return method(**arguments)
    except (ClientError, BotoCoreError) as error:
        raise from_aws(error, operation) from error
