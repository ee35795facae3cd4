"""The int8 products of the full profile alone, as ONNX Runtime's kernels compute them: all else comes on top."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from enrichment.export.graph import MICROSOFT
from enrichment.session import make_session, ort

_VOCABULARY = 50_264
_STEPS = 47  # of 50 tokens the first two and the last are given


def _layer(width: int, wide: int) -> list[tuple[int, int]]:
    return [(width, 3 * width), (width, width), (width, wide), (wide, width)]


# (inputs, outputs) of what every token of a text goes through: MiniLM, DistilBERT, of whose last layer only keys and
# values, and BART's encoder, with the keys and values for its decoder.
_TEXTS = [
    *6 * _layer(384, 1536),
    *5 * _layer(768, 3072),
    (768, 2 * 768),
    *6 * _layer(1024, 4096),
    *12 * [(1024, 1024)],
]
_STEP = 6 * [*_layer(1024, 4096), (1024, 1024), (1024, 1024)] + [(1024, _VOCABULARY)]


def products(tokens: int, rows: int) -> Callable[[], None]:
    """Computes what a batch costs that has so many tokens in its texts, and so many rows in each step of decoding."""
    texts, step = _session(_TEXTS), _session(_STEP)
    read, decode = (partial(s.run, None, _rows(s, n)) for s, n in ((texts, tokens), (step, rows)))

    def run() -> None:
        read()
        for _ in range(_STEPS):
            decode()

    return run


def _rows(session: ort.InferenceSession, count: int) -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {i.name: random.integers(0, 256, (count, i.shape[1]), np.uint8) for i in session.get_inputs()}


def _session(shapes: list[tuple[int, int]]) -> ort.InferenceSession:
    """Every product has weights of its own, which come from memory as in a model, and is made of the same rows."""
    random = np.random.default_rng(0)
    nodes, results = [], []
    tensors = {
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
        nodes.append(helper.make_node("Slice", [product, "begin", "end"], [corner]))  # so that nothing large comes out
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
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "products.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        return make_session(path, threads=2)
