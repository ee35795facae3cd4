"""`tickets compare`."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import islice
from typing import Annotated

import typer

from handler.cli.output import Row, echo, form_of, write
from handler.dlq.output import progress
from handler.tickets.access import opened
from handler.tickets.compare import COMPARED_ATTRIBUTES, Agreement, Comparison, Difference, compare_bundles
from handler.tickets.options import (
    IntentOption,
    JsonOption,
    ReviewOption,
    SentimentOption,
    SinceOption,
    UrgencyOption,
    UrgentOption,
    selection_of,
)

__all__ = ["compare"]


def compare(
    *,
    urgent: UrgentOption = False,
    urgency: UrgencyOption = None,
    intent: IntentOption = None,
    sentiment: SentimentOption = None,
    needs_review: ReviewOption = False,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of tickets.")] = 20_000,
    examples: Annotated[int, typer.Option(min=0, help="Maximum number of ticket ids per difference.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Show where two bundles differ, MODEL_BUNDLE (primary) and SHADOW_BUNDLE (shadow), and which one is right.

    The filters select by the labels in force. Of tickets that other bundles labelled, only the number is shown. Which
    bundle is right comes from `tickets correct`: its corrections, and what it confirms.

    Columns in a pipe, separated by tabs: measure (same, differs), task, primary label, shadow label, number of tickets,
    their share, and how many of the decided ones had the right label from the primary, from the shadow, from neither;
    ticket ids, separated by spaces. This queries the urgency index and reads no objects.
    """
    selection = replace(selection_of(urgent, urgency, intent, sentiment, needs_review, since), with_shadow=True)
    with opened() as repository:
        items = []
        with progress("tickets", None) as advance:
            for item in islice(repository.newest(selection, shown=COMPARED_ATTRIBUTES), limit):
                items.append(item)
                advance(len(items))
        comparison = compare_bundles(items, examples=examples)
        write([row for task in comparison.tasks for row in _rows(task, comparison)], form_of(as_json=as_json))
    cut = f"; older tickets were not read (raise --limit {limit})" if len(items) == limit else ""
    others = f"; {comparison.others} tickets of other bundles were left out" if comparison.others else ""
    total = comparison.tasks[0].tickets
    echo(f"{total} tickets, primary {comparison.primary}, shadow {comparison.shadow}{others}{cut}", err=True)
    for task in comparison.tasks:
        echo(task.sentence, err=True)


def _rows(task: Agreement, comparison: Comparison) -> list[Row]:
    """A row of the agreement, then one per difference."""
    data = {
        "measure": "same",
        "primary_version": comparison.primary,
        "shadow_version": comparison.shadow,
        "task": task.task,
        "of": task.tickets,
        "tickets": task.same,
        "share": task.share,
        "primary_right": task.primary_right,
        "shadow_right": task.shadow_right,
        "neither_right": task.neither_right,
        "p_value": task.p_value,
        "sentence": task.sentence,
    }
    shown = {
        "measure": "same",
        "task": task.task,
        "primary": "",
        "shadow": "",
        "tickets": str(task.same),
        "share": f"{task.share:.3f}",
        **_rights(task),
        "examples": "",
    }
    return [Row(data, list(shown.values()), shown), *(_row(each, task) for each in task.differences)]


def _row(difference: Difference, task: Agreement) -> Row:
    share = difference.tickets / task.tickets
    shown = {
        "measure": "differs",
        "task": difference.task,
        "primary": difference.primary,
        "shadow": difference.shadow,
        "tickets": str(difference.tickets),
        "share": f"{share:.3f}",
        **_rights(difference),
        "examples": " ".join(difference.examples),
    }
    return Row({"measure": "differs", **asdict(difference), "share": share}, list(shown.values()), shown)


def _rights(of: Agreement | Difference) -> dict[str, str]:
    return {
        "primary right": str(of.primary_right),
        "shadow right": str(of.shadow_right),
        "neither": str(of.neither_right),
    }
