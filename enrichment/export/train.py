"""Trains what the repository carries ready-made, and writes it beside this module.

    python -m enrichment.export.train FOLDER                  # the classification branch and its heads
    python -m enrichment.export.train FOLDER --calibrate      # the int8 encoder's smoothing exponents as well

FOLDER holds the public data sets (enrichment.export.datasets names the files). Five folds by author come first: they
give the calibration, the review thresholds and the figures of the recipe. Then the branch is trained on everything.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import onnx
import typer

from enrichment.classify import TASKS, Task
from enrichment.export import compact
from enrichment.export.corpus import OPINIONS, TAXONOMY, TICKETS, Taxonomy, read_labelled
from enrichment.export.evaluate import ACCURACY, SHARE, HeldOut, cross_validate, figures_of, read_training_set
from enrichment.export.graph import Graph
from enrichment.export.heads import FittedHead, Shipped
from enrichment.export.quantize import Calibration, products, smoothing_exponents
from enrichment.export.sources import MINILM, ExportError, find_model
from enrichment.export.training import Settings, Trained, choose_review, choose_thresholds, train
from enrichment.session import make_session

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
    graph = compact.exported_graph(weights)
    inputs = {name: group[0].input[0] for name, group in products(graph).items()}
    tapped = _with_outputs(graph, list(inputs.values()))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tapped.onnx"
        onnx.save(tapped, str(path))
        session = make_session(path)
        largest: dict[str, Any] = {name: np.zeros(1, np.float32) for name in inputs}
        for ids in _token_ids(weights, texts):
            feed = {"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])}
            for name, value in zip(inputs, session.run(list(inputs.values()), feed), strict=True):
                largest[name] = np.maximum(largest[name], np.abs(value).max((0, 1)))
    return Calibration(smoothing_exponents(graph, largest))


def _with_outputs(graph: Graph, values: Sequence[str]) -> onnx.ModelProto:
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "tapped",
            graph.inputs,
            [onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None) for value in values],
            [onnx.numpy_helper.from_array(value, name) for name, value in graph.constants.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )


def _token_ids(weights: Path, texts: Sequence[str]) -> list[Any]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(weights / "tokenizer.json"))
    tokenizer.enable_truncation(compact.MAX_TOKENS)
    tokenizer.no_padding()
    return [np.asarray(encoding.ids, np.int64) for encoding in tokenizer.encode_batch(list(texts))]


if __name__ == "__main__":
    typer.run(main)
