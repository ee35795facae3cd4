"""The chart of labels per day: stacked bars, laid out here and drawn as SVG by the template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

__all__ = ["HEIGHT", "MOST_DAYS", "WIDTH", "Bar", "Chart", "Part", "Tick", "draw"]

WIDTH: Final = 1000.0  # of the plot, in the SVG's units
HEIGHT: Final = 280.0
MOST_DAYS: Final = 366  # more bars than that would be narrower than a pixel
_TICKS: Final = 4  # lines across, about
_DATES: Final = 8  # dates below the bars, at most


@dataclass(frozen=True, slots=True)
class Part:
    """One label's part of a bar."""

    label: str
    count: int
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """One day."""

    day: str
    total: int
    x: float
    width: float
    parts: tuple[Part, ...]

    def count_of(self, label: str) -> int:
        """The number of tickets with a label."""
        return sum(part.count for part in self.parts if part.label == label)


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis, with its text."""

    place: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """The layout. `totals` are in the order in which the labels are stacked, from the bottom."""

    bars: tuple[Bar, ...]
    values: tuple[Tick, ...]
    dates: tuple[Tick, ...]
    totals: Mapping[str, int]

    @property
    def total(self) -> int:
        """The number of tickets."""
        return sum(self.totals.values())


def draw(counts: Mapping[str, Mapping[str, int]], first: date, last: date, order: Sequence[str]) -> Chart:
    """Lays out `counts` (day "YYYY-MM-DD" -> label -> number) from `first` to `last`, at most MOST_DAYS of them.

    Labels are stacked in the given order; others follow in alphabetical order.
    """
    days = list(_days(max(first, last - timedelta(days=MOST_DAYS - 1)), last))
    totals: Counter[str] = Counter()
    for day in days:
        totals.update(counts.get(day, {}))
    known = [label for label in order if totals[label]]
    labels = [*known, *sorted(label for label in totals if totals[label] and label not in known)]
    highest, step = _scale(max((sum(counts.get(day, {}).values()) for day in days), default=0))

    slot = WIDTH / max(1, len(days))
    gap = min(slot * 0.25, 6.0)
    bars = []
    for place, day in enumerate(days):
        parts, y = [], HEIGHT
        for label in labels:
            if number := counts.get(day, {}).get(label, 0):
                height = HEIGHT * number / highest
                y -= height
                parts.append(Part(label, number, round(y, 2), round(height, 2)))
        width = round(slot - gap, 2)
        bars.append(Bar(day, sum(p.count for p in parts), round(place * slot + gap / 2, 2), width, tuple(parts)))
    values = [Tick(HEIGHT * (1 - value / highest), f"{value:,}") for value in range(0, highest + 1, step)]
    every = -(-len(days) // _DATES) if days else 1
    dates = [Tick(round((place + 0.5) * slot, 2), days[place]) for place in range(0, len(days), every)]
    return Chart(tuple(bars), tuple(values), tuple(dates), {label: totals[label] for label in labels})


def _days(first: date, last: date) -> Iterator[str]:
    for number in range((last - first).days + 1):
        yield (first + timedelta(days=number)).isoformat()


def _scale(most: int) -> tuple[int, int]:
    """The highest value of the axis and the distance of its lines: round numbers."""
    step = 1
    while step * _TICKS < most:
        # 1, 2, 5, 10, 20, 50, ...
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return max(step, -(-most // step) * step), step
