"""The messages that a replay has received and neither deleted nor given back: hidden from others until it ends.

They are hidden for a short time, which is renewed while the work goes on: what a killed process held comes back soon.
A queue of a hundred thousand unchosen messages must not keep the process busy with renewing, so the time doubles with
each renewal: whatever was held for a while stays hidden for at most as long again.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from typing import Self

from handler.replay.letter import Letter
from handler.replay.queue import Queue, ReplayError

__all__ = ["Hold"]

_MOST_SECONDS = 900.0
_TENS = 10
_SAFE_SHARE = 0.2  # of the time: what has less left may be handed to others while a request is on its way


@dataclass(slots=True)
class _Group:
    """Receipts by message id, of one receive; `until` is when others see them again, after `seconds` of hiding."""

    receipts: dict[str, str]
    seconds: float
    until: float


class Hold:
    """Keeps messages hidden; `seconds` to begin with. Every call to the queue may raise ReplayError."""

    def __init__(self, queue: Queue, seconds: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue = queue
        self._seconds = float(seconds)
        self._clock = clock
        self._groups: list[tuple[float, int, _Group]] = []  # a heap, by the time of the next renewal
        self._number = count()
        self._where: dict[str, _Group] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: object) -> None:
        """Gives back what is held; not where the user asked twice for an end: then the queue does it, a bit later."""
        if kind is None:
            self.release()
        elif not issubclass(kind, KeyboardInterrupt):
            with suppress(ReplayError):  # there is a worse one on its way already
                self.release()

    def add(self, letters: Sequence[Letter]) -> None:
        """Holds what has just been received, up to ten."""
        if letters:
            receipts = {letter.message_id: letter.receipt for letter in letters}
            self._schedule(_Group(receipts, self._seconds, self._clock() + self._seconds))

    def forget(self, message_id: str) -> None:
        """The message is gone: there is nothing to keep hidden any more."""
        group = self._where.pop(message_id, None)
        if group is not None:
            del group.receipts[message_id]

    def has(self, message_id: str) -> bool:
        """Whether nobody else can be given the message, for a while at least."""
        group = self._where.get(message_id)
        return group is not None and group.until - self._clock() > _SAFE_SHARE * group.seconds

    def due_in(self) -> float:
        """Seconds until the next renewal; infinite where nothing is held."""
        return self._groups[0][0] - self._clock() if self._groups else float("inf")

    def renew(self) -> None:
        """Renews what is due. What the queue does not confirm is let go: others may have it by now."""
        while self.due_in() <= 0:
            group = heapq.heappop(self._groups)[2]
            if not group.receipts:
                continue
            group.seconds = min(2 * group.seconds, max(group.seconds, _MOST_SECONDS))
            group.until = self._clock() + group.seconds
            ids = list(group.receipts)
            kept = self._queue.hide(list(group.receipts.values()), int(group.seconds))
            for name, is_kept in zip(ids, kept, strict=True):
                if not is_kept:
                    self.forget(name)
            self._schedule(group)

    def release(self) -> None:
        """Lets others see at once all that is held."""
        receipts = iter([group.receipts[name] for name, group in self._where.items()])
        self._groups, self._where = [], {}
        for part in _tens(receipts):
            self._queue.hide(part, 0)

    def _schedule(self, group: _Group) -> None:
        for name in group.receipts:
            before = self._where.get(name)
            if before is not None and before is not group:  # received again: the old receipt is worth nothing
                before.receipts.pop(name, None)
            self._where[name] = group
        heapq.heappush(self._groups, (group.until - group.seconds / 2, next(self._number), group))


def _tens(receipts: Iterator[str]) -> Iterator[list[str]]:
    while part := list(islice(receipts, _TENS)):
        yield part
