"""Real `ticket-processor` commands on a stack, with one process of models each, and what kills those at random."""

from __future__ import annotations

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
        """The process that has the models, when there is one."""
        try:
            children = psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return None
        return children[0].pid if children else None

    def wait_until(self, text: str, seconds: float = 120.0) -> None:
        """Waits for a text in the log. Raises AssertionError."""
        deadline = time.monotonic() + seconds
        while text not in self.log.read_text(errors="replace"):
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            assert time.monotonic() < deadline, (
                f"{text!r} does not come: {self.log.read_text(errors='replace')[-2000:]}"
            )
            time.sleep(0.05)


@contextmanager
def worker(environment: Mapping[str, str], log: Path, *options: str) -> Iterator[Worker]:
    """A `ticket-processor` while the block lasts; it is asked to end, and must do so in good order."""
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


class Assassin:
    """Kills the process behind a proxy, so many times, each time after so many calls as its seed says.

    Before the stack hears of a call, before the process hears the answer, or a moment later.
    """

    def __init__(self, proxy: Proxy, victim: Callable[[], int | None], chance: random.Random, kills: int) -> None:
        self.deaths: list[str] = []
        self._proxy, self._victim, self._chance, self._kills = proxy, victim, chance, kills
        self._lock = threading.Lock()
        self._draw()
        proxy.before = lambda operation: self._at("before", operation)
        proxy.after = lambda operation: self._at("after", operation)

    def _draw(self) -> None:
        self._phase = self._chance.choice(["before", "after", "later"])
        # A batch of ten makes some 35 calls; the first two of a process find the queue and its messages.
        self._due = len(self._proxy.calls) + self._chance.randint(3, 70)

    def _at(self, phase: str, operation: str) -> None:
        with self._lock:
            due = len(self.deaths) < self._kills and len(self._proxy.calls) >= self._due
            if not due or phase != ("before" if self._phase == "before" else "after"):
                return
            victim = self._victim()
            if victim is None:
                return
            self.deaths.append(f"{self._phase} {operation}")
            pause = self._chance.uniform(0, 0.02)
            if self._phase == "later":
                threading.Timer(pause, _kill, (victim,)).start()
            else:
                _kill(victim)
            later = self._phase == "later"
            self._draw()
        if not later:
            raise Unanswered


def _kill(pid: int) -> Any:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
