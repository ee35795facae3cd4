"""A queue in memory, with a clock of its own and faults on demand, and letters to put into it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from handler.replay.letter import Letter
from handler.replay.queue import QueueFacts, ReplayError, Sent

ARN = "arn:aws:sqs:us-east-1:123456789012:"


class Clock:
    """Seconds that pass only when somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeHalt:
    """A Halt on a clock: pausing moves it, at most `most` seconds at a time, until `ask` was called."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.is_requested = False
        self.pauses: list[float] = []

    def ask(self) -> None:
        """An end is wanted."""
        self.is_requested = True

    def pause(self, seconds: float) -> None:
        """As Halt.pause."""
        if not self.is_requested:
            self.pauses.append(seconds)
            self.clock.now += seconds


@dataclass
class _Stored:
    letter: Letter
    visible_at: float


class FakeQueue:
    """A Queue: `stored` are its messages, in order.

    Bodies of messages in `send_faults` fail with what stands there, once for each entry; receipts of ids in
    `stubborn` cannot be deleted or hidden so many times; `errors` are raised by the next calls of a name; `before`
    is called with each call's name.
    """

    def __init__(self, name: str = "dead", clock: Clock | None = None, *, dead_letter_arn: str | None = None) -> None:
        self.name = name
        self.clock = clock or Clock()
        self.stored: list[_Stored] = []
        self.send_faults: dict[str, list[Sent]] = {}
        self.stubborn: Counter[str] = Counter()
        self.errors: dict[str, list[ReplayError | None]] = {}
        self.calls: list[str] = []
        self.batches: list[list[Mapping[str, Any]]] = []
        self.before: Callable[[str], None] = lambda _: None
        self._dead_letter_arn = dead_letter_arn
        self._numbers = count(1)

    def put(self, *letters: Letter) -> None:
        """Puts letters into the queue."""
        self.stored += [_Stored(letter, self.clock()) for letter in letters]

    @property
    def ids(self) -> list[str]:
        """The ids of the messages that are there."""
        return [stored.letter.message_id for stored in self.stored]

    @property
    def visible(self) -> list[str]:
        """The ids of those that anybody can receive now."""
        return [stored.letter.message_id for stored in self.stored if stored.visible_at <= self.clock()]

    @property
    def bodies(self) -> list[str]:
        """The bodies of the messages that are there."""
        return [stored.letter.body for stored in self.stored]

    def facts(self) -> QueueFacts:
        """As Queue.facts."""
        self._called("facts")
        return QueueFacts(arn=ARN + self.name, visible=len(self.visible), dead_letter_arn=self._dead_letter_arn)

    def receive(self, hidden: int, wait: int) -> Sequence[Letter]:
        """As Queue.receive; waiting takes no time but the clock's."""
        self._called("receive")
        if not self.visible:
            self.clock.now += wait
        found = [stored for stored in self.stored if stored.visible_at <= self.clock()][:10]
        for stored in found:
            stored.letter = replace(stored.letter, receipt=f"{stored.letter.message_id}/{next(self._numbers)}")
            stored.visible_at = self.clock() + hidden
        return [stored.letter for stored in found]

    def send(self, entries: Sequence[Mapping[str, Any]]) -> list[Sent]:
        """As Queue.send."""
        self._called("send")
        self.batches.append(list(entries))
        answers = []
        for entry in entries:
            faults = self.send_faults.get(entry["MessageBody"])
            if faults:
                answers.append(faults.pop(0))
                continue
            new = f"{self.name}-{next(self._numbers)}"
            letter = Letter(new, "", entry["MessageBody"], entry.get("MessageAttributes", {}), {"SentTimestamp": "1"})
            self.put(letter)
            answers.append(Sent(new))
        return answers

    def delete(self, receipts: Sequence[str]) -> list[bool]:
        """As Queue.delete."""
        self._called("delete")
        return [self._at(receipt, self.stored.remove) for receipt in receipts]

    def hide(self, receipts: Sequence[str], seconds: int) -> list[bool]:
        """As Queue.hide."""
        self._called("hide")

        def hidden(stored: _Stored) -> None:
            stored.visible_at = self.clock() + seconds

        return [self._at(receipt, hidden) for receipt in receipts]

    def _at(self, receipt: str, act: Callable[[_Stored], None]) -> bool:
        found = next((stored for stored in self.stored if stored.letter.receipt == receipt), None)
        if found is None:
            return False
        if self.stubborn[found.letter.message_id] > 0:
            self.stubborn[found.letter.message_id] -= 1
            return False
        act(found)
        return True

    def _called(self, name: str) -> None:
        self.calls.append(name)
        self.before(name)
        pending = self.errors.get(name, [])
        if pending and (error := pending.pop(0)) is not None:
            raise error


def text(value: str, kind: str = "String") -> dict[str, str]:
    """An attribute as boto3 has it."""
    return {"DataType": kind, "StringValue": value}


def letter(
    message_id: str = "m-1",
    body: str | None = None,
    *,
    reason: str | None = None,
    rejection: Any = None,
    sent_at: int = 1_795_000_000_000,
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
    system: Mapping[str, str] | None = None,
) -> Letter:
    """A dead letter; a rejection that is no text becomes JSON."""
    explained = dict(attributes or {})
    if reason is not None:
        explained["Reason"] = text(reason)
    if rejection is not None:
        explained["Rejection"] = text(rejection if isinstance(rejection, str) else json.dumps(rejection))
    return Letter(
        message_id=message_id,
        receipt=f"{message_id}/0",
        body=f"body of {message_id}" if body is None else body,
        attributes=explained,
        system={"SentTimestamp": str(sent_at), **(system or {})},
    )
