"""Metrics in Prometheus' format (/metrics): the worker's adapter of the metrics port."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest

from enrichment.errors import BundleError, EnrichmentError, ModelFailed, OutOfTime
from handler.aws.sqs import QueueAttributes
from handler.errors import MessageError, ServiceFailed, Throttled, error_codes
from handler.metrics import OUTCOMES, TASKS, LabelBound, StoredLabels
from handler.worker.breaker import STATES, BreakerState

__all__ = ["CONTENT_TYPE", "PrometheusMetrics"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"  # what generate_latest writes, in all versions

_STAGE_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCH_TICKETS: Final = (1, 2, 3, 5, 7, 10, 20, 50, 100)
_BUNDLE_SECONDS: Final = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)
_AGE_SECONDS: Final = (1, 5, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400, 604800)

# Not the bundle's, with which a process does not start, and not those of base classes.
_TICKET_ERRORS: Final = sorted(error_codes() - error_codes(BundleError) - {EnrichmentError.code, MessageError.code})


class PrometheusMetrics:
    """Receives the metrics of all processes of a worker, in its own registry. Thread-safe."""

    def __init__(self, queues: Sequence[str] = ()) -> None:
        """`queues` are the names of the queues that the worker reads."""
        registry = self._registry = CollectorRegistry()
        self._tickets = Counter(
            "tickets",
            "Tickets by outcome and error type.",
            ["outcome", "error_type"],
            registry=registry,
        )
        self._stages = Histogram(
            "ticket_stage_seconds",
            "Duration of a stage for a batch or part of it, in seconds.",
            ["stage"],
            buckets=_STAGE_SECONDS,
            registry=registry,
        )
        self._batch = Histogram("ticket_batch_size", "Tickets per batch.", buckets=_BATCH_TICKETS, registry=registry)
        self._bundle = Histogram(
            "ticket_bundle_load_seconds",
            "Seconds to copy and open the model bundle.",
            buckets=_BUNDLE_SECONDS,
            registry=registry,
        )
        self._bound = LabelBound()
        self._labels = Counter(
            "ticket_labels", "Stored tickets by task and label; also by language.", ["task", "label"], registry=registry
        )
        self._confidence = Summary(
            "ticket_confidence", "Confidence of the labels of stored tickets.", ["task"], registry=registry
        )
        self._checks = Counter(
            "ticket_checks",
            "Stored tickets: all (labelled), to be looked at by a person (review), read only in part (truncated).",
            ["check"],
            registry=registry,
        )
        self._shadow_labels = Counter(
            "ticket_shadow_labels",
            "Labels of the shadow bundle for stored tickets: the same as the ticket's, or another one (differs).",
            ["task", "result"],
            registry=registry,
        )
        self._shadow_failures = Counter(
            "ticket_shadow_failures", "Tickets that the shadow bundle did not label.", ["error_type"], registry=registry
        )
        self._invocations = Counter(
            "ticket_invocations",
            "Handler invocations: ok, raised an exception, or returned a malformed response.",
            ["result"],
            registry=registry,
        )
        self._messages = Counter(
            "ticket_messages",
            "Messages that were deleted, kept to be retried, or could not be deleted.",
            ["result"],
            registry=registry,
        )
        self._receive_errors = Counter(
            "ticket_receive_errors", "Failed attempts to receive messages.", ["error_type"], registry=registry
        )
        self._failed_notes = Counter(
            "ticket_crash_notes_failed",
            "Notes of messages in progress that could not be written or cleared.",
            registry=registry,
        )
        self._processes = Gauge("ticket_processes", "Processes that should be running.", registry=registry)
        self._ready = Gauge("ticket_processes_ready", "Processes that have loaded the bundle.", registry=registry)
        self._restarts = Counter("ticket_process_restarts", "Processes that exited unexpectedly.", registry=registry)
        self._breakers = Gauge(
            "ticket_breaker_processes", "Processes by the state of their circuit breaker.", ["state"], registry=registry
        )
        self._breaker_openings = Counter(
            "ticket_breaker_openings", "Circuit breakers that opened after they had been closed.", registry=registry
        )
        self._ages = Histogram(
            "ticket_message_age_seconds",
            "Seconds since a received message was sent to the queue.",
            ["queue"],
            buckets=_AGE_SECONDS,
            registry=registry,
        )
        self._queue = Gauge(
            "ticket_queue_messages",
            "Messages in a queue as SQS estimates them: visible, in flight or delayed; NaN if it cannot be read.",
            ["queue", "state"],
            registry=registry,
        )
        self._webhook = Counter(
            "ticket_webhook_events",
            "Attempts to deliver an event to RESULT_WEBHOOK: delivered, refused, unavailable, or expired (given up).",
            ["result"],
            registry=registry,
        )
        self._webhook_delay = Gauge(
            "ticket_webhook_delay_seconds", "Age of the oldest event that waits for delivery.", registry=registry
        )
        self._create_series(queues)

    def _create_series(self, queues: Sequence[str]) -> None:
        # Every series exists from the start: rate() over one that appears with its first errors misses these errors.
        for outcome in OUTCOMES:
            self._tickets.labels(outcome, "")
        for outcome, code in product(("rejected", "failed"), _TICKET_ERRORS):
            self._tickets.labels(outcome, code)
        codes = sorted(error_codes(BundleError) - {BundleError.code} | {ModelFailed.code, OutOfTime.code})
        for metric, names in (
            (self._receive_errors, (Throttled.code, ServiceFailed.code)),
            (self._invocations, ("ok", "raised", "malformed")),
            (self._messages, ("deleted", "kept", "undeleted")),
            (self._breakers, STATES),
            (self._checks, ("labelled", "review", "truncated")),
            (self._shadow_failures, codes),
            (self._webhook, ("delivered", "refused", "unavailable", "expired")),
        ):
            for name in names:
                metric.labels(name)
        for task, result in product(TASKS, ("same", "differs")):
            self._shadow_labels.labels(task, result)
        for queue in queues:
            self.queue(queue, None)
            self._ages.labels(queue)

    def started(self, bundle_seconds: float) -> None:
        """As Metrics.started; once per process."""
        self._bundle.observe(bundle_seconds)

    def batch(self, tickets: int) -> None:
        """As Metrics.batch."""
        self._batch.observe(tickets)

    def stage(self, name: str, seconds: float) -> None:
        """As Metrics.stage."""
        self._stages.labels(name).observe(seconds)

    def outcome(self, outcome: str, error_type: str | None) -> None:
        """As Metrics.outcome; the label `error_type` is empty if there was no error."""
        self._tickets.labels(outcome, error_type or "").inc()

    def note_failed(self) -> None:
        """As Metrics.note_failed."""
        self._failed_notes.inc()

    def shadow_failed(self, error_type: str) -> None:
        """As Metrics.shadow_failed."""
        self._shadow_failures.labels(error_type).inc()

    def labels(self, found: StoredLabels) -> None:
        """As Metrics.labels."""
        for task, label in found["labels"].items():
            self._labels.labels(task, self._bound(task, label)).inc()
        for task, confidence in found["confidences"].items():
            self._confidence.labels(task).observe(confidence)
            if "differs" in found:
                self._shadow_labels.labels(task, "differs" if task in found["differs"] else "same").inc()
        checks = {"labelled": True, "review": found["needs_review"], "truncated": found["is_truncated"]}
        for check, is_true in checks.items():
            self._checks.labels(check).inc(is_true)

    def invocation(self, result: str) -> None:
        """As PollMetrics.invocation."""
        self._invocations.labels(result).inc()

    def messages(self, result: str, count: int) -> None:
        """As PollMetrics.messages."""
        self._messages.labels(result).inc(count)

    def message_age(self, queue: str, seconds: float) -> None:
        """As PollMetrics.message_age."""
        self._ages.labels(queue).observe(seconds)

    def receive_failed(self, code: str) -> None:
        """As PollMetrics.receive_failed."""
        self._receive_errors.labels(code).inc()

    def webhook(self, result: str) -> None:
        """As WebhookMetrics.webhook."""
        self._webhook.labels(result).inc()

    def webhook_delay(self, seconds: float) -> None:
        """As WebhookMetrics.webhook_delay."""
        self._webhook_delay.set(seconds)

    def processes(self, ready: int, wanted: int) -> None:
        """As SupervisorMetrics.processes."""
        self._ready.set(ready)
        self._processes.set(wanted)

    def restarted(self) -> None:
        """As SupervisorMetrics.restarted."""
        self._restarts.inc()

    def breakers(self, processes: Mapping[BreakerState, int]) -> None:
        """As SupervisorMetrics.breakers."""
        for state, number in processes.items():
            self._breakers.labels(state).set(number)

    def breaker_opened(self) -> None:
        """As SupervisorMetrics.breaker_opened."""
        self._breaker_openings.inc()

    def queue(self, name: str, attributes: QueueAttributes | None) -> None:
        """A queue's attributes, or None if they could not be read."""
        for state in ("visible", "in_flight", "delayed"):
            self._queue.labels(name, state).set(math.nan if attributes is None else getattr(attributes, state))

    def flush(self) -> None:
        """As Metrics.flush; does nothing, because Prometheus scrapes."""

    def text(self) -> bytes:
        """All metrics in Prometheus' text format (CONTENT_TYPE)."""
        return generate_latest(self._registry)
