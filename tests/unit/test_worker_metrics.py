"""The parent adds up the metrics that its processes report, and Prometheus can parse them."""

from __future__ import annotations

import io
import json
import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from handler.aws.sqs import QueueAttributes
from handler.worker.prometheus import PrometheusMetrics
from handler.worker.reports import BatchReport, Reporter, WorkerMetrics, WorkerOptions, replay

LABELS = {"intent": "bug_report", "urgency": "low", "sentiment": "NEUTRAL", "language": "en"}


def report_batch(metrics: WorkerMetrics) -> None:
    metrics.started(0.75)
    metrics.batch(3)
    metrics.stage("fetch", 0.02)
    metrics.stage("fetch", 0.5)
    metrics.outcome("done", None)
    metrics.outcome("done", None)
    metrics.outcome("rejected", "schema_violation")
    metrics.note_failed()
    metrics.labels(
        {
            "labels": LABELS,
            "confidences": {"intent": 0.5, "urgency": 0.75},
            "needs_review": True,
            "is_truncated": False,
            "differs": ["intent"],
        }
    )
    metrics.shadow_failed("out_of_time")
    metrics.invocation("ok")
    metrics.messages("deleted", 2)
    metrics.messages("kept", 1)
    metrics.message_age("live", 700.25)
    metrics.receive_failed("throttled")
    metrics.flush()


def samples(metrics: PrometheusMetrics) -> dict[str, float]:
    """The samples as `name{label=value,...}`, without zeros, NaN and creation times."""
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            if sample.value and not math.isnan(sample.value) and not sample.name.endswith("_created"):
                found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_reports_of_two_processes_add_up() -> None:
    direct, aggregated = PrometheusMetrics(), PrometheusMetrics()
    for _ in range(2):
        report_batch(direct)
        stream = io.BytesIO()
        report_batch(Reporter(stream))
        (report,) = [json.loads(line) for line in stream.getvalue().splitlines()]
        replay(report["metrics"], aggregated)
    assert samples(aggregated) == samples(direct)
    assert samples(aggregated)["tickets_total{error_type=schema_violation,outcome=rejected}"] == 2
    assert samples(aggregated)["ticket_stage_seconds_sum{stage=fetch}"] == pytest.approx(1.04)


def test_prometheus_parses_every_metric() -> None:
    metrics = PrometheusMetrics()
    report_batch(metrics)
    metrics.processes(1, 2)
    metrics.restarted()
    metrics.breakers({"closed": 1, "open": 2, "half_open": 0})
    metrics.breaker_opened()
    metrics.queue("live", QueueAttributes(arn="arn", visible=7, in_flight=3, delayed=1))
    metrics.webhook("delivered")
    metrics.webhook_delay(1.5)
    found = samples(metrics)
    assert {name: value for name, value in found.items() if "_bucket" not in name} == {
        "tickets_total{error_type=,outcome=done}": 2,
        "tickets_total{error_type=schema_violation,outcome=rejected}": 1,
        "ticket_stage_seconds_count{stage=fetch}": 2,
        "ticket_stage_seconds_sum{stage=fetch}": 0.52,
        "ticket_batch_size_count{}": 1,
        "ticket_batch_size_sum{}": 3,
        "ticket_bundle_load_seconds_count{}": 1,
        "ticket_bundle_load_seconds_sum{}": 0.75,
        "ticket_invocations_total{result=ok}": 1,
        "ticket_messages_total{result=deleted}": 2,
        "ticket_messages_total{result=kept}": 1,
        "ticket_receive_errors_total{error_type=throttled}": 1,
        "ticket_crash_notes_failed_total{}": 1,
        "ticket_processes{}": 2,
        "ticket_processes_ready{}": 1,
        "ticket_process_restarts_total{}": 1,
        "ticket_breaker_processes{state=closed}": 1,
        "ticket_breaker_processes{state=open}": 2,
        "ticket_breaker_openings_total{}": 1,
        "ticket_message_age_seconds_count{queue=live}": 1,
        "ticket_message_age_seconds_sum{queue=live}": 700.25,
        "ticket_queue_messages{queue=live,state=visible}": 7,
        "ticket_queue_messages{queue=live,state=in_flight}": 3,
        "ticket_queue_messages{queue=live,state=delayed}": 1,
        **{f"ticket_labels_total{{label={label},task={task}}}": 1 for task, label in LABELS.items()},
        "ticket_confidence_count{task=intent}": 1,
        "ticket_confidence_sum{task=intent}": 0.5,
        "ticket_confidence_count{task=urgency}": 1,
        "ticket_confidence_sum{task=urgency}": 0.75,
        "ticket_shadow_labels_total{result=differs,task=intent}": 1,
        "ticket_shadow_labels_total{result=same,task=urgency}": 1,
        "ticket_shadow_failures_total{error_type=out_of_time}": 1,
        "ticket_checks_total{check=labelled}": 1,
        "ticket_checks_total{check=review}": 1,
        "ticket_webhook_events_total{result=delivered}": 1,
        "ticket_webhook_delay_seconds{}": 1.5,
    }
    assert found["ticket_stage_seconds_bucket{le=0.025,stage=fetch}"] == 1
    assert found["ticket_batch_size_bucket{le=3.0}"] == 1
    assert found["ticket_bundle_load_seconds_bucket{le=1.0}"] == 1


def test_series_exist_before_the_first_error() -> None:
    text = PrometheusMetrics().text().decode()
    for series in (
        'tickets_total{error_type="",outcome="failed"} 0.0',
        'tickets_total{error_type="schema_violation",outcome="rejected"} 0.0',
        'tickets_total{error_type="service_failed",outcome="failed"} 0.0',
        'ticket_messages_total{result="undeleted"} 0.0',
        'ticket_receive_errors_total{error_type="throttled"} 0.0',
        'ticket_webhook_events_total{result="expired"} 0.0',
    ):
        assert series in text


def test_settled_messages_are_those_of_the_current_batches() -> None:
    stream = io.BytesIO()
    reporter = Reporter(stream)
    batch, other = (
        BatchReport(number=n, queue_url="q", message_ids=["m"], receipts=[each], visibility_timeout=1, seconds=1)
        for n, each in enumerate(("r", "o"))
    )
    reporter.batch_started(batch)
    reporter.batch_settled(["r"])
    assert json.loads(stream.getvalue().splitlines()[-1]) == {"batch_settled": ["r"]}
    assert (reporter.is_settled("r"), reporter.is_settled("s")) == (True, False)
    reporter.batch_started(other)
    reporter.batch_finished(other)
    assert reporter.is_settled("r"), "several batches are processed at once"
    reporter.batch_finished(batch)
    assert not reporter.is_settled("r")


def test_depth_of_a_queue_that_cannot_be_read_is_unknown() -> None:
    metrics = PrometheusMetrics()
    metrics.queue("live", QueueAttributes(arn="arn", visible=7))
    metrics.queue("live", None)
    assert 'ticket_queue_messages{queue="live",state="visible"} NaN' in metrics.text().decode()


def test_flush_without_metrics_writes_nothing() -> None:
    stream = io.BytesIO()
    Reporter(stream).flush()
    assert stream.getvalue() == b""


def test_breaker_is_reported_at_once_and_outcomes_are_observed() -> None:
    stream, seen = io.BytesIO(), list[tuple[str, str | None]]()
    reporter = Reporter(stream)
    reporter.observe_outcomes(lambda outcome, code: seen.append((outcome, code)))
    reporter.breaker("open", "no ticket can be stored")
    assert json.loads(stream.getvalue()) == {"breaker": "open", "reason": "no ticket can be stored"}
    report_batch(reporter)
    assert seen == [("done", None), ("done", None), ("rejected", "schema_violation")]


def test_closed_pipe_is_ignored() -> None:
    class Closed(io.BytesIO):
        def write(self, _: object) -> int:
            raise BrokenPipeError

    reporter = Reporter(Closed())
    reporter.ready()
    report_batch(reporter)


def test_options_round_trip() -> None:
    options = WorkerOptions(batch_size=3, wait=1, visibility_timeout=7, timeout=2.5, grace=9.0)
    assert WorkerOptions.load(options.dump()) == options
    assert WorkerOptions.load(WorkerOptions().dump()) == WorkerOptions()
