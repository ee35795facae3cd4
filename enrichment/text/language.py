"""The language of a text: naive Bayes over short byte sequences.

The table is a part of py3langid's model (enrichment/export/language.py): it loads in some 10 ms, at the first text.
"""

from __future__ import annotations

import math
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["detect"]

_MAX_BYTES: Final = 600  # of a text: a paragraph tells the language
_LONGEST: Final = 6  # bytes of a sequence in the table
_MIN_LETTERS: Final = 6  # in bytes: two characters of Chinese say as much as six letters
# A lower probability, or a second language close behind, says that the text is too short, or of no language at all.
_SURE: Final = 0.4
_LIKELY: Final = 0.2
_AHEAD: Final = 1.8


def detect(text: str) -> str | None:
    """The language as ISO 639-1, None where a text is too short to tell. Takes under 1 ms."""
    ranked = rank(text)
    if not ranked:
        return None
    (language, likely), (_, second) = ranked[:2]
    return language if likely >= _SURE or (likely >= _LIKELY and likely >= _AHEAD * second) else None


def rank(text: str) -> list[tuple[str, float]]:
    """All languages with their probabilities, the likeliest first; nothing for a text with hardly a letter."""
    text = " ".join(word for word in text[: 2 * _MAX_BYTES].split() if not _is_code(word))[:_MAX_BYTES]
    if sum(len(letter.encode("utf-8", "replace")) for letter in text if letter.isalpha()) < _MIN_LETTERS:
        return []
    if text.isupper():
        text = text.lower()
    data = unicodedata.normalize("NFC", f" {text} ").encode("utf-8", "replace")[:_MAX_BYTES]
    languages, numbers, weights = _table()
    counts: dict[int, int] = {}
    for end in range(1, len(data) + 1):
        for length in range(min(_LONGEST, end), 0, -1):  # the longest that ends here
            number = numbers.get(data[end - length : end])
            if number is not None:
                counts[number] = counts.get(number, 0) + 1
                break
    if not counts:
        return []
    rows = np.fromiter(counts, np.intp, len(counts))
    scores = np.log1p(np.fromiter(counts.values(), np.float32, len(counts))) @ weights[rows]
    # The square root keeps probabilities comparable over lengths, as in py3langid.
    powers = np.exp((scores - scores.max()) / math.sqrt(len(data)))
    return sorted(zip(languages, (powers / powers.sum()).tolist(), strict=True), key=lambda pair: -pair[1])


def _is_code(word: str) -> bool:
    """Whether a word is an address, a path, a number or an identifier rather than of a language."""
    return "/" in word or "@" in word or "_" in word or any(map(str.isdigit, word))


@cache
def _table() -> tuple[list[str], dict[bytes, int], npt.NDArray[np.float32]]:
    with np.load(Path(__file__).with_name("language.npz"), allow_pickle=False) as arrays:
        names: list[str] = arrays["languages"].tolist()
        joined, ends = arrays["sequences"].tobytes(), np.cumsum(arrays["lengths"]).tolist()
        weights: npt.NDArray[Any] = arrays["weights"].astype(np.float32) * arrays["scale"]
    return names, {joined[a:b]: number for number, (a, b) in enumerate(pairwise([0, *ends]))}, weights
