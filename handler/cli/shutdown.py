"""Graceful shutdown: the signal wakes a waiting thread; a working thread can read how much time is left."""

from __future__ import annotations

import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final, TypeVar

__all__ = ["TICK", "Shutdown", "on_shutdown_signal", "stopping_on_signals"]

_T = TypeVar("_T")


@contextmanager
def on_shutdown_signal(callback: Callable[[], None]) -> Iterator[None]:
    """Calls `callback` on each SIGTERM and SIGINT inside the block; main thread only."""
    before = {number: signal.signal(number, lambda *_: callback()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Python runs signal handlers in the main thread, and only when it wakes up, so the main thread must never wait without
# a timeout.
TICK: Final = 0.5  # seconds


class Shutdown:
    """The state of a shutdown: after the request, the process has `grace` seconds. Only one thread may wait on it."""

    def __init__(self, grace: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace = grace
        self._clock = clock
        self._deadline = math.inf
        # SimpleQueue is reentrant, so a signal handler may use it even if it interrupts a call on it; setting an Event
        # there could deadlock.
        self._inbox: queue.SimpleQueue[Future[Any] | None] = queue.SimpleQueue()

    @property
    def is_requested(self) -> bool:
        """Whether shutdown was requested."""
        return self._deadline < math.inf

    @property
    def time_left(self) -> float:
        """Seconds until the process must have ended; infinite before shutdown is requested."""
        return self._deadline - self._clock()

    def request(self) -> None:
        """Requests shutdown. Safe in a signal handler; further calls have no effect."""
        if not self.is_requested:
            self._deadline = self._clock() + self._grace
            self._inbox.put(None)

    def pause(self, seconds: float) -> None:
        """Waits for `seconds`, or until shutdown is requested."""
        if not self.is_requested:
            self._next(seconds)

    def during(self, work: Callable[[], _T], patience: float) -> _T | None:
        """Runs `work` in a thread and returns its result or raises its error; None if shutdown is requested first.

        Work that started less than `patience` seconds before gets the rest of that time to finish. After that it is
        abandoned, in a daemon thread that does not delay the exit of the process.
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
        except Exception as error:  # raised again in the waiting thread
            future.set_exception(error)
        self._inbox.put(future)


_NO_DEADLINE: Final = 86400.0  # seconds; only a second signal stops the command


@contextmanager
def stopping_on_signals(notice: str = "") -> Iterator[Shutdown]:
    """Ctrl-C or SIGTERM requests a shutdown and shows the notice; the second one raises KeyboardInterrupt."""
    shutdown = Shutdown(_NO_DEADLINE)

    def on_signal() -> None:
        if shutdown.is_requested:
            raise KeyboardInterrupt
        shutdown.request()
        # Not with print: the signal may have interrupted one.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, notice.encode())

    with on_shutdown_signal(on_signal):
        yield shutdown
