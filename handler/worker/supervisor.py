"""The parent of the worker's processes: starts them, restarts them if they exit, and shuts them down in time."""

from __future__ import annotations

import json
import os
import queue
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from handler.cli.shutdown import TICK, on_shutdown_signal
from handler.metrics import Logger
from handler.worker.breaker import STATES, BreakerState
from handler.worker.reports import BatchReport, WorkerMetrics, replay
from handler.worker.watchdog import ChangeVisibility, Watchdog

__all__ = ["Supervisor", "SupervisorMetrics"]

_MAX_FAILED_STARTS: Final = 5
_MAX_PAUSE: Final = 30.0


class SupervisorMetrics(WorkerMetrics, Protocol):
    """Receives the metrics of all processes."""

    def processes(self, ready: int, wanted: int) -> None:
        """Number of processes that are ready, and number that should be."""
        ...

    def restarted(self) -> None:
        """A process exited unexpectedly."""
        ...

    def breakers(self, processes: Mapping[BreakerState, int]) -> None:
        """Number of processes by the state of their circuit breakers."""
        ...

    def breaker_opened(self) -> None:
        """A circuit breaker that was closed has opened."""
        ...


@dataclass(eq=False, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    watchdog: Watchdog
    is_ready: bool = False
    breaker: BreakerState = "closed"
    breaker_reason: str = ""
    fatal: str | None = None


class Supervisor:
    """Keeps `wanted` processes of a command running until shutdown.

    `command(fd)` returns the arguments of a process that reports through that descriptor (handler.worker.reports) and
    exits when its standard input closes.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        wanted: int,
        grace: float,
        *,
        change_visibility: ChangeVisibility,
        metrics: SupervisorMetrics,
        logger: Logger,
    ) -> None:
        self._command = command
        self._wanted = wanted
        self._grace = grace
        self._change_visibility = change_visibility
        self._metrics = metrics
        self._logger = logger
        self._inbox: queue.SimpleQueue[Callable[[], None]] = (
            queue.SimpleQueue()
        )  # filled by threads and signal handlers
        self._children: list[_Child] = []
        self._starts: list[float] = []  # when processes are due
        self._failed_starts = 0
        self._has_begun = False
        self._has_started = False
        self._is_shutting_down = False
        self._kill_at: float | None = None
        self.failure: str | None = None

    def run(self) -> int:
        """Runs in the main thread until SIGTERM or SIGINT and all processes have exited; returns the exit code.

        A second signal kills the processes. The code is 1 if a process did not exit in time or none can start;
        `failure` then explains it in one line.
        """
        with on_shutdown_signal(lambda: self._inbox.put(self._shutdown_requested)):
            # The first process installs the bundle for all, and shows whether the others can start at all.
            self._start()
            while self._children or self._starts:
                self._report_metrics()
                self._next()()
        return 1 if self.failure is not None else 0

    def not_ready(self) -> str | None:
        """Why the worker is not ready, or None; called in other threads."""
        if self._is_shutting_down:
            return "shutting down"
        if any(child.watchdog.is_overrunning() for child in list(self._children)):
            return "a batch overruns its time"
        return self._not_loaded() or self._not_receiving()

    def not_started(self) -> str | None:
        """Why the worker has not started yet, or None, also later, from the moment when all processes were ready.

        For Kubernetes' startup probe, which restarts a pod: an outage of a service must not do that.
        """
        return None if self._has_started else self._not_loaded()

    def _not_loaded(self) -> str | None:
        ready = self._ready()
        return None if ready == self._wanted else f"{ready} of {self._wanted} processes have loaded the bundle"

    def _not_receiving(self) -> str | None:
        reasons = [child.breaker_reason for child in list(self._children) if child.breaker == "open"]
        if not reasons:
            return None
        return f"{len(reasons)} of {self._wanted} processes have stopped receiving for now: {reasons[0]}"

    def _report_metrics(self) -> None:
        ready = self._ready()
        self._has_started = self._has_started or ready == self._wanted
        self._metrics.processes(ready, self._wanted)
        counts = Counter(child.breaker for child in self._children if child.is_ready)
        self._metrics.breakers({state: counts[state] for state in STATES})

    def _ready(self) -> int:
        return sum(child.is_ready for child in list(self._children))

    def _next(self) -> Callable[[], None]:
        times = [*self._starts, *([] if self._kill_at is None else [self._kill_at])]
        try:
            return self._inbox.get(timeout=max(0.0, min([TICK, *(at - time.monotonic() for at in times)])))
        except queue.Empty:
            return self._due

    def _due(self) -> None:
        now = time.monotonic()
        if self._kill_at is not None and self._kill_at <= now:
            self._kill()
        for due in [due for due in self._starts if due <= now]:
            self._starts.remove(due)
            self._start()

    def _start(self) -> None:
        reading, writing = os.pipe()
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            self._command(writing),
            stdin=subprocess.PIPE,
            pass_fds=(writing,),
            process_group=0,  # Ctrl-C in the terminal reaches only the parent, which then stops the others
            # The new interpreter finds the same modules, however this one was started.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)},
        )
        child = _Child(process, Watchdog(self._change_visibility, process.kill, self._logger))
        os.close(writing)
        self._children.append(child)
        threading.Thread(target=self._listen, args=(child, reading), daemon=True).start()

    def _listen(self, child: _Child, reading: int) -> None:
        watchdog, rest = child.watchdog, b""
        with open(reading, "rb", buffering=0) as stream:
            while True:
                if not select.select([stream], [], [], watchdog.seconds_until_due())[0]:
                    watchdog.act()
                    continue
                part = stream.read(65536)
                if not part:
                    break  # the unfinished line of a killed process is lost, like its batches
                *lines, rest = (rest + part).split(b"\n")
                for report in map(json.loads, lines):
                    if "batch_started" in report:
                        watchdog.started(BatchReport(**report["batch_started"]))
                    elif "batch_settled" in report:
                        watchdog.settled(frozenset(report["batch_settled"]))
                    elif "batch_finished" in report:
                        watchdog.finished(report["batch_finished"])
                    else:
                        self._inbox.put(partial(self._reported, child, report))
        code = child.process.wait()
        interrupted = watchdog.message_ids
        watchdog.ended()
        self._inbox.put(partial(self._exited, child, code, interrupted))

    def _reported(self, child: _Child, report: dict[str, Any]) -> None:
        replay(report.get("metrics", ()), self._metrics)
        child.fatal = report.get("fatal", child.fatal)
        if "breaker" in report:
            if report["breaker"] == "open" and child.breaker == "closed":
                self._metrics.breaker_opened()
            # The reason first: not_ready() reads both in another thread.
            child.breaker_reason = report["reason"]
            child.breaker = report["breaker"]
        if report.get("ready"):
            child.is_ready = True
            self._failed_starts = 0
            self._logger.info("a process is ready", extra={"pid": child.process.pid})
            if not self._has_begun and not self._is_shutting_down:
                self._starts += [time.monotonic()] * (self._wanted - 1)
            self._has_begun = True

    def _exited(self, child: _Child, code: int, interrupted: Sequence[str]) -> None:
        self._children.remove(child)
        if child.process.stdin is not None:
            child.process.stdin.close()
        extra = {"pid": child.process.pid, "code": code, "message_ids": list(interrupted)}
        if self._is_shutting_down:
            # SIGTERM simply ends a process whose signal handlers are not installed yet; that loses nothing.
            if code not in (0, -signal.SIGTERM):
                self._fail(f"a process did not shut down cleanly (code {code}); its messages will be delivered again")
        elif child.fatal is not None:
            self._fail(child.fatal)
        else:
            self._metrics.restarted()
            self._failed_starts += not child.is_ready
            if self._failed_starts >= _MAX_FAILED_STARTS:
                self._fail(f"{_MAX_FAILED_STARTS} processes in a row exited before they were ready (code {code})")
                return
            self._logger.warning("a process exited unexpectedly; starting another one", extra=extra)
            pause = min(_MAX_PAUSE, 2.0**self._failed_starts) * random.uniform(0.5, 1.0) if self._failed_starts else 0.0  # noqa: S311 - spreads load
            self._starts.append(time.monotonic() + pause)

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or reason
        self._shut_down()

    def _shutdown_requested(self) -> None:
        if self._is_shutting_down:
            self._kill()
        else:
            self._logger.info("shutdown requested; finishing the current batches")
            self._shut_down()

    def _shut_down(self) -> None:
        if not self._is_shutting_down:
            self._is_shutting_down = True
            self._kill_at = time.monotonic() + self._grace
            self._starts.clear()
            for child in self._children:
                child.process.terminate()

    def _kill(self) -> None:
        self._kill_at = None
        for child in self._children:
            child.process.kill()
