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
from enrichment.export.weights import Linear, Precision, Shared

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

    def query(self, *names: str) -> Linear:
        """Projections of which the first is a query: the attention's scale is part of it."""
        layer = Linear.read(self.state, *names)
        size = self.width // self.heads("encoder" if ".encoder." in names[0] else "decoder")
        scale = np.ones(len(layer.bias), np.float32)
        scale[: self.width] = 1 / math.sqrt(size)
        return Linear(layer.weights * scale, layer.bias * scale)


def encoder_graph(model: Bart, precision: Precision, words: list[Shared]) -> onnx.ModelProto:
    """Source tokens in, keys and values of every decoder layer's cross-attention out.

    Inputs: ids and positions (tokens,), all texts one behind the other; place (texts, length), where each text's tokens
    stand in them; back (tokens,), the way back; mask (texts, 1, 1, length), 0 or very small. Outputs per decoder layer:
    keys and values (texts, heads, length, head size).
    """
    build = Builder(precision)
    rows = _embed(build, model, "encoder", words, ["tokens"])
    place = build.input("place", TensorProto.INT64, ["texts", "length"])
    back = build.input("back", TensorProto.INT64, ["tokens"])
    mask = build.input("mask", TensorProto.FLOAT, ["texts", 1, 1, "length"])
    heads, width = model.heads("encoder"), model.width
    for layer in range(model.layers("encoder")):
        name = f"model.encoder.layers.{layer}"
        projections = [f"{name}.self_attn.{part}_proj" for part in "qkv"]
        qkv = build.op("Gather", build.linear(rows, model.query(*projections)), place)
        context = build.self_attention(qkv, mask, heads, width)
        product = build.product(
            build.op("Gather", context, back), Linear.read(model.state, f"{name}.self_attn.out_proj")
        )
        rows = build.added_and_normal(product, rows, *model.pair(f"{name}.self_attn_layer_norm"), _EPSILON)
        rows = _feed_forward(build, model, name, rows)
    heads = model.heads("decoder")
    for layer in range(model.layers("decoder")):
        for part in "kv":
            projection = Linear.read(model.state, f"model.decoder.layers.{layer}.encoder_attn.{part}_proj")
            padded = build.op("Gather", build.linear(rows, projection), place)
            split = build.shape(padded, 0, 0, heads, width // heads)
            turned = build.op("Transpose", split, perm=[0, 2, 1, 3])
            build.output(f"cross_{part}{layer}", turned, ["texts", heads, "length", width // heads])
    return build.model("encoder")


def decoder_graph(model: Bart, precision: Precision, words: list[Shared]) -> onnx.ModelProto:
    """One step of decoding.

    Inputs: ids and positions (texts, beams); cross_k*, cross_v*, cross_mask from the encoder; past_k*, past_v*
    (texts, heads, slots, head size); mask (texts, 1, beams, slots + beams), whose last columns stand for the beams of
    this step themselves; count (1,), how many candidates are wanted. Outputs: scores and tokens (texts * beams, count),
    the best log-probabilities in falling order; log_probs (texts * beams, vocabulary); fresh (2 * layers, texts, heads,
    beams, head size), keys and values in turn.
    """
    build = Builder(precision)
    heads, width = model.heads("decoder"), model.width
    size = width // heads
    rows = _embed(build, model, "decoder", words, ["texts", "beams"])
    frame = build.op("Concat", build.op("Shape", "ids"), build.constant([heads, size], np.int64), axis=0)
    mask = build.input("mask", TensorProto.FLOAT, ["texts", 1, "beams", "columns"])
    cross_mask = build.input("cross_mask", TensorProto.FLOAT, ["texts", 1, 1, "length"])
    count = build.input("count", TensorProto.INT64, [1])
    fresh: list[str] = []
    for layer in range(model.layers("decoder")):
        name = f"model.decoder.layers.{layer}"
        past_k = build.input(f"past_k{layer}", TensorProto.FLOAT, ["texts", heads, "slots", size])
        past_v = build.input(f"past_v{layer}", TensorProto.FLOAT, ["texts", heads, "slots", size])
        cross_k = build.input(f"cross_k{layer}", TensorProto.FLOAT, ["texts", heads, "length", size])
        cross_v = build.input(f"cross_v{layer}", TensorProto.FLOAT, ["texts", heads, "length", size])

        def split(value: str) -> str:
            return build.op("Transpose", build.op("Reshape", value, frame), perm=[0, 2, 1, 3])

        projections = [f"{name}.self_attn.{part}_proj" for part in "qkv"]
        qkv = build.linear(rows, model.query(*projections))
        query, key, value = map(split, build.ops(3, "Split", qkv, axis=-1))
        fresh += [key, value]
        joined = build.op("Concat", build.against(query, past_k), build.against(query, key), axis=-1)
        scores = build.op("Add", joined, mask)
        share = build.op("Softmax", scores, axis=-1)
        slots = build.op("Shape", past_k, start=2, end=3)
        parts = build.op("Concat", slots, build.op("Shape", "ids", start=1, end=2), axis=0)
        share_old, share_new = build.ops(2, "Split", share, parts, axis=-1)
        context = build.op("Add", build.op("MatMul", share_old, past_v), build.op("MatMul", share_new, value))
        rows = _close_attention(build, model, f"{name}.self_attn", context, rows)

        query = split(build.linear(rows, model.query(f"{name}.encoder_attn.q_proj")))
        share = build.op("Softmax", build.op("Add", build.against(query, cross_k), cross_mask), axis=-1)
        rows = _close_attention(build, model, f"{name}.encoder_attn", build.op("MatMul", share, cross_v), rows)
        rows = _feed_forward(build, model, name, rows)
    logits = _logits(build, model, words, rows)
    log_probs = build.op("LogSoftmax", logits, axis=-1)
    scores, tokens = build.ops(2, "TopK", log_probs, count, axis=-1)
    build.output("scores", scores, ["rows", "count"])
    build.output("tokens", tokens, ["rows", "count"], TensorProto.INT64)
    build.output("log_probs", log_probs, ["rows", model.words.shape[0]])
    axis = build.constant([0], np.int64)
    joined = build.op("Concat", *(build.op("Unsqueeze", part, axis) for part in fresh), axis=0)
    build.output("fresh", joined, [len(fresh), "texts", heads, "beams", size])
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


def _close_attention(build: Builder, model: Bart, name: str, context: str, rows: str) -> str:
    """The output projection of an attention, (texts, heads, beams, head size), and the normalisation behind it."""
    flat = build.shape(build.op("Transpose", context, perm=[0, 2, 1, 3]), -1, model.width)
    product = build.product(flat, Linear.read(model.state, f"{name}.out_proj"))
    return build.added_and_normal(product, rows, *model.pair(f"{name}_layer_norm"), _EPSILON)


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
        logits = build.integer_product(rows, matrix, build.shared(words[1]), model.words.shape[0])
    bias = model.state.get("final_logits_bias")
    return logits if bias is None or not bias.any() else build.op("Add", logits, build.bias(bias.reshape(-1)))
