"""Weights on their way into hand-built graphs: linear layers, and tensors that several graphs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from enrichment.export.graph import Array
from enrichment.export.quantize import columns

__all__ = ["Linear", "Precision", "Shared", "word_arrays"]

Precision = Literal["int8", "fp32"]
_ALIGNMENT: Final = 4096  # ONNX Runtime maps external data that begins at a page


@dataclass(frozen=True)
class Linear:
    """A product: `weights` (inputs, outputs) and `bias` (outputs,)."""

    weights: Array
    bias: Array

    @classmethod
    def read(cls, state: Mapping[str, Array], *names: str) -> Linear:
        """The layers of these names, side by side; torch stores them transposed."""
        weights = np.concatenate([state[f"{name}.weight"].T for name in names], axis=1)
        return cls(weights, np.concatenate([state[f"{name}.bias"] for name in names]))

    def part(self, begin: int, end: int) -> Linear:
        """Some of its outputs."""
        return Linear(self.weights[:, begin:end], self.bias[begin:end])


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
