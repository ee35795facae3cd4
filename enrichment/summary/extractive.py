"""A summary made of the ticket's own sentences.

Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) over sentence vectors that come from the same encoder
pass as the embedding: near to the whole ticket, unlike what was chosen already, in the order of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from enrichment.encoder import Floats
from enrichment.summary.boilerplate import is_boilerplate, matter_end, plain
from enrichment.text import Sentence, sentences, ticket_text, word_count

__all__ = ["Outline", "closed", "outline", "summarize"]

_NOVELTY: Final = 0.45  # weight of "says something new" against "stands close to the whole"
_LEAD: Final = 0.05  # the first sentences of a ticket state the matter more often than the last


@dataclass(frozen=True, slots=True)
class Outline:
    """A ticket as the summary sees it: the text, and its candidate sentences."""

    text: str
    subject: str
    sentences: tuple[Sentence, ...]
    words: int


def outline(subject: str, body: str) -> Outline:
    """The candidate sentences of a ticket, as spans of its joined text; boilerplate is left out."""
    text, begin = ticket_text(subject, body)
    end = begin + matter_end(text[begin:])
    candidates = [s for s in sentences(text[:end], begin) if not is_boilerplate(text[s.start : s.end])]
    return Outline(text, subject.strip(), tuple(candidates), word_count(text[begin:]))


def summarize(
    ticket: Outline,
    embedding: Floats,
    vectors: Floats,
    *,
    max_tokens: int,
    min_words: int,
    count_tokens: Callable[[str], int],
) -> str:
    """The summary, at most `max_tokens` tokens; `vectors` (sentences, dimensions) are those of `ticket.sentences`.

    A body under `min_words` words is summarised by its subject, or by itself where there is no subject.
    """
    texts = [plain(ticket.text[s.start : s.end]) for s in ticket.sentences]
    read = [i for i, text in enumerate(texts) if text and vectors[i].any()]
    if ticket.subject and (ticket.words < min_words or not read):
        return closed(_fit(" ".join(ticket.subject.split()), max_tokens, count_tokens))
    if not read:
        return closed(_fit(" ".join(ticket.text.split()), max_tokens, count_tokens))
    chosen: list[int] = []
    left = max_tokens
    relevance = vectors @ embedding + _LEAD / (1 + np.arange(len(texts)))
    costs = {i: count_tokens(closed(texts[i])) for i in read}
    while candidates := [i for i in read if i not in chosen and costs[i] <= left]:
        redundancy = {i: max((float(vectors[i] @ vectors[j]) for j in chosen), default=0.0) for i in candidates}
        best = max(candidates, key=lambda i: float(relevance[i]) - _NOVELTY * redundancy[i])
        if chosen and redundancy[best] > 0.9:
            break
        chosen.append(best)
        left -= costs[best]
    if not chosen:  # every sentence is longer than the summary may be: the beginning of the nearest
        best = max(read, key=lambda i: float(relevance[i]))
        return closed(_fit(texts[best], max_tokens, count_tokens))
    return " ".join(closed(texts[i]) for i in sorted(chosen))


def closed(text: str) -> str:
    """The text, stripped, with a full stop where it ends in none of `. ! ?` already."""
    text = text.strip()
    return text if not text or text[-1] in ".!?" else text + "."


def _fit(text: str, max_tokens: int, count_tokens: Callable[[str], int]) -> str:
    """As many whole words from the beginning as fit; a single word that is too long gives an empty text."""
    if count_tokens(closed(text[:2000])) <= max_tokens and len(text) <= 2000:
        return text
    ends = [match.end() for match in re.finditer(r"\S+", text[:2000])]
    low, high = 0, min(len(ends), max_tokens)  # a word has at least one token
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if count_tokens(closed(text[: ends[middle - 1]])) <= max_tokens else (low, middle - 1)
        )
    return text[: ends[low - 1]].rstrip(" ,;:-–—") if low else ""
