"""Metrics behind one port, and the JSON logger. Neither ever contains a subject, a body or other customer text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NotRequired, Protocol, TypedDict, get_args

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit, single_metric
from aws_lambda_powertools.metrics import Metrics as EmfWriter

from enrichment.ticket import EnrichmentData, Priority
from handler.settings import SERVICE, UNPUBLISHED

__all__ = [
    "NAMESPACE",
    "OUTCOMES",
    "SERVICE",
    "TASKS",
    "TOTAL",
    "EmfMetrics",
    "LabelBound",
    "Logger",
    "Metrics",
    "StoredLabels",
    "make_logger",
    "report_labels",
]

NAMESPACE: Final = "TicketEnrichment"
OUTCOMES: Final = {
    "done": "TicketsDone",
    "skipped": "TicketsSkipped",
    "rejected": "TicketsRejected",
    "failed": "TicketsFailed",
}
TOTAL: Final = "TicketsTotal"  # their sum
TASKS: Final = ("intent", "urgency", "sentiment")

# Stored tickets: all, those that a person should look at, and those of which a task saw only the beginning.
_CHECKS: Final = ("TicketsLabelled", "TicketsNeedingReview", "TicketsTruncated")
_MAX_LABELS: Final = 20  # per task


class StoredLabels(TypedDict):
    """The labels of a stored ticket by task (and `language`), and the confidence of each task; JSON for the worker.

    `needs_review`: a person should look at it. `is_truncated`: a task saw only the beginning of the text. `differs`:
    the tasks in which the shadow bundle gave it another label; absent if that did not label it.
    """

    labels: dict[str, str]
    confidences: dict[str, float]
    needs_review: bool
    is_truncated: bool
    differs: NotRequired[list[str]]


class Metrics(Protocol):
    """Receives the metrics of the pipeline: EMF on Lambda, Prometheus in the worker."""

    def started(self, bundle_seconds: float) -> None:
        """The process is ready; copying and opening the bundle took `bundle_seconds`."""
        ...

    def batch(self, tickets: int) -> None:
        """Number of tickets in a batch."""
        ...

    def stage(self, name: str, seconds: float) -> None:
        """Duration of a stage of a batch: fetch, tokenize, encode, classify, summarize, shadow or store."""
        ...

    def outcome(self, outcome: str, error_type: str | None) -> None:
        """Outcome of a ticket: done, skipped, rejected or failed; the last two with their error code."""
        ...

    def note_failed(self) -> None:
        """The note of a message, which finds the one that kills its process, could not be written or cleared."""
        ...

    def shadow_failed(self, error_type: str) -> None:
        """The shadow bundle did not label a ticket, for the reason that the error code says."""
        ...

    def labels(self, found: StoredLabels) -> None:
        """The labels of a stored ticket."""
        ...

    def flush(self) -> None:
        """Called at the end of a batch."""
        ...


def report_labels(metrics: Metrics, found: EnrichmentData) -> None:
    """Reports the labels of a stored ticket. Languages that the bundle does not know count as one, `other`."""
    language = "other" if "language" in found.review_reasons else found.language or "unknown"
    stored: StoredLabels = {
        "labels": {
            "intent": found.intent,
            "urgency": found.urgency,
            "sentiment": found.sentiment,
            "language": language,
        },
        "confidences": {
            "intent": found.intent_confidence,
            "urgency": found.urgency_confidence,
            "sentiment": found.sentiment_confidence,
        },
        "needs_review": found.needs_review,
        "is_truncated": bool(found.truncated),
    }
    if found.shadow is not None:
        stored["differs"] = [*found.shadow.differs]
    metrics.labels(stored)


class LabelBound:
    """Bounds the number of label values per task, because each is a metric that costs money: the rest is `other`."""

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}

    def __call__(self, task: str, label: str) -> str:
        """The label, or `other` if the task already has its maximum of other labels."""
        known = self._known.setdefault(task, set())
        if label in known or len(known) < _MAX_LABELS:
            known.add(label)
            return label
        return "other"


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
        self._failed_shadows = 0
        self._bound = LabelBound()
        self._labels: dict[tuple[str, str], int] = {}
        self._checks = dict.fromkeys(_CHECKS, 0)

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

    def shadow_failed(self, error_type: str) -> None:  # noqa: ARG002 - the log names it
        """As Metrics.shadow_failed; written only if it happens."""
        self._failed_shadows += 1

    def labels(self, found: StoredLabels) -> None:
        """As Metrics.labels; each confidence becomes one of several values of a metric, so its average is the mean."""
        for task, label in found["labels"].items():
            key = (task, self._bound(task, label))
            self._labels[key] = self._labels.get(key, 0) + 1
        for task, confidence in found["confidences"].items():
            self._metrics.add_metric(f"{task.capitalize()}Confidence", MetricUnit.NoUnit, confidence)
            if "differs" in found:  # 0 or 1, so that the average is the share of tickets
                differs = int(task in found["differs"])
                self._metrics.add_metric(f"{task.capitalize()}Differs", MetricUnit.NoUnit, differs)
        for name, is_true in zip(_CHECKS, (True, found["needs_review"], found["is_truncated"]), strict=True):
            self._checks[name] += is_true

    def flush(self) -> None:
        """As Metrics.flush; zeros are written too, because CloudWatch cannot divide by a missing value."""
        for outcome, count in self._counts.items():
            self._metrics.add_metric(OUTCOMES[outcome], MetricUnit.Count, count)
        self._metrics.add_metric(TOTAL, MetricUnit.Count, sum(self._counts.values()))
        for name, count in self._checks.items():
            self._metrics.add_metric(name, MetricUnit.Count, count)
        if self._bundle_seconds is not None:
            self._metrics.add_metric("ColdStart", MetricUnit.Count, 1)
            self._metrics.add_metric("BundleLoadTime", MetricUnit.Milliseconds, self._bundle_seconds * 1000)
        if self._failed_notes:
            self._metrics.add_metric("CrashNotesFailed", MetricUnit.Count, self._failed_notes)
        if self._failed_shadows:
            self._metrics.add_metric("ShadowFailures", MetricUnit.Count, self._failed_shadows)
        self._metrics.flush_metrics()
        if self._version != UNPUBLISHED:
            of_version = EphemeralMetrics(namespace=NAMESPACE, service=self._service)
            of_version.add_dimension("version", self._version)
            for outcome, count in self._counts.items():
                of_version.add_metric(OUTCOMES[outcome], MetricUnit.Count, count)
            for name in ("TicketsLabelled", "TicketsNeedingReview"):
                of_version.add_metric(name, MetricUnit.Count, self._checks[name])
            of_version.flush_metrics()
        for (outcome, error_type), count in self._errors.items():
            # CloudWatch does not sum over dimensions, so counts by error type are written in addition to the total.
            with single_metric(OUTCOMES[outcome], MetricUnit.Count, count, namespace=NAMESPACE) as metric:
                metric.add_dimension("service", self._service)
                metric.add_dimension("ErrorType", error_type)
        self._flush_labels()
        self._checks = dict.fromkeys(_CHECKS, 0)
        self._bundle_seconds = None
        self._counts = dict.fromkeys(OUTCOMES, 0)
        self._errors = {}
        self._failed_notes = self._failed_shadows = 0

    def _flush_labels(self) -> None:
        if self._labels and self._version != UNPUBLISHED:
            # For the alarm that rolls a deployment back, which needs every value: also the zeros.
            for urgency in get_args(Priority):
                count = self._labels.setdefault(("urgency", urgency), 0)
                self._write_label(count, {"urgency": urgency, "version": self._version})
        for (task, label), count in self._labels.items():
            self._write_label(count, {task: label})
        self._labels = {}

    def _write_label(self, count: int, dimensions: Mapping[str, str]) -> None:
        with single_metric("TicketsLabelled", MetricUnit.Count, count, namespace=NAMESPACE) as metric:
            for name, value in {"service": self._service, **dimensions}.items():
                metric.add_dimension(name, value)


def make_logger(level: str) -> Logger:
    """The JSON logger. Fields are passed with each call, never appended as keys, so none leaks into the next line."""
    return Logger(service=SERVICE, level=level, use_rfc3339=True, utc=True)
