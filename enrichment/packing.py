"""Texts one behind the other, without padding: what the graphs of the full profile take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from enrichment.encoder import Floats, Integers

__all__ = ["GROUP", "HIDDEN", "packed", "whole"]

HIDDEN: Final = np.float32(np.finfo(np.float32).min / 2)
"""Added to a score of attention it hides a token; halved, so that sums of it stay finite."""

GROUP: Final = 32
"""Attention sums in groups of so many numbers: whole groups of hidden ones that follow change no sum.

Padded to whole groups, a text's sums do not depend on the longest text.
"""


def packed(texts: Sequence[Integers], longest: int | None = None) -> dict[str, Integers | Floats]:
    """The inputs of a graph for some texts of token ids, none of them empty.

    ids and positions (tokens,), all texts one behind the other; place (texts, length), where each text's tokens stand
    in them; back (tokens,), the way back; mask (texts, 1, 1, length), 0 or `HIDDEN`. `longest` is the length of the
    longest text, where that is none of these.
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
    """A number of tokens, filled up to whole groups."""
    return -(-count // group) * group
