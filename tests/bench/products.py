"""Only the int8 matrix products of the full profile, computed by ONNX Runtime's kernels: a lower bound of its time.

They are distributed over the cores as in the product: each text on one thread, and the two halves of a batch decode in
parallel; with one beam, the whole batch uses both cores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from enrichment.export.graph import MICROSOFT
from enrichment.session import ParallelSession, make_session, ort

_VOCABULARY = 50_264
_STEPS = 47  # of 50 tokens, the first two and the last are forced


def _layer(width: int, wide: int) -> list[tuple[int, int]]:
    return [(width, 3 * width), (width, width), (width, wide), (wide, width)]


# (inputs, outputs) of the products for each token of a text: MiniLM, DistilBERT (of its last layer only keys and
# values), and BART's encoder with the keys and values for its decoder.
_TEXTS = [
    *6 * _layer(384, 1536),
    *5 * _layer(768, 3072),
    (768, 2 * 768),
    *6 * _layer(1024, 4096),
    *12 * [(1024, 1024)],
]
_STEP = 6 * [*_layer(1024, 4096), (1024, 1024), (1024, 1024)] + [(1024, _VOCABULARY)]


def products(lengths: Sequence[int], beams: int) -> Callable[[], None]:
    """A function that computes the products for a batch of texts of these lengths (in tokens) and number of beams."""
    halves = [len(lengths)] if beams == 1 else [len(lengths) // 2, len(lengths) - len(lengths) // 2]
    with tempfile.TemporaryDirectory() as folder:
        texts = ParallelSession(_graph(folder, _TEXTS), threads=2)
        step = make_session(_graph(folder, _STEP), threads=3 - len(halves))
    feeds = [_rows(texts.session, length) for length in lengths]
    pool = ThreadPoolExecutor(2)

    def read(part: slice, options: ort.RunOptions | None) -> None:
        for feed in feeds[part]:
            texts.session.run(None, feed, options)

    steps = [_rows(step, count * beams) for count in halves]

    def decode(rows: dict[str, Any]) -> None:
        for _ in range(_STEPS):
            step.run(None, rows)

    def run() -> None:
        texts.each(lengths, read)
        list(pool.map(decode, steps))

    return run


def _rows(session: ort.InferenceSession, count: int) -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {i.name: random.integers(0, 256, (count, i.shape[1]), np.uint8) for i in session.get_inputs()}


def _graph(folder: str, shapes: list[tuple[int, int]]) -> Path:
    """Every product has its own weights, which are read from memory as in a model; all use the same rows."""
    random = np.random.default_rng(0)
    nodes, results = [], []
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "zero": np.asarray(128, np.uint8),
        "one": np.asarray(1, np.float32),
        "begin": np.zeros(2, np.int64),
        "end": np.ones(2, np.int64),
    }
    for number, (inputs, outputs) in enumerate(shapes):
        weights, scale, product, corner = (f"{name}{number}" for name in ("w", "s", "p", "c"))
        tensors[weights] = random.integers(-63, 64, (inputs, outputs), np.int8)
        tensors[scale] = np.ones(outputs, np.float32)
        taken = [f"rows{inputs}", weights, "one", scale, "zero"]
        nodes.append(helper.make_node("MatMulIntegerToFloat", taken, [product], domain=MICROSOFT))
        nodes.append(helper.make_node("Slice", [product, "begin", "end"], [corner]))  # so that outputs are small
        results.append(corner)
    nodes.append(helper.make_node("Concat", results, ["out"], axis=0))
    graph = helper.make_graph(
        nodes,
        "products",
        [
            helper.make_tensor_value_info(f"rows{width}", TensorProto.UINT8, ["rows", width])
            for width in sorted({inputs for inputs, _ in shapes})
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    path = Path(folder) / f"{len(shapes)}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path
