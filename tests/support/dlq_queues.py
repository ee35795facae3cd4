"""A queue in memory, with its own clock and faults on demand; and DLQ messages to put into it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from handler.aws.sqs import Queue, QueueAttributes, SendResult
from handler.cli.shutdown import Shutdown
from handler.dlq.message import DlqMessage
from handler.errors import MessageError

ARN = "arn:aws:sqs:us-east-1:123456789012:"


class Clock:
    """A clock that advances only when a test waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeShutdown(Shutdown):
    """A shutdown on a clock: a pause moves the clock, until `request` was called."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(0.0)
        self.clock = clock or Clock()
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        if not self.is_requested:
            self.pauses.append(seconds)
            self.clock.now += seconds


@dataclass
class _Stored:
    message: DlqMessage
    visible_at: float


class FakeQueue(Queue):
    """`stored` are its messages, in order.

    A send of a body in `send_faults` returns the results listed there, one per send; message ids in `stubborn` resist
    deletion and visibility changes that many times; `errors` are raised by the next calls of a method; `before` is
    called with the name of each method that is called.
    """

    def __init__(self, name: str = "dead", clock: Clock | None = None) -> None:
        self.name = name
        self.clock = clock or Clock()
        self.stored: list[_Stored] = []
        self.send_faults: dict[str, list[SendResult]] = {}
        self.stubborn: Counter[str] = Counter()
        self.errors: dict[str, list[MessageError | None]] = {}
        self.calls: list[str] = []
        self.batches: list[list[Mapping[str, Any]]] = []
        self.before: Callable[[str], None] = lambda _: None
        self._numbers = count(1)

    def put(self, *messages: DlqMessage) -> None:
        self.stored += [_Stored(message, self.clock()) for message in messages]

    @property
    def ids(self) -> list[str]:
        return [stored.message.message_id for stored in self.stored]

    @property
    def visible(self) -> list[str]:
        """The ids of the messages that any consumer can receive now."""
        return [stored.message.message_id for stored in self.stored if stored.visible_at <= self.clock()]

    @property
    def bodies(self) -> list[str]:
        return [stored.message.body for stored in self.stored]

    def attributes(self) -> QueueAttributes:
        return QueueAttributes(arn=ARN + self.name, visible=len(self.visible))

    def receive(self, *, wait: int, visibility_timeout: int, max_messages: int = 10) -> list[Any]:
        """Waiting only advances the clock."""
        self._called("receive")
        if not self.visible:
            self.clock.now += wait
        found = [stored for stored in self.stored if stored.visible_at <= self.clock()][:max_messages]
        for stored in found:
            receipt = f"{stored.message.message_id}/{next(self._numbers)}"
            stored.message = replace(stored.message, receipt=receipt)
            stored.visible_at = self.clock() + visibility_timeout
        return [as_boto3(stored.message) for stored in found]

    def send(self, entries: Sequence[Mapping[str, Any]]) -> list[SendResult]:
        self._called("send")
        self.batches.append(list(entries))
        results = []
        for entry in entries:
            faults = self.send_faults.get(entry["MessageBody"])
            if faults:
                results.append(faults.pop(0))
                continue
            new = f"{self.name}-{next(self._numbers)}"
            attributes = entry.get("MessageAttributes", {})
            self.put(DlqMessage(new, "", entry["MessageBody"], attributes, {"SentTimestamp": "1"}))
            results.append(SendResult(new))
        return results

    def delete(self, receipts: Sequence[str]) -> list[bool]:
        self._called("delete")
        return [self._at(receipt, self.stored.remove) for receipt in receipts]

    def change_visibility(self, receipts: Sequence[str], seconds: int) -> list[bool]:
        self._called("change_visibility")

        def change(stored: _Stored) -> None:
            stored.visible_at = self.clock() + seconds

        return [self._at(receipt, change) for receipt in receipts]

    def _at(self, receipt: str, act: Callable[[_Stored], None]) -> bool:
        found = next((stored for stored in self.stored if stored.message.receipt == receipt), None)
        if found is None:
            return False
        if self.stubborn[found.message.message_id] > 0:
            self.stubborn[found.message.message_id] -= 1
            return False
        act(found)
        return True

    def _called(self, name: str) -> None:
        self.calls.append(name)
        self.before(name)
        pending = self.errors.get(name, [])
        if pending and (error := pending.pop(0)) is not None:
            raise error


def as_boto3(message: DlqMessage) -> dict[str, Any]:
    """A message as receive_message returns it."""
    return {
        "MessageId": message.message_id,
        "ReceiptHandle": message.receipt,
        "Body": message.body,
        "MessageAttributes": message.attributes,
        "Attributes": message.system,
    }


def text(value: str, kind: str = "String") -> dict[str, Any]:
    """A message attribute in boto3's form."""
    return {"DataType": kind, "StringValue": value}


def dlq_message(
    message_id: str = "m-1",
    body: str | None = None,
    *,
    reason: str | None = None,
    rejection: Any = None,
    sent_at: int = 1_795_000_000_000,
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
    system: Mapping[str, str] | None = None,
) -> DlqMessage:
    """A DLQ message; a rejection that is not a string becomes JSON."""
    all_attributes = dict(attributes or {})
    if reason is not None:
        all_attributes["Reason"] = text(reason)
    if rejection is not None:
        all_attributes["Rejection"] = text(rejection if isinstance(rejection, str) else json.dumps(rejection))
    return DlqMessage(
        message_id=message_id,
        receipt=f"{message_id}/0",
        body=f"body of {message_id}" if body is None else body,
        attributes=all_attributes,
        system={"SentTimestamp": str(sent_at), **(system or {})},
    )
