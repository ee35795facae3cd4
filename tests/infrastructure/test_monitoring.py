"""deploy/kubernetes/monitoring: alerts that fire and return to OK, a dashboard, and only metrics that are exported."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from handler.aws.sqs import QueueAttributes
from handler.worker.breaker import STATES
from handler.worker.prometheus import PrometheusMetrics
from tests.infrastructure.kubernetes_objects import KUBERNETES, REPO, VERSIONS, container, one, validate
from tests.infrastructure.kustomization import build
from tests.infrastructure.promql import Alert, Series, evaluate, selectors

FOLDER = KUBERNETES / "monitoring"
OBJECTS = {found["kind"]: found for found in build(FOLDER)}
RULES: list[dict[str, Any]] = [rule for g in OBJECTS["PrometheusRule"]["spec"]["groups"] for rule in g["rules"]]
BOARD: dict[str, Any] = json.loads((FOLDER / "ticket-processor.json").read_text(encoding="utf-8"))
PANELS: dict[str, dict[str, Any]] = {panel["title"]: panel for panel in BOARD["panels"]}
SCENARIOS: list[dict[str, Any]] = yaml.safe_load(
    (REPO / "tests" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
)["tests"]
# What Prometheus adds to the metrics of a PodMonitor, and uses here.
ADDED = {"namespace", "pod"}


def exported() -> dict[str, dict[str, set[str]]]:
    """The names of the worker's series, and for each the values of its labels."""
    metrics = PrometheusMetrics()
    metrics.started(1.0)
    metrics.batch(1)
    for queue in ("ticket-processing", "ticket-processing-bulk"):
        metrics.message_age(queue, 1.0)
        metrics.queue(queue, QueueAttributes(arn="arn"))
    for stage in ("fetch", "store"):
        metrics.stage(stage, 0.1)
    metrics.processes(1, 1)
    metrics.breakers(dict.fromkeys(STATES, 0))
    tasks = ("intent", "urgency", "sentiment", "language")
    labels = dict.fromkeys(tasks, "other")
    metrics.labels({"labels": labels, "confidences": {"intent": 0.5}, "needs_review": True, "is_truncated": True})
    metrics.shadow_failed("model_failed")
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                assert found[sample.name] is not None
                for name, value in sample.labels.items():
                    found[sample.name][name].add(value)
    return found


EXPORTED = exported()


def problems(expression: str) -> Iterator[str]:
    """What an expression uses that the worker does not export."""
    known = set(ADDED)
    for name, matchers in selectors(expression):
        if name not in EXPORTED:
            yield name
            continue
        labels = EXPORTED[name]
        known |= labels.keys()
        for matcher in matchers:
            if matcher.name not in labels.keys() | ADDED:
                yield f"{name}: {matcher.name}"
            elif matcher.op == promql.MatchOp.Equal and matcher.value not in labels[matcher.name]:
                yield f"{name}: {matcher}"
    grouped: list[str] = []

    def visit(node: promql.Expr) -> None:
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            grouped.extend(node.modifier.labels)

    promql.walk(promql.parse(expression), visit)
    yield from (f"by {label}" for label in grouped if label not in known)


def targets() -> list[str]:
    return [target["expr"] for panel in PANELS.values() for target in panel["targets"]]


# -- objects


def test_objects_have_the_fields_of_their_kinds() -> None:
    # The operator's kinds have no schema in Kubernetes: these are the field names in its documentation.
    assert OBJECTS.keys() == {"PodMonitor", "PrometheusRule", "ConfigMap"}
    for version in VERSIONS:
        validate(OBJECTS["ConfigMap"], version)
    for kind in ("PodMonitor", "PrometheusRule"):
        assert OBJECTS[kind]["apiVersion"] == "monitoring.coreos.com/v1"
    for group in OBJECTS["PrometheusRule"]["spec"]["groups"]:
        assert group.keys() == {"name", "rules"}
    for rule in RULES:
        assert rule.keys() - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description"}
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


def test_pod_monitor_selects_the_pods() -> None:
    spec = OBJECTS["PodMonitor"]["spec"]
    assert spec.keys() == {"selector", "podMetricsEndpoints"}
    template = one("Deployment")["spec"]["template"]["metadata"]
    assert spec["selector"]["matchLabels"].items() <= template["labels"].items()
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in container()["ports"]}
    assert endpoint["path"] == template["annotations"]["prometheus.io/path"]


def test_grafana_finds_the_dashboard() -> None:
    found = OBJECTS["ConfigMap"]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(found["data"]["ticket-processor.json"]) == BOARD


# -- metrics


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alert_uses_exported_metrics(rule: dict[str, Any]) -> None:
    assert list(problems(rule["expr"])) == []
    labels = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
    assert labels <= ADDED


def test_documentation_lists_the_alerts() -> None:
    page = (REPO / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (Ticket\w+) \|", page, re.MULTILINE) == [rule["alert"] for rule in RULES]


@pytest.mark.parametrize("title", PANELS)
def test_panel_uses_exported_metrics(title: str) -> None:
    for target in PANELS[title]["targets"]:
        expression = target["expr"]
        assert list(problems(expression)) == []
        used = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert all(re.search(rf"by \([^)]*\b{label}\b", expression) for label in used)


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("tickets > 1", ["tickets"]),
        ('tickets_total{outcome="lost"} > 1', ['tickets_total: outcome="lost"']),
        ('ticket_breaker_processes{status="open"} > 0', ["ticket_breaker_processes: status"]),
        ("sum by (node) (ticket_processes) > 0", ["by node"]),
        ("histogram_quantile(0.9, rate(ticket_age_seconds_bucket[5m])) > 0", ["ticket_age_seconds_bucket"]),
    ],
)
def test_unknown_metric_is_detected(expression: str, found: list[str]) -> None:
    assert list(problems(expression)) == found


def test_every_exported_metric_is_shown() -> None:
    shown = {name for expression in targets() for name, _ in selectors(expression)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in EXPORTED} == families


# -- the dashboard


def test_panels_are_complete_and_do_not_overlap() -> None:
    assert len(PANELS) == len(BOARD["panels"]) == len({panel["id"] for panel in BOARD["panels"]})
    names = {variable["name"] for variable in BOARD["templating"]["list"]}
    assert names == {"datasource", "namespace"}
    cells = {}
    for title, panel in PANELS.items():
        assert panel.keys() == {
            *("id", "type", "title", "description", "datasource", "gridPos", "fieldConfig", "options", "targets")
        }
        assert panel["type"] in {"stat", "timeseries"}
        assert {json.dumps(each["datasource"]) for each in [panel, *panel["targets"]]} == {
            json.dumps({"type": "prometheus", "uid": "${datasource}"})
        }
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all('namespace=~"$namespace"' in target["expr"] for target in panel["targets"])
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns, lines = (range(place[at], place[at] + place[size]) for at, size in (("x", "w"), ("y", "h")))
        cells[title] = {(x, y) for x in columns for y in lines}
    assert [pair for pair in combinations(cells, 2) if cells[pair[0]] & cells[pair[1]]] == []


def test_dashboard_and_alerts_have_the_same_thresholds() -> None:
    limits = {
        title: PANELS[title]["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"]
        for title in ("Failed tickets", "Rejected tickets")
    }
    rules = {rule["alert"]: rule["expr"] for rule in RULES}
    alarm = yaml_parameters()
    assert limits["Failed tickets"] == alarm["AlarmFailedPercent"] / 100
    assert f"> {limits['Failed tickets']}\n" in rules["TicketsFailing"]
    assert f"> {limits['Rejected tickets']}\n" in rules["TicketsRejected"]
    assert rules["TicketsOld"].endswith(f"> {alarm['AlarmAgeSeconds']}")


def yaml_parameters() -> dict[str, Any]:
    """The defaults of the CloudWatch alarms' parameters."""
    text = (REPO / "deploy" / "observability.yaml").read_text(encoding="utf-8")
    return {
        name: float(value) if "." in value else int(value)
        for name, value in re.findall(r"^  (Alarm\w+):\n    Type: Number\n    Default: ([\d.]+)$", text, re.MULTILINE)
    }


# -- the alerts, over time


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
def test_alerts_fire_and_return_to_ok(scenario: dict[str, Any]) -> None:
    assert scenario["interval"] == "1m"
    series = [Series.parse(each["series"], each["values"]) for each in scenario["input_series"]]
    for each in series:
        assert each.name in EXPORTED
        values = EXPORTED[each.name]
        for label, value in each.labels:
            assert label in ADDED or value in values[label] | {"service_failed", "throttled", "schema_violation"}
    expected = {int(test["eval_time"].removesuffix("m")): firing(test) for test in scenario["promql_expr_test"]}
    alerts = [Alert.of(rule) for rule in RULES]
    for minute in range(max(expected) + 1):
        found = {alert.name for alert in alerts if alert.step(series, 60.0 * minute)}
        if minute in expected:
            assert found == expected[minute], f"after {minute} minutes"


def firing(test: dict[str, Any]) -> set[str]:
    """The alerts that one of promtool's tests expects."""
    assert test["expr"] == 'count by (alertname) (ALERTS{alertstate="firing"})'
    return {re.fullmatch(r'{alertname="(\w+)"}', sample["labels"])[1] for sample in test["exp_samples"]}  # type: ignore[index]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_has_a_scenario(rule: dict[str, Any]) -> None:
    histories = [[rule["alert"] in firing(test) for test in scenario["promql_expr_test"]] for scenario in SCENARIOS]
    assert any(not states[0] and any(states) and not states[-1] for states in histories)


@pytest.mark.parametrize(
    ("expression", "minute", "expected"),
    [
        ("x", 3, 30.0),
        ("x", 12, 90.0),  # the last sample is from minute 9, less than five minutes before
        ("x", 14, None),
        ("increase(x[5m])", 9, 50.0),
        ("rate(x[5m])", 9, 50 / 300),
        ("delta(x[5m])", 9, 50.0),
        ("max_over_time(x[5m])", 9, 90.0),
        ("min_over_time(x[5m])", 9, 40.0),
        ("absent(x)", 3, None),
        ("absent(x)", 20, 1.0),
        ("x / 2 - 1 > 10 and x", 3, 14.0),
        ("x / 0", 3, math.inf),
        ('x{a!="b"}', 3, None),
        ('x{a=~"b|c"}', 3, 30.0),
        ("sum by (c) (x) * 2", 3, 60.0),
    ],
)
def test_evaluator_knows_promql(expression: str, minute: int, expected: float | None) -> None:
    series = [Series.parse('x{a="b"}', "0+10x9")]
    found = evaluate(promql.parse(expression), series, 60.0 * minute)
    assert isinstance(found, dict)
    assert list(found.values()) == ([] if expected is None else [pytest.approx(expected)])


def test_evaluator_knows_quantiles_and_resets() -> None:
    buckets = [Series.parse(f'x_bucket{{le="{le}"}}', f"{n}") for le, n in (("1", 0), ("2", 8), ("+Inf", 10))]
    (median,) = evaluate(promql.parse("histogram_quantile(0.5, x_bucket)"), buckets, 0.0).values()  # type: ignore[union-attr]
    (highest,) = evaluate(promql.parse("histogram_quantile(0.9, x_bucket)"), buckets, 0.0).values()  # type: ignore[union-attr]
    assert (median, highest) == (pytest.approx(1.625), 2.0)
    (change,) = evaluate(promql.parse("increase(x[3m])"), [Series.parse("x", "5 7 1 3")], 180.0).values()  # type: ignore[union-attr]
    assert change == pytest.approx(5.0)
