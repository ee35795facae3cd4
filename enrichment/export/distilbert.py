"""DistilBERT for sequence classification as one graph over packed texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto

from enrichment.export.builder import Builder
from enrichment.export.graph import Array
from enrichment.export.weights import Attention, Linear, Precision, Shared

__all__ = ["classifier_graph"]

_EPSILON: Final = 1e-12


def classifier_graph(
    state: Mapping[str, Array], config: Mapping[str, Any], precision: Precision, words: list[Shared]
) -> onnx.ModelProto:
    """Inputs as `enrichment.packing.packed` gives them; the output `logits` is (texts, labels)."""
    build = Builder(precision)
    heads = int(config["n_heads"])
    ids = build.input("ids", TensorProto.INT64, ["tokens"])
    positions = build.input("positions", TensorProto.INT64, ["tokens"])
    place = build.input("rows", TensorProto.INT64, ["length", "texts"])
    back = build.input("back", TensorProto.INT64, ["tokens"])
    mask = build.input("mask", TensorProto.FLOAT, ["texts", 1, 1, "length"])

    def pair(name: str) -> tuple[Array, Array]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    table = build.constant(state["distilbert.embeddings.position_embeddings.weight"], np.float32)
    word = build.words(ids, words[0], words[1] if len(words) > 1 else None)
    total = build.op("Add", word, build.op("Gather", table, positions))
    rows = build.normal(total, *pair("distilbert.embeddings.LayerNorm"), _EPSILON)
    layers = int(config["n_layers"])
    for layer in range(layers):
        name = f"distilbert.transformer.layer.{layer}"
        names = [f"{name}.attention.{part}_lin" for part in ("q", "k", "v", "out")]
        attention = Attention.read(state, names, heads)
        if layer < layers - 1:
            context = build.op("Gather", build.self_attention(rows, attention, place, mask, heads), back)
        else:  # only each text's first token is read further on: all but its keys and values are left out
            rows, context = build.first_attention(rows, attention, place, mask, heads)
        product = build.product(context, attention.output)
        rows = build.added_and_normal(product, rows, *pair(f"{name}.sa_layer_norm"), _EPSILON)
        product = build.feed_forward(
            rows, Linear.read(state, f"{name}.ffn.lin1"), Linear.read(state, f"{name}.ffn.lin2")
        )
        rows = build.added_and_normal(product, rows, *pair(f"{name}.output_layer_norm"), _EPSILON)
    # The last two products see one row a text: in fp32 they cost nothing, and decide the label.
    hidden = build.op("Relu", build.exact(rows, Linear.read(state, "pre_classifier")))
    logits = build.exact(hidden, Linear.read(state, "classifier"))
    build.output("logits", logits, ["texts", len(state["classifier.bias"])])
    return build.model("classifier")
