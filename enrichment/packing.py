"""Texts one behind the other, without padding: what the graphs of the full profile take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from enrichment.encoder import Floats, Integers

__all__ = ["HIDDEN", "packed"]

HIDDEN: Final = np.float32(np.finfo(np.float32).min / 2)
"""Added to a score of attention it hides a token; halved, so that sums of it stay finite."""

# Attention sums in groups of so many numbers: padded to whole groups, a text's sums do not depend on the longest text.
_GROUP: Final = 32


def packed(texts: Sequence[Integers]) -> dict[str, Integers | Floats]:
    """The inputs of a graph for some texts of token ids, none of them empty.

    ids and positions (tokens,), all texts one behind the other; place (texts, length), where each text's tokens stand
    in them; back (tokens,), the way back; mask (texts, 1, 1, length), 0 or `HIDDEN`.
    """
    lengths = np.asarray([len(text) for text in texts])
    longest = -(-int(lengths.max()) // _GROUP) * _GROUP
    inside = np.arange(longest) < lengths[:, None]
    place = np.zeros(inside.shape, np.int64)
    place[inside] = np.arange(lengths.sum())
    return {
        "ids": np.concatenate(texts),
        "positions": np.concatenate([np.arange(length) for length in lengths]),
        "place": place,
        "back": np.flatnonzero(inside),
        "mask": np.where(inside, np.float32(0), HIDDEN)[:, None, None, :],
    }
