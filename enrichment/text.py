"""From a ticket to the text that the models read: joining, sentences, and batches of about equal length."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["MAX_CHARACTERS", "Sentence", "micro_batches", "sentences", "ticket_text", "word_count"]

# Four windows of the encoder hold about 1,000 tokens, 5,000 characters of prose. What lies far behind is cut before
# the tokenizer sees it, so that a body of 1 MB costs no more than a page.
MAX_CHARACTERS: Final = 32_768

_ABBREVIATIONS: Final = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "st",
        "vs",
        "etc",
        "inc",
        "ltd",
        "co",
        "corp",
        "no",
        "nr",
        "approx",
        "dept",
        "est",
        "fig",
        "gen",
        "sr",
        "jr",
        "eg",
        "ie",
        "e.g",
        "i.e",
        "a.m",
        "p.m",
        "am",
        "pm",
        "jan",
        "feb",
        "mar",
        "apr",
        "jun",
        "jul",
        "aug",
        "sep",
        "sept",
        "oct",
        "nov",
        "dec",
        "mon",
        "tue",
        "wed",
        "thu",
        "fri",
        "sat",
        "sun",
    ]
)
# A sentence ends at a line's end, or at closing punctuation before white space.
_END: Final = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+|\n+")
_WORD: Final = re.compile(r"\w+(?:['’-]\w+)*")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A span of a text: `text[start:end]`, without white space around it."""

    start: int
    end: int


def ticket_text(subject: str, body: str) -> tuple[str, int]:
    """The text that all models read, and where in it the body begins (in characters).

    Subject and body are joined by ". ", by a space where the subject ends a sentence itself; one alone stands alone.
    """
    subject, body = subject.strip(), body.strip()
    if not subject or not body:
        return subject + body, len(subject)
    joiner = " " if subject[-1] in ".!?" else ". "
    return subject + joiner + body, len(subject) + len(joiner)


def word_count(text: str) -> int:
    """Number of words, digits included."""
    return sum(1 for _ in _WORD.finditer(text))


def sentences(text: str, start: int = 0) -> list[Sentence]:
    """The sentences of `text` from `start` on, in order; never inside a word, never empty."""
    found: list[Sentence] = []
    begin = start
    for match in _END.finditer(text, start):
        if text[match.start()] == "." and not _ends_sentence(text, begin, match):
            continue
        _append(found, text, begin, match.end())
        begin = match.end()
    _append(found, text, begin, len(text))
    return found


def micro_batches(lengths: Sequence[int], rows: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Groups indices by length so that rows times the longest length stays within `budget` tokens.

    `lengths[i]` is the length of item i's longest row, `rows[i]` how many rows it has. An item too big for the
    budget comes alone. Longest first: the memory arena then reaches its final size at once instead of growing
    (https://github.com/microsoft/onnxruntime/issues/11627).
    """
    batch: list[int] = []
    longest = count = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = max(longest, lengths[index])
        if batch and (count + rows[index]) * longest > budget:
            yield batch
            batch, longest, count = [], lengths[index], 0
        batch.append(index)
        count += rows[index]
    if batch:
        yield batch


def _ends_sentence(text: str, begin: int, match: re.Match[str]) -> bool:
    before = text[begin : match.start()].rsplit(maxsplit=1)
    word = before[-1].lower().lstrip("(\"'") if before else ""
    if word in _ABBREVIATIONS or re.fullmatch(r"\d{1,3}|[a-z]", word):
        return False  # "approx.", "1.", "J."
    following = text[match.end() : match.end() + 80].lstrip()
    # What goes on in lower case is seldom a new sentence, unless the writer uses no capitals at all.
    return not (following[:1].islower() and text[begin : begin + 60].lstrip()[:1].isupper())


def _append(found: list[Sentence], text: str, begin: int, end: int) -> None:
    piece = text[begin:end]
    stripped = piece.strip()
    if stripped and _WORD.search(stripped):
        offset = begin + len(piece) - len(piece.lstrip())
        found.append(Sentence(offset, offset + len(stripped)))
