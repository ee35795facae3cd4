"""HTML in the bodies of mails: blanked out, so that positions stay what they were."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["without_markup"]

# Only what HTML knows is a tag: "<Enter>", "List<String>" and "<ann@example.com>" are words of the writer.
_TAG: Final = re.compile(
    r"</?(?:a|abbr|address|article|b|big|blockquote|body|br|button|center|code|col|colgroup|dd|div|dl|dt|em|figure|font|"
    r"footer|form|h[1-6]|head|header|hr|html|i|img|input|label|li|link|main|meta|nav|ol|p|pre|s|section|small|span|"
    r"strike|strong|style|script|sub|sup|table|tbody|td|tfoot|th|thead|title|tr|tt|u|ul|\w{1,4}:\w{1,12})"
    r"(?:\s[^<>]{0,2000}=[^<>]{0,2000}|\s+\w+)?\s*/?>|<!--.{0,2000}?-->|<![a-z][^<>]{0,2000}>",
    re.IGNORECASE | re.DOTALL,
)
_BLOCK: Final = re.compile(
    r"</?(?:address|article|blockquote|body|br|dd|div|dl|dt|footer|h[1-6]|header|hr|html|li|ol|p|pre|section|table|td|"
    r"th|tr|ul)(?=[\s/>])",
    re.IGNORECASE,
)
# Elements whose content no reader sees, or that quote another's mail.
_UNSEEN: Final = re.compile(r"<(style|script|head|title|blockquote)\b[^<>]{0,2000}>", re.IGNORECASE)


def without_markup(text: str) -> str:
    """The text with HTML blanked out, of the same length; a block's edge becomes a line's end."""
    if "<" not in text or _TAG.search(text) is None:
        return text
    if _BLOCK.search(text):
        text = text.replace("\n", " ")  # in HTML white space like any other
    return _TAG.sub(_edge, _seen(text))


def _seen(body: str) -> str:
    lowered, parts, end = body.lower(), [], 0
    for match in _UNSEEN.finditer(body):
        close = lowered.find(f"</{match[1].lower()}", match.end()) if match.start() >= end else -1
        if close >= 0:
            parts += [body[end : match.start()], "\n" + " " * (close - match.start() - 1)]
            end = close
    return "".join([*parts, body[end:]])


def _edge(match: re.Match[str]) -> str:
    first = "\n" if _BLOCK.match(match[0]) else " "
    return first + " " * (len(match[0]) - 1)
