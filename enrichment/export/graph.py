"""Surgery on ONNX graphs: a small editor, and the passes that make an encoder's graph ours.

The passes take what optimum exports and onnxruntime's optimizer has fused, and leave a graph whose bytes depend on
nothing but the weights: own names, own producer, no doc strings. That is what a head can be bound to by hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from enrichment.export.sources import ExportError

__all__ = [
    "MICROSOFT",
    "Graph",
    "canonical_model",
    "load_fused_bert",
    "pool_layers",
    "spell_out_embeddings",
    "spell_out_normalisation",
]

MICROSOFT: Final = "com.microsoft"
Array = npt.NDArray[Any]


class Graph:
    """A graph under edit: nodes in order, constants by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self.constants: dict[str, Array] = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        self.inputs: list[onnx.ValueInfoProto] = list(model.graph.input)
        self.outputs: list[onnx.ValueInfoProto] = list(model.graph.output)
        self._count = 0

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """Adds a constant and returns its name."""
        self._count += 1
        name = f"added_constant_{self._count}"
        self.constants[name] = np.ascontiguousarray(np.asarray(value, dtype))
        return name

    def node(self, op: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> onnx.NodeProto:
        """Makes a node, which is not yet placed anywhere."""
        self._count += 1
        names = [f"added_{self._count}_{i}" for i in range(outputs)]
        return helper.make_node(op, list(inputs), names, name=f"added_{self._count}", domain=domain, **attributes)

    def replace(self, old: Sequence[onnx.NodeProto], new: Sequence[onnx.NodeProto]) -> None:
        """Puts `new` where the first of `old` stood, and drops all of `old`."""
        gone = {id(node) for node in old}
        place = next(i for i, node in enumerate(self.nodes) if id(node) in gone)
        kept = [node for node in self.nodes if id(node) not in gone]
        self.nodes = [*kept[:place], *new, *kept[place:]]

    def rename(self, old: str, new: str) -> None:
        """Makes every reader of the value `old` read `new`."""
        for node in self.nodes:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new

    def readers(self, value: str) -> list[onnx.NodeProto]:
        """The nodes that read a value."""
        return [node for node in self.nodes if value in node.input]

    def prune(self) -> None:
        """Drops nodes and constants that lead to no output."""
        wanted = {output.name for output in self.outputs}
        kept = []
        for node in reversed(self.nodes):
            if wanted & set(node.output):
                wanted.update(name for name in node.input if name)
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {name: value for name, value in self.constants.items() if name in wanted}


def load_fused_bert(exported: Path, *, heads: int, hidden: int) -> Graph:
    """Loads an exported BERT encoder and fuses attention, GELU and normalisation into ONNX Runtime's own operators."""
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.use_multi_head_attention = True  # keeps the three projections as products of their own: they are quantised
    fused = optimize_model(
        str(exported), model_type="bert", num_heads=heads, hidden_size=hidden, opt_level=0, optimization_options=options
    )
    return Graph(fused.model)


def spell_out_embeddings(graph: Graph, *, max_tokens: int) -> None:
    """Replaces the fused embedding operator by plain ones, for token type 0 and positions up to `max_tokens`.

    A BERT's second token type serves pairs of texts, which we never have; so `token_type_ids` is no input any more.
    """
    found = [node for node in graph.nodes if node.op_type == "EmbedLayerNormalization"]
    if len(found) != 1:
        raise ExportError(
            "onnxruntime's optimizer finds no BERT in the exported graph; use the versions of constraints.txt"
        )
    [fused] = found
    words, positions, types, scale, shift = (graph.constants[name] for name in fused.input[2:7])
    epsilon = next(a.f for a in fused.attribute if a.name == "epsilon")
    mask = graph.node("Cast", "attention_mask", to=TensorProto.INT32)
    shape = graph.node("Shape", "input_ids", start=1, end=2)
    zero = graph.constant([0], np.int64)
    position = graph.node(
        "Slice", graph.constant((positions + types[0])[:max_tokens], np.float32), zero, shape.output[0], zero
    )
    word = graph.node("Gather", graph.constant(words, np.float32), "input_ids")
    total = graph.node("Add", word.output[0], position.output[0])
    normal = graph.node(
        "LayerNormalization",
        total.output[0],
        graph.constant(scale, np.float32),
        graph.constant(shift, np.float32),
        epsilon=epsilon,
        axis=-1,
    )
    old_output, old_mask = fused.output[0], fused.output[1]
    graph.replace([fused], [mask, shape, position, word, total, normal])
    graph.rename(old_output, normal.output[0])
    graph.rename(old_mask, mask.output[0])
    graph.inputs = [i for i in graph.inputs if i.name != "token_type_ids"]
    graph.prune()


def spell_out_normalisation(graph: Graph) -> None:
    """Replaces the fused addition and normalisation by plain operators, which take a third of its time."""
    for fused in [node for node in graph.nodes if node.op_type == "SkipLayerNormalization"]:
        rows, before, scale, shift, bias = fused.input
        epsilon = next(a.f for a in fused.attribute if a.name == "epsilon")
        product = graph.node("Add", rows, bias)
        total = graph.node("Add", product.output[0], before)
        normal = graph.node("LayerNormalization", total.output[0], scale, shift, epsilon=epsilon, axis=-1)
        normal.output[0] = fused.output[0]
        graph.replace([fused], [product, total, normal])


def pool_layers(graph: Graph, layers: Sequence[int]) -> None:
    """Adds the output `pooled`: the masked means of these layers' outputs (0 is the first), one behind the other."""
    ends = [node for node in graph.nodes if node.op_type == "SkipLayerNormalization"][1::2]
    mask = graph.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    count = graph.node("ReduceSum", mask.output[0], graph.constant([1], np.int64), keepdims=1)
    share = graph.node("Div", mask.output[0], count.output[0])
    row = graph.node("Unsqueeze", share.output[0], graph.constant([1], np.int64))
    means = [graph.node("MatMul", row.output[0], ends[layer].output[0]) for layer in layers]
    joined = graph.node("Concat", *(mean.output[0] for mean in means), axis=-1)
    pooled = graph.node("Squeeze", joined.output[0], graph.constant([1], np.int64))
    pooled.output[0] = "pooled"
    graph.nodes += [mask, count, share, row, *means, joined, pooled]
    width = sum(int(graph.constants[ends[layer].input[2]].shape[0]) for layer in layers)
    graph.outputs.append(helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["batch", width]))


def canonical_model(graph: Graph, name: str) -> onnx.ModelProto:
    """The model, spelled so that equal graphs have equal bytes, whichever versions of the exporters made them."""
    graph.prune()
    public = {value.name for value in (*graph.inputs, *graph.outputs)}
    names: dict[str, str] = {"": ""}
    for node in graph.nodes:
        for value in (*node.input, *node.output):
            if value not in names:
                prefix = "w" if value in graph.constants else "t"
                names[value] = value if value in public else f"{prefix}{len(names)}"
    nodes = []
    for number, node in enumerate(graph.nodes):
        copy = helper.make_node(
            node.op_type,
            [names[v] for v in node.input],
            [names[v] for v in node.output],
            f"n{number}",
            domain=node.domain,
        )
        copy.attribute.extend(sorted(node.attribute, key=lambda attribute: attribute.name))
        nodes.append(copy)
    constants = [numpy_helper.from_array(value, names[old]) for old, value in graph.constants.items() if old in names]
    constants.sort(key=lambda tensor: int(tensor.name[1:]))
    inputs = [helper.make_tensor_value_info(i.name, TensorProto.INT64, ["batch", "tokens"]) for i in graph.inputs]
    outputs = [
        helper.make_tensor_value_info(
            o.name,
            TensorProto.FLOAT,
            [
                "batch",
                *([] if o.name in {"pooled", "adapted"} else ["tokens"]),
                o.type.tensor_type.shape.dim[-1].dim_value,
            ],
        )
        for o in graph.outputs
    ]
    model = helper.make_model(
        helper.make_graph(nodes, name, inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)],
        producer_name="ticket-enrichment",
        producer_version="1",
        ir_version=8,
    )
    onnx.checker.check_model(model)
    return model
