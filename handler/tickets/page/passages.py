"""The text of a ticket as the models read it, with the sentences that its summary comes from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from enrichment.summary.extractive import outline, plain

__all__ = ["Passage", "passages"]

_WORD: Final = re.compile(r"\w+")
_ENOUGH: Final = 0.6  # share of the summary's words that a single sentence must have in common with it


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of the body; `is_source` if the summary comes from it."""

    text: str
    is_source: bool


def passages(subject: str, body: str, summary: str) -> list[Passage]:
    """The body as the models read it, in pieces: joined they are the whole.

    An extractive summary consists of sentences of the text, so these are its sources. If it contains none (it was
    generated, or one long sentence was shortened), the source is the sentence with the most words in common.
    """
    read = outline(subject, body)
    spans = [(s.start, s.end) for s in read.sentences]
    joined = _words(summary)
    sources = [span for span in spans if _is_part(_words(plain(read.text[slice(*span)])), joined)]
    if not sources and joined != _words(subject):
        shares = {span: _common(_words(read.text[slice(*span)]), joined) for span in spans}
        sources = [span for span in spans if shares[span] == max(shares.values()) >= _ENOUGH][:1]
    found, place = [], read.begin
    for begin, end in sources:
        found += [Passage(read.text[place:begin], is_source=False), Passage(read.text[begin:end], is_source=True)]
        place = end
    found.append(Passage(read.text[place:], is_source=False))
    return [passage for passage in found if passage.text]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _is_part(words: list[str], whole: list[str]) -> bool:
    return bool(words) and f" {' '.join(words)} " in f" {' '.join(whole)} "


def _common(words: list[str], summary: list[str]) -> float:
    return len(set(words) & set(summary)) / max(1, len(set(summary)))
