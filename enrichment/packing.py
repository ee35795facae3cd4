"""Packs texts without padding: the input format of the full profile's graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from enrichment.encoder import Floats, Integers

__all__ = ["GROUP", "HIDDEN", "packed", "whole"]

HIDDEN: Final = np.float32(np.finfo(np.float32).min / 2)
"""Added to an attention score to mask a token; half of the minimum, so that sums stay finite."""

GROUP: Final = 32
"""Attention sums are computed in groups of this size, so that trailing groups of masked tokens do not change a sum.

With texts padded to whole groups, a text's sums do not depend on the longest text.
"""


def packed(texts: Sequence[Integers], longest: int | None = None) -> dict[str, Integers | Floats]:
    """The inputs of a graph for non-empty texts of token ids.

    ids and positions (tokens,): all texts concatenated; place (texts, length): the index of each text's tokens in them;
    back (tokens,): the inverse of place; mask (texts, 1, 1, length): 0 or `HIDDEN`. `longest` is the length of the
    longest text if it is not among these.
    """
    lengths = np.asarray([len(text) for text in texts])
    inside = np.arange(whole(longest or int(lengths.max()))) < lengths[:, None]
    place = np.zeros(inside.shape, np.int64)
    place[inside] = np.arange(lengths.sum())
    return {
        "ids": np.concatenate(texts),
        "positions": np.concatenate([np.arange(length) for length in lengths]),
        "place": place,
        "back": np.flatnonzero(inside),
        "mask": np.where(inside, np.float32(0), HIDDEN)[:, None, None, :],
    }


def whole(count: int, group: int = GROUP) -> int:
    """A number of tokens, rounded up to whole groups."""
    return -(-count // group) * group
