"""Trains what the repository carries ready-made: the sentiment head, and the int8 encoder's smoothing exponents.

    python -m enrichment.export.train --sst2 sst2_train.tsv

The sentiment head learns from the labelled tickets and opinions of this repository and from the training sentences of
SST-2 (Socher et al., EMNLP 2013; tab-separated text and 0 or 1), which are too many to be committed.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer

from enrichment.cues import Cues
from enrichment.export import compact
from enrichment.export.corpus import OPINIONS, TAXONOMY, TICKETS, Labelled, Taxonomy, read_labelled
from enrichment.export.graph import Graph
from enrichment.export.heads import features, fit_head
from enrichment.export.quantize import products, smoothing_exponents
from enrichment.export.sentiment import Calibration, SentimentHead
from enrichment.export.sources import MINILM, ExportError, find_model
from enrichment.session import make_session

__all__ = ["calibrate", "main", "train_sentiment"]

_STRENGTHS = (0.0003, 0.001)
_TICKET_WEIGHT = 1.0  # more makes tickets a little better and film and product reviews a little worse


def main(
    sst2: Annotated[
        Path, typer.Option(help="SST-2's training sentences: text, tab, 0 or 1.", exists=True, dir_okay=False)
    ],
    source: Annotated[str, typer.Option(help="Where MiniLM comes from: package, hub, or a folder.")] = "package",
) -> None:
    """Train the sentiment head and the quantiser's exponents, and write them beside this module."""
    try:
        taxonomy = Taxonomy.read(TAXONOMY)
        weights = find_model(MINILM, source)
        tickets, opinions = read_labelled(TICKETS, taxonomy), read_labelled(OPINIONS, taxonomy)
        typer.echo("calibrating the quantiser")
        calibrate(weights, [item.text for item in (*tickets[::8], *opinions[::8])]).write()
        typer.echo(f"training on {len(tickets)} tickets, {len(opinions)} opinions and SST-2")
        train_sentiment(weights, taxonomy, tickets, opinions, _read_sst2(sst2)).write()
    except ExportError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def calibrate(weights: Path, texts: Sequence[str]) -> Calibration:
    """Smoothing exponents from the activations that these texts cause in the fp32 encoder."""
    graph = compact.exported_graph(weights)
    inputs = {name: group[0].input[0] for name, group in products(graph).items()}
    tapped = _with_outputs(graph, list(inputs.values()))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tapped.onnx"
        onnx.save(tapped, str(path))
        session = make_session(path)
        encoder_tokens = _token_ids(weights, texts)
        largest: dict[str, Any] = {name: np.zeros(1, np.float32) for name in inputs}
        for ids in encoder_tokens:
            feed = {"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])}
            for name, value in zip(inputs, session.run(list(inputs.values()), feed), strict=True):
                largest[name] = np.maximum(largest[name], np.abs(value).max((0, 1)))
    return Calibration(smoothing_exponents(graph, largest))


def train_sentiment(
    weights: Path,
    taxonomy: Taxonomy,
    tickets: Sequence[Labelled],
    opinions: Sequence[Labelled],
    films: Sequence[Labelled],
) -> SentimentHead:
    """The sentiment head, on the shipped int8 encoder; chosen and scored by the tickets."""
    ours = [item for item in (*tickets, *taxonomy.examples, *opinions) if "sentiment" in item.labels]
    texts = [*ours, *films]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        hashes = {}
        (folder / "tokenizer.json").write_bytes((weights / "tokenizer.json").read_bytes())
        for precision in ("fp32", "int8"):
            graph = compact.encoder_graph(weights, precision)
            hashes[precision] = hashlib.sha256(graph).hexdigest()
            (folder / "encoder.onnx").write_bytes(graph)
        cues = Cues(taxonomy.lexicon, taxonomy.cues)
        matrix = features(compact.open_encoder(folder), cues, [item.text for item in texts])
    position = np.arange(len(texts))
    neutral = np.asarray([item.labels["sentiment"] == "NEUTRAL" for item in texts])
    head = fit_head(
        matrix,
        [item.labels["sentiment"] for item in texts],
        strengths=_STRENGTHS,
        weights=[_TICKET_WEIGHT if i < len(ours) else 1.0 for i in range(len(texts))],
        groups={
            "tickets": position < len(tickets),
            "opinions": (position >= len(ours) - len(opinions)) & (position < len(ours)) & ~neutral,
            "films": position >= len(ours),
        },
    )
    head.training["recipe"] = {
        "tickets": len(tickets),
        "opinions": len(opinions),
        "sst2_train": len(films),
        "ticket_weight": _TICKET_WEIGHT,
    }
    return SentimentHead(head, [hashes["int8"], hashes["fp32"]], list(cues.names))


def _read_sst2(path: Path) -> list[Labelled]:
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text, _, label = line.rpartition("\t")
        if not text or label not in {"0", "1"}:
            raise ExportError(f"{path}, line {number}: expected a text, a tab, and 0 or 1")
        rows.append(Labelled(text, {"sentiment": "POSITIVE" if label == "1" else "NEGATIVE"}))
    return rows


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
