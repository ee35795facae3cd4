"""Extractive summaries: a selection of the ticket's own sentences.

Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) over sentence vectors from the same encoder pass as the
embedding: sentences that are similar to the whole ticket and dissimilar to each other, in the order of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from enrichment.encoder import Floats
from enrichment.summary.merit import merit
from enrichment.text import MAX_CHARACTERS, Sentence, read_ticket, sentences, word_count
from enrichment.text.courtesy import is_boilerplate, without_greeting
from enrichment.text.sentences import CJK, UNSPACED

__all__ = ["Outline", "Summary", "beginning", "closed", "is_item", "outline", "plain", "summarize"]

_NOVELTY: Final = 0.35  # weight of redundancy against relevance
_LEAD: Final = 0.08  # bonus of the first sentences, which state the problem more often than the last ones
# Sentence vectors of one ticket are similar: their cosines with the whole range from 0.7 (an aside) to 0.98.
_ASIDE: Final = 0.2  # a sentence this much less similar than the most similar one is left out, even if it would fit
_NAMED: Final = 0.25  # bonus of sentences that share words with the subject, which names the problem
_SAME: Final = 0.94  # cosine from which two sentences say the same
_MAX_CHARACTERS: Final = 1000  # of a sentence: the encoder may read a very long word as one token
_ITEM: Final = 0.1  # penalty of a list item, which says little without its list
_ENDS: Final = ".!?。！？…"
_MARKS: Final = str.maketrans({"。": ".", "！": "!", "？": "?", "…": "..."})
_PIECE: Final = re.compile(rf"[{CJK}，、]|[{UNSPACED}](?>(?:[^\w\s{CJK}，、]|[ะาำๅ])*)|[^\s{CJK}{UNSPACED}，、]++")
_CLAUSE: Final = re.compile(r"[,;:–—](?=\s)|[，、]|\s-(?=\s)")
_LABEL: Final = re.compile(r"\s*+(?:[-*•·>#+]++|\(?(?:\d{1,2}|[a-z])[.)]|p\.? ?s\.?:?)\s++", re.IGNORECASE)
_PARTICLES: Final = re.compile(
    r"\b(?:about|after|again|also|been|before|cannot|could|does|doing|every|from|have|help|into|issue|just|like|more|"
    r"need|only|please|problem|question|request|since|some|still|than|that|their|them|there|these|they|this|urgent|"
    r"very|want|what|when|where|which|will|with|would|your)\b"
)
# Words and punctuation that a shortened text must not end with.
_DANGLING: Final = re.compile(
    r"(?>(?:[\s,;:–—(-]|\b(?:and|or|but|so|the|an?|to|of|in|on|at|by|for|from|with|that|which|who|because|if|when|as|is|are|"
    r"was|were|be|been|has|have|had|will|would|can|could|do|does|than|my|our|your|not|no|i|we|you|it|this))+)\Z",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary, and whether its model saw only the beginning of the text."""

    text: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class Outline:
    """A ticket as the summary sees it.

    `text` is what the models read, `begin` where the body begins in it; `sentences` are the candidates as spans of it,
    `words` is the length of the whole body, with what was left out; `cut` says that the body continues beyond what was
    read.
    """

    text: str
    begin: int
    subject: str
    sentences: tuple[Sentence, ...]
    words: int
    cut: bool

    @property
    def own_words(self) -> int:
        """The number of words in the body as the models read it."""
        return word_count(self.text[self.begin : MAX_CHARACTERS])


def outline(subject: str, body: str) -> Outline:
    """The candidate sentences of a ticket, as spans of its text; boilerplate is left out."""
    ticket = read_ticket(subject, body)
    text = ticket.text[:MAX_CHARACTERS]
    candidates = [s for s in sentences(text, ticket.begin) if not is_boilerplate(text[s.start : s.end])]
    return Outline(ticket.text, ticket.begin, ticket.subject, tuple(candidates), ticket.words, ticket.cut)


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

    If the body has fewer than `min_words` words, the summary is the subject, or the body if there is no subject.
    """
    texts = [plain(ticket.text[s.start : s.end]) for s in ticket.sentences]
    read = [i for i, text in enumerate(texts) if text and vectors[i].any()]
    whole = ""
    if not ticket.subject or ticket.words >= min_words:
        items = np.asarray([is_item(ticket.text[s.start : s.end]) for s in ticket.sentences], bool)
        costs = {i: count_tokens(_ended(texts[i])) for i in read if len(texts[i]) <= _MAX_CHARACTERS}
        lead = np.float32(_LEAD) / np.arange(1, len(texts) + 1, dtype=np.float32)
        merits = np.asarray([merit(text) for text in texts], np.float32)
        wanted = _stems(ticket.subject[:_MAX_CHARACTERS])
        named = np.asarray([_share_named(text, wanted) for text in texts], np.float32)
        near = vectors @ embedding
        relevance = near + np.where(items, np.float32(-_ITEM), lead) + merits + np.float32(_NAMED) * named
        whole = " ".join(_ended(texts[i]) for i in _choose(relevance, near, vectors, costs, max_tokens))
        if read and not whole:  # every sentence is too long: the beginning of the most relevant one
            nearest = max(read, key=lambda i: float(relevance[i]))
            whole = _fit(texts[nearest], max_tokens, count_tokens)
    return closed(whole or beginning(ticket, max_tokens, count_tokens))


def beginning(
    ticket: Outline, max_tokens: int, count_tokens: Callable[[str], int], *, subject_first: bool = True
) -> str:
    """The subject, or the body if that is empty, shortened to `max_tokens`; reversed unless `subject_first`."""
    texts = [ticket.subject, ticket.text[ticket.begin : MAX_CHARACTERS]]
    for text in texts if subject_first else reversed(texts):
        if fitting := _fit(" ".join(text.split()), max_tokens, count_tokens):
            return fitting
    return ""


def closed(text: str) -> str:
    """The text, stripped, ending in `.`, `!` or `?`; a full stop is added if necessary."""
    text = _ended(text)
    return text[:-1] + text[-1:].translate(_MARKS)


def plain(sentence: str) -> str:
    """A sentence without bullet, number, Markdown and greeting."""
    text = " ".join(sentence.replace("**", "").split())
    if match := _LABEL.match(text):
        text = text[match.end() :]
    return without_greeting(text)


def is_item(sentence: str) -> bool:
    """Whether a sentence is an item of a list."""
    return _LABEL.match(sentence) is not None


def _ended(text: str) -> str:
    text = text.strip().rstrip(",;:–— ")
    return text if not text or text[-1] in _ENDS else text + "."


def _choose(relevance: Floats, near: Floats, vectors: Floats, costs: dict[int, int], left: int) -> list[int]:
    """The selected sentences, in the order of the text.

    `near` is the cosine of each with the whole ticket, `relevance` the same with all bonuses; `costs` are their numbers
    of tokens, `left` is the maximum number of tokens.
    """
    chosen: list[int] = []
    redundancy = dict.fromkeys(costs, 0.0)
    floor = max((float(near[i]) for i in costs), default=0.0) - _ASIDE
    while candidates := [
        i
        for i, cost in costs.items()
        if i not in chosen and cost <= left and redundancy[i] <= _SAME and (near[i] >= floor or not chosen)
    ]:
        best = max(candidates, key=lambda i: float(relevance[i]) - _NOVELTY * redundancy[i])
        chosen.append(best)
        left -= costs[best]
        for i in costs:
            redundancy[i] = max(redundancy[i], float(vectors[i] @ vectors[best]))
    return sorted(chosen)


def _share_named(sentence: str, wanted: set[str]) -> float:
    """The share of the subject's words that a sentence contains, 0 to 1."""
    return min(1.0, len(wanted & _stems(sentence)) / min(3, len(wanted))) if wanted else 0.0


def _stems(text: str) -> set[str]:
    # Five letters distinguish "charged" from "chart" but not from "charge"; shorter words are mostly particles.
    return {word[:5] for word in re.findall(r"\w{4,}", _PARTICLES.sub(" ", text.lower()))}


def _fit(text: str, max_tokens: int, count_tokens: Callable[[str], int]) -> str:
    """As many words from the beginning as fit, shortened to the end of a clause if one is near.

    Empty if the first word is too long.
    """
    if len(text) <= _MAX_CHARACTERS and count_tokens(closed(text)) <= max_tokens:
        return text
    ends = [match.end() for match in _PIECE.finditer(text, 0, _MAX_CHARACTERS + 1) if match.end() <= _MAX_CHARACTERS]
    low, high = 0, min(len(ends), max_tokens)  # a word has at least one token
    while low < high:
        middle = (low + high + 1) // 2
        fits = count_tokens(closed(text[: ends[middle - 1]])) <= max_tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    cut = text[: ends[low - 1]] if low else ""
    clauses = [match.start() for match in _CLAUSE.finditer(cut) if match.start() >= len(cut) / 3]
    return _DANGLING.sub("", cut[: clauses[-1]] if clauses else cut) or cut
