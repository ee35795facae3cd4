"""DistilBART as two graphs: an encoder that also prepares the cross-attention, and one step of the decoder.

The step decodes all beams of all texts at once:
- The beams of a text are queries of one attention: the keys and values of the source are not copied per beam.
- The self-attention's cache is append-only, one slot per beam and step, (texts, heads, slots, head size). Which slots
  are the ancestors of a beam is said by an additive mask, so that nothing is ever reordered. What the step adds comes
  out as `fresh`, and the caller writes it into the slots that follow.
- Log-probabilities and the best candidates are computed in the graph: of 50,264 numbers a row a dozen leave it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto

from enrichment.export.builder import Builder
from enrichment.export.graph import Array
from enrichment.export.weights import Attention, Linear, Precision, Shared

__all__ = ["Bart", "decoder_graph", "encoder_graph"]

_EPSILON: Final = 1e-5
_OFFSET: Final = 2  # BART's table of positions begins with two rows that no position uses


@dataclass(frozen=True)
class Bart:
    """A BART model: its weights by their names in torch, and what its config.json says."""

    state: Mapping[str, Array]
    config: Mapping[str, Any]

    @property
    def width(self) -> int:
        """Length of a token's vector."""
        return int(self.config["d_model"])

    def heads(self, part: str) -> int:
        """Attention heads of the "encoder" or the "decoder"."""
        return int(self.config[f"{part}_attention_heads"])

    def layers(self, part: str) -> int:
        """Layers of the "encoder" or the "decoder"."""
        return int(self.config[f"{part}_layers"])

    @property
    def words(self) -> Array:
        """The embedding (vocabulary, width), which is the output projection too."""
        return self.state["model.shared.weight"]

    def pair(self, name: str) -> tuple[Array, Array]:
        """Scale and shift of a normalisation."""
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]

    def attention(self, name: str) -> Attention:
        """The projections of an attention."""
        heads = self.heads("encoder" if ".encoder." in name else "decoder")
        return Attention.read(self.state, [f"{name}.{part}_proj" for part in ("q", "k", "v", "out")], heads)


def encoder_graph(model: Bart, precision: Precision, words: list[Shared]) -> onnx.ModelProto:
    """Source tokens in, keys and values of every decoder layer's cross-attention out.

    Inputs: those of `enrichment.packing.packed`. Outputs per decoder layer:
    keys and values (texts, heads, length, head size).
    """
    build = Builder(precision)
    rows = _embed(build, model, "encoder", words, ["tokens"])
    place = build.input("rows", TensorProto.INT64, ["length", "texts"])
    back = build.input("back", TensorProto.INT64, ["tokens"])
    mask = build.input("mask", TensorProto.FLOAT, ["texts", 1, 1, "length"])
    heads, width = model.heads("encoder"), model.width
    for layer in range(model.layers("encoder")):
        name = f"model.encoder.layers.{layer}"
        attention = model.attention(f"{name}.self_attn")
        context = build.op("Gather", build.self_attention(rows, attention, place, mask, heads), back)
        product = build.product(context, attention.output)
        rows = build.added_and_normal(product, rows, *model.pair(f"{name}.self_attn_layer_norm"), _EPSILON)
        rows = _feed_forward(build, model, name, rows)
    heads = model.heads("decoder")
    for layer in range(model.layers("decoder")):
        attention = model.attention(f"model.decoder.layers.{layer}.encoder_attn")
        for part, weights in (("k", attention.key), ("v", attention.value)):
            apart = build.heads(build.op("Gather", build.unbiased(rows, weights), place), heads, width)
            turned = build.op("Transpose", apart, perm=[1, 2, 0, 3])
            build.output(f"cross_{part}{layer}", turned, ["texts", heads, "length", width // heads])
    return build.model("encoder")


def decoder_graph(model: Bart, precision: Precision, words: list[Shared]) -> onnx.ModelProto:
    """One step of decoding.

    Inputs: ids and positions (texts, beams); cross_k*, cross_v* (texts, 1, heads, length, head size) from the encoder
    and cross_mask (texts, 1, 1, 1, length); past_k*, past_v* (texts, 1, heads, slots, head size), and places
    (texts, beams, heads, 4), where this step's keys and values go in them; mask (texts, beams, 1, 1, slots); count
    (1,), how many candidates are wanted; probable (), whether log-probabilities are.
    Outputs: scores and tokens (texts * beams, count), the best candidates in falling order, with log-probabilities or
    logits; logits (texts * beams, vocabulary); present_k*, present_v*, which replace past_k*, past_v*.
    """
    build = Builder(precision)
    heads, width = model.heads("decoder"), model.width
    size = width // heads
    rows = _embed(build, model, "decoder", words, ["texts", "beams"])
    number = build.op("Shape", "ids")
    each = build.op("Concat", number, build.constant([3 * heads, size], np.int64), axis=0)
    alone = build.op("Concat", number, build.constant([heads, 1, size], np.int64), axis=0)
    places = build.input("places", TensorProto.INT64, ["texts", "beams", heads, 4])
    mask = build.input("mask", TensorProto.FLOAT, ["texts", "beams", 1, 1, "slots"])
    cross_mask = build.input("cross_mask", TensorProto.FLOAT, ["texts", 1, 1, 1, "length"])
    count = build.input("count", TensorProto.INT64, [1])
    probable = build.input("probable", TensorProto.BOOL, [])

    def attended(query: str, attention: Attention, keys: str, values: str, mask: str) -> tuple[str, str]:
        # One query at a time: a product with several copies keys and values into packed form first, which is slower.
        query = build.op("Reshape", query, alone)
        share = build.op("Softmax", build.op("Add", build.against(query, keys), mask), axis=-1)
        return build.product(build.shape(build.op("MatMul", share, values), -1, width), attention.output)

    for layer in range(model.layers("decoder")):
        name = f"model.decoder.layers.{layer}"
        attention = model.attention(f"{name}.self_attn")
        joint = build.unbiased(rows, np.concatenate([attention.query.weights, attention.key, attention.value], axis=1))
        query, *fresh = build.ops(3, "Split", build.op("Reshape", joint, each), axis=2)
        query = build.op("Add", query, build.bias(attention.query.bias.reshape(heads, size)))
        own = []
        for part, numbers in zip("kv", fresh, strict=True):
            past = build.input(f"past_{part}{layer}", TensorProto.FLOAT, ["texts", 1, heads, "slots", size])
            present = build.op("ScatterND", past, places, numbers)
            own.append(build.output(f"present_{part}{layer}", present, ["texts", 1, heads, "slots", size]))
        product = attended(query, attention, own[0], own[1], mask)
        rows = build.added_and_normal(product, rows, *model.pair(f"{name}.self_attn_layer_norm"), _EPSILON)
        source = [
            build.input(f"cross_{part}{layer}", TensorProto.FLOAT, ["texts", 1, heads, "length", size]) for part in "kv"
        ]
        attention = model.attention(f"{name}.encoder_attn")
        product = attended(build.linear(rows, attention.query), attention, source[0], source[1], cross_mask)
        rows = build.added_and_normal(product, rows, *model.pair(f"{name}.encoder_attn_layer_norm"), _EPSILON)
        rows = _feed_forward(build, model, name, rows)
    logits = build.output("logits", _logits(build, model, words, rows), ["rows", model.words.shape[0]])

    scores, tokens = build.choice(
        probable,
        (TensorProto.FLOAT, TensorProto.INT64),
        lambda: build.ops(2, "TopK", build.op("LogSoftmax", logits, axis=-1), count, axis=-1),
        lambda: build.ops(2, "TopK", logits, count, axis=-1),
    )
    build.output("scores", scores, ["rows", "count"])
    build.output("tokens", tokens, ["rows", "count"], TensorProto.INT64)
    return build.model("decoder")


def _embed(build: Builder, model: Bart, part: str, words: list[Shared], shape: list[str]) -> str:
    """The vectors of tokens, (tokens, width)."""
    ids = build.input("ids", TensorProto.INT64, shape)
    positions = build.input("positions", TensorProto.INT64, shape)
    word = build.words(ids, words[0], words[1] if len(words) > 1 else None)
    if model.config.get("scale_embedding"):
        word = build.op("Mul", word, build.constant(math.sqrt(model.width), np.float32))
    table = model.state[f"model.{part}.embed_positions.weight"][_OFFSET:]
    total = build.op("Add", word, build.op("Gather", build.constant(table, np.float32), positions))
    rows = build.shape(total, -1, model.width)
    return build.normal(rows, *model.pair(f"model.{part}.layernorm_embedding"), _EPSILON)


def _feed_forward(build: Builder, model: Bart, name: str, rows: str) -> str:
    up, down = Linear.read(model.state, f"{name}.fc1"), Linear.read(model.state, f"{name}.fc2")
    product = build.feed_forward(rows, up, down)
    return build.added_and_normal(product, rows, *model.pair(f"{name}.final_layer_norm"), _EPSILON)


def _logits(build: Builder, model: Bart, words: list[Shared], rows: str) -> str:
    # Turned once, when a session is made: the file holds the table with a word's numbers side by side.
    matrix = build.op("Transpose", build.shared(words[0]), perm=[1, 0])
    if len(words) == 1:
        logits = build.op("MatMul", rows, matrix)
    else:
        logits = build.integer_product(rows, matrix, build.shared(words[1]))
    bias = model.state.get("final_logits_bias")
    return logits if bias is None or not bias.any() else build.op("Add", logits, build.bias(bias.reshape(-1)))
