"""Concatenates texts without padding, as inputs for the graphs of the full profile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from enrichment.encoder import Floats, Integers
from enrichment.errors import BundleInvalid
from enrichment.session import ort

__all__ = ["GROUP", "HIDDEN", "check_inputs", "packed", "whole"]

_INPUTS: Final = frozenset({"ids", "positions", "rows", "back", "mask"})  # of a graph for texts, as `packed` gives them

HIDDEN: Final = np.float32(np.finfo(np.float32).min / 2)
"""Added to an attention score, it masks a token; half of the minimum, so that sums stay finite."""

GROUP: Final = 32
"""Attention adds numbers in groups of this size, so appending groups of masked tokens changes no sum.

If texts are padded to whole groups, a text's sums do not depend on the longest text.
"""


def check_inputs(session: ort.InferenceSession, path: Path) -> None:
    """Raises BundleInvalid if the graph at `path` does not take what `packed` gives: graphs of older bundles do not."""
    if {value.name for value in session.get_inputs()} != _INPUTS:
        raise BundleInvalid(f"{path} takes other inputs than we give; rebuild the bundle")


def packed(texts: Sequence[Integers], longest: int | None = None) -> dict[str, Integers | Floats]:
    """The inputs of a graph for texts of token ids, none of which may be empty.

    ids and positions (tokens,): all texts concatenated; rows (length, texts): the index of each text's tokens in them;
    back (tokens,): their index in (texts * length,); mask (texts, 1, 1, length): 0 or `HIDDEN`. `longest` overrides the
    length to pad to.
    """
    lengths = np.asarray([len(text) for text in texts])
    inside = np.arange(whole(longest or int(lengths.max()))) < lengths[:, None]
    rows = np.zeros(inside.shape[::-1], np.int64)
    rows.T[inside] = np.arange(lengths.sum())
    return {
        "ids": np.concatenate(texts),
        "positions": np.concatenate([np.arange(length) for length in lengths]),
        "rows": rows,
        "back": np.flatnonzero(inside),
        "mask": np.where(inside, np.float32(0), HIDDEN)[:, None, None, :],
    }


def whole(count: int, group: int = GROUP) -> int:
    """A number of tokens, rounded up to whole groups."""
    return -(-count // group) * group
