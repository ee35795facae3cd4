"""The work of a replay: what a look has chosen is sent, and what arrived is deleted. One batch at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from handler.replay.audit import Audit
from handler.replay.hold import Hold
from handler.replay.letter import Ancestor, Letter, LetterUnsendable, Parcel, batches, pack
from handler.replay.look import Halt, Look, Tally
from handler.replay.queue import Queue, QueueFacts, ReplayError, Sent

__all__ = ["Pace", "Replay", "send_entries"]

_TRIES: Final = 3
_PAUSE: Final = 0.5  # seconds before the second try
_MOST_ENTRIES: Final = 10


class Pace:
    """Keeps to `rate` messages a second; None: as fast as can be."""

    def __init__(self, rate: float | None, halt: Halt, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._halt = halt
        self._clock = clock
        self._due = clock()

    @property
    def most_entries(self) -> int:
        """How many messages go out together: those of one second, so that a slow pace is an even one."""
        return _MOST_ENTRIES if self._rate is None else max(1, min(_MOST_ENTRIES, int(self._rate)))

    def wait(self, number: int, hold: Hold | None = None) -> None:
        """Waits until so many messages are due, or an end is asked for; what is held is renewed meanwhile."""
        if hold is not None:
            hold.renew()
        while not self._halt.is_requested and (left := self._due - self._clock()) > 0:
            self._halt.pause(left if hold is None else max(0.0, min(left, hold.due_in())))
            if hold is not None:
                hold.renew()
        if self._rate is not None:
            self._due = max(self._due, self._clock()) + number / self._rate


class Replay:
    """Sends what a look finds in `source` to `destination`; `facts` are those of the latter."""

    def __init__(
        self,
        look: Look,
        hold: Hold,
        source: Queue,
        destination: Queue,
        facts: QueueFacts,
        *,
        audit: Audit,
        pace: Pace,
        halt: Halt,
    ) -> None:
        self._look = look
        self._tally = look.tally
        self._hold = hold
        self._source = source
        self._destination = destination
        self._facts = facts
        self._audit = audit
        self._pace = pace
        self._halt = halt

    def run(self, advance: Callable[[Tally], None]) -> Tally:
        """Replays until the look ends; `advance` hears of every step. Raises ReplayError. The hold is the caller's."""
        for letters in self._look:
            self._refuse(letters.refused)
            self._finish(letters.finish, count_as="finished")
            for batch in batches(self._packed(letters.send), self._pace.most_entries):
                advance(self._tally)
                self._pace.wait(len(batch), self._hold)
                if self._halt.is_requested:
                    self._tally.interrupted = True
                    break
                self._settle([parcel for parcel in batch if self._is_ours(parcel.letter)])
            advance(self._tally)
        return self._tally

    def _refuse(self, letters: Iterable[tuple[Letter, Ancestor]]) -> None:
        for letter, ancestor in letters:
            self._tally.refused += 1
            self._audit.write("refused", [{**_name(letter), "replay_count": ancestor.replay_count}])

    def _packed(self, letters: Iterable[tuple[Letter, Ancestor]]) -> list[Parcel]:
        parcels = []
        for letter, ancestor in letters:
            try:
                parcels.append(pack(letter, ancestor, fifo=self._facts.is_fifo, most_bytes=self._facts.most_bytes))
            except LetterUnsendable as error:
                self._fail(letter, str(error))
        return parcels

    def _is_ours(self, letter: Letter) -> bool:
        """Whether nobody else can have the message by now: SQS may have been slow, or this machine asleep."""
        if not self._hold.has(letter.message_id):
            self._look.put_back(letter)
            return False
        return True

    def _settle(self, batch: Sequence[Parcel]) -> None:
        """Sends a batch and deletes what arrived. A kill in here duplicates this batch at most, and loses nothing."""
        if not batch:
            return
        self._audit.write("sending", [{"message_ids": [parcel.letter.message_id for parcel in batch]}])
        answers = send_entries(self._destination, [parcel.entry for parcel in batch], self._halt)
        arrived, lines = [], []
        for parcel, sent in zip(batch, answers, strict=True):
            if sent.message_id is None:
                self._fail(parcel.letter, sent.error)
                continue
            self._look.sent_as(sent.message_id)
            self._tally.unmarked += "ReplayCount" in parcel.left_out
            arrived.append(parcel.letter)
            lines.append(_line(parcel, sent.message_id))
        try:
            self._audit.write("sent", lines)
        finally:  # also where the disk is full: what cannot be written down must at least not be sent twice
            self._finish(arrived, count_as="replayed")

    def _fail(self, letter: Letter, why: str) -> None:
        self._tally.fail(letter.message_id, why)
        self._audit.write("failed", [{**_name(letter), "error": why}])

    def _finish(self, letters: Sequence[Letter], *, count_as: str) -> None:
        """Deletes messages that have been sent, and counts them."""
        left = list(letters)
        try:
            for attempt in range(_TRIES):
                if left and attempt:
                    self._halt.pause(_PAUSE * attempt)
                left = self._delete(left)
        finally:
            self._tally.undeleted += len(left)
            setattr(self._tally, count_as, getattr(self._tally, count_as) + len(letters) - len(left))

    def _delete(self, letters: Sequence[Letter]) -> list[Letter]:
        """Deletes up to ten messages and returns those that are still there, as far as can be known."""
        if not letters:
            return []
        done = self._source.delete([letter.receipt for letter in letters])
        gone = [letter.message_id for letter, is_done in zip(letters, done, strict=True) if is_done]
        for message_id in gone:
            self._hold.forget(message_id)
        self._audit.write("deleted", [{"message_id": message_id} for message_id in gone])
        return [letter for letter, is_done in zip(letters, done, strict=True) if not is_done]


def send_entries(queue: Queue, entries: Sequence[Mapping[str, Any]], halt: Halt) -> list[Sent]:
    """Sends up to ten entries and says what became of each; those that failed by SQS's fault are tried again.

    Raises ReplayError where SQS cannot be asked the first time.
    """
    answers = queue.send(entries)
    for attempt in range(1, _TRIES):
        again = [number for number, sent in enumerate(answers) if sent.message_id is None and sent.transient]
        if not again:
            break
        halt.pause(_PAUSE * attempt)
        try:
            later = queue.send([entries[number] for number in again])
        except ReplayError:
            break  # what arrived at first must be settled all the same; the next batch meets the same error
        for number, sent in zip(again, later, strict=True):
            answers[number] = sent
    return answers


def _name(letter: Letter) -> dict[str, Any]:
    return {"message_id": letter.message_id, "reason": letter.reason}


def _line(parcel: Parcel, new_id: str) -> dict[str, Any]:
    return {
        **_name(parcel.letter),
        "new_message_id": new_id,
        "original_message_id": parcel.ancestor.original_id,
        "replay_count": parcel.replay_count,
        **({"left_out": list(parcel.left_out)} if parcel.left_out else {}),
    }
