"""Weights on their way into hand-built graphs: linear layers, and tensors that several graphs share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from enrichment.export.graph import Array
from enrichment.export.quantize import columns

__all__ = ["Attention", "Linear", "Precision", "Shared", "word_arrays"]

Precision = Literal["int8", "fp32"]
_ALIGNMENT: Final = 4096  # ONNX Runtime maps external data that begins at a page


@dataclass(frozen=True)
class Linear:
    """A product: `weights` (inputs, outputs) and `bias` (outputs,)."""

    weights: Array
    bias: Array

    @classmethod
    def read(cls, state: Mapping[str, Array], name: str) -> Linear:
        """The layer of this name; torch stores weights transposed."""
        return cls(np.ascontiguousarray(state[f"{name}.weight"].T), state[f"{name}.bias"])


@dataclass(frozen=True)
class Attention:
    """The projections of an attention, rewritten so that keys and values have no bias.

    The keys' bias adds the same number to all scores of a query, which changes no share. The shares add up to 1, so the
    values' bias can be part of the output's. The scale of the scores is part of the query.
    """

    query: Linear
    key: Array
    value: Array
    output: Linear

    @classmethod
    def read(cls, state: Mapping[str, Array], names: Sequence[str], heads: int) -> Attention:
        """The layers of these four names: query, key, value and output."""
        query, key, value, output = (Linear.read(state, name) for name in names)
        scale = np.float32(1 / math.sqrt(len(query.bias) // heads))
        return cls(
            Linear(query.weights * scale, query.bias * scale),
            key.weights,
            value.weights,
            Linear(output.weights, output.bias + value.bias @ output.weights),
        )


@dataclass(frozen=True)
class Shared:
    """A tensor in a file beside the graphs: `name` of the file, its place there, type and shape.

    Several graphs read it, and it is stored once.
    """

    file: str
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def write(cls, folder: Path, name: str, arrays: Sequence[Array]) -> list[Shared]:
        """Writes arrays into one file, each at the beginning of a page."""
        parts = []
        with (folder / name).open("wb") as file:
            for array in arrays:
                file.write(bytes(-file.tell() % _ALIGNMENT))
                parts.append(cls(name, file.tell(), array.dtype, array.shape))
                file.write(np.ascontiguousarray(array).tobytes())
        return parts


def word_arrays(words: Array, precision: Precision) -> list[Array]:
    """An embedding table (vocabulary, width) as graphs share it; in int8 with a scale per word."""
    if precision == "fp32":
        return [words.astype(np.float32)]
    numbers, scale = columns(np.ascontiguousarray(words.T))
    return [np.ascontiguousarray(numbers.T), scale]
