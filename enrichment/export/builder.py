"""Builds transformer graphs node by node from a model's weights: fp32 and int8 from the same code.

Why not export by tracing: a traced decoder comes as two or three graphs, each with its own copy of every weight, and
holds the embedding twice in each. Written by hand, a weight is stored once, and a graph takes the very inputs that
decoding wants to give it.

Rows of tokens are two-dimensional throughout, (tokens, width), without padding: only attention, which needs the
texts apart, sees them padded. Int8 products are those of `enrichment.export.quantize`: one activation scale per row
of tokens, weights bounded so that sums of neighbours stay within 16 bits. A text's numbers depend on itself alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from enrichment.export.graph import MICROSOFT, Array
from enrichment.export.quantize import GELU_FLOOR, columns
from enrichment.export.weights import Attention, Linear, Precision, Shared

__all__ = ["Builder"]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Names of rows in 8 bits, of the scale of each, and of the integer that is zero."""

    numbers: str
    scale: str
    zero: str


class Builder:
    """A graph that grows: every method adds nodes and returns the name of the value that they compute."""

    def __init__(self, precision: Precision) -> None:
        self.precision: Final = precision
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._known: dict[tuple[Any, ...], str] = {}
        self._quantized: dict[str, _Rows] = {}
        self._zeros = ""  # the zero of each row, as long as the number of rows is the same
        self._count = 0

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Declares an input of the graph."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, name: str, value: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> str:
        """Declares an output of the graph, and gives the value that name."""
        for node in self._nodes:
            for names in (node.input, node.output):
                for index, old in enumerate(names):
                    if old == value:
                        names[index] = name
        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """A constant; equal small ones are stored once."""
        array = np.ascontiguousarray(np.asarray(value, dtype)).reshape(np.shape(value))
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size < 256 else (self._count,)
        if key not in self._known:
            self._known[key] = self._name("w")
            self._tensors.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def shared(self, tensor: Shared) -> str:
        """A tensor that lies in a file of its own."""
        key = (tensor.file, tensor.offset)
        if key not in self._known:
            self._known[key] = self._name("w")
            proto = onnx.TensorProto(
                name=self._known[key],
                data_type=helper.np_dtype_to_tensor_dtype(tensor.dtype),
                dims=tensor.shape,
                data_location=TensorProto.EXTERNAL,
            )
            length = int(np.prod(tensor.shape)) * tensor.dtype.itemsize
            for field, value in (("location", tensor.file), ("offset", tensor.offset), ("length", length)):
                proto.external_data.add(key=field, value=str(value))
            self._tensors.append(proto)
        return self._known[key]

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """A node with one output."""
        return self.ops(1, kind, *inputs, domain=domain, **attributes)[0]

    def ops(self, outputs: int, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> list[str]:
        """A node with several outputs."""
        names = [self._name("t") for _ in range(outputs)]
        self._nodes.append(
            helper.make_node(kind, list(inputs), names, name=self._name("n"), domain=domain, **attributes)
        )
        return names

    def choice(
        self, condition: str, dtypes: Sequence[int], then: Callable[[], list[str]], other: Callable[[], list[str]]
    ) -> list[str]:
        """What `then` computes if `condition` holds, else what `other` does; only that part runs."""
        branches = []
        for branch in (then, other):
            around, self._nodes = self._nodes, []
            results = [
                helper.make_tensor_value_info(value, dtype, None) for value, dtype in zip(branch(), dtypes, strict=True)
            ]
            branches.append(helper.make_graph(self._nodes, self._name("g"), [], results))
            self._nodes = around
        return self.ops(len(dtypes), "If", condition, then_branch=branches[0], else_branch=branches[1])

    def shape(self, value: str, *dimensions: int | str) -> str:
        """The value in another shape; 0 keeps a dimension, -1 is what is left."""
        return self.op("Reshape", value, self.constant(list(dimensions), np.int64))

    def linear(self, rows: str, layer: Linear) -> str:
        """`rows` (tokens, inputs) through a layer, with its bias: (tokens, outputs)."""
        product, bias = self.product(rows, layer)
        return self.op("Add", product, bias)

    def exact(self, rows: str, layer: Linear) -> str:
        """`linear` in fp32, whatever the graph's precision."""
        return self.op("Add", self.op("MatMul", rows, self.constant(layer.weights, np.float32)), self.bias(layer.bias))

    def product(self, rows: str, layer: Linear, *, after_gelu: bool = False) -> tuple[str, str]:
        """The product alone, and what is still to be added to it: operators that follow can do that in one go."""
        if self.precision == "fp32":
            return self.op("MatMul", rows, self.constant(layer.weights, np.float32)), self.bias(layer.bias)
        numbers, scale = columns(layer.weights)
        bias = layer.bias
        if after_gelu:  # (x + shift) W = x W + shift * (sum of W's rows); the sum is over integers, hence exact
            bias = bias - GELU_FLOOR * scale * numbers.sum(0, dtype=np.int64)
        factors = self.constant(numbers, np.int8), self.constant(scale, np.float32)
        return self.integer_product(rows, *factors, after_gelu=after_gelu), self.bias(bias)

    def unbiased(self, rows: str, weights: Array) -> str:
        """`rows` (tokens, inputs) times `weights` (inputs, outputs)."""
        if self.precision == "fp32":
            return self.op("MatMul", rows, self.constant(weights, np.float32))
        numbers, scale = columns(weights)
        return self.integer_product(rows, self.constant(numbers, np.int8), self.constant(scale, np.float32))

    def integer_product(self, rows: str, weights: str, scale: str, *, after_gelu: bool = False) -> str:
        """`rows` in 8 bits, with a scale for each, times int8 `weights` (inputs, outputs) with `scale` (outputs,)."""
        if rows not in self._quantized:  # once for all products that read them
            self._quantized[rows] = self._in_8_bits(rows, after_gelu=after_gelu)
        left, one = self._quantized[rows], self.constant(1, np.float32)
        product = self.op("MatMulIntegerToFloat", left.numbers, weights, one, scale, left.zero, domain=MICROSOFT)
        return self.op("Mul", product, left.scale)

    def _in_8_bits(self, rows: str, *, after_gelu: bool) -> _Rows:
        # A row of zeros gives integers without meaning, which its scale of zero turns into zeros again.
        if after_gelu:
            value = self.op("Add", rows, self.constant(GELU_FLOOR, np.float32))
            scale, each = self._scale(value, 255)
            return _Rows(self.op("QuantizeLinear", value, each, axis=0), scale, self.constant(0, np.uint8))
        scale, each = self._scale(self.op("Abs", rows), 127)
        if not self._zeros:
            zero = helper.make_tensor("zero", TensorProto.UINT8, [1], [128])
            self._zeros = self.op("ConstantOfShape", self.op("Shape", each), value=zero)
        numbers = self.op("QuantizeLinear", rows, each, self._zeros, axis=0)
        return _Rows(numbers, scale, self.constant(128, np.uint8))

    def _scale(self, sizes: str, steps: int) -> tuple[str, str]:
        """A row's largest number is so many steps: its scale as a column, and as a vector."""
        largest = self.op("ReduceMax", sizes, axes=[-1], keepdims=1)
        scale = self.op("Mul", largest, self.constant(1 / steps, np.float32))
        return scale, self.shape(scale, -1)

    def bias(self, values: Array) -> str:
        """A vector of numbers."""
        return self.constant(values, np.float32)

    def normal(self, rows: str, scale: Array, shift: Array, epsilon: float) -> str:
        """Layer normalisation."""
        return self.op("LayerNormalization", rows, self.bias(scale), self.bias(shift), epsilon=epsilon, axis=-1)

    def added_and_normal(
        self, product: tuple[str, str], before: str, scale: Array, shift: Array, epsilon: float
    ) -> str:
        """A product with its bias, added to what was `before`, and normalised: the end of every sub-layer."""
        # Not SkipLayerNormalization: it takes three times as long as these operators together.
        return self.normal(self.op("Add", self.op("Add", *product), before), scale, shift, epsilon)

    def feed_forward(self, rows: str, up: Linear, down: Linear) -> tuple[str, str]:
        """Two products with GELU between them; the second one's bias is still to be added."""
        wide, bias = self.product(rows, up)
        return self.product(self.op("BiasGelu", wide, bias, domain=MICROSOFT), down, after_gelu=True)

    def self_attention(self, rows: str, layer: Attention, place: str, mask: str, heads: int) -> str:
        """Attention within texts: rows (tokens, width) to (texts * length, width); place (length, texts).

        Plain operators, not the fused one: that one sums in another order for another length.
        """
        query = self.heads(self.op("Gather", self.linear(rows, layer.query), place), heads, len(layer.value))
        return self._attention(query, *self._keys_and_values(rows, layer, place, heads), mask, len(layer.value))

    def first_attention(self, rows: str, layer: Attention, place: str, mask: str, heads: int) -> tuple[str, str]:
        """The same for each text's first token only; gives its vector before and after, both (texts, width)."""
        key, value = self._keys_and_values(rows, layer, place, heads)
        first = self.op("Gather", rows, self.op("Gather", place, self.constant(0, np.int64), axis=0))
        self._zeros = ""
        queries = self.op("Unsqueeze", self.linear(first, layer.query), self.constant([0], np.int64))
        query = self.heads(queries, heads, len(layer.value))
        return first, self._attention(query, key, value, mask, len(layer.value))

    def heads(self, rows: str, heads: int, width: int) -> str:
        """(length, texts, width) as (length, texts, heads, head size)."""
        return self.shape(rows, 0, 0, heads, width // heads)

    def _keys_and_values(self, rows: str, layer: Attention, place: str, heads: int) -> tuple[str, str]:
        key, value = (self.op("Gather", self.unbiased(rows, weights), place) for weights in (layer.key, layer.value))
        return self.heads(key, heads, len(layer.value)), self.heads(value, heads, len(layer.value))

    def _attention(self, query: str, key: str, value: str, mask: str, width: int) -> str:
        # The length is the first dimension, so that products can read each head where it stands, without a copy.
        scores = self.op("FusedMatMul", query, key, domain=MICROSOFT, transB=1, transBatchA=1, transBatchB=1)
        share = self.op("Softmax", self.op("Add", scores, mask), axis=-1)
        context = self.op("FusedMatMul", share, value, domain=MICROSOFT, transBatchB=1)
        return self.shape(self.op("Transpose", context, perm=[0, 2, 1, 3]), -1, width)

    def against(self, queries: str, keys: str) -> str:
        """Products of queries and keys, both (..., number, head size).

        Transposing keys is left to the product: on its own it took as long again.
        """
        return self.op("FusedMatMul", queries, keys, domain=MICROSOFT, transB=1)

    def words(self, ids: str, table: Shared, scales: Shared | None) -> str:
        """Rows of an embedding table; in int8 it has a scale per row."""
        rows = self.op("Gather", self.shared(table), ids)
        if scales is None:
            return rows
        scale = self.op("Unsqueeze", self.op("Gather", self.shared(scales), ids), self.constant([-1], np.int64))
        return self.op("Mul", self.op("Cast", rows, to=TensorProto.FLOAT), scale)

    def model(self, name: str) -> onnx.ModelProto:
        """The finished model."""
        return helper.make_model(
            helper.make_graph(self._nodes, name, self._inputs, self._outputs, self._tensors),
            opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)],
            producer_name="ticket-enrichment",
            producer_version="1",
            ir_version=8,
        )

    def _name(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"
