"""Real `ticket-processor` commands on a stack, each with one worker process, which `ProcessKiller` kills at random."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.support.proxy import Proxy, Unanswered


class Worker:
    """A running `ticket-processor`; `log` is the file that it writes to."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def child(self) -> int | None:
        """The id of the worker process, or None if there is none at the moment."""
        try:
            children = psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return None
        return children[0].pid if children else None

    def wait_until(self, text: str, seconds: float = 120.0) -> None:
        """Wait until the log contains a text. Raises AssertionError if it does not in time."""
        deadline = time.monotonic() + seconds
        while text not in self.log.read_text(errors="replace"):
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            assert time.monotonic() < deadline, (
                f"{text!r} is not in the log: {self.log.read_text(errors='replace')[-2000:]}"
            )
            time.sleep(0.05)


@contextmanager
def worker(environment: Mapping[str, str], log: Path, *options: str) -> Iterator[Worker]:
    """Run a `ticket-processor` for the duration of the block; at the end it gets SIGTERM and must exit with 0."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "handler.worker", "--wait", "1", *options],
            env={**os.environ, "LOG_LEVEL": "INFO", "INTRA_OP_THREADS": "1", **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Worker(process, log)
        if process.poll() is None:
            process.terminate()
            assert process.wait(60) == 0, log.read_text(errors="replace")[-2000:]
    finally:
        process.kill()
        process.wait()


class ProcessKiller:
    """Kills the process behind a proxy up to `limit` times, each time after a random number of calls.

    The kill happens before the stack receives a call, before the process receives the response, or a moment later.
    There are up to `longest` calls between two kills; a batch of ten makes about 35. Processes that are killed in every
    batch would be killed twice in a row while the same good ticket runs alone, which is rejected as `crashed`.
    """

    def __init__(
        self, proxy: Proxy, find_pid: Callable[[], int | None], rng: random.Random, limit: int, *, longest: int = 240
    ) -> None:
        self.kills: list[str] = []
        self._proxy, self._find_pid, self._rng, self._limit = proxy, find_pid, rng, limit
        self._longest = longest
        self._phases = itertools.cycle(rng.sample(["before", "after", "later"], 3))
        self._lock = threading.Lock()
        self._draw()
        proxy.before = lambda operation: self._at("before", operation)
        proxy.after = lambda operation: self._at("after", operation)

    def _draw(self) -> None:
        self._phase = next(self._phases)
        # A process's first two calls read the queue's attributes and its messages.
        self._due = len(self._proxy.calls) + self._rng.randint(3, self._longest)

    def _at(self, phase: str, operation: str) -> None:
        with self._lock:
            due = len(self.kills) < self._limit and len(self._proxy.calls) >= self._due
            if not due or phase != ("before" if self._phase == "before" else "after"):
                return
            pid = self._find_pid()
            if pid is None:
                return
            self.kills.append(f"{self._phase} {operation}")
            pause = self._rng.uniform(0, 0.02)
            if self._phase == "later":
                threading.Timer(pause, _kill, (pid,)).start()
            else:
                _kill(pid)
            later = self._phase == "later"
            self._draw()
        if not later:
            raise Unanswered


def _kill(pid: int) -> Any:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
