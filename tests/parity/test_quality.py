"""How good the classifiers are on 220 labelled tickets that no training has seen.

These were written for this test. The figures for other people's tickets come from `make eval`, which needs data that is
not in the repository.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from enrichment import Enricher, EnrichmentData, RawTicket
from enrichment.export.corpus import OPINIONS, TAXONOMY, TICKETS, Taxonomy, read_labelled

ROWS = [json.loads(line) for line in Path(__file__).with_name("heldout.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def results(enricher: Enricher) -> list[EnrichmentData]:
    """All of them, enriched."""
    found = enricher.enrich(
        [
            RawTicket(ticket_id=str(i), customer_id="C", created_at=0, subject=row["subject"], body=row["body"])
            for i, row in enumerate(ROWS)
        ]
    )
    return [result for result in found if isinstance(result, EnrichmentData)]


def _accepted(row: dict[str, Any], task: str) -> list[str]:
    return row[task] if isinstance(row[task], list) else [row[task]]


def _wanted(task: str, found: Sequence[str]) -> list[str]:
    """The prediction where it is accepted, else the first accepted label."""
    pairs = [(_accepted(row, task), label) for row, label in zip(ROWS, found, strict=True)]
    return [label if label in accepted else accepted[0] for accepted, label in pairs]


def _accuracy(wanted: Sequence[str], found: Sequence[str]) -> float:
    return sum(w == f for w, f in zip(wanted, found, strict=True)) / len(wanted)


def _f1_of_each(wanted: Sequence[str], found: Sequence[str]) -> Mapping[str, float]:
    scores = {}
    for label in sorted({*wanted, *found}):
        hits = sum(w == f == label for w, f in zip(wanted, found, strict=True))
        scores[label] = 2 * hits / (sum(w == label for w in wanted) + sum(f == label for f in found))
    return scores


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_no_training_has_seen_them() -> None:
    taxonomy = Taxonomy.read(TAXONOMY)
    seen = [*read_labelled(TICKETS, taxonomy), *read_labelled(OPINIONS, taxonomy), *taxonomy.examples]
    known = {_words(item.text) for item in seen}
    assert len(known) > 3000
    assert not known & {_words(f"{row['subject']} {row['body']}") for row in ROWS}
    assert not known & {_words(row["body"]) for row in ROWS}


def test_the_measure_is_right() -> None:
    # By hand: a has precision 1/2 and recall 1, b 1 and 1/2, c 1 and 1.
    scores = _f1_of_each(["a", "b", "b", "c"], ["a", "a", "b", "c"])
    assert scores == pytest.approx({"a": 2 / 3, "b": 2 / 3, "c": 1})


@pytest.mark.parametrize(
    ("task", "measure", "at_least"),
    [("intent", "accuracy", 0.85), ("urgency", "macro-F1", 0.75), ("sentiment", "macro-F1", 0.75)],
)
def test_unseen_tickets_are_understood(
    results: list[EnrichmentData], capsys: pytest.CaptureFixture[str], task: str, measure: str, at_least: float
) -> None:
    found = [getattr(result, task) for result in results]
    wanted = _wanted(task, found)
    accuracy, scores = _accuracy(wanted, found), _f1_of_each(wanted, found)
    macro = sum(scores.values()) / len(scores)
    with capsys.disabled():
        each = ", ".join(f"{label} {score:.2f}" for label, score in scores.items())
        sys.stdout.write(f"\n{task}: accuracy {accuracy:.3f}, macro-F1 {macro:.3f} ({each})\n")
    assert (accuracy if measure == "accuracy" else macro) >= at_least


@pytest.mark.parametrize("task", ["intent", "urgency", "sentiment"])
def test_what_needs_no_review_is_right_more_often(results: list[EnrichmentData], enricher: Enricher, task: str) -> None:
    threshold = getattr(enricher.bundle.manifest.models, task).threshold
    right = [getattr(result, task) in _accepted(row, task) for row, result in zip(ROWS, results, strict=True)]
    sure = [getattr(result, f"{task}_confidence") >= threshold for result in results]
    of_the_sure = [r for r, s in zip(right, sure, strict=True) if s]
    assert 0.2 < len(of_the_sure) / len(right) < 1
    assert sum(of_the_sure) / len(of_the_sure) > sum(right) / len(right)


@pytest.mark.parametrize("task", ["intent", "urgency", "sentiment"])
def test_confidence_means_what_it_says(results: list[EnrichmentData], task: str) -> None:
    right = [getattr(result, task) in _accepted(row, task) for row, result in zip(ROWS, results, strict=True)]
    confidence = [getattr(result, f"{task}_confidence") for result in results]
    assert sum(confidence) / len(confidence) == pytest.approx(sum(right) / len(right), abs=0.12)
