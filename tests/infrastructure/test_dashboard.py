"""The dashboard and the alarms use existing metrics: those that our code writes and those that AWS documents."""

from __future__ import annotations

import json
import re
from contextlib import redirect_stdout
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from enrichment import Enricher
from handler.app import build
from handler.errors import ServiceFailed
from handler.metrics import NAMESPACE, EmfMetrics, make_logger
from handler.settings import Settings
from tests.infrastructure.watched import (
    OBSERVABILITY,
    OBSERVABILITY_TEXT,
    TEMPLATE,
    TEXT,
    Metric,
    Template,
    alarmed,
    alarms,
    calculated,
    rows,
    substituted,
    widgets,
)
from tests.support.fakes import (
    SETTINGS,
    FakeDeadLetters,
    FakeFailureCounts,
    FakeSink,
    FakeSource,
    context,
    event,
    record,
    ticket,
)

WIDGETS = {widget["properties"]["title"]: widget for widget in widgets(OBSERVABILITY)}
# From "Available CloudWatch metrics for Amazon SQS" and "Types of metrics for Lambda functions": the dimension that
# each namespace has, the kind and attribute that its value is of, and the metrics that make sense here.
DOCUMENTED = {
    "AWS/SQS": (
        ("QueueName", "AWS::SQS::Queue", ".QueueName"),
        {
            "ApproximateAgeOfOldestMessage",
            "ApproximateNumberOfMessagesDelayed",
            "ApproximateNumberOfMessagesNotVisible",
            "ApproximateNumberOfMessagesVisible",
            "NumberOfEmptyReceives",
            "NumberOfMessagesDeleted",
            "NumberOfMessagesReceived",
            "NumberOfMessagesSent",
            "SentMessageSize",
        },
    ),
    "AWS/Lambda": (
        ("FunctionName", "AWS::Serverless::Function", ""),
        {"ConcurrentExecutions", "Duration", "Errors", "Invocations", "Throttles"},
    ),
}


def documented() -> set[Metric]:
    """The metrics that AWS writes for the queues and the function of template.yaml."""
    of_alias = {"Resource": "${EnrichmentFunction}:live", "ExecutedVersion": "${EnrichmentFunction.Version.Version}"}
    errors = Metric.of("AWS/Lambda", "Errors", {"FunctionName": "${EnrichmentFunction}", **of_alias})
    return {errors} | {
        Metric.of(namespace, name, {dimension: f"${{{resource}{attribute}}}"})
        for namespace, ((dimension, kind, attribute), names) in DOCUMENTED.items()
        for resource, each in TEMPLATE["Resources"].items()
        if each["Type"] == kind
        for name in names
    }


@pytest.fixture(scope="session")
def written(bundle: Path, shadow_bundle: Path) -> set[Metric]:
    """The metrics that the handler writes for a container's first batch, which contains every outcome."""
    # Dimension values as template expressions: the function's name is a setting, its version comes from Lambda.
    sink, output = FakeSink(), StringIO()
    metrics = EmfMetrics("${EnrichmentFunction}", "${EnrichmentFunction.Version.Version}")
    sink.faults.set(ServiceFailed("no answer"), "T-failed")
    metrics.started(1.0)
    metrics.shadow_failed("model_failed")
    function = build(
        Settings(**SETTINGS),
        source=FakeSource(),
        sink=sink,
        dead_letters=FakeDeadLetters(),
        failure_counts=FakeFailureCounts(),
        models=Enricher.open(bundle, shadow=shadow_bundle),
        metrics=metrics,
        logger=make_logger("CRITICAL"),
    )
    bodies = [ticket("T-done"), ticket("T-failed"), "{", {"Event": "s3:TestEvent", "Service": "Amazon S3"}]
    with redirect_stdout(output):
        function(event(*(record(body, f"m-{i}") for i, body in enumerate(bodies))), context())
    lines = [json.loads(line) for line in output.getvalue().splitlines() if '"_aws"' in line]
    return {
        Metric.of(directive["Namespace"], metric["Name"], {name: line[name] for name in names})
        for line in lines
        for directive in line["_aws"]["CloudWatchMetrics"]
        for names in directive["Dimensions"]
        for metric in directive["Metrics"]
    }


def shown(template: Template) -> set[Metric]:
    return {metric for widget in widgets(template) for metric, _ in rows(widget) if metric}


def watched(template: Template) -> set[Metric]:
    return {metric for alarm in alarms(template).values() for metric in alarmed(alarm)}


def unknown(template: Template, observability: Template, written: set[Metric]) -> set[Metric]:
    """Metrics that the templates use and nothing writes."""
    exist = documented() | written | {metric.of_any_error() for metric in written}
    return (watched(template) | watched(observability) | shown(observability)) - exist


def test_every_metric_exists(written: set[Metric]) -> None:
    assert unknown(TEMPLATE, OBSERVABILITY, written) == set()
    assert {metric.namespace for metric in watched(OBSERVABILITY)} == {NAMESPACE, *DOCUMENTED}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("MetricName: TicketsFailed", "MetricName: FailedTickets"),
        ("MetricName: Throttles", "MetricName: Throttled"),
        ("Namespace: TicketEnrichment", "Namespace: Tickets"),
        ("Dimensions: [{Name: service, Value", "Dimensions: [{Name: Service, Value"),
        ("Value: !Ref QueueName", "Value: !Ref FunctionName"),
        ('"EncodeLatency", "service", "${FunctionName}"', '"EncodeLatency", "service", "tickets"'),
        ('["AWS/SQS", "ApproximateAgeOfOldestMessage"', '["AWS/Lambda", "ApproximateAgeOfOldestMessage"'),
        ("{TicketEnrichment,service,ErrorType}", "{TicketEnrichment,ErrorType}"),
        ("{Name: version, Value", "{Name: Version, Value"),
        ("{Name: ExecutedVersion, Value", "{Name: Version, Value"),
    ],
)
def test_unknown_metric_is_detected(old: str, new: str, written: set[Metric]) -> None:
    assert old in TEXT + OBSERVABILITY_TEXT
    observability = yaml_parse(OBSERVABILITY_TEXT.replace(old, new, 1))
    template = TEMPLATE if old in OBSERVABILITY_TEXT else yaml_parse(TEXT.replace(old, new, 1))
    assert len(unknown(template, observability, written)) == 1


def test_every_written_metric_is_shown(written: set[Metric]) -> None:
    names = {metric: {name for name, _ in metric.dimensions} for metric in written}
    whole, by_version, by_urgency_and_version, *by_value = (
        {metric for metric in written if names[metric] == {"service", *more}}
        for more in (
            *([], ["version"], ["version", "urgency"]),
            *(["ErrorType"], ["intent"], ["urgency"], ["sentiment"], ["language"]),
        )
    )
    assert all(by_value)
    assert set.union(whole, by_version, by_urgency_and_version, *by_value) == written
    assert shown(OBSERVABILITY) >= whole | {metric.of_any_error() for metric in set.union(*by_value)}
    # By the alarms that roll a deployment back.
    assert by_version | by_urgency_and_version <= watched(TEMPLATE)


def test_service_name_is_the_function_name() -> None:
    function = TEMPLATE["Resources"]["EnrichmentFunction"]["Properties"]
    assert function["Environment"]["Variables"]["SERVICE_NAME"] == function["FunctionName"]


@pytest.mark.parametrize("statistic", ["p50", "p99"])
def test_every_stage_is_shown_with_p50_and_p99(statistic: str, written: set[Metric]) -> None:
    widget = WIDGETS[f"Stage latency, {statistic}"]
    assert widget["properties"]["stat"] == statistic
    stages = [metric for metric in written if metric.name.endswith("Latency")]
    assert len(stages) == 7
    assert {metric for metric, _ in rows(widget)} == set(stages)


@pytest.mark.parametrize(
    ("title", "metric"),
    [
        ("Queue", "ApproximateNumberOfMessagesVisible TicketQueue"),
        ("Dead-letter queue", "ApproximateNumberOfMessagesVisible DeadLetterQueue"),
        ("Oldest ticket in the queue", "ApproximateAgeOfOldestMessage TicketQueue"),
        ("Queue for bulk", "ApproximateNumberOfMessagesVisible BulkQueue"),
        ("Oldest ticket in the queue for bulk", "ApproximateAgeOfOldestMessage BulkQueue"),
        ("Dead-letter queue for bulk", "ApproximateNumberOfMessagesVisible BulkDeadLetterQueue"),
        ("Duration of a batch", "Duration EnrichmentFunction"),
        ("Concurrency", "ConcurrentExecutions EnrichmentFunction"),
    ],
)
def test_widget_shows_the_metric_of_its_title(title: str, metric: str) -> None:
    first = next(found for found, _ in rows(WIDGETS[title]) if found)
    ((_, value),) = first.dimensions
    assert f"{first.name} {re.split('[{.}]', value)[1]}" == metric


def formulas(title: str) -> dict[str, str]:
    return {options["id"]: options["expression"] for metric, options in rows(WIDGETS[title]) if metric is None}


@pytest.mark.parametrize(
    ("done", "milliseconds", "dollars"), [(1000, 50_000, 0.00166667), (10, 500, 0.00166667), (0, 500, 0)]
)
def test_cost_is_duration_times_memory_times_price(done: int, milliseconds: float, dollars: float) -> None:
    # 50 s with 2 GB are 100 GB-seconds.
    assert TEMPLATE["Parameters"]["MemorySize"]["Default"] == 2048
    values = {"done": done, "duration": milliseconds}
    found = calculated(formulas("Compute cost of 1,000 tickets, without initialisation"), "cost", values)
    assert found == pytest.approx(dollars, rel=1e-4)


def test_dashboard_and_alarm_use_the_same_share_formula() -> None:
    entries = alarms(OBSERVABILITY)["FailedShareAlarm"]["Metrics"]
    assert formulas("Failed tickets") == {each["Id"]: each["Expression"] for each in entries if "Expression" in each}


@pytest.mark.parametrize("title", WIDGETS)
def test_formulas_use_rows_of_their_widget(title: str) -> None:
    options = [found for _, found in rows(WIDGETS[title]) if "id" in found]
    ids = [found["id"] for found in options]
    assert len(set(ids)) == len(ids)
    assert [name for name in ids if not re.fullmatch("[a-z][a-z0-9_]*", name)] == []
    for expression in formulas(title).values() if ids else ():
        assert set(re.findall("[a-z][a-z0-9_]*", expression)) <= set(ids)
    visible = [found for _, found in rows(WIDGETS[title]) if found.get("visible", True)]
    assert visible or title == "Alarms"


def test_dashboard_without_bulk_has_only_the_other_widgets() -> None:
    text, parts = OBSERVABILITY["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    for name, part in parts.items():
        assert part["Fn::If"][0] == "BulkOn"
        text = text.replace(f"${{{name}}}", part["Fn::If"][2])
    shown = [widget["properties"]["title"] for widget in json.loads(substituted(text))["widgets"]]
    assert shown == [title for title in WIDGETS if "bulk" not in title]


def test_every_alarm_is_on_the_dashboard() -> None:
    # The two of template.yaml exist only for deployments in steps.
    names = [alarm["AlarmName"]["Fn::Sub"] for alarm in alarms(OBSERVABILITY).values()]
    arn = "arn:${AWS::Partition}:cloudwatch:${AWS::Region}:${AWS::AccountId}:alarm:"
    assert WIDGETS["Alarms"]["properties"]["alarms"] == [f"{arn}{name}" for name in names]


def cells(widget: dict[str, Any]) -> set[tuple[int, int]]:
    columns, lines = (range(widget[at], widget[at] + widget[size]) for at, size in (("x", "width"), ("y", "height")))
    return {(x, y) for x in columns for y in lines}


def test_widgets_do_not_overlap() -> None:
    assert len(WIDGETS) == len(widgets(OBSERVABILITY))  # each title once
    assert [title for title, widget in WIDGETS.items() if not all(x < 24 for x, _ in cells(widget))] == []
    overlaps = [(a, b) for a, b in combinations(WIDGETS, 2) if cells(WIDGETS[a]) & cells(WIDGETS[b])]
    assert overlaps == []
    regions = {widget["properties"]["region"] for widget in WIDGETS.values() if widget["type"] == "metric"}
    assert regions == {"${AWS::Region}"}
