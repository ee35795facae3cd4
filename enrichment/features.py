"""Lexical features: counts of words, phrases and punctuation, which the classifiers read with the encoder's output.

A sentence embedding hardly reflects "not", "but" and "third time"; these features count them. The word lists are data
(taxonomy.toml) and part of the bundle.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from enrichment.encoder import Floats
from enrichment.errors import BundleInvalid

__all__ = ["SURFACE", "LexicalFeatures"]

_TOKEN: Final = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+|[.!?;:,\n]")
_CONTRASTS: Final = frozenset({"but", "however", "although", "though", "except", "unfortunately", "yet"})
_NEGATION_REACH: Final = 4  # words: "not at all a good idea"
SURFACE: Final = (  # features of any text; one per group of phrases follows
    "positive",
    "negative",
    "negated_positive",
    "negated_negative",
    "negators",
    "intensifiers",
    "contrasts",
    "balance",
    "last",
    "after_contrast",
    "exclamations",
    "questions",
    "words",
    "capitals",
    "shouting",
    "digits",
)


class LexicalFeatures:
    """Computes the lexical features of a text; the vector's length and order are fixed by the word lists."""

    def __init__(self, lexicon: Mapping[str, Sequence[str]], groups: Mapping[str, Sequence[str]]) -> None:
        self._positive = frozenset(lexicon["positive"])
        self._negative = frozenset(lexicon["negative"])
        self._negators = frozenset(lexicon["negators"])
        self._intensifiers = frozenset(lexicon["intensifiers"])
        self._groups = {name: _pattern(phrases) for name, phrases in sorted(groups.items()) if phrases}
        self.names = (*SURFACE, *self._groups)

    @classmethod
    def from_file(cls, path: Path) -> LexicalFeatures:
        """Reads the word lists of a bundle. Raises BundleInvalid."""
        try:
            data: dict[str, Any] = json.loads(path.read_bytes())
            return cls(data["lexicon"], data["groups"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise BundleInvalid(f"{path} holds no word lists ({error!r}); rebuild the bundle") from error

    def features(self, text: str) -> Floats:
        """The vector of a text, shape (len(names),): logarithms of counts, shares and signs, all of order 1."""
        text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        lowered = text.lower()
        surface = self._surface(text, lowered)
        groups = [math.log1p(len(pattern.findall(lowered))) for pattern in self._groups.values()]
        return np.asarray([*surface, *groups], np.float32)

    def _surface(self, text: str, lowered: str) -> list[float]:
        positive = negative = negated_positive = negated_negative = negators = intensifiers = contrasts = words = 0
        last = after_contrast = reach = 0
        for token in _TOKEN.findall(lowered):
            if not token[0].isalnum():
                reach = 0
                continue
            words += 1
            if token in self._negators or token.endswith("n't"):
                negators += 1
                reach = _NEGATION_REACH
                continue
            if token in _CONTRASTS:
                contrasts += 1
                after_contrast = 0
            intensifiers += token in self._intensifiers
            sign = (token in self._positive) - (token in self._negative)
            if sign:
                negated = reach > 0
                positive += sign > 0 and not negated
                negative += sign < 0 and not negated
                negated_positive += sign > 0 and negated
                negated_negative += sign < 0 and negated
                last = -sign if negated else sign
                after_contrast += last if contrasts else 0
            reach -= 1
        found = positive + negative + negated_positive + negated_negative
        balance = (positive + 0.5 * negated_negative - negative - negated_positive) / (found + 1)
        letters = sum(map(str.isalpha, text)) + 1
        capitals = sum(map(str.isupper, text)) / letters
        shouting = sum(1 for word in text.split() if len(word) > 2 and word.isupper())
        counts = (positive, negative, negated_positive, negated_negative, negators, intensifiers, contrasts)
        return [
            *map(math.log1p, counts),
            balance,
            float(last),
            math.tanh(after_contrast),
            math.log1p(text.count("!")),
            math.log1p(text.count("?")),
            math.log1p(words),
            capitals,
            math.log1p(shouting),
            math.log1p(sum(map(str.isdigit, text))),
        ]


def _pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    # Longest first, so that the longer of two phrases that start at the same position counts; * matches any ending.
    parts = sorted({phrase.lower() for phrase in phrases}, key=lambda phrase: (-len(phrase), phrase))
    body = "|".join(re.escape(part).replace(r"\*", r"\w*").replace(r"\ ", r"\s+") for part in parts)
    return re.compile(rf"(?<!\w)(?:{body})(?!\w)")
