"""The classification branch: the encoder's upper layers once more, changed by a low-rank adapter.

The branch begins at the output of layer 2. Its weights are those of layers 3 to 5 plus the adapter's products (LoRA, Hu
et al., ICLR 2022), merged here. The encoder's own layers stay as they are, so embeddings do not change. The adapter and
the heads that go with it are committed: `classifiers.npz`, written by `enrichment.export.train`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from enrichment.encoder import Floats
from enrichment.export.graph import Array, Graph
from enrichment.export.sources import ExportError

__all__ = ["ADAPTED", "FIRST_LAYER", "HIDDEN", "LAYERS", "PARTS", "Adapter", "add_branch"]

FIRST_LAYER: Final = 3  # the branch's first layer; layers 0 to 2 are shared
LAYERS: Final = 3
HIDDEN: Final = 384
ADAPTED: Final = 4 * HIDDEN  # features: the mean over the tokens, and one weighted mean per task
PARTS: Final[Mapping[str, str]] = {  # of a layer, by their names in the checkpoint
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}


@dataclass(frozen=True)
class Adapter:
    """Low-rank factors and attention queries of the branch, in half precision.

    factors: "<layer 0 to 2>.<part>" to `down` (rank, inputs) and `up` (outputs, rank), whose product is added to the
    checkpoint's weight (outputs, inputs). queries (3, 384): one per task, in the order of enrichment.classify.TASKS; a
    token's weight is the softmax of its product with the query.
    """

    factors: Mapping[str, tuple[Array, Array]]
    queries: Floats

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Adapter:
        """The adapter among the arrays of adapter.npz; the inverse of `arrays`."""
        names = [f"{layer}.{part}" for layer in range(LAYERS) for part in PARTS]
        return cls(
            {name: (arrays[f"{name}.A"], arrays[f"{name}.B"]) for name in names}, arrays["queries"].astype(np.float32)
        )

    def arrays(self) -> dict[str, Array]:
        """All arrays in half precision, by name."""
        found = {"queries": self.queries.astype(np.float16)}
        for name, (down, up) in self.factors.items():
            found |= {f"{name}.A": down.astype(np.float16), f"{name}.B": up.astype(np.float16)}
        return found

    def merged(self, state: Mapping[str, Array]) -> dict[str, Array]:
        """The branch's weights (outputs, inputs) by their names in the checkpoint `state`.

        Summed one rank at a time: a matrix product adds in an order that depends on the CPU, and with it the bytes.
        """
        weights = {}
        for name, (down, up) in self.factors.items():
            layer, part = name.split(".")
            key = f"encoder.layer.{FIRST_LAYER + int(layer)}.{PARTS[part]}.weight"
            total = state[key].astype(np.float32)
            for row, column in zip(down.astype(np.float32), up.T.astype(np.float32), strict=True):
                total = total + column[:, None] * row[None, :]
            weights[key] = total
        return weights


def add_branch(graph: Graph, adapter: Adapter, weights: Path) -> None:
    """Adds the branch and its output `adapted` (batch, 1536) to a fused encoder graph that is not yet quantised."""
    from safetensors.numpy import load_file

    state = load_file(weights / "model.safetensors")
    merged = adapter.merged(state)
    ends = [node.output[0] for node in graph.nodes if node.op_type == "SkipLayerNormalization"][1::2]
    start, end = ends[FIRST_LAYER - 1], ends[FIRST_LAYER + LAYERS - 1]
    # A name of its own for the branch's input keeps its products apart from those of the encoder's own layers.
    identity = graph.node("Identity", start)
    names = {start: identity.output[0]}
    copies = []
    by_weight = {key: state[key].T for key in merged}
    for node in _between(graph, start, end):
        copy = type(node)()
        copy.CopyFrom(node)
        copy.name = f"branch_{node.name}"
        for index, value in enumerate(node.input):
            if value in names:
                copy.input[index] = names[value]
            elif node.op_type == "MatMul" and value in graph.constants:
                key = _key_of(graph.constants[value], by_weight)
                copy.input[index] = graph.constant(merged[key].T, np.float32)
        for index, value in enumerate(node.output):
            names[value] = copy.output[index] = f"branch_{value}"
        copies.append(copy)
    graph.nodes += [identity, *copies]
    _pool(graph, names[end], adapter.queries)


def _between(graph: Graph, start: str, end: str) -> list[onnx.NodeProto]:
    """The nodes on the way from one value to another, in order."""
    reached, nodes = {start}, []
    for node in graph.nodes:
        if reached & set(node.input):
            reached.update(node.output)
            nodes.append(node)
        if end in node.output:
            return nodes
    raise ExportError("the encoder's graph has no path through its upper layers")


def _key_of(constant: Array, by_weight: Mapping[str, Array]) -> str:
    for key, weight in by_weight.items():
        if weight.shape == constant.shape and np.array_equal(weight, constant):
            return key
    raise ExportError("a product of the encoder's graph has weights that are not those of its checkpoint")


def _pool(graph: Graph, states: str, queries: Floats) -> None:
    """Adds `adapted`: the masked mean of the branch's states, then one attention-weighted mean per query."""
    mask = graph.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    row = graph.node("Unsqueeze", mask.output[0], graph.constant([1], np.int64))  # (batch, 1, tokens)
    count = graph.node("ReduceSum", row.output[0], graph.constant([2], np.int64), keepdims=1)
    share = graph.node("Div", row.output[0], count.output[0])
    absent = graph.node("Sub", row.output[0], graph.constant(1.0, np.float32))
    penalty = graph.node("Mul", absent.output[0], graph.constant(1e9, np.float32))
    # The constant is the first factor, where the quantizer does not look for weights: this product stays exact.
    columns = graph.node("Transpose", states, perm=[0, 2, 1])
    scores = graph.node("MatMul", graph.constant(queries, np.float32), columns.output[0])
    masked = graph.node("Add", scores.output[0], penalty.output[0])
    attention = graph.node("Softmax", masked.output[0], axis=-1)
    weights = graph.node("Concat", share.output[0], attention.output[0], axis=1)  # (batch, 4, tokens)
    means = graph.node("MatMul", weights.output[0], states)
    adapted = graph.node("Reshape", means.output[0], graph.constant([-1, ADAPTED], np.int64))
    adapted.output[0] = "adapted"
    graph.nodes += [
        *(mask, row, count, share, absent, penalty, columns, scores, masked, attention, weights, means, adapted)
    ]
    graph.outputs.append(helper.make_tensor_value_info("adapted", TensorProto.FLOAT, ["batch", ADAPTED]))
