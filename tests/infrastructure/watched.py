"""The alarms and the dashboard of both templates, the metrics that they use and their formulas."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtranslator.yaml_helper import yaml_parse

Template = dict[str, Any]
REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "template.yaml").read_text(encoding="utf-8")
TEMPLATE: Template = yaml_parse(TEXT)
OBSERVABILITY_TEXT = (REPO / "deploy" / "observability.yaml").read_text(encoding="utf-8")
OBSERVABILITY: Template = yaml_parse(OBSERVABILITY_TEXT)

_SEARCH = re.compile(
    r"""SEARCH\('\{(?P<schema>[^}]+)\} service="(?P<service>[^"]+)" MetricName="(?P<name>\w+)"', """
    r"""'(Sum|Maximum|Average)', \d+\)"""
)


@dataclass(frozen=True)
class Metric:
    """A metric as CloudWatch identifies it. The value of a dimension may be "*" (any) or "${Resource.Attribute}"."""

    namespace: str
    name: str
    dimensions: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, namespace: str, name: str, dimensions: Mapping[str, str]) -> Metric:
        """A metric with these dimensions."""
        return cls(namespace, name, frozenset(dimensions.items()))

    def of_any_error(self) -> Metric:
        """The metric as a search finds it: by its service, whatever its other dimensions are."""
        found = {name: value if name == "service" else "*" for name, value in self.dimensions}
        return Metric.of(self.namespace, self.name, found)


def alarms(template: Template) -> dict[str, dict[str, Any]]:
    """The properties of each alarm."""
    kind = "AWS::CloudWatch::Alarm"
    return {name: each["Properties"] for name, each in template["Resources"].items() if each["Type"] == kind}


def widgets(template: Template) -> list[dict[str, Any]]:
    """The dashboard's widgets with the parameters' defaults and bulk; names of resources stay "${Resource}"."""
    (board,) = (each for each in template["Resources"].values() if each["Type"] == "AWS::CloudWatch::Dashboard")
    text, parts = board["Properties"]["DashboardBody"]["Fn::Sub"]
    for name, part in parts.items():
        text = text.replace(f"${{{name}}}", part["Fn::If"][1]["Fn::Sub"])
    return list(json.loads(substituted(text))["widgets"])


def substituted(text: str) -> str:
    """A !Sub text of deploy/observability.yaml with its values when template.yaml is deployed with defaults.

    Resource names are written as template.yaml refers to them: "${Resource.Attribute}".
    """
    parameters = OBSERVABILITY["Parameters"] | TEMPLATE["Parameters"]
    values = {name: str(each["Default"]) for name, each in parameters.items() if "Default" in each}
    values |= {name: _reference(output["Value"]) for name, output in TEMPLATE["Outputs"].items()}
    return re.sub(r"\$\{([^}]+)\}", lambda match: values.get(match[1], match[0]), text)


def rows(widget: Mapping[str, Any]) -> Iterator[tuple[Metric | None, dict[str, Any]]]:
    """Each row of a widget: its metric (None for a formula over other rows) and its options."""
    for row in widget["properties"].get("metrics", []):
        *parts, options = row if isinstance(row[-1], dict) else [*row, {}]
        if parts:
            namespace, name, *pairs = parts
            yield Metric.of(namespace, name, dict(zip(pairs[::2], pairs[1::2], strict=True))), options
        elif found := _SEARCH.fullmatch(options["expression"]):
            namespace, *names = found["schema"].split(",")
            known = {"service": found["service"]}
            yield Metric.of(namespace, found["name"], {name: known.get(name, "*") for name in names}), options
        else:
            yield None, options


def alarmed(alarm: Mapping[str, Any]) -> Iterator[Metric]:
    """The metrics of an alarm."""
    stats = [entry["MetricStat"]["Metric"] for entry in alarm.get("Metrics", ()) if "MetricStat" in entry]
    for each in stats or [alarm]:
        dimensions = {pair["Name"]: substituted(_reference(pair["Value"])) for pair in each["Dimensions"]}
        yield Metric.of(each["Namespace"], each["MetricName"], dimensions)


def calculated(formulas: Mapping[str, str], name: str, values: Mapping[str, float]) -> float:
    """The value of one of several formulas of metric math, which may use each other.

    IF evaluates both branches here, so that a division by zero is an error even in the branch that is not used.
    """
    needed = {
        other: calculated(formulas, other, values) for other in formulas if re.search(rf"\b{other}\b", formulas[name])
    }
    functions = {"IF": lambda condition, then, otherwise: then if condition else otherwise, "ABS": abs}
    return float(eval(formulas[name], {"__builtins__": {}}, {**functions, **values, **needed}))


def _reference(value: Any) -> str:
    if isinstance(value, str):
        return value
    ((kind, target),) = value.items()
    if kind == "Fn::Sub":
        return str(target)
    assert kind in {"Ref", "Fn::GetAtt"}
    return f"${{{target if kind == 'Ref' else '.'.join(target)}}}"
