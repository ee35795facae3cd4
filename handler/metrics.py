"""Metrics behind one port, and the JSON logger. Neither ever contains a subject, a body or other customer text."""

from __future__ import annotations

from typing import Final, Protocol

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit, single_metric
from aws_lambda_powertools.metrics import Metrics as EmfWriter

from handler.settings import SERVICE, UNPUBLISHED

__all__ = ["NAMESPACE", "OUTCOMES", "SERVICE", "TOTAL", "EmfMetrics", "Logger", "Metrics", "make_logger"]

NAMESPACE: Final = "TicketEnrichment"
OUTCOMES: Final = {
    "done": "TicketsDone",
    "skipped": "TicketsSkipped",
    "rejected": "TicketsRejected",
    "failed": "TicketsFailed",
}
TOTAL: Final = "TicketsTotal"  # their sum


class Metrics(Protocol):
    """Receives the metrics of the pipeline: EMF on Lambda, Prometheus in the worker."""

    def started(self, bundle_seconds: float) -> None:
        """The process is ready; copying and opening the bundle took `bundle_seconds`."""
        ...

    def batch(self, tickets: int) -> None:
        """Number of tickets in a batch."""
        ...

    def stage(self, name: str, seconds: float) -> None:
        """Duration of a stage of a batch: fetch, tokenize, encode, classify, summarize or store."""
        ...

    def outcome(self, outcome: str, error_type: str | None) -> None:
        """Outcome of a ticket: done, skipped, rejected or failed; the last two with their error code."""
        ...

    def note_failed(self) -> None:
        """The note of a message, which finds the one that kills its process, could not be written or cleared."""
        ...

    def flush(self) -> None:
        """Called at the end of a batch."""
        ...


class EmfMetrics:
    """CloudWatch's embedded metric format (EMF): JSON lines on standard output, per batch.

    `service` is a dimension of every metric, so that the metrics of two functions in one account stay separate. The
    outcomes of a published `version` are also written with the dimension `version`, so that the deployment alarms see
    only the new version's results.
    """

    def __init__(self, service: str = SERVICE, version: str = UNPUBLISHED) -> None:
        self._service = service
        self._version = version
        self._metrics = EmfWriter(namespace=NAMESPACE, service=service)
        self._bundle_seconds: float | None = None
        self._counts = dict.fromkeys(OUTCOMES, 0)
        self._errors: dict[tuple[str, str], int] = {}
        self._failed_notes = 0

    def started(self, bundle_seconds: float) -> None:
        """As Metrics.started; reported with the first batch."""
        self._bundle_seconds = bundle_seconds

    def batch(self, tickets: int) -> None:
        """As Metrics.batch."""
        self._metrics.add_metric("TicketsPerBatch", MetricUnit.Count, tickets)

    def stage(self, name: str, seconds: float) -> None:
        """As Metrics.stage; several runs in one batch become several values of one metric."""
        self._metrics.add_metric(f"{name.capitalize()}Latency", MetricUnit.Milliseconds, seconds * 1000)

    def outcome(self, outcome: str, error_type: str | None) -> None:
        """As Metrics.outcome."""
        self._counts[outcome] += 1
        if error_type is not None:
            key = (outcome, error_type)
            self._errors[key] = self._errors.get(key, 0) + 1

    def note_failed(self) -> None:
        """As Metrics.note_failed; written only if it happens."""
        self._failed_notes += 1

    def flush(self) -> None:
        """As Metrics.flush; zeros are written too, because CloudWatch cannot divide by a missing value."""
        for outcome, count in self._counts.items():
            self._metrics.add_metric(OUTCOMES[outcome], MetricUnit.Count, count)
        self._metrics.add_metric(TOTAL, MetricUnit.Count, sum(self._counts.values()))
        if self._bundle_seconds is not None:
            self._metrics.add_metric("ColdStart", MetricUnit.Count, 1)
            self._metrics.add_metric("BundleLoadTime", MetricUnit.Milliseconds, self._bundle_seconds * 1000)
        if self._failed_notes:
            self._metrics.add_metric("CrashNotesFailed", MetricUnit.Count, self._failed_notes)
        self._metrics.flush_metrics()
        if self._version != UNPUBLISHED:
            of_version = EphemeralMetrics(namespace=NAMESPACE, service=self._service)
            of_version.add_dimension("version", self._version)
            for outcome, count in self._counts.items():
                of_version.add_metric(OUTCOMES[outcome], MetricUnit.Count, count)
            of_version.flush_metrics()
        for (outcome, error_type), count in self._errors.items():
            # CloudWatch does not sum over dimensions, so counts by error type are written in addition to the total.
            with single_metric(OUTCOMES[outcome], MetricUnit.Count, count, namespace=NAMESPACE) as metric:
                metric.add_dimension("service", self._service)
                metric.add_dimension("ErrorType", error_type)
        self._bundle_seconds = None
        self._counts = dict.fromkeys(OUTCOMES, 0)
        self._errors = {}
        self._failed_notes = 0


def make_logger(level: str) -> Logger:
    """The JSON logger. Fields are passed with each call, never appended as keys, so none leaks into the next line."""
    return Logger(service=SERVICE, level=level, use_rfc3339=True, utc=True)
