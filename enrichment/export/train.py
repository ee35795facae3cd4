"""Trains what the repository carries ready-made, and writes it beside this module.

    python -m enrichment.export.train FOLDER                  # the classification branch and its heads
    python -m enrichment.export.train FOLDER --calibrate      # the int8 encoder's smoothing exponents as well

FOLDER holds the public data sets (enrichment.export.datasets names the files). Five folds by author come first: they
give the calibration, the review thresholds and the figures of the recipe. Then the branch is trained on everything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from enrichment.classify import TASKS, Task
from enrichment.export import compact
from enrichment.export.corpus import OPINIONS, TAXONOMY, TICKETS, Taxonomy, read_labelled
from enrichment.export.evaluate import ACCURACY, SHARE, HeldOut, cross_validate, figures_of, read_training_set
from enrichment.export.heads import FittedHead, Shipped
from enrichment.export.quantize import Calibration, calibrated_exponents, token_ids
from enrichment.export.sources import MINILM, ExportError, find_model
from enrichment.export.training import Settings, Trained, choose_review, choose_thresholds, train

__all__ = ["calibrate", "main", "shipped"]

_SEED: Final = 100


def main(
    data: Annotated[Path, typer.Argument(help="Directory of the public data sets.", exists=True, file_okay=False)],
    without_public: Annotated[  # noqa: FBT002 - a command-line flag
        bool, typer.Option("--without-public", help="Leave out the public tickets, which have no stated licence.")
    ] = False,
    calibrate_quantizer: Annotated[  # noqa: FBT002 - a command-line flag
        bool, typer.Option("--calibrate", help="Recompute the quantizer's smoothing exponents.")
    ] = False,
    source: Annotated[str, typer.Option(help="Source of MiniLM: package, hub or a directory.")] = "package",
) -> None:
    """Train the classification branch and its heads, and write them next to this module."""

    def say(line: str) -> None:
        typer.echo(line, err=True)

    try:
        weights = find_model(MINILM, source)
        if calibrate_quantizer:
            taxonomy = Taxonomy.read(TAXONOMY)
            texts = [*read_labelled(TICKETS, taxonomy)[::8], *read_labelled(OPINIONS, taxonomy)[::8]]
            say("calibrating the quantizer")
            calibrate(weights, [item.text for item in texts]).write()
        say("reading all texts")
        # The public tickets are read in any case: without them in training, they still give the figures.
        training_set, sha256, lexical = read_training_set(data, weights)
        settings = Settings()
        if without_public:
            settings = Settings(mix={**settings.mix, "public": 0})
        held_out = cross_validate(training_set, weights, settings, say, public=not without_public)
        say("training on everything")
        trained = train(training_set, range(len(training_set.texts)), weights, settings, _SEED)
        shipped(trained, held_out, lexical.names, settings, sha256).write()
    except ExportError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def shipped(
    trained: Trained, held_out: HeldOut, lexical: Sequence[str], settings: Settings, sha256: Mapping[str, str]
) -> Shipped:
    """What is committed: coefficients, calibration and thresholds from the held-out folds, and the recipe."""
    calibrations = held_out.calibrations()
    predictions = held_out.predictions(calibrations)
    thresholds = choose_thresholds(*predictions, accuracy=ACCURACY, share=SHARE)
    review = choose_review(*predictions, accuracy=ACCURACY, share=SHARE)
    figures = figures_of(held_out)
    data = trained.data
    heads: dict[Task, FittedHead] = {}
    for task in TASKS:
        weights, bias = trained.head(task)
        training = {
            "texts": int((data.first[task] >= 0).sum()),
            "by_author": figures[task],
        }
        heads[task] = FittedHead(data.labels[task], weights, bias, thresholds[task], training, calibrations[task])
    recipe = {
        "settings": dataclasses.asdict(settings),
        "seed": _SEED,
        "texts": {source: len(data.rows(source)) for source in dict.fromkeys(data.sources)},
        "sha256": dict(sha256),
        "all_tasks_by_author": figures["all_tasks"],
    }
    return Shipped(trained.adapter(), heads, [*lexical], review, recipe)


def calibrate(weights: Path, texts: Sequence[str]) -> Calibration:
    """Smoothing exponents from the activations that these texts cause in the fp32 encoder."""
    ids = token_ids(weights / "tokenizer.json", texts, compact.MAX_TOKENS)
    return Calibration(calibrated_exponents(compact.exported_graph(weights), ids))


if __name__ == "__main__":
    typer.run(main)
