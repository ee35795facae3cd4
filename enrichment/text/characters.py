"""Characters: what a reader cannot see is removed, every kind of line end becomes a newline, references are decoded."""

from __future__ import annotations

import html
import re
from typing import Final

from enrichment.text.patterns import Pattern

__all__ = ["decoded", "visible"]

# Scripts whose spelling needs the zero-width joiner and non-joiner (Arabic and Persian, the Indic ones, Mongolian), and
# emoji, which the joiner combines. Anywhere else the two are filler.
_JOINING: Final = (
    "\u0600-\u06ff\u0750-\u077f\u0780-\u07bf\u07c0-\u07ff\u0860-\u08ff\u0900-\u0dff\u0e00-\u0eff\u0f00-\u109f"
    "\u1780-\u18af\u1900-\u1cff\ua840-\ua8ff\ua980-\uabff\ufb50-\ufdff\ufe0f\ufe70-\ufefc"
    "\u2190-\u21ff\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff"
)
_LINE_ENDS: Final = Pattern(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CONTROLS: Final = Pattern(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_INVISIBLE: Final = Pattern(
    # Soft hyphen, grapheme joiner, Hangul fillers, Mongolian vowel separator, zero-width space, marks of direction,
    # word joiner and invisible operators, byte order mark, interlinear marks.
    r"[\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164"
    r"\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e001f]++"
    rf"|(?<![{_JOINING}])[\u200c\u200d]|[\u200c\u200d](?![{_JOINING}])"
    # Tags belong to the flags of England, Scotland and Wales, and to nothing else.
    r"|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0020-\U000e007f]++"
)
# A name or number of any other length is text: Python's own html.unescape fails on a number of 4,301 digits.
_REFERENCE: Final = Pattern(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


def visible(text: str) -> str:
    """The text without characters that show nothing, with a newline as its only line end.

    Joiners stay within words of scripts that spell with them, and within emoji.
    """
    text = _CONTROLS.sub(" ", _LINE_ENDS.sub("\n", text))
    return text if text.isascii() else _INVISIBLE.sub("", text)


def decoded(text: str) -> str:
    """The text with character references (`&amp;`, `&#39;`, `&#x2019;`) replaced by what they stand for."""
    return _REFERENCE.sub(_character, text) if "&" in text else text


def _character(match: re.Match[str]) -> str:
    return html.unescape(match[0])
