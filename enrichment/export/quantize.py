"""Int8 for encoder graphs: 8-bit products whose result depends on nothing but the row of tokens itself.

Three choices, each against a fault that was measured:
- Activations get one scale per row of tokens. `onnxruntime.quantization.quantize_dynamic` takes one per tensor, and a
  ticket's embedding then changes with its neighbours (cosine down to 0.96).
- Weights are scaled per column so that two neighbouring weights times the largest activation stay within 16 bits.
  CPUs with AVX2 but without VNNI add such pairs in 16 bits with saturation, so larger ones would give other (and
  worse) numbers there than on newer CPUs. With this bound the integer arithmetic is exact everywhere.
- Channels with large activations hand part of their size over to the weights (SmoothQuant, Xiao et al., ICML 2023),
  by powers of two, which are exact. MiniLM's exponents are data, computed once by `enrichment.export.train`: so the
  graph's bytes do not hang on the last digit of some CPU's floating-point arithmetic. Those of another encoder are
  computed from the user's tickets, like its heads.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto
from tokenizers import Tokenizer

from enrichment.export.graph import MICROSOFT, Array, Graph
from enrichment.session import make_session

__all__ = [
    "CALIBRATION",
    "GELU_FLOOR",
    "Calibration",
    "Exponents",
    "Rows",
    "calibrated_exponents",
    "columns",
    "integer_product",
    "products",
    "quantize_products",
    "quantize_words",
    "quantized_rows",
    "smoothing_exponents",
    "token_ids",
]

Exponents = Mapping[str, Sequence[int]]
"""Per product ("<layer>.<kind>") the power of two that each input channel is divided by."""

Op = Callable[..., str]
"""Adds a node to a graph, by its kind, inputs and attributes; gives the name of its first output."""
Constant = Callable[[npt.ArrayLike, npt.DTypeLike], str]
"""Adds a constant to a graph; gives its name."""

_SMOOTHING: Final = 0.65  # share of the activation's range that moves into the weights
# GELU never falls below -0.17: shifted by this it is not negative, and uses all 256 steps instead of half.
GELU_FLOOR: Final = 0.17


CALIBRATION: Final = Path(__file__).parent / "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """The committed smoothing exponents of the encoder's products."""

    exponents: Mapping[str, Sequence[int]]

    @classmethod
    def read(cls, path: Path = CALIBRATION) -> Calibration:
        """Reads the committed file."""
        return cls({name: list(map(int, row.split())) for name, row in json.loads(path.read_text()).items()})

    def write(self, path: Path = CALIBRATION) -> None:
        """Writes it, one product per line."""
        rows = {name: " ".join(map(str, row)) for name, row in self.exponents.items()}
        path.write_text(json.dumps(rows, indent=0) + "\n")


@dataclass(frozen=True, slots=True)
class Rows:
    """Names of rows in 8 bits, of the largest number of each, of the integer that is zero; steps up to the largest."""

    numbers: str
    largest: str
    zero: str
    steps: float


def products(graph: Graph) -> dict[str, list[onnx.NodeProto]]:
    """The products with constant weights, grouped by their input: 0.qkv, 0.output, 0.up, 0.down, 1.qkv ..."""
    groups: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.nodes:
        if node.op_type == "MatMul" and node.input[1] in graph.constants:
            groups.setdefault(node.input[0], []).append(node)
    kinds = ("qkv", "output", "up", "down")
    return {f"{number // 4}.{kinds[number % 4]}": group for number, group in enumerate(groups.values())}


def smoothing_exponents(graph: Graph, largest: Mapping[str, Array]) -> dict[str, list[int]]:
    """Exponents from the largest absolute activation of every channel, seen over sample texts, per product."""
    exponents: dict[str, list[int]] = {}
    for name, group in products(graph).items():
        if name.endswith(".down"):
            continue  # after GELU the shift does more, and the two exclude each other
        weights = np.concatenate([graph.constants[node.input[1]] for node in group], axis=1)
        ratio = np.maximum(largest[name], 1e-4) ** _SMOOTHING / np.maximum(np.abs(weights).max(1), 1e-4) ** (
            1 - _SMOOTHING
        )
        logarithm = np.log2(ratio)
        exponents[name] = np.rint(logarithm - logarithm.mean()).astype(int).tolist()
    return exponents


def calibrated_exponents(graph: Graph, texts: Iterable[Array]) -> dict[str, list[int]]:
    """Exponents from the activations that texts cause in an fp32 graph; `texts` are ids with special tokens."""
    inputs = {name: group[0].input[0] for name, group in products(graph).items()}
    tapped = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "tapped",
            graph.inputs,
            [onnx.helper.make_tensor_value_info(value, TensorProto.FLOAT, None) for value in inputs.values()],
            [onnx.numpy_helper.from_array(value, name) for name, value in graph.constants.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(MICROSOFT, 1)],
        ir_version=8,
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tapped.onnx"
        onnx.save(tapped, str(path))
        session = make_session(path)
        largest: dict[str, Array] = {name: np.zeros(1, np.float32) for name in inputs}
        for ids in texts:
            feed = {"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])}
            for name, value in zip(inputs, session.run(list(inputs.values()), feed), strict=True):
                largest[name] = np.maximum(largest[name], np.abs(value).max((0, 1)))
    return smoothing_exponents(graph, largest)


def token_ids(tokenizer_file: Path, texts: Sequence[str], max_tokens: int) -> list[Array]:
    """Texts as ids with special tokens, cut to `max_tokens`."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    return [np.asarray(encoding.ids, np.int64) for encoding in tokenizer.encode_batch(list(texts))]


def quantize_products(graph: Graph, exponents: Exponents) -> None:
    """Turns every product with constant weights into an 8-bit one."""
    for name, group in products(graph).items():
        smoothing = np.exp2(np.asarray(exponents[name], np.float32)) if name in exponents else None
        _quantize(graph, group, smoothing, shift=GELU_FLOOR if name.endswith(".down") else 0.0)


def quantize_words(graph: Graph) -> None:
    """Stores the table of word embeddings in 8 bits, with a scale per word."""
    [gather] = [node for node in graph.nodes if node.op_type == "Gather" and node.input[1] == "input_ids"]
    words = graph.constants[gather.input[0]]
    scale = np.maximum(np.abs(words).max(1, keepdims=True) / np.float32(127), np.float32(1e-12))
    table = graph.node("Gather", graph.constant(np.rint(words / scale), np.int8), "input_ids")
    number = graph.node("Cast", table.output[0], to=TensorProto.FLOAT)
    scales = graph.node("Gather", graph.constant(scale, np.float32), "input_ids")
    word = graph.node("Mul", number.output[0], scales.output[0])
    graph.replace([gather], [table, number, scales, word])
    graph.rename(gather.output[0], word.output[0])


def _quantize(graph: Graph, group: Sequence[onnx.NodeProto], smoothing: Array | None, shift: float) -> None:
    source = group[0].input[0]
    weights = np.concatenate([graph.constants[node.input[1]] for node in group], axis=1)
    added: list[onnx.NodeProto] = []

    def add(op: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: object) -> str:
        added.append(graph.node(op, *inputs, domain=domain, outputs=outputs, **attributes))
        return str(added[-1].output[0])

    if smoothing is not None:
        source = add("Mul", source, graph.constant(1 / smoothing, np.float32))
        weights = weights * smoothing[:, None]
    numbers, scale = columns(weights)
    rows = quantized_rows(add, graph.constant, source, after_gelu=bool(shift))
    factors = graph.constant(numbers, np.int8), graph.constant(scale, np.float32)
    product = integer_product(add, graph.constant, rows, *factors, len(scale))
    if shift:  # (x + shift) W = x W + shift * (sum of W's rows); the sum is over integers, hence exact
        product = add("Sub", product, graph.constant(shift * scale * numbers.sum(0, dtype=np.int64), np.float32))
    if len(group) > 1:
        widths = [graph.constants[node.input[1]].shape[1] for node in group]
        add("Split", product, graph.constant(widths, np.int64), outputs=len(group), axis=-1)
        results = list(added[-1].output)
    else:
        results = [product]
    graph.replace(group, added)
    for node, result in zip(group, results, strict=True):
        graph.rename(node.output[0], result)


def quantized_rows(op: Op, constant: Constant, rows: str, *, after_gelu: bool) -> Rows:
    """Adds what turns rows of numbers into 8 bits, by a scale for each row."""
    if after_gelu:
        steps, zero, value = 255.0, 0, op("Add", rows, constant(GELU_FLOOR, np.float32))
        largest = op("ReduceMax", value, axes=[-1], keepdims=1)
    else:
        steps, zero, value = 127.0, 128, rows
        largest = op("ReduceMax", op("Abs", rows), axes=[-1], keepdims=1)
    # A row of zeros gives integers without meaning, which its scale of zero turns into zeros again.
    small = op("Mul", value, op("Div", constant(steps, np.float32), largest))
    name = constant(zero, np.uint8)
    # One operator rounds, shifts and narrows: it was faster than three.
    return Rows(op("QuantizeLinear", small, constant(1.0, np.float32), name), largest, name, steps)


def integer_product(op: Op, constant: Constant, rows: Rows, weights: str, scale: str, width: int) -> str:
    """Adds the product of rows and int8 `weights` (inputs, width) with `scale` (width,)."""
    step, nothing = constant(1 / rows.steps, np.float32), constant(np.zeros(width), np.int8)
    product = op("MatMulIntegerToFloat", rows.numbers, weights, step, scale, rows.zero, nothing, domain=MICROSOFT)
    return op("Mul", product, rows.largest)


def columns(weights: Array) -> tuple[Array, Array]:
    """Weights (inputs, outputs) as int8, and a scale per output."""
    size = np.abs(weights)
    # 255 * (|a| + |b|) <= 32767 for neighbours a and b: |a| + |b| <= 128 after scaling; 127 leaves room for rounding.
    pairs = (size[0::2] + size[1::2]).max(0) / np.float32(127)
    scale = np.maximum(np.maximum(size.max(0) / np.float32(127), pairs), np.float32(1e-12)).astype(np.float32)
    return np.rint(weights / scale).astype(np.int8), scale
