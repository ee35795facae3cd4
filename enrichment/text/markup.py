"""HTML to lines of text: a tokenizer in one linear pass, without a tree.

Parsers are not linear on hostile input: selectolax 1.0.2 takes 27 s for 100,000 nested <div>, because the standard asks
a tree builder to search its stack of open elements, and html.parser of older Pythons is quadratic on comments that do
not close. A text needs no tree: only where lines end, what is hidden, and what quotes another mail.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from enrichment.text.characters import decoded

__all__ = ["Line", "html_lines", "is_html"]

# Only what HTML knows is a tag: "<Enter>", "List<String>" and "<ann@example.com>" are the writer's words.
_PARAGRAPHS: Final = frozenset(
    "address article aside blockquote body center dl fieldset figure footer form h1 h2 h3 h4 h5 h6 header hr html "
    "main nav "
    "ol p pre section table ul".split()
)
_BLOCKS: Final = _PARAGRAPHS | frozenset(
    "br caption col colgroup dd details div dt figcaption legend li option summary tbody td tfoot th thead tr".split()
)
_INLINE: Final = frozenset(
    "a abbr acronym area audio b base basefont bdi bdo big button canvas cite code data datalist del dfn em embed font "
    "frame frameset g i iframe img input ins kbd label link map mark meta meter nobr object optgroup output param path "
    "picture progress q rect rp rt ruby s samp select small source span strike strong sub sup svg time track tt u var "
    "video wbr".split()
)
# Their content is not text that a reader sees.
_UNSEEN: Final = frozenset("head noscript script style template textarea title".split())
_KNOWN: Final = _BLOCKS | _INLINE | _UNSEEN
_VOID: Final = frozenset("area base br col embed hr img input link meta param source track wbr".split())
# A start tag of these closes an open one of the same name.
_CLOSES_ITSELF: Final = frozenset("dd dt li option p td th tr".split())

# No attribute may hold "<", so that no match runs past the beginning of the next: the pattern is linear.
_TAG: Final = re.compile(
    r"<(?:(/?)([a-zA-Z][a-zA-Z0-9]{0,15}+(?::[a-zA-Z0-9]{1,15}+)?)(?=[\s/>])"
    r"((?>(?:=\s*+\"[^\"<]*+\"|=\s*+'[^'<]*+'|[^<>])*))>|(!--)|[!?][^<>]*+>)"
)
_HIDDEN: Final = re.compile(
    r"display\s{0,9}:\s{0,9}none|visibility\s{0,9}:\s{0,9}hidden|mso-hide\s{0,9}:\s{0,9}all|"
    r"opacity\s{0,9}:\s{0,9}0(?:\.0+)?\s{0,9}(?:[;\"']|$)|"
    r"max-height\s{0,9}:\s{0,9}0(?:px|pt|em)?\s{0,9}(?:[;!\"']|$)|(?<![:,\w])\s+hidden(?=[\s=/]|$)|\bpreheader\b"
)
_FONT_SIZE: Final = re.compile(r"font-size\s{0,9}:\s{0,9}(\d{1,4}(?:\.\d{1,4})?)")
# Elements in which mail programs put another's mail. (Gmail's outer <div class="gmail_quote"> holds own words too.)
_QUOTE: Final = re.compile(
    r"type=[\"']?cite|\bcite=|\bgmail_attr|yahoo_quoted|moz-cite-prefix|moz-forward-container|protonmail_quote|"
    r"tutanota_quote|zmail_extra|front-blockquote|olk_src_body_section|"
    r"iosymail|(?:^|[\s\"'])quote(?:d|dtext)?[\s\"']"
)
_QUOTE_IN_BLOCKQUOTE: Final = re.compile(r"gmail_quote|border-left:(?!\s{0,9}(?:none|0))|quote")
# From these on everything is another's mail, not only what the element holds.
_BOUNDARY: Final = re.compile(
    r"divrplyfwdmsg|appendonsend|reference-message|stopspelling|isreplycontent|replywithinlinemarker|"
    r"border:\s?none;\s{0,9}border-top:\s?solid\s+#?\w{3,9}\s+1\.0pt;\s{0,9}padding:\s?3\.0pt"
)
# How editors indent a paragraph.
_INDENTED: Final = re.compile(r"border:\s?(?:none|0)|margin-left")
_MAX_MARKS: Final = 64  # of nested elements that hide or quote; deeper ones change nothing


@dataclass(slots=True)
class Line:
    """A line of text, as the mark-up shows it.

    `quoted` is 2 within another's mail, 1 in a plain <blockquote>, which may be anything, and else 0; `boundary` says
    that from here on the mail program has put an older mail.
    """

    text: str
    quoted: int = 0
    boundary: bool = False


def is_html(text: str) -> bool:
    """Whether a text is HTML, rather than one that mentions a tag or two."""
    if "<" not in text:
        return False
    opened: set[str] = set()
    breaks = 0
    begin = len(text) - len(text.lstrip())
    for match in _TAG.finditer(text):
        name = (match[2] or "").lower()
        if name in _UNSEEN or (name not in _KNOWN and ":" not in name):
            if name == "head" or match[0][:9].lower() == "<!doctype":
                return True
            continue
        if name in {"html", "body"} or (match[1] and name in opened):
            return True
        if not match[1]:
            opened.add(name)
            if "=" in match[3] or (name == "p" and match.start() == begin):
                return True
            if name in {"br", "hr"}:
                breaks += 1
                # "I typed <br> into the field" mentions one.
                if breaks > 1 or not text[match.start() - 1 : match.start()].isspace():
                    return True
    return False


def html_lines(text: str, limit: int) -> list[Line]:
    """The lines that a reader sees; reading ends once there are more than `limit` characters.

    If all text is hidden, all text is shown.
    """
    reader = _Reader(text, limit)
    lines = reader.read(keep_hidden=False)
    return lines if any(line.text for line in lines) else _Reader(text, limit).read(keep_hidden=True)


class _Reader:
    """The state of one pass: which of the open elements hide, show or quote their content."""

    def __init__(self, text: str, limit: int) -> None:
        self._text = text
        self._limit = limit
        self._lines: list[Line] = []
        self._parts: list[str] = []
        self._marks: list[list[Any]] = []  # [name, depth, what it does], the innermost last
        self._quoted, self._hidden, self._pre = 0, False, False
        self._boundary = False
        self._open_ended: set[str] = set()

    def read(self, *, keep_hidden: bool) -> list[Line]:
        """All lines."""
        text, end, size = self._text, 0, 0
        flat = any((m[2] or "").lower() in _BLOCKS for m in _TAG.finditer(text))
        for match in _TAG.finditer(text):
            start, name = match.start(), (match[2] or "").lower()
            if start < end or (name and name not in _KNOWN and ":" not in name):
                continue  # within a comment or an element that is not text, or no tag of HTML
            if start > end and (keep_hidden or not self._hidden):
                size += start - end
                self._add(text[end:start], flat=flat and not self._pre)
                if size > self._limit:
                    end = len(text)
                    break
            end = match.end()
            if name and name not in _UNSEEN:
                self._tag(name, match[1] != "", match[3])
            elif name or match[4]:
                end = self._end_of_unseen(match, name)
        if end < len(text) and (keep_hidden or not self._hidden):
            self._add(text[end : end + self._limit], flat=flat and not self._pre)
        self._end_line()
        return self._lines

    def _end_of_unseen(self, match: re.Match[str], name: str) -> int:
        """Where a comment, or an element whose content is not text, ends; behind its tag if nothing closes it."""
        end = match.end()
        if match[1] or name in self._open_ended:
            return end
        if name:
            found = _closing(name).search(self._text, end)
            close = found.end() if found else -1
        else:
            # The shortest comments are <!--> and <!--->.
            close = self._text.find("-->", end if self._text[end : end + 1] == ">" else end - 2) + 3
        if close < end:
            self._open_ended.add(name)  # so that the rest is searched once
            return end
        return close

    def _add(self, piece: str, *, flat: bool) -> None:
        if flat:
            self._parts.append(piece.replace("\n", " "))
            return
        first, *more = piece.split("\n")
        self._parts.append(first)
        for line in more:
            self._end_line(blank=True)
            self._parts.append(line)

    def _tag(self, name: str, closing: bool, attributes: str) -> None:  # noqa: FBT001 - the tokenizer's own flag
        if name in _BLOCKS:
            self._end_line()
            if name in _PARAGRAPHS:
                self._blank()
            if name == "pre":
                self._pre = not closing
        marks = self._marks
        if closing:
            if marks:
                self._close(name)
            return
        if marks and name in _CLOSES_ITSELF and marks[-1][0] == name:
            self._unmark()
        if len(attributes) > 3 and self._mark(name, attributes.lower()):
            return
        if name == "blockquote" and not attributes:
            self._push(name, "block")
        elif marks and marks[-1][0] == name:
            marks[-1][1] += 1

    def _close(self, name: str) -> None:
        # An end tag also ends what was left open within its element.
        while len(self._marks) > 1 and self._marks[-1][0] in _CLOSES_ITSELF and self._marks[-2][0] == name:
            self._unmark()
        top = self._marks[-1]
        if top[0] == name:
            top[1] -= 1
            if not top[1]:
                self._unmark()

    def _mark(self, name: str, attributes: str) -> bool:
        """Notes what an element with attributes does to its content; whether it does anything."""
        if _BOUNDARY.search(attributes):
            self._end_line()
            self._boundary = True
        if name in _VOID or name in {"body", "html"} or attributes.endswith("/"):
            return False
        what = self._effect(name, attributes)
        return what is not None and self._push(name, what)

    def _effect(self, name: str, attributes: str) -> str | None:
        what = None
        if _HIDDEN.search(attributes):
            what = "hide"
        elif _QUOTE.search(attributes) or (name == "blockquote" and _QUOTE_IN_BLOCKQUOTE.search(attributes)):
            what = "quote"
        elif name == "blockquote":
            what = "indent" if _INDENTED.search(attributes) else "block"
        elif size := _FONT_SIZE.search(attributes):
            # Layouts set 0 on a row and the real size on its cells; preheaders are set in 0 or 1.
            if float(size[1]) <= 1:
                what = "tiny"
            elif any(mark[2] == "tiny" for mark in self._marks):
                what = "normal"
        return what

    def _push(self, name: str, what: str) -> bool:
        if len(self._marks) >= _MAX_MARKS:
            return False
        if what in {"quote", "block"}:
            self._end_line()
        self._marks.append([name, 1, what])
        self._recount()
        return True

    def _unmark(self) -> None:
        if self._marks[-1][2] in {"quote", "block"}:
            self._end_line()
        self._marks.pop()
        self._recount()

    def _recount(self) -> None:
        kinds = [mark[2] for mark in self._marks]
        self._quoted = 2 if "quote" in kinds else 1 if "block" in kinds else 0
        size = next((kind for kind in reversed(kinds) if kind in {"tiny", "normal"}), "normal")
        self._hidden = "hide" in kinds or size == "tiny"

    def _end_line(self, *, blank: bool = False) -> None:
        text = "".join(self._parts)
        self._parts.clear()
        if text and not text.isspace():
            self._lines.append(Line(decoded(text), self._quoted, self._boundary))
            self._boundary = False
        elif blank:
            self._blank()

    def _blank(self) -> None:
        if self._lines and self._lines[-1].text:
            self._lines.append(Line("", self._quoted))


def _closing(name: str) -> re.Pattern[str]:
    return re.compile(rf"</{name}\b[^<>]*+>?", re.IGNORECASE)
