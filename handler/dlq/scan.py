"""Reading a DLQ: every message once, kept in flight until the command ends.

A receive can return nothing although the queue is not empty, because messages are briefly in flight elsewhere or SQS
did not reach all of its servers. A scan therefore ends only after several consecutive empty receives (--empty-polls),
each of them a long poll.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, NamedTuple, Self

from handler.aws.sqs import Queue, tens
from handler.cli.shutdown import Shutdown
from handler.dlq.audit import History
from handler.dlq.message import DlqMessage, Lineage
from handler.dlq.options import Options
from handler.errors import MessageError

__all__ = ["InFlight", "Scan", "Selection", "Stats"]

_MAX_VISIBILITY: Final = 900.0  # seconds
_SAFE_SHARE: Final = 0.2
_MAX_FAILURES: Final = 20


@dataclass
class Stats:
    """What a run did, in numbers of messages (backfill: tickets)."""

    scanned: int = 0
    selected: int = 0  # the sum of the next five, and of the messages being processed
    replayed: int = 0
    finished: int = 0  # sent by an earlier run, deleted by this one
    refused: int = 0  # replayed too often before
    failed: int = 0
    undeleted: int = 0  # sent, but still in the DLQ
    returned: int = 0  # sent by this run, failed again and back in the DLQ
    unmarked: int = 0  # sent without ReplayCount, because there was no room for it
    interrupted: bool = False
    failures: list[tuple[str, str]] = field(default_factory=list)  # the first ones: message id or key, and error

    @property
    def is_complete(self) -> bool:
        """Whether every selected message was sent and deleted."""
        return not (self.failed or self.refused or self.undeleted or self.interrupted)

    def add_failure(self, name: str, error: str) -> None:
        """Count a failure; the first ones are kept for the report."""
        self.failed += 1
        if len(self.failures) < _MAX_FAILURES:
            self.failures.append((name, error))

    def as_json(self) -> dict[str, Any]:
        """The numbers under their names in the JSON output."""
        numbers = {name: value for name, value in vars(self).items() if name != "failures"}
        renamed = {"looked": numbers.pop("scanned"), "chosen": numbers.pop("selected")}
        return {**renamed, **numbers, "complete": self.is_complete}


class _Held(NamedTuple):
    receipt: str
    seconds: float
    until: float


class InFlight:
    """Messages that were received and not deleted: invisible to other consumers until the `with` block ends.

    The visibility timeout starts short, so that messages of a killed process become visible soon. It is extended while
    the process works, so that a slow replay does not receive, and send, a message twice. Each extension doubles it, up
    to 15 minutes, so that a filter that skips 100,000 messages does not spend its time on extensions.
    """

    def __init__(self, queue: Queue, visibility_timeout: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue = queue
        self._seconds = float(visibility_timeout)
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._due: list[tuple[float, int, float, list[str]]] = []  # a heap: when to extend, -, seconds, message ids
        self._number = count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: object) -> None:
        """Make all messages visible; after a second Ctrl-C, leave that to their visibility timeout."""
        if kind is None:
            self.release()
        elif not issubclass(kind, KeyboardInterrupt):
            with suppress(MessageError):  # the first error is the one to report
                self.release()

    def add(self, messages: Sequence[DlqMessage]) -> None:
        """Add the messages of one receive."""
        if messages:
            self._hold({message.message_id: message.receipt for message in messages}, self._seconds, self._clock())

    def remove(self, message_id: str) -> None:
        """Remove a message that was deleted, or that another consumer may have received."""
        self._held.pop(message_id, None)

    def has(self, message_id: str) -> bool:
        """Whether the message is invisible to other consumers, and will be during the next request."""
        held = self._held.get(message_id)
        return held is not None and held.until - self._clock() > _SAFE_SHARE * held.seconds

    def due_in(self) -> float:
        """Seconds until the next extension; infinite if nothing is in flight."""
        return self._due[0][0] - self._clock() if self._due else float("inf")

    def extend(self) -> None:
        """Extend the timeouts that are due. Unconfirmed messages are removed: another consumer may have them."""
        while self.due_in() <= 0:
            _, _, seconds, ids = heapq.heappop(self._due)
            receipts = {message_id: self._held[message_id].receipt for message_id in ids if message_id in self._held}
            if not receipts:
                continue
            seconds, now = min(2 * seconds, max(seconds, _MAX_VISIBILITY)), self._clock()
            confirmed = self._queue.change_visibility(list(receipts.values()), int(seconds))
            for message_id, is_confirmed in zip(list(receipts), confirmed, strict=True):
                if not is_confirmed:
                    self.remove(message_id)
                    del receipts[message_id]
            self._hold(receipts, seconds, now)

    def release(self) -> None:
        """Make all messages visible to other consumers now."""
        receipts = [held.receipt for held in self._held.values()]
        self._held, self._due = {}, []
        for part in tens(receipts):
            self._queue.change_visibility(part, 0)

    def _hold(self, receipts: Mapping[str, str], seconds: float, now: float) -> None:
        self._held.update({name: _Held(receipt, seconds, now + seconds) for name, receipt in receipts.items()})
        heapq.heappush(self._due, (now + seconds / 2, next(self._number), seconds, list(receipts)))


@dataclass(frozen=True, slots=True)
class Selection:
    """The selected messages of one receive, by what a replay does with them: send, refuse, or only delete."""

    send: list[tuple[DlqMessage, Lineage]] = field(default_factory=list)
    refuse: list[tuple[DlqMessage, Lineage]] = field(default_factory=list)
    delete: list[DlqMessage] = field(default_factory=list)  # sent by an earlier run, according to its audit file


class Scan:
    """One pass over a DLQ, counted in `stats`; iterate over it inside `with scan.in_flight`.

    Iterating raises Throttled or ServiceFailed.
    """

    def __init__(
        self,
        queue: Queue,
        options: Options,
        shutdown: Shutdown,
        history: History | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue = queue
        self.shutdown = shutdown
        self.stats = Stats()
        self.in_flight = InFlight(queue, options.visibility_timeout, clock)
        self._options = options
        self._history = history or History()
        self._to_send = 0
        self._seen: set[str] = set()
        self._sent: set[str] = set()

    def __iter__(self) -> Iterator[Selection]:
        """Receive until `empty_polls` receives in a row return nothing, `limit` is reached or shutdown is requested."""
        empty = 0
        while empty < self._options.empty_polls and not self._limit_reached:
            if self.shutdown.is_requested:
                self.stats.interrupted = True
                return
            self.in_flight.extend()
            received = self.queue.receive(wait=self._options.wait, visibility_timeout=self._options.visibility_timeout)
            messages = [DlqMessage.from_boto3(message) for message in received]
            self.in_flight.add(messages)
            empty = 0 if messages else empty + 1
            yield self._select(messages)

    def forget(self, message: DlqMessage) -> None:
        """Undo the selection of a message that has become visible again: it will be received once more."""
        self._seen.discard(message.message_id)
        self._to_send -= 1
        self.stats.scanned -= 1
        self.stats.selected -= 1

    def add_sent(self, message_id: str) -> None:
        """Remember the new id of a message that this run sent. If it comes back to the DLQ, the run leaves it there.

        Otherwise a message that always fails would be replayed until somebody stops the run.
        """
        self._sent.add(message_id)

    @property
    def _limit_reached(self) -> bool:
        return self._options.limit is not None and self._to_send >= self._options.limit

    def _select(self, messages: Sequence[DlqMessage]) -> Selection:
        found = Selection()
        for message in messages:
            if message.message_id in self._seen:  # SQS may deliver a message twice
                continue
            self._seen.add(message.message_id)
            self.stats.scanned += 1
            if message.message_id in self._history.undeleted:
                found.delete.append(message)
            elif message.source_id in self._sent:
                self.stats.returned += 1
            elif not self._limit_reached and self._options.filter.selects(message):
                lineage = message.lineage(self._history.lineages)
                if self._options.max_replays is not None and lineage.replay_count >= self._options.max_replays:
                    found.refuse.append((message, lineage))
                else:
                    self._to_send += 1
                    found.send.append((message, lineage))
        self.stats.selected += len(found.send) + len(found.refuse) + len(found.delete)
        return found
