"""Accuracy of predictions on a labelled file: `python -m enrichment score FILE.jsonl`.

A prediction counts as right when it is one of the labels accepted for its text. Macro-F1 and the confusion table
compare it with itself where it is accepted, else with the first accepted label.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from enrichment.classify import TASKS, Task
from enrichment.enricher import Enricher
from enrichment.errors import EnrichmentError
from enrichment.ticket import EnrichmentData, RawTicket, ticket_from_object

__all__ = [
    "Example",
    "FileInvalid",
    "calibration_error",
    "f1_by_label",
    "macro_f1",
    "read_examples",
    "score",
    "score_task",
]

_BINS: Final = 10
_CHUNK: Final = 64  # tickets enriched at once

Booleans = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]


class FileInvalid(EnrichmentError):
    """A labelled file that cannot be scored; the message names the line."""

    code = "file_invalid"


@dataclass(frozen=True, slots=True)
class Example:
    """A ticket and, per task, the labels accepted for it, best first; a task without labels is absent."""

    ticket: RawTicket
    accepted: Mapping[Task, Sequence[str]]


def read_examples(path: Path, labels: Mapping[Task, Collection[str]]) -> list[Example]:
    """Reads a labelled file: JSON lines with `subject` and `body`, and a label or a list of labels per task.

    `labels` are those that a model knows. Raises FileInvalid, which names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold other separators of lines
    except (OSError, UnicodeDecodeError) as error:
        raise FileInvalid(f"{path} cannot be read: {error}") from error
    examples = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                examples.append(_example(json.loads(line), number, labels))
            except (ValueError, EnrichmentError) as error:
                raise FileInvalid(f"{path}, line {number}: {error}") from error
    if not any(example.accepted for example in examples):
        raise FileInvalid(f"{path} has no labelled tickets; each line needs intent, urgency or sentiment")
    return examples


def _example(row: object, number: int, labels: Mapping[Task, Collection[str]]) -> Example:
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object")  # noqa: TRY004 - one type for everything wrong with a line
    accepted: dict[Task, Sequence[str]] = {}
    for task in TASKS:
        if row.get(task) is None:
            continue
        found = row[task] if isinstance(row[task], list) else [row[task]]
        if not found or not all(isinstance(label, str) for label in found):
            raise ValueError(f"{task} must be a label or a list of labels")
        if unknown := [label for label in found if label not in labels[task]]:
            raise ValueError(f"{task} {unknown[0]!r} is not a label of this bundle")
        accepted[task] = found
    # The labels are compared with predictions from the text alone, so a ticket's own priority is left out.
    ticket = {
        "ticket_id": str(number),
        "customer_id": "score",
        "created_at": 0,
        "subject": row.get("subject", ""),
        "body": row.get("body", row.get("text", "")),
    }
    return Example(ticket_from_object(ticket), accepted)


def score(enricher: Enricher, examples: Sequence[Example]) -> dict[str, Any]:
    """Enriches the tickets and scores the results per task, and for all tasks if every ticket has all labels."""
    results: list[EnrichmentData] = []
    for begin in range(0, len(examples), _CHUNK):
        for result in enricher.enrich([example.ticket for example in examples[begin : begin + _CHUNK]]):
            if isinstance(result, EnrichmentError):
                raise result
            results.append(result)
    figures: dict[str, Any] = {"model_version": enricher.version, "tickets": len(examples), "tasks": {}}
    right: dict[Task, Booleans] = {}
    review = np.asarray([result.needs_review for result in results], bool)
    for task in TASKS:
        rows = [i for i, example in enumerate(examples) if task in example.accepted]
        if not rows:
            continue
        accepted = [examples[i].accepted[task] for i in rows]
        scores = [results[i].scores[task] for i in rows]
        predicted = [getattr(results[i], task) for i in rows]
        confidence = np.asarray([s.get(p, max(s.values())) for s, p in zip(scores, predicted, strict=True)])
        threshold = enricher.bundle.manifest.models.of(task).threshold
        figures["tasks"][task] = score_task(accepted, predicted, confidence, threshold)
        if len(rows) == len(examples):
            right[task] = np.asarray([p in a for p, a in zip(predicted, accepted, strict=True)])
    if len(right) == len(TASKS):
        every = np.logical_and.reduce([*right.values()])
        figures["all_tasks"] = {"accuracy": _mean(every)} | _review(every, ~review)
    return figures


def score_task(
    accepted: Sequence[Sequence[str]], predicted: Sequence[str], confidence: Doubles, threshold: float
) -> dict[str, Any]:
    """One task's results: accuracy, macro-F1, calibration error, review share and confusion table."""
    wanted = [p if p in a else a[0] for p, a in zip(predicted, accepted, strict=True)]
    right = np.asarray([w == p for w, p in zip(wanted, predicted, strict=True)])
    labels = sorted({*wanted, *predicted})
    table = {label: dict.fromkeys(labels, 0) for label in labels}
    for w, p in zip(wanted, predicted, strict=True):
        table[w][p] += 1
    return {
        "tickets": len(predicted),
        "accuracy": _mean(right),
        "macro_f1": round(macro_f1(wanted, predicted), 4),
        "mean_confidence": round(float(confidence.mean()), 4),
        "calibration_error": round(calibration_error(confidence, right), 4),
        **_review(right, confidence >= threshold),
        "confusion": table,
    }


def macro_f1(wanted: Sequence[str], predicted: Sequence[str]) -> float:
    """The mean F1 over all labels that occur."""
    return float(np.mean([*f1_by_label(wanted, predicted).values()]))


def f1_by_label(wanted: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """F1 of each label that occurs."""
    scores = {}
    for label in sorted({*wanted, *predicted}):
        hits = sum(w == p == label for w, p in zip(wanted, predicted, strict=True))
        scores[label] = 2 * hits / (sum(w == label for w in wanted) + sum(p == label for p in predicted))
    return scores


def calibration_error(confidence: Doubles, right: Booleans) -> float:
    """Expected calibration error over ten bins of equal width: 0 when confidence equals accuracy in each."""
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    error = 0.0
    for k in np.unique(bins):
        inside = bins == k
        error += abs(float(right[inside].mean()) - float(confidence[inside].mean())) * float(inside.mean())
    return error


def _review(right: Booleans, sure: Booleans) -> dict[str, Any]:
    return {
        "review_share": round(1 - float(sure.mean()), 4),
        "accuracy_without_review": _mean(right[sure]) if sure.any() else None,
    }


def _mean(right: Booleans) -> float:
    return round(float(right.mean()), 4)
