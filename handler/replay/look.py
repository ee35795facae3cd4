"""One look through a dead-letter queue: every message once, sorted into what a replay does with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from handler.replay.audit import Journal
from handler.replay.choice import Choice
from handler.replay.hold import Hold
from handler.replay.letter import Ancestor, Letter
from handler.replay.queue import Queue

__all__ = ["Halt", "Look", "Plan", "Sorted", "Tally"]

_KEPT_FAILURES: Final = 20


class Halt(Protocol):
    """Whether the user wants an end."""

    @property
    def is_requested(self) -> bool:
        """Whether the process has been asked to end."""
        ...

    def pause(self, seconds: float) -> None:
        """Waits so many seconds, or until the process is asked to end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to look: messages are hidden for `hidden` seconds at a time, an empty queue is asked for `wait` at a time.

    `limit` bounds the letters that are sent; those with `max_replays` behind them are refused.
    """

    hidden: int = 60
    wait: int = 5
    empty_polls: int = 3
    limit: int | None = None
    max_replays: int | None = None


@dataclass
class Tally:
    """What became of messages. `chosen` is the sum of the five that follow, and of what is still in hand."""

    looked: int = 0
    chosen: int = 0
    replayed: int = 0
    finished: int = 0  # sent by an earlier run, and deleted by this one
    refused: int = 0  # replayed too often before
    failed: int = 0
    undeleted: int = 0  # sent, but still in the dead-letter queue
    returned: int = 0  # sent by this run, and back already
    unmarked: int = 0  # of those sent: without ReplayCount, for want of room
    interrupted: bool = False
    failures: list[tuple[str, str]] = field(default_factory=list)  # the first ones: message id or key, and why

    @property
    def is_complete(self) -> bool:
        """Whether all that was chosen has arrived, and has gone from where it was."""
        return not (self.failed or self.refused or self.undeleted or self.interrupted)

    @property
    def settled(self) -> int:
        """Messages with which this run has nothing more to do."""
        done = self.replayed + self.finished + self.refused + self.failed + self.undeleted
        return self.looked - self.chosen + done

    def fail(self, name: str, why: str) -> None:
        """Counts a failure and keeps the first ones."""
        self.failed += 1
        if len(self.failures) < _KEPT_FAILURES:
            self.failures.append((name, why))


@dataclass(frozen=True, slots=True)
class Sorted:
    """The chosen letters of one receive: to be sent, refused, or only deleted, because an earlier run has sent them."""

    send: list[tuple[Letter, Ancestor]] = field(default_factory=list)
    refused: list[tuple[Letter, Ancestor]] = field(default_factory=list)
    finish: list[Letter] = field(default_factory=list)


class Look:
    """One pass through a queue. All that is received is held, until the caller releases it."""

    def __init__(self, queue: Queue, hold: Hold, choice: Choice, halt: Halt, plan: Plan, journal: Journal) -> None:
        self.tally = Tally()
        self._queue = queue
        self._hold = hold
        self._choice = choice
        self._halt = halt
        self._plan = plan
        self._journal = journal
        self._to_send = 0
        self._seen: set[str] = set()
        self._sent: set[str] = set()

    def __iter__(self) -> Iterator[Sorted]:
        """Yields what each receive brought, until several polls in a row brought nothing, or `limit` is reached.

        One empty answer proves nothing: SQS asks some of its servers only, and others may hold messages for a moment.
        """
        empty = 0
        while empty < self._plan.empty_polls and not self._is_enough:
            if self._halt.is_requested:
                self.tally.interrupted = True
                return
            self._hold.renew()
            letters = self._queue.receive(self._plan.hidden, self._plan.wait)
            self._hold.add(letters)
            empty = 0 if letters else empty + 1
            yield self._sorted([letter for letter in letters if letter.message_id not in self._seen])

    def put_back(self, letter: Letter) -> None:
        """The letter could not be sent, because it is nobody's any more: it will be received again."""
        self._seen.discard(letter.message_id)
        self._to_send -= 1
        self.tally.looked -= 1
        self.tally.chosen -= 1

    def sent_as(self, message_id: str) -> None:
        """This run has sent a message with that id. Should it come back as a dead letter, it stays one.

        Or one poisonous ticket would go round until somebody stops the run.
        """
        self._sent.add(message_id)

    @property
    def _is_enough(self) -> bool:
        return self._plan.limit is not None and self._to_send >= self._plan.limit

    def _sorted(self, letters: Sequence[Letter]) -> Sorted:
        found = Sorted()
        for letter in letters:
            self._seen.add(letter.message_id)
            self.tally.looked += 1
            if letter.message_id in self._journal.unfinished:
                found.finish.append(letter)
            elif letter.source_id in self._sent:
                self.tally.returned += 1
            elif not self._is_enough and self._choice.takes(letter):
                self._sort(letter, found)
        self.tally.chosen += len(found.send) + len(found.refused) + len(found.finish)
        return found

    def _sort(self, letter: Letter, found: Sorted) -> None:
        ancestor = letter.ancestor(self._journal.unmarked)
        if self._plan.max_replays is not None and ancestor.replay_count >= self._plan.max_replays:
            found.refused.append((letter, ancestor))
        else:
            self._to_send += 1
            found.send.append((letter, ancestor))
