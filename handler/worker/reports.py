"""Communication between the worker's parent and its processes: options on the command line, reports through a pipe.

Reports are JSON lines: ready, or the reason why the process cannot start, start and end of each batch and its metrics,
and each change of the circuit breaker. The parent aggregates the metrics, so that the totals in /metrics survive a
process and no file has to be shared.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Protocol, Self

from handler.metrics import Metrics, StoredLabels
from handler.worker.breaker import BreakerState

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
        """The options as a string for `load`."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Self:
        """The options that `dump` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """A batch that a process begins: its messages, their visibility timeout, and the seconds that it may take.

    `number` identifies it among the batches of its process; `queue_url` is the queue of all its messages.
    """

    number: int
    queue_url: str
    message_ids: Sequence[str]
    receipts: Sequence[str]
    visibility_timeout: int
    seconds: float


class BatchReports(Protocol):
    """Tells the parent, which watches over the batches (handler.worker.watchdog). Thread-safe."""

    def batch_started(self, batch: BatchReport) -> None:
        """A batch begins."""
        ...

    def batch_finished(self, batch: BatchReport) -> None:
        """The batch is over; its messages are deleted, or deferred."""
        ...

    def is_settled(self, receipt: str) -> bool:
        """Whether the handler itself deleted or deferred this message of a current batch."""
        ...


class PollMetrics(Protocol):
    """Receives the metrics of polling."""

    def invocation(self, result: str) -> None:
        """Result of an invocation: ok, raised (an exception) or malformed (an invalid response)."""
        ...

    def messages(self, result: str, count: int) -> None:
        """Number of messages that were deleted, kept to be retried, or could not be deleted (undeleted)."""
        ...

    def message_age(self, queue: str, seconds: float) -> None:
        """A message was received this long after it was sent to the queue with that name."""
        ...

    def receive_failed(self, code: str) -> None:
        """Receiving failed with this error code."""
        ...

    def flush(self) -> None:
        """Called at the end of a batch."""
        ...


class WorkerMetrics(Metrics, PollMetrics, Protocol):
    """Receives the metrics of the pipeline and of polling."""


class Reporter:
    """Writes reports to a stream; as WorkerMetrics it buffers the metrics until `flush`. Thread-safe."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._calls: list[list[Any]] = []
        self._settled: set[str] = set()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._observe_outcome: Callable[[str, str | None], None] | None = None

    def observe_outcomes(self, observer: Callable[[str, str | None], None]) -> None:
        """Calls `observer` too with each outcome."""
        self._observe_outcome = observer

    def ready(self) -> None:
        """The process is ready to receive messages."""
        self._write({"ready": True})

    def fatal(self, reason: str) -> None:
        """The process cannot start, and starting it again would not help."""
        self._write({"fatal": reason})

    def batch_started(self, batch: BatchReport) -> None:
        """As BatchReports.batch_started; sent at once."""
        self._write({"batch_started": asdict(batch)})

    def batch_settled(self, receipts: Sequence[str]) -> None:
        """The handler deleted or deferred these messages before the end of their batch; sent at once."""
        self._settled.update(receipts)
        self._write({"batch_settled": list(receipts)})

    def is_settled(self, receipt: str) -> bool:
        """As BatchReports.is_settled."""
        return receipt in self._settled

    def batch_finished(self, batch: BatchReport) -> None:
        """As BatchReports.batch_finished; sent at once."""
        self._settled.difference_update(batch.receipts)
        self._write({"batch_finished": batch.number})

    def breaker(self, state: BreakerState, reason: str) -> None:
        """The circuit breaker changed its state; sent at once."""
        self._write({"breaker": state, "reason": reason})

    def started(self, bundle_seconds: float) -> None:
        """As Metrics.started."""
        self._buffer("started", bundle_seconds)

    def batch(self, tickets: int) -> None:
        """As Metrics.batch."""
        self._buffer("batch", tickets)

    def stage(self, name: str, seconds: float) -> None:
        """As Metrics.stage."""
        self._buffer("stage", name, seconds)

    def outcome(self, outcome: str, error_type: str | None) -> None:
        """As Metrics.outcome."""
        self._buffer("outcome", outcome, error_type)
        if self._observe_outcome is not None:
            self._observe_outcome(outcome, error_type)

    def note_failed(self) -> None:
        """As Metrics.note_failed."""
        self._buffer("note_failed")

    def shadow_failed(self, error_type: str) -> None:
        """As Metrics.shadow_failed."""
        self._buffer("shadow_failed", error_type)

    def labels(self, found: StoredLabels) -> None:
        """As Metrics.labels."""
        self._buffer("labels", found)

    def invocation(self, result: str) -> None:
        """As PollMetrics.invocation."""
        self._buffer("invocation", result)

    def messages(self, result: str, count: int) -> None:
        """As PollMetrics.messages."""
        self._buffer("messages", result, count)

    def message_age(self, queue: str, seconds: float) -> None:
        """As PollMetrics.message_age."""
        self._buffer("message_age", queue, round(seconds, 3))

    def receive_failed(self, code: str) -> None:
        """As PollMetrics.receive_failed."""
        self._buffer("receive_failed", code)

    def flush(self) -> None:
        """Writes the buffered metrics."""
        with self._lock:
            calls, self._calls = self._calls, []
        if calls:
            self._write({"metrics": calls})

    def _buffer(self, *call: Any) -> None:
        with self._lock:
            self._calls.append(list(call))

    def _write(self, report: dict[str, Any]) -> None:
        line = json.dumps(report).encode() + b"\n"
        try:
            with self._writing:
                self._stream.write(line)
                self._stream.flush()
        except OSError:
            return  # the parent has exited; the closed standard input ends this process


def replay(calls: Sequence[Sequence[Any]], metrics: WorkerMetrics) -> None:
    """Repeats on `metrics` the calls that a Reporter buffered."""
    for name, *arguments in calls:
        getattr(metrics, name)(*arguments)
