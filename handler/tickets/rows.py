"""Rows of ticket lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from handler.cli.output import Row, age, moment
from handler.tickets.drift import Measure
from handler.tickets.forgetting import Place
from handler.tickets.repository import URGENCIES, Item
from handler.tickets.search.indexer import Indexed

__all__ = ["count_rows", "drift_row", "duplicate_row", "indexed_row", "place_row", "ticket_row"]


def ticket_row(item: Item, cosine: float | None = None) -> Row:
    """The row of a ticket; `cosine` is its similarity to another ticket, if there is one."""
    labels = {"urgency": item.urgency, "intent": item.intent, "sentiment": item.sentiment}
    texts = {"ticket": item.ticket_id, "subject": item.subject, "summary": item.summary}
    similarity = {} if cosine is None else {"cosine": f"{cosine:.4f}"}
    review = "yes" if item.needs_review else "no"
    language = item.language or ""
    return Row(
        data={**({} if cosine is None else {"cosine": cosine}), **item.model_dump()},
        # What a pipe cuts by its number keeps its number: the language comes last.
        cells=[*similarity.values(), moment(item.created_at), *labels.values(), review, *texts.values(), language],
        shown={
            **similarity,
            "age": age(item.created_at),
            **labels,
            "?": "?" if item.needs_review else "",
            "lang": language,
            **texts,
        },
    )


def duplicate_row(group: int, cosine: float, item: Item) -> Row:
    """The row of a ticket in a group of nearly equal ones."""
    row = ticket_row(item, cosine)
    return Row({"group": group, **row.data}, [str(group), *row.cells], {"group": str(group), **row.shown})


def indexed_row(done: Indexed) -> Row:
    """The row of what `tickets index` has done."""
    numbers = {"stored": done.stored, "removed": done.removed, "unchanged": done.unchanged}
    shown = {name: str(number) for name, number in numbers.items()} | {"left out": str(done.left_out.total())}
    return Row({**numbers, "left_out": dict(done.left_out)}, list(shown.values()), shown)


def place_row(place: Place) -> Row:
    """The row of something that is stored of a ticket."""
    shown = {"kind": place.kind, "place": place.name, "versions": str(place.count)}
    return Row({"kind": place.kind, "place": place.name, "versions": place.count}, list(shown.values()), shown)


def drift_row(measure: Measure) -> Row:
    """The row of one comparison."""
    numbers = {name: getattr(measure, name) for name in ("baseline", "recent", "value", "limit")}
    shown = {
        "measure": measure.name,
        "label": measure.label,
        **{name: "" if number is None else f"{number:.3f}" for name, number in numbers.items()},
        "drift": "drift" if measure.drifted else "",
    }
    return Row(asdict(measure), list(shown.values()), shown)


def count_rows(counts: Mapping[str, Mapping[str, int]]) -> list[Row]:
    """One row per label: the most frequent first, but urgencies from critical to low."""
    rows = []
    for kind, labels in counts.items():
        for label, number in sorted(labels.items(), key=lambda entry: (-entry[1], entry[0])):
            shown = {"by": kind, "label": label, "tickets": str(number)}
            rows.append(Row({"by": kind, "label": label, "count": number}, list(shown.values()), shown))
    rank = {label: place for place, label in enumerate(URGENCIES)}
    places = [place for place, row in enumerate(rows) if row.data["by"] == "urgency"]
    ranked = sorted((rows[place] for place in places), key=lambda row: rank.get(row.data["label"], len(rank)))
    for place, row in zip(places, ranked, strict=True):
        rows[place] = row
    return rows
