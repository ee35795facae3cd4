"""Logs and metrics: JSON lines with ids and times, and metrics behind one port.

Neither ever holds a subject, a body, or what else a customer wrote.
"""

from __future__ import annotations

from typing import Final, Protocol

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit, single_metric
from aws_lambda_powertools.metrics import Metrics as EmfWriter

from handler.settings import SERVICE, UNPUBLISHED

__all__ = ["NAMESPACE", "OUTCOMES", "SERVICE", "EmfMetrics", "Logger", "Metrics", "make_logger"]

NAMESPACE: Final = "TicketEnrichment"
OUTCOMES: Final = {
    "done": "TicketsDone",
    "skipped": "TicketsSkipped",
    "rejected": "TicketsRejected",
    "failed": "TicketsFailed",
}


class Metrics(Protocol):
    """Takes the metrics of the pipeline; EMF on Lambda, Prometheus in the worker."""

    def started(self, bundle_seconds: float) -> None:
        """The process can take its first ticket; the bundle took so long to copy and open."""
        ...

    def batch(self, tickets: int) -> None:
        """A batch held so many tickets."""
        ...

    def stage(self, name: str, seconds: float) -> None:
        """A stage of a batch took so long: fetch, tokenize, encode, classify, summarize, store."""
        ...

    def outcome(self, outcome: str, error_type: str | None) -> None:
        """A ticket ended so: done, skipped, rejected or failed; the latter two with their error's code."""
        ...

    def flush(self) -> None:
        """The batch is over."""
        ...


class EmfMetrics:
    """CloudWatch's embedded metric format: JSON lines on standard output per batch.

    `service` is a dimension of every metric, so that the functions of an account do not add up. The outcomes of a
    published `version` stand in a line of their own besides, so that a new one is judged by what it did itself.
    """

    def __init__(self, service: str = SERVICE, version: str = UNPUBLISHED) -> None:
        self._service = service
        self._version = version
        self._metrics = EmfWriter(namespace=NAMESPACE, service=service)
        self._bundle_seconds: float | None = None
        self._counts = dict.fromkeys(OUTCOMES, 0)
        self._errors: dict[tuple[str, str], int] = {}

    def started(self, bundle_seconds: float) -> None:
        """As Metrics.started; reported with the first batch."""
        self._bundle_seconds = bundle_seconds

    def batch(self, tickets: int) -> None:
        """As Metrics.batch."""
        self._metrics.add_metric("TicketsPerBatch", MetricUnit.Count, tickets)

    def stage(self, name: str, seconds: float) -> None:
        """As Metrics.stage; several runs within one batch become several values of one metric."""
        self._metrics.add_metric(f"{name.capitalize()}Latency", MetricUnit.Milliseconds, seconds * 1000)

    def outcome(self, outcome: str, error_type: str | None) -> None:
        """As Metrics.outcome."""
        self._counts[outcome] += 1
        if error_type is not None:
            key = (outcome, error_type)
            self._errors[key] = self._errors.get(key, 0) + 1

    def flush(self) -> None:
        """As Metrics.flush; zeros are written too, since CloudWatch cannot divide by what is missing."""
        for outcome, count in self._counts.items():
            self._metrics.add_metric(OUTCOMES[outcome], MetricUnit.Count, count)
        if self._bundle_seconds is not None:
            self._metrics.add_metric("ColdStart", MetricUnit.Count, 1)
            self._metrics.add_metric("BundleLoadTime", MetricUnit.Milliseconds, self._bundle_seconds * 1000)
        self._metrics.flush_metrics()
        if self._version != UNPUBLISHED:
            of_version = EphemeralMetrics(namespace=NAMESPACE, service=self._service)
            of_version.add_dimension("version", self._version)
            for outcome, count in self._counts.items():
                of_version.add_metric(OUTCOMES[outcome], MetricUnit.Count, count)
            of_version.flush_metrics()
        for (outcome, error_type), count in self._errors.items():
            # CloudWatch does not sum over dimensions, so the count by error stands beside the one in all.
            with single_metric(OUTCOMES[outcome], MetricUnit.Count, count, namespace=NAMESPACE) as metric:
                metric.add_dimension("service", self._service)
                metric.add_dimension("ErrorType", error_type)
        self._bundle_seconds = None
        self._counts = dict.fromkeys(OUTCOMES, 0)
        self._errors = {}


def make_logger(level: str) -> Logger:
    """The JSON logger; one line a ticket, its fields given with each call so that none leaks into the next line."""
    return Logger(service=SERVICE, level=level, use_rfc3339=True, utc=True)
