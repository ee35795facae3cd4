"""Evaluates an alarm of a template over synthetic metrics, as CloudWatch does: statistics, metric math, M out of N.

Written after "Using CloudWatch alarms" and "Using math expressions" in CloudWatch's documentation. Where CloudWatch may
look at more data points than EvaluationPeriods, this looks at no more, so that an alarm cannot depend on them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.infrastructure.watched import Metric, alarmed

Template = Mapping[str, Any]
Samples = Mapping[str, Iterable[tuple[float, float]]]
"""Values by the name of the metric: (seconds, value) pairs."""

_STATISTICS: Mapping[str, Callable[[list[float]], float]] = {
    "Sum": math.fsum,
    "Maximum": max,
    # The smallest value that at least 99 % of the values do not exceed.
    "p99": lambda values: sorted(values)[math.ceil(0.99 * len(values)) - 1],
}
_COMPARISONS = {"GreaterThanThreshold": operator.gt}


@dataclass(frozen=True)
class Points:
    """Data points by the number of their period. Arithmetic leaves out periods in which an operand has none."""

    values: Mapping[int, float]
    periods: range = field(compare=False)

    def combined(self, other: Any, operation: Callable[[float, float], float]) -> Points:
        others = other.values if isinstance(other, Points) else dict.fromkeys(self.values, other)
        found = {period: operation(value, others[period]) for period, value in self.values.items() if period in others}
        return Points(found, self.periods)

    def __add__(self, other: Any) -> Points:
        return self.combined(other, operator.add)

    def __mul__(self, other: Any) -> Points:
        return self.combined(other, operator.mul)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Points:
        return self.combined(other, operator.truediv)

    def __gt__(self, other: Any) -> Points:
        return self.combined(other, operator.gt)


def _if(condition: Points, then: Any, otherwise: Any) -> Points:
    def at(value: Any, period: int) -> float | None:
        return value.values.get(period) if isinstance(value, Points) else value

    chosen = {period: at(then if true else otherwise, period) for period, true in condition.values.items()}
    return Points({period: value for period, value in chosen.items() if value is not None}, condition.periods)


def _fill(points: Points, value: float) -> Points:
    return Points({**dict.fromkeys(points.periods, value), **points.values}, points.periods)


def _diff(points: Points) -> Points:
    pairs = zip(sorted(points.values), sorted(points.values)[1:], strict=False)
    return Points({now: points.values[now] - points.values[before] for before, now in pairs}, points.periods)


_FUNCTIONS = {"IF": _if, "FILL": _fill, "DIFF": _diff}


def resolved(value: Any, template: Template, parameters: Mapping[str, Any]) -> Any:
    """A property's value: a literal, a parameter or an entry of a mapping."""
    if isinstance(value, dict) and "Ref" in value:
        return parameters.get(value["Ref"], template["Parameters"][value["Ref"]].get("Default"))
    if isinstance(value, dict) and "Fn::FindInMap" in value:
        name, *keys = (resolved(part, template, parameters) for part in value["Fn::FindInMap"])
        found = template["Mappings"][name]
        for key in keys:
            found = found[str(key)]
        return found
    assert not isinstance(value, dict)
    return value


def states(
    alarm: Mapping[str, Any], template: Template, samples: Samples, *, until: float, **parameters: Any
) -> Iterator[tuple[float, str]]:
    """The state after each period: (seconds, "OK" or "ALARM"). `parameters` override the template's defaults."""
    assert {metric.name for metric in alarmed(alarm)} >= samples.keys()
    entries = {entry["Id"]: entry for entry in alarm.get("Metrics", ())} or {"m": {"MetricStat": _only_metric(alarm)}}
    (period,) = {entry["MetricStat"]["Period"] for entry in entries.values() if "MetricStat" in entry}
    (returned,) = [name for name, entry in entries.items() if entry.get("ReturnData", True)]
    number = resolved(alarm["EvaluationPeriods"], template, parameters)
    threshold = float(resolved(alarm["Threshold"], template, parameters))
    breaches = _COMPARISONS[alarm["ComparisonOperator"]]
    needed = resolved(alarm.get("DatapointsToAlarm", number), template, parameters)
    assert alarm["TreatMissingData"] == "notBreaching"
    for now in range(1, int(until // period) + 1):
        considered = range(now - number, now)
        points = _points(returned, entries, samples, period, considered)
        breaching = sum(breaches(value, threshold) for value in points.values.values())
        yield now * period, "ALARM" if breaching >= needed else "OK"


def changes(found: Iterable[tuple[float, str]]) -> list[tuple[float, str]]:
    """The states when they change, beginning with the first."""
    result: list[tuple[float, str]] = []
    for seconds, state in found:
        if not result or result[-1][1] != state:
            result.append((seconds, state))
    return result


def _only_metric(alarm: Mapping[str, Any]) -> dict[str, Any]:
    metric: Metric
    (metric,) = alarmed(alarm)
    stat = alarm.get("Statistic") or alarm["ExtendedStatistic"]
    return {"Stat": stat, "Period": alarm["Period"], "Metric": {"MetricName": metric.name}}


def _points(name: str, entries: Mapping[str, Any], samples: Samples, period: int, considered: range) -> Points:
    """The data points of a metric or an expression of an alarm."""
    if "MetricStat" in entries[name]:
        stat = entries[name]["MetricStat"]
        by_period: dict[int, list[float]] = {}
        for seconds, value in samples.get(stat["Metric"]["MetricName"], ()):
            by_period.setdefault(int(seconds // period), []).append(value)
        statistic = _STATISTICS[stat["Stat"]]
        return Points({each: statistic(by_period[each]) for each in considered if each in by_period}, considered)

    class Names(dict[str, Any]):
        def __missing__(self, other: str) -> Any:
            return _FUNCTIONS.get(other) or _points(other, entries, samples, period, considered)

    found = eval(entries[name]["Expression"], {"__builtins__": {}}, Names())
    assert isinstance(found, Points)
    return found
