"""Communication between the worker's parent and its processes: options on the command line, reports through a pipe.

Reports are JSON lines: ready, or the reason why the process cannot start, the start and the end of each batch, and its
metrics. The parent adds the metrics up, so that the sums in /metrics survive a process, and no file has to be shared.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Protocol, Self

from handler.metrics import Metrics

__all__ = ["BatchReport", "BatchReports", "PollMetrics", "Reporter", "WorkerMetrics", "WorkerOptions", "replay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How to poll. All times are in seconds.

    `wait` is the length of a long poll, `timeout` the maximum duration of an invocation (None: the queue's visibility
    timeout), `grace` the time for shutdown.
    """

    batch_size: int = 10
    wait: int = 20
    visibility_timeout: int = 30
    timeout: float | None = None
    grace: float = 25.0

    def dump(self) -> str:
        """This options as a text for `load`."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Self:
        """The options that `dump` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """A batch that a process begins: its messages, their visibility timeout, and the seconds that it may take."""

    message_ids: Sequence[str]
    receipts: Sequence[str]
    visibility_timeout: int
    seconds: float


class BatchReports(Protocol):
    """Tells the parent, which watches over the batch (handler.worker.watchdog)."""

    def batch_started(self, batch: BatchReport) -> None:
        """A batch begins."""
        ...

    def batch_finished(self) -> None:
        """The batch is over; its messages are deleted, or deferred."""
        ...


class PollMetrics(Protocol):
    """Takes the metrics of polling."""

    def invocation(self, result: str) -> None:
        """The handler was called; it answered (ok), raised, or its answer was malformed."""
        ...

    def messages(self, result: str, count: int) -> None:
        """So many messages were deleted, kept for another try, or could not be deleted (undeleted)."""
        ...

    def receive_failed(self, code: str) -> None:
        """The queue could not be asked; the code is that of the error."""
        ...

    def flush(self) -> None:
        """The batch is over."""
        ...


class WorkerMetrics(Metrics, PollMetrics, Protocol):
    """Takes the metrics of the pipeline and of polling."""


class Reporter:
    """Writes reports into a stream; as WorkerMetrics it keeps what it is told until `flush`."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._calls: list[list[Any]] = []
        self._lock = threading.Lock()  # outcomes come from the threads of the handler's pool

    def ready(self) -> None:
        """The process can take messages."""
        self._write({"ready": True})

    def fatal(self, reason: str) -> None:
        """The process cannot start, and starting it again would not help."""
        self._write({"fatal": reason})

    def batch_started(self, batch: BatchReport) -> None:
        """As BatchReports.batch_started; sent at once."""
        self._write({"batch_started": asdict(batch)})

    def batch_finished(self) -> None:
        """As BatchReports.batch_finished; sent at once."""
        self._write({"batch_finished": True})

    def started(self, bundle_seconds: float) -> None:
        """As Metrics.started."""
        self._keep("started", bundle_seconds)

    def batch(self, tickets: int) -> None:
        """As Metrics.batch."""
        self._keep("batch", tickets)

    def stage(self, name: str, seconds: float) -> None:
        """As Metrics.stage."""
        self._keep("stage", name, seconds)

    def outcome(self, outcome: str, error_type: str | None) -> None:
        """As Metrics.outcome."""
        self._keep("outcome", outcome, error_type)

    def invocation(self, result: str) -> None:
        """As PollMetrics.invocation."""
        self._keep("invocation", result)

    def messages(self, result: str, count: int) -> None:
        """As PollMetrics.messages."""
        self._keep("messages", result, count)

    def receive_failed(self, code: str) -> None:
        """As PollMetrics.receive_failed."""
        self._keep("receive_failed", code)

    def flush(self) -> None:
        """Sends what was kept."""
        with self._lock:
            calls, self._calls = self._calls, []
        if calls:
            self._write({"metrics": calls})

    def _keep(self, *call: Any) -> None:
        with self._lock:
            self._calls.append(list(call))

    def _write(self, report: dict[str, Any]) -> None:
        try:
            self._stream.write(json.dumps(report).encode() + b"\n")
            self._stream.flush()
        except OSError:
            return  # the parent has gone; that it has ends this process by another way


def replay(calls: Sequence[Sequence[Any]], metrics: WorkerMetrics) -> None:
    """Tells `metrics` what a Reporter was told."""
    for name, *arguments in calls:
        getattr(metrics, name)(*arguments)
