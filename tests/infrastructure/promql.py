"""Evaluates the PromQL of our alerts over series in promtool's notation, for tests that need only Python.

It supports what the alerts use and refuses anything else. `make test-prometheus` runs the same scenarios with promtool:
both must agree.
"""

from __future__ import annotations

import math
import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeAlias

import promql_parser as promql

Labels: TypeAlias = frozenset[tuple[str, str]]
Vector: TypeAlias = dict[Labels, float]
Samples: TypeAlias = list[tuple[float, float]]
"""Seconds and values."""

_LOOKBACK: Final = 300.0  # seconds for which a sample counts as current
_STALE: Final = object()
_ARITHMETIC: Final[Mapping[str, Callable[[float, float], float]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: a / b if b else math.nan if not a else math.copysign(math.inf, a),
}
_COMPARISONS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
_AGGREGATIONS: Final[Mapping[str, Callable[[Iterable[float]], float]]] = {"sum": sum, "max": max, "min": min}


@dataclass(frozen=True)
class Series:
    """A series of one sample per minute; a sample may be missing (None) or _STALE."""

    name: str
    labels: Labels
    values: Sequence[Any]

    @classmethod
    def parse(cls, series: str, values: str) -> Series:
        """Read promtool's notation of a series and its values."""
        found = selectors(series)
        assert len(found) == 1
        return cls(found[0][0], frozenset((m.name, m.value) for m in found[0][1]), list(_expand(values)))

    def matches(self, name: str, matchers: Iterable[promql.Matcher]) -> bool:
        """Whether a selector selects this series."""
        labels = dict(self.labels)
        return name == self.name and all(_matches(matcher, labels.get(matcher.name, "")) for matcher in matchers)

    def at(self, now: float) -> float | None:
        """The current value."""
        for minute in range(int(now // 60), -1, -1):
            if now - 60 * minute >= _LOOKBACK:
                return None
            value = self.values[minute] if minute < len(self.values) else None
            if value is _STALE:
                return None
            if value is not None:
                return float(value)
        return None

    def within(self, begin: float, end: float) -> Samples:
        """The samples of a range."""
        return [
            (60.0 * minute, float(value))
            for minute, value in enumerate(self.values)
            if begin <= 60 * minute <= end and value is not None and value is not _STALE
        ]


def selectors(expression: str) -> list[tuple[str, list[promql.Matcher]]]:
    """The metrics that an expression selects, with their label matchers. Raises ValueError if it is not PromQL."""
    found: list[tuple[str, list[promql.Matcher]]] = []

    def visit(node: promql.Expr) -> None:
        if isinstance(node, promql.VectorSelector):
            found.append((str(node.name), list(node.matchers.matchers)))

    promql.walk(promql.parse(expression), visit)
    return found


@dataclass
class Alert:
    """An alerting rule; `step` evaluates it once a minute."""

    name: str
    expression: promql.Expr
    seconds: float  # for
    _since: dict[Labels, float]

    @classmethod
    def of(cls, rule: Mapping[str, Any]) -> Alert:
        """A rule as a PrometheusRule has it."""
        pending = promql.parse_duration(rule["for"]).total_seconds() if "for" in rule else 0.0
        return cls(rule["alert"], promql.parse(rule["expr"]), pending, {})

    def step(self, series: Sequence[Series], now: float) -> bool:
        """Evaluate the rule at a time, after all earlier times. Return whether it is firing."""
        active = evaluate(self.expression, series, now)
        assert isinstance(active, dict)
        self._since = {labels: self._since.get(labels, now) for labels in active}
        return any(now - since >= self.seconds for since in self._since.values())


def evaluate(node: promql.Expr, series: Sequence[Series], now: float) -> Vector | float:
    """The value of an expression: a number, or one per set of labels."""
    match node:
        case promql.NumberLiteral():
            return node.val
        case promql.ParenExpr():
            return evaluate(node.expr, series, now)
        case promql.VectorSelector():
            found = [(each.labels, each.at(now)) for each in series if _selects(node, each)]
            return {labels: value for labels, value in found if value is not None}
        case promql.Call():
            return _call(node, series, now)
        case promql.AggregateExpr():
            return _aggregate(node, series, now)
        case promql.BinaryExpr():
            modifier = node.modifier
            assert modifier is None or (modifier.matching is None and not modifier.return_bool), "unsupported: on, bool"
            return _binary(str(node.op), evaluate(node.lhs, series, now), evaluate(node.rhs, series, now))
        case _:
            raise AssertionError(f"unsupported: {node}")


def _expand(values: str) -> Iterator[Any]:
    for item in values.split():
        if found := re.fullmatch(r"_(?:x(\d+))?", item):
            yield from [None] * int(found[1] or 1)
        elif item == "stale":
            yield _STALE
        elif found := re.fullmatch(r"(NaN|-?[\d.]+)([+-][\d.]+)x(\d+)", item):
            yield from (float(found[1]) + float(found[2]) * number for number in range(int(found[3]) + 1))
        else:
            yield float(item)


def _matches(matcher: promql.Matcher, value: str) -> bool:
    if matcher.op == promql.MatchOp.Equal:
        return value == matcher.value
    if matcher.op == promql.MatchOp.NotEqual:
        return value != matcher.value
    return bool(re.fullmatch(matcher.value, value)) is bool(matcher.op == promql.MatchOp.Re)


def _selects(node: promql.VectorSelector, series: Series) -> bool:
    assert (node.offset, node.at) == (None, None), "unsupported: offset, @"
    return series.matches(str(node.name), node.matchers.matchers)


def _call(node: promql.Call, series: Sequence[Series], now: float) -> Vector:
    name = node.func.name
    match name:
        case "absent":
            value = evaluate(node.args[0], series, now)
            return {} if value else {frozenset(): 1.0}
        case "histogram_quantile":
            share, buckets = (evaluate(argument, series, now) for argument in node.args)
            assert isinstance(share, float)
            assert isinstance(buckets, dict)
            return _quantiles(share, buckets)
        case "max_over_time" | "min_over_time":
            best = max if name == "max_over_time" else min
            return {labels: best(v for _, v in samples) for labels, samples, _ in _ranges(node, series, now)}
        case "rate" | "increase" | "delta":
            changes: Vector = {}
            for labels, samples, seconds in _ranges(node, series, now):
                if len(samples) > 1:
                    change = _change(samples, now - seconds, now, is_counter=name != "delta")
                    changes[labels] = change / seconds if name == "rate" else change
            return changes
        case _:
            raise AssertionError(f"unsupported: {name}")


def _ranges(node: promql.Call, series: Sequence[Series], now: float) -> Iterator[tuple[Labels, Samples, float]]:
    (selector,) = node.args
    assert isinstance(selector, promql.MatrixSelector)
    seconds = selector.range.total_seconds()
    for each in series:
        if _selects(selector.vector_selector, each) and (samples := each.within(now - seconds, now)):
            yield each.labels, samples, seconds


def _change(samples: Samples, begin: float, end: float, *, is_counter: bool) -> float:
    """Prometheus' increase or delta: the change from the first to the last sample, extrapolated to the whole range."""
    values = [value for _, value in samples]
    change = values[-1] - values[0]
    if is_counter:
        change += sum(before for before, after in pairwise(values) if after < before)  # resets
    covered = samples[-1][0] - samples[0][0]
    step = covered / (len(samples) - 1)
    gap_before, gap_after = samples[0][0] - begin, end - samples[-1][0]
    if is_counter and change > 0 and values[0] >= 0:
        gap_before = min(gap_before, covered * values[0] / change)  # a counter was never below zero
    whole = covered + sum(gap if gap < 1.1 * step else step / 2 for gap in (gap_before, gap_after))
    return change * whole / covered


def _quantiles(share: float, buckets: Vector) -> Vector:
    grouped: dict[Labels, list[tuple[float, float]]] = defaultdict(list)
    for labels, count in buckets.items():
        bound = float(dict(labels)["le"])
        grouped[frozenset(pair for pair in labels if pair[0] != "le")].append((bound, count))
    return {labels: _quantile(share, sorted(counts)) for labels, counts in grouped.items()}


def _quantile(share: float, counts: Sequence[tuple[float, float]]) -> float:
    """The quantile of cumulative counts by upper bound, by linear interpolation."""
    rank = share * counts[-1][1]
    if not counts[-1][1]:
        return math.nan
    number = next(index for index, (_, count) in enumerate(counts) if count >= rank)
    if math.isinf(counts[number][0]):
        return counts[-2][0]
    lower, below = counts[number - 1] if number else (0.0, 0.0)
    upper, count = counts[number]
    return lower + (upper - lower) * (rank - below) / (count - below)


def _aggregate(node: promql.AggregateExpr, series: Sequence[Series], now: float) -> Vector:
    value = evaluate(node.expr, series, now)
    assert isinstance(value, dict)
    by = [] if node.modifier is None else node.modifier.labels
    assert node.modifier is None or node.modifier.type == promql.AggModifierType.By, "unsupported: without"
    groups: dict[Labels, list[float]] = defaultdict(list)
    for labels, one in value.items():
        groups[frozenset(pair for pair in labels if pair[0] in by)].append(one)
    combine = _AGGREGATIONS[str(node.op)]
    return {labels: combine(values) for labels, values in groups.items()}


def _binary(name: str, left: Vector | float, right: Vector | float) -> Vector | float:
    if isinstance(left, float):
        assert isinstance(right, float), "unsupported: a number before a vector"
        return _ARITHMETIC[name](left, right)
    if name == "and":
        assert isinstance(right, dict)
        return {labels: value for labels, value in left.items() if labels in right}
    pairs = {
        labels: (value, right if isinstance(right, float) else right[labels])
        for labels, value in left.items()
        if isinstance(right, float) or labels in right
    }
    if name in _COMPARISONS:
        return {labels: a for labels, (a, b) in pairs.items() if _COMPARISONS[name](a, b)}
    return {labels: _ARITHMETIC[name](a, b) for labels, (a, b) in pairs.items()}
