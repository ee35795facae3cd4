"""Accuracy on tickets by authors not seen in training: `python -m enrichment.export.evaluate tickets_public.jsonl`.

Five folds, split by author: for each, the branch and its heads are trained on everything else, and the fold's tickets
are predicted. Intervals are bootstrapped over authors, since one author's tickets are similar. The other public data
sets are read from the folder of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer

from enrichment.classify import TASKS, Task, calibrated
from enrichment.export import compact
from enrichment.export.corpus import TAXONOMY, Taxonomy
from enrichment.export.datasets import read_collection
from enrichment.export.heads import FOLDS, folds_of, interval, softmax
from enrichment.export.quantize import Calibration, quantize_products, quantize_words
from enrichment.export.sources import MINILM, ExportError, find_model
from enrichment.export.training import (
    Settings,
    TrainingSet,
    accepted,
    calibration_for,
    choose_review,
    prepare,
    train,
)
from enrichment.features import LexicalFeatures
from enrichment.manifest import PlattScaling
from enrichment.score import Booleans, Doubles, calibration_error

__all__ = ["ACCURACY", "SHARE", "HeldOut", "cross_validate", "figures_of", "main", "read_training_set"]

ACCURACY: Final = 0.85  # wanted of tickets that are not marked for review: all three labels right
SHARE: Final = 0.55  # of tickets not marked for review


@dataclass(frozen=True)
class HeldOut:
    """Logits of tickets that the models had not seen, with their fold and author; `rows` index the training set."""

    rows: Sequence[int]
    folds: Sequence[int]
    authors: Sequence[str]
    logits: Mapping[Task, Doubles]
    allowed: Mapping[Task, Booleans]

    def calibrations(self) -> dict[Task, PlattScaling]:
        """Slope and offset per task with which confidence is how often the label is right."""
        return {task: calibration_for(self.logits[task], self.allowed[task]) for task in TASKS}

    def predictions(
        self, calibrations: Mapping[Task, PlattScaling]
    ) -> tuple[dict[Task, Doubles], dict[Task, Booleans]]:
        """Per task each ticket's confidence, and whether it is right."""
        confidence, right = {}, {}
        for task in TASKS:
            probabilities = np.array([calibrated(row, calibrations[task]) for row in softmax(self.logits[task])])
            confidence[task] = probabilities.max(1)
            right[task] = self.allowed[task][np.arange(len(probabilities)), probabilities.argmax(1)]
        return confidence, right


def read_training_set(
    data: Path, weights: Path, *, public: bool = True
) -> tuple[TrainingSet, Mapping[str, str], LexicalFeatures]:
    """All labelled texts with the frozen encoder's output, and the sha256 of their files; `data` is the folder."""
    collection = read_collection(data, public=public)
    taxonomy = Taxonomy.read(TAXONOMY)
    lexical = LexicalFeatures(taxonomy.lexicon, taxonomy.phrases)
    graph = compact.exported_graph(weights)
    quantize_products(graph, Calibration.read().exponents)
    quantize_words(graph)
    return prepare(graph, weights, lexical, collection.texts, taxonomy.labels), collection.sha256, lexical


def cross_validate(
    data: TrainingSet, weights: Path, settings: Settings, say: Callable[[str], None], *, public: bool = True
) -> HeldOut:
    """Predictions for every public ticket by a model that has seen none of its author's; without `public`, of none."""
    rows = data.rows("public")
    texts = [data.texts[i] for i in rows]
    folds = folds_of(texts, np.zeros((len(texts), 1)))
    logits = {task: np.zeros((len(rows), len(data.labels[task]))) for task in TASKS}
    for fold in range(FOLDS if public else 1):
        test = np.flatnonzero(folds == fold) if public else np.arange(len(rows))
        unseen = {rows[i] for i in test}
        train_rows = [i for i in range(len(data.texts)) if i not in unseen]
        trained = train(data, train_rows, weights, settings, seed=fold)
        for task, found in trained.logits([rows[i] for i in test]).items():
            logits[task][test] = found
        right = [
            (accepted(data, task, [rows[i] for i in test])[np.arange(len(test)), logits[task][test].argmax(1)]).mean()
            for task in TASKS
        ]
        say(f"fold {fold}: " + ", ".join(f"{task} {value:.3f}" for task, value in zip(TASKS, right, strict=True)))
    return HeldOut(
        rows,
        folds.tolist(),
        [str(item.author) for item in texts],
        logits,
        {task: accepted(data, task, rows) for task in TASKS},
    )


def figures_of(held_out: HeldOut) -> dict[str, Any]:
    """Accuracies with 95 % intervals, calibration errors, and shares for review.

    A fold's calibrations and review threshold are chosen on the other folds, never on what they are scored on.
    """
    folds, authors = np.asarray(held_out.folds), np.asarray(held_out.authors)
    confidence: dict[Task, Doubles] = {task: np.zeros(len(folds)) for task in TASKS}
    right: dict[Task, Booleans] = {task: np.zeros(len(folds), bool) for task in TASKS}
    sure = np.zeros(len(folds), bool)
    for fold in np.unique(folds):
        others, here = _part(held_out, folds != fold), _part(held_out, folds == fold)
        calibrations = others.calibrations()
        review = choose_review(*others.predictions(calibrations), accuracy=ACCURACY, share=SHARE)
        found, hits = here.predictions(calibrations)
        for task in TASKS:
            confidence[task][folds == fold], right[task][folds == fold] = found[task], hits[task]
        sure[folds == fold] = np.prod([*found.values()], 0) >= review
    every = np.logical_and.reduce([*right.values()])
    result: dict[str, Any] = {
        task: {
            "accuracy": _rounded(right[task].mean()),
            "interval": interval(right[task], authors),
            "calibration_error": _rounded(calibration_error(confidence[task], right[task])),
        }
        for task in TASKS
    }
    result["all_tasks"] = {
        "accuracy": _rounded(every.mean()),
        "interval": interval(every, authors),
        "without_review": _rounded(every[sure].mean()),
        "without_review_interval": interval(every[sure], authors[sure]),
        "share_without_review": _rounded(sure.mean()),
    }
    return result


def _part(held_out: HeldOut, chosen: Booleans) -> HeldOut:
    return HeldOut(
        [],
        [],
        [],
        {task: held_out.logits[task][chosen] for task in TASKS},
        {task: held_out.allowed[task][chosen] for task in TASKS},
    )


def _rounded(value: float) -> float:
    return round(float(value), 4)


def main(
    data: Annotated[
        Path,
        typer.Argument(
            help="tickets_public.jsonl, in the directory of the other data sets.", exists=True, dir_okay=False
        ),
    ],
    without_public: Annotated[  # noqa: FBT002 - a command-line flag
        bool, typer.Option("--without-public", help="Train without the public tickets, and predict all of them.")
    ] = False,
    source: Annotated[str, typer.Option(help="Source of MiniLM: package, hub or a directory.")] = "package",
) -> None:
    """Cross-validate in five folds split by author, and print accuracies with 95 % intervals."""
    try:
        weights = find_model(MINILM, source)
        typer.echo("reading all texts", err=True)
        training_set, _, _ = read_training_set(data.parent, weights)
        settings = Settings()
        if without_public:
            settings = Settings(mix={**settings.mix, "public": 0})
        held_out = cross_validate(
            training_set, weights, settings, lambda line: typer.echo(line, err=True), public=not without_public
        )
        _print(figures_of(held_out))
    except ExportError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _print(figures: Mapping[str, Any]) -> None:
    for task in TASKS:
        low, high = figures[task]["interval"]
        typer.echo(
            f"{task:10s} {figures[task]['accuracy']:.3f}  [{low:.3f}, {high:.3f}]  "
            f"calibration error {figures[task]['calibration_error']:.3f}"
        )
    every = figures["all_tasks"]
    low, high = every["interval"]
    typer.echo(f"{'all three':10s} {every['accuracy']:.3f}  [{low:.3f}, {high:.3f}]")
    low, high = every["without_review_interval"]
    typer.echo(
        f"not marked for review: {every['share_without_review']:.3f} of all, "
        f"all three right in {every['without_review']:.3f}  [{low:.3f}, {high:.3f}]"
    )


if __name__ == "__main__":
    typer.run(main)
