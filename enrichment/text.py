"""From a ticket to the text that the models read: joining, sentences, and batches of about equal length."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["CJK", "MAX_CHARACTERS", "Sentence", "micro_batches", "sentences", "ticket_text", "word_count"]

# Four windows of the encoder hold about 1,000 tokens, 5,000 characters of prose. What lies far behind is cut before
# anything else sees it, so that a body of 1 MB costs no more than a page.
MAX_CHARACTERS: Final = 32_768

# A full stop behind these never ends a sentence; behind the next ones not before a number; behind the last ones not
# before a small letter, even where the writer uses no capitals at all.
_TITLE: Final = re.compile(r"mr|mrs|ms|dr|prof|st|vs|dept|approx|ca|cf|eg|ie|e\.g|i\.e|z\.b|d\.h|u\.a|bzw")
_BEFORE_NUMBER: Final = re.compile(
    r"no|nr|art|fig|pp?|par|sec|vol|ver|v|ext|tel|est|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|"
    r"mon|tues?|wed|thu(?:rs?)?|fri|sat|sun"
)
_BEFORE_SMALL: Final = re.compile(r"etc|inc|ltd|co|corp|llc|plc|[js]r|[ap]\.?m|u\.[ks]|min|max|incl|excl")
_MONTH: Final = re.compile(r"(?:jan|feb|mar|mär|apr|may|mai|jun|jul|aug|sep|o[ck]t|nov|de[cz])", re.IGNORECASE)
_IDENTIFIER: Final = re.compile(r"[a-z]+[A-Z\d]")  # "iPhone", "v2": no small letter makes a sentence go on
# Chinese and Japanese put no spaces between words: there every character counts as one.
CJK: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# A sentence ends at a line's end, or at closing punctuation before white space.
_END: Final = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”）]*|\n\s*")
_WORD: Final = re.compile(rf"[{CJK}]|[^\W{CJK}]+(?:['’-][^\W{CJK}]+)*")
_ITEM: Final = re.compile(r"[-*•·>#|+]|\(?\w{1,2}[.)]\s|[\w ]{1,24}:(?:\s|$)")
_LOOK_BACK: Final = 200  # characters: more than any abbreviation or parenthesis needs, and no search is quadratic


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
    """Number of words, digits included; of Chinese and Japanese the number of characters."""
    return sum(1 for _ in _WORD.finditer(text))


def sentences(text: str, start: int = 0) -> list[Sentence]:
    """The sentences of `text` from `start` on, in order; never inside a word, never empty.

    A line's end closes a sentence, unless a mail program wrapped the line there.
    """
    found: list[Sentence] = []
    width = _wrap_width(text, start)
    begin = start
    for match in _END.finditer(text, start):
        if _ends_line(text, match, width) if match[0][0] == "\n" else _ends_sentence(text, begin, match):
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
    mark = match[0]
    if mark[0] in "。！？":
        return True
    before = text[max(begin, match.start() - _LOOK_BACK) : match.start()]
    following = text[match.end() : match.end() + _LOOK_BACK].lstrip()
    small = following[:1].islower() and _IDENTIFIER.match(following) is None
    if mark[-1] == ")" and before.rfind("(") > before.rfind(")") and before.lstrip()[:1] != "(":
        return False  # "the jacket (it is lovely!) that I bought"
    if mark[-1] not in ".!?…" and small:
        return False  # "'Try again!' it says"
    if mark[0] in "!?":
        return True
    # What goes on in small letters is seldom a new sentence, unless the writer uses no capitals at all.
    if small and text[begin : begin + _LOOK_BACK].lstrip()[:1].isupper():
        return False
    return mark != "." or not _abbreviates(before, following)


def _abbreviates(before: str, following: str) -> bool:
    word = (before.rsplit(maxsplit=1) or [""])[-1].lstrip("(\"'")
    if word == before.strip() and re.fullmatch(r"\d{1,3}|[^\W\d_]", word):
        return True  # the mark of an item: "1.", "b."
    lowered = word.lower()
    return (
        _TITLE.fullmatch(lowered) is not None
        or (len(word) == 1 and word.isupper() and word != "I")  # "J. Smith"
        or (following[:1].isdigit() and _BEFORE_NUMBER.fullmatch(lowered) is not None)
        or (following[:1].islower() and _BEFORE_SMALL.fullmatch(lowered) is not None)
        or (word.isdecimal() and len(word) <= 2 and _MONTH.match(following) is not None)  # "am 3. Mai"
    )


def _wrap_width(text: str, start: int) -> int:
    """The column at which the text's lines were wrapped, 0 where they were not."""
    lengths = [len(line.rstrip()) for line in text[start:].split("\n")]
    width = max(lengths)
    return width if 50 <= width <= 100 and sum(length > 0.75 * width for length in lengths) > 1 else 0


def _ends_line(text: str, match: re.Match[str], width: int) -> bool:
    """Whether the writer ended the line there: when the next word would have had room, or begins something new."""
    if not width or match[0].count("\n") > 1:
        return True
    line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()].rstrip()
    following = text[match.end() : match.end() + 100]
    word = following.split(maxsplit=1)[0] if following.strip() else ""
    return line.endswith(":") or len(line) + 1 + len(word) <= width or _ITEM.match(following) is not None


def _append(found: list[Sentence], text: str, begin: int, end: int) -> None:
    piece = text[begin:end]
    stripped = piece.strip()
    if stripped and _WORD.search(stripped):
        offset = begin + len(piece) - len(piece.lstrip())
        found.append(Sentence(offset, offset + len(stripped)))
