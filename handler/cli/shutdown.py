"""Ending in good order: who waits is woken when the process is asked to end, who works sees how long it still may."""

from __future__ import annotations

import math
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final, TypeVar

__all__ = ["TICK", "Shutdown", "on_shutdown_signal"]

_T = TypeVar("_T")


@contextmanager
def on_shutdown_signal(ask: Callable[[], None]) -> Iterator[None]:
    """Calls `ask` at each SIGTERM and SIGINT while the block lasts; for the main thread only."""
    before = {number: signal.signal(number, lambda *_: ask()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Whichever thread a signal reaches, Python runs its handler in the main one, and only once that wakes: so no wait of
# the main thread may be endless.
TICK: Final = 0.5  # seconds


class Shutdown:
    """Whether a process has been asked to end; it has `grace` seconds for that. One thread of it waits here."""

    def __init__(self, grace: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace = grace
        self._clock = clock
        self._deadline = math.inf
        # Of all that wakes a waiting thread only this queue may be used by a signal handler, which can interrupt the
        # very call that it makes: an Event would wait for itself.
        self._inbox: queue.SimpleQueue[Future[Any] | None] = queue.SimpleQueue()

    @property
    def is_requested(self) -> bool:
        """Whether the process has been asked to end."""
        return self._deadline < math.inf

    @property
    def time_left(self) -> float:
        """Seconds until the process must have ended; endless until it is asked to."""
        return self._deadline - self._clock()

    def ask(self) -> None:
        """Asks the process to end; fit for a signal handler. Asking again changes nothing."""
        if not self.is_requested:
            self._deadline = self._clock() + self._grace
            self._inbox.put(None)

    def pause(self, seconds: float) -> None:
        """Waits so many seconds, or until the process is asked to end."""
        if not self.is_requested:
            self._next(seconds)

    def during(self, work: Callable[[], _T], patience: float) -> _T | None:
        """What `work` returns or raises; None where the process is asked to end before it has.

        Work that is younger than `patience` seconds then is given the rest of them. Older work is left to itself, in
        a thread that does not hold up the end of the process.
        """
        young_until = self._clock() + patience
        future: Future[_T] = Future()
        threading.Thread(target=self._deliver, args=(future, work), daemon=True).start()
        found = self._next(math.inf)
        if found is None:
            found = self._next(young_until - self._clock())
        return None if found is None else future.result()

    def _next(self, seconds: float) -> Future[Any] | None:
        end = time.monotonic() + max(0.0, seconds)
        while True:
            try:
                return self._inbox.get(timeout=max(0.0, min(TICK, end - time.monotonic())))
            except queue.Empty:
                if time.monotonic() >= end:
                    return None

    def _deliver(self, future: Future[_T], work: Callable[[], _T]) -> None:
        try:
            future.set_result(work())
        except Exception as error:  # it is raised again in the thread that waits
            future.set_exception(error)
        self._inbox.put(future)
