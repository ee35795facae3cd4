"""Words, sentences and paragraphs of a text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["CJK", "UNSPACED", "Sentence", "sentences", "unwrapped", "word_count"]

# Chinese and Japanese put no spaces between words: there every character counts as one. Neither do Thai, Lao, Burmese
# and Khmer, whose words have some four characters.
CJK: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
UNSPACED: Final = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_MARKS: Final = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff\u200c\u200d"  # vowel signs are no \\w to Python

# A full stop after these never ends a sentence; after the next ones not before a number; after the third not before a
# small letter, even where the writer uses no capitals at all.
_TITLE: Final = re.compile(
    r"mrs?|ms|mx|dr|prof|st|mt|ft|sgt|lt|col|gen|capt|rev|hon|sen|rep|gov|vs|dept|approx|ca|cf|eg|ie|al|resp|mme|"
    r"mlle|sra?|dra|hr|"
    r"ing|dipl|bzgl|bzw|evtl|ggf|inkl|zzgl|vgl|bsp|messrs"
)
_BEFORE_NUMBER: Final = re.compile(
    r"nos?|nr|art|figs?|pp?|pgs?|par|secs?|ch|vol|ver|v|ext|tel|est|eq|ref|inv|jan|feb|mar|apr|jun|jul|aug|sept?|oct|"
    r"nov|dec|"
    r"mon|tues?|wed|thu(?:rs?)?|fri|sat|sun|abs|str|num|núm|tél"
)
_BEFORE_SMALL: Final = re.compile(
    r"etc|usw|inc|ltd|co|corp|llc|plc|bros|[js]r|[ap]\.?m|u\.[ks]|min|max|mins|hrs?|secs?|incl|excl|mon|tues?|wed|"
    r"thu(?:rs?)?|fri|sat|sun|"
    r"jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|no|std|tel|abs|nr|mio|mrd|gmbh|st|ave|rd|blvd"
)
# Names go on after these ("the U.S. Government", "Acme Inc. Berlin"), unless the next word begins sentences only.
_INITIALS: Final = re.compile(r"(?:[A-Z]\.){1,5}[A-Z]|Inc|Ltd|Co|Corp|Bros|Jr|Sr|[a-z]\.[a-z](?<![ap]\.m)")
_STARTERS: Final = frozenset(
    "a after all also although an and any are as at because before both but can could did do does each everyone for "
    "from "
    "has have he her here his how however i i'd i'll i'm i've if in is it it's its just last let maybe my next "
    "nobody no none nothing "
    "now on once only or our please she should since so some sorry still such thank thanks that that's the their "
    "then there "
    "these they this those though to today unfortunately until was we we'd we'll we're we've were what when where "
    "which "
    "while who why will with would yes yesterday you your".split()
)
_MONTH: Final = re.compile(r"(?:jan|feb|mar|mär|apr|may|mai|jun|jul|aug|sep|o[ck]t|nov|de[cz])", re.IGNORECASE)
_IDENTIFIER: Final = re.compile(r"[a-z]++[A-Z\d]")  # "iPhone", "v2": no small letter makes a sentence go on
# A sentence ends at a line's end, or at closing punctuation before white space. A run of marks is tried once, at its
# first: a search that begins again at each mark is quadratic.
_END: Final = re.compile(r"(?<![.!?…؟۔।॥])[.!?…؟۔।॥]++[\"'”’»)\]]*+(?=\s)|[。！？]++[」』”）]*+|\n\s*+")
# No letter that begins the third alternative is of a script without spaces: the first two match those.
_WORD: Final = re.compile(
    rf"[{CJK}]|[{UNSPACED}]{{1,4}}|\w[\w{_MARKS}]*+(?>(?:['’-][^\W{CJK}{UNSPACED}][\w{_MARKS}]*+)*)"
)
_ITEM: Final = re.compile(r"[-*•·>#|+]|\(?\w{1,2}[.)]\s|[\w ]{1,24}:(?:\s|$)")
_LOOK_BACK: Final = 200  # characters: more than any abbreviation or parenthesis needs, and no search is quadratic


@dataclass(frozen=True, slots=True)
class Sentence:
    """A span of a text: `text[start:end]`, without white space around it."""

    start: int
    end: int


def word_count(text: str) -> int:
    """Number of words, digits included; of Chinese and Japanese the number of characters."""
    return sum(1 for _ in _WORD.finditer(text))


def unwrapped(lines: Sequence[str]) -> str:
    """One line per paragraph: lines that a mail program wrapped are joined by a space, blank ones left out."""
    width = _wrap_width(lines)
    paragraphs: list[list[str]] = []
    previous = ""
    for line in lines:
        if line and previous and _goes_on(previous, line, width):
            paragraphs[-1].append(line)
        elif line:
            paragraphs.append([line])
        previous = line
    return "\n".join(" ".join(paragraph) for paragraph in paragraphs)


def sentences(text: str, start: int = 0) -> list[Sentence]:
    """The sentences of `text` from `start` on, in order; never inside a word, never empty.

    A line's end closes a sentence.
    """
    found: list[Sentence] = []
    begin = start
    for match in _END.finditer(text, start):
        if match[0][0] == "\n" or _ends_sentence(text, begin, match):
            _append(found, text, begin, match.end())
            begin = match.end()
    _append(found, text, begin, len(text))
    return found


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
    if mark[0] in "!?؟۔।॥":
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
        or (_INITIALS.fullmatch(word) is not None and not _starts_sentence(following))
        or (word.isdecimal() and len(word) <= 2 and _MONTH.match(following) is not None)  # "am 3. Mai"
    )


def _starts_sentence(following: str) -> bool:
    word = re.match(r"[A-Z][\w'’]{0,20}+", following)
    return word is not None and word[0].lower().replace("’", "'") in _STARTERS


def _wrap_width(lines: Sequence[str]) -> int:
    """The column at which lines were wrapped, 0 where they were not."""
    width = max(map(len, lines), default=0)
    return width if 50 <= width <= 100 and sum(len(line) > 0.75 * width for line in lines) > 1 else 0


def _goes_on(line: str, following: str, width: int) -> bool:
    """Whether a line goes on in the following one: when its first word had no room, and begins nothing new."""
    if not width or line.endswith(":") or len(line) + 1 + len(following[:200].split(maxsplit=1)[0]) <= width:
        return False
    return _ITEM.match(following) is None


def _append(found: list[Sentence], text: str, begin: int, end: int) -> None:
    piece = text[begin:end]
    stripped = piece.strip()
    if stripped and _WORD.search(stripped):
        offset = begin + len(piece) - len(piece.lstrip())
        found.append(Sentence(offset, offset + len(stripped)))
