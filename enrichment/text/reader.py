"""From a ticket to the text that every model reads: the subject, and what the writer says.

A body is turned into lines, and each line gets one kind: the writer's own words, or what mail programs, mail servers
and machines add. Own lines make the text. If nothing of the writer is left, the rest is the matter: a forwarded mail, a
quotation, a stack trace.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from enrichment.text.characters import decoded, visible
from enrichment.text.courtesy import is_courtesy, points_elsewhere
from enrichment.text.machine import machine_lines
from enrichment.text.mail import Header, find_header, inline_attribution, is_quoted_line, names_a_writer
from enrichment.text.markup import Line, html_lines, is_html
from enrichment.text.notices import is_notice, without_banner
from enrichment.text.sentences import unwrapped, word_count
from enrichment.text.signature import is_device_line, signature_start

__all__ = ["MAX_CHARACTERS", "TicketText", "model_text", "read_ticket"]

# Four windows of the encoder hold about 1,000 tokens, 5,000 characters of prose. What lies far behind is cut before
# a model sees it, so that a body of 1 MB costs no more than a page.
MAX_CHARACTERS: Final = 32_768
_MAX_READ: Final = 4 * MAX_CHARACTERS  # of a body, without mark-up: a long thread may stand above the writer's words
_MAX_LINES: Final = 20_000

_REPLY: Final = re.compile(r"(?:re|aw|antw?|sv|vs|rif|r|ré|rép|res|odp|ynt)\s?(?:\[\d+\])?:", re.IGNORECASE)
_FORWARD: Final = re.compile(r"(?:fwd?|wg|tr|rv|i|enc|doorst|vl|vb|fs|vs|pd)\s?:", re.IGNORECASE)
# What mail servers put before the subject of a mail from outside.
_TAGGED: Final = re.compile(
    r"[\[(](?:external|extern|ext)(?: (?:e-?mail|mail|sender|message))"
    r"?[\])] ?:?",
    re.IGNORECASE,
)
_BANNER_REACH: Final = 8  # lines from the top
_FEW_WORDS: Final = 5  # with fewer words of the writer's own, a forwarded mail below them is the matter
_FEW_POINTING_WORDS: Final = 25  # the same for words that point to it ("please see below")
_LONGEST_NOTICE: Final = 4000  # characters
_RULE: Final = re.compile(r"[-_=*~#─━—–.·•+\s]{3,}+$")


class _Kind(Enum):
    OWN = "own"
    BANNER = "banner"
    HEADER = "header"
    QUOTED = "quoted"
    MACHINE = "machine"
    NOTICE = "notice"
    SIGNATURE = "signature"


@dataclass(frozen=True, slots=True)
class TicketText:
    """A ticket as the models read it.

    `text` is subject and body joined by ". " (by a space where the subject ends in ., ! or ?), one line per paragraph;
    `begin` is where the body begins in it (in characters), `subject` the subject on one line, `words` the number of
    words in the whole body, with what was left out; `cut` says that the body goes on beyond what was read at all.
    """

    text: str
    begin: int
    subject: str
    words: int
    cut: bool


def read_ticket(subject: str, body: str) -> TicketText:
    """What the writer of a ticket says; time and memory are linear in its length."""
    subject = _subject(subject)
    lines, cut = _lines(body)
    said, words = _what_is_said(lines, subject)
    joiner = "" if not subject or not said else " " if subject[-1] in ".!?" else ". "
    begin = len(subject) + len(joiner)
    return TicketText(subject + joiner + said, begin, subject, words, cut)


def model_text(subject: str, body: str) -> str:
    """The text that every model reads: `read_ticket(subject, body).text`, cut to MAX_CHARACTERS."""
    return read_ticket(subject, body).text[:MAX_CHARACTERS]


def _subject(subject: str) -> str:
    return " ".join(_TAGGED.sub("", visible(decoded(subject[:_MAX_READ])), count=1).split())


def _lines(body: str) -> tuple[list[Line], bool]:
    """The lines that a reader of the body sees, with their indentation."""
    body = visible(body)
    if is_html(body):
        lines = html_lines(body, _MAX_READ)
        if "&" in body:
            # A reference may stand for an invisible character, and in mail for a newline.
            lines = [Line(visible(line.text), line.quoted, line.boundary) for line in lines]
        cut = sum(len(line.text) for line in lines) > _MAX_READ
    else:
        cut = len(body) > _MAX_READ
        lines = [Line(line) for line in visible(decoded(body[:_MAX_READ])).split("\n")]
    return lines[:_MAX_LINES], cut or len(lines) > _MAX_LINES


def _what_is_said(lines: list[Line], subject: str) -> tuple[str, int]:
    """The writer's words, and how many words the whole body has."""
    texts = [" ".join(line.text.split()) for line in lines]
    kinds = [_Kind.OWN] * len(texts)
    _find_banner(texts, kinds)
    _find_quoted(texts, kinds, lines, subject)
    _find_machine(texts, kinds, [line.text for line in lines])
    _find_notices(texts, kinds)
    _find_signature(texts, kinds)
    for kept in (
        {_Kind.OWN},
        {_Kind.OWN, _Kind.MACHINE},
        {_Kind.OWN, _Kind.MACHINE, _Kind.QUOTED},
        {_Kind.OWN, _Kind.MACHINE, _Kind.QUOTED, _Kind.SIGNATURE} if subject else set(_Kind),
    ):
        if any(_matter(texts[i]) for i, kind in enumerate(kinds) if kind in kept):
            break
    else:
        kept = {_Kind.OWN, _Kind.MACHINE, _Kind.SIGNATURE}
    chosen = [_shown(text, kind) if kind in kept else "" for text, kind in zip(texts, kinds, strict=True)]
    words = word_count("\n".join(texts)[:MAX_CHARACTERS])
    return unwrapped(chosen) or ("" if subject else unwrapped(texts)), words


def _shown(text: str, kind: _Kind) -> str:
    if _RULE.match(text):
        return ""
    return text.lstrip("> ") if kind is _Kind.QUOTED else text


def _find_banner(texts: list[str], kinds: list[_Kind]) -> None:
    """Marks a banner at the top, of one or several lines; the writer's words may follow in its last line."""
    seen = at = 0
    after_banner = False
    while at < len(texts) and seen < _BANNER_REACH:
        end = at + 1
        if texts[at] and not _RULE.match(texts[at]):
            while end < len(texts) and texts[end][:1].islower():
                end += 1  # a wrapped line goes on
            seen += 1
            paragraph = " ".join(texts[at : min(end, at + 2 * _BANNER_REACH)])[:4000]
            rest = without_banner(paragraph, after_banner=after_banner)
            if rest != paragraph:
                after_banner = True
                _keep_last(texts, kinds, at, end, rest)
                if rest:
                    return
            elif after_banner:
                return
        at = end


def _keep_last(texts: list[str], kinds: list[_Kind], start: int, end: int, rest: str) -> None:
    """Marks lines [start, end) as a banner but for `rest`, the end of their paragraph."""
    for line in range(end - 1, start - 1, -1):
        if rest and len(texts[line]) < len(rest) and rest.endswith(texts[line]):
            rest = rest[: -len(texts[line])].rstrip()
        elif rest and texts[line].endswith(rest):
            texts[line], rest = rest, ""
        else:
            kinds[line] = _Kind.BANNER


def _find_quoted(  # noqa: C901 - one pass over the lines, one branch per kind of line
    texts: list[str], kinds: list[_Kind], lines: list[Line], subject: str
) -> None:
    """Marks quoted mail, and the headers that announce it."""
    replied = _REPLY.match(subject) is not None
    weak_quotes = replied
    own = _Own(texts, kinds, replied=replied)
    last_own = max((i for i, line in enumerate(lines) if texts[i] and not line.quoted), default=-1)
    at = 0
    while at < len(texts):
        line = texts[at]
        if kinds[at] is not _Kind.OWN or not line:
            at += 1
            continue
        if lines[at].quoted == 1 and at > last_own and not weak_quotes:
            weak_quotes = not _introduced(texts, at) and own.enough(at)
        if lines[at].quoted == 2 or (lines[at].quoted == 1 and weak_quotes):
            header = find_header(texts, at)
            if header is not None and header.sure:
                _mark(kinds, at, header.end, _Kind.HEADER)
                at = header.end
                continue
            kinds[at] = _Kind.QUOTED
            at += 1
            continue
        if is_quoted_line(line):
            at = _quoted_block(texts, kinds, at, sure=weak_quotes)
            continue
        header = find_header(texts, at)
        if header is None:
            if lines[at].boundary and own.enough(at):
                _mark(kinds, at, len(kinds), _Kind.QUOTED)
                return
            if (split := inline_attribution(line)) >= 0 and word_count(line[:split]) >= 2:
                texts[at] = line[:split].rstrip()
                _mark(kinds, at + 1, len(kinds), _Kind.QUOTED)
                return
            at += 1
            continue
        weak_quotes = _announce(texts, kinds, lines, header) or weak_quotes
        if kinds[at] is _Kind.HEADER and not _quotes_follow(texts, lines, header.end) and own.enough(at, header):
            _mark(kinds, header.end, len(kinds), _Kind.QUOTED)
            return
        at = header.end


def _announce(texts: list[str], kinds: list[_Kind], lines: list[Line], header: Header) -> bool:
    """Marks a header if it announces another's mail; whether it does."""
    if _quotes_follow(texts, lines, header.end) or lines[header.start].boundary:
        _mark(kinds, header.start, header.end, _Kind.HEADER)
        return True
    if not header.sure or (header.start and texts[header.start - 1].endswith(":")):
        return False  # the writer tells of a mail, or of what somebody wrote
    _mark(kinds, header.start, header.end, _Kind.HEADER)
    return True


def _introduced(texts: list[str], at: int) -> bool:
    """Whether the writer announces what begins at line `at` ("the page says:")."""
    at -= 1
    while at > 0 and not texts[at]:
        at -= 1
    return at >= 0 and texts[at].endswith(":") and not names_a_writer(texts[at])


def _quotes_follow(texts: list[str], lines: list[Line], start: int) -> bool:
    for at in range(start, min(start + 4, len(texts))):
        if texts[at]:
            return texts[at].startswith(">") or lines[at].quoted > 0
    return False


def _quoted_block(texts: list[str], kinds: list[_Kind], start: int, *, sure: bool) -> int:
    """Marks lines that begin with ">"; without a header before them a single one may be anything."""
    end = start
    while end < len(texts) and texts[end].startswith(">"):
        end += 1
    said = texts[start - 1] if start and kinds[start - 1] is _Kind.OWN else ""
    if said.endswith(":") and not names_a_writer(said):
        sure = False  # the writer cites a sign, a display or a log
    elif end - start > 1 or not re.match(r">\s?[\d=$€£]", texts[start]):
        sure = True
    if sure:
        _mark(kinds, start, end, _Kind.QUOTED)
    return end


class _Own:
    """Whether the writer's own words above a header are enough for what is below it to be beside the matter."""

    def __init__(self, texts: list[str], kinds: list[_Kind], *, replied: bool) -> None:
        self._texts = texts
        self._kinds = kinds
        self._replied = replied
        self._read = self._words = 0
        self._points = False

    def enough(self, end: int, header: Header | None = None) -> bool:
        """The same of the lines before `end`; each line is read once."""
        for at in range(self._read, end):
            text = self._texts[at]
            if self._kinds[at] is not _Kind.OWN or not text:
                continue
            self._points = self._points or (self._words < _FEW_POINTING_WORDS and points_elsewhere(text))
            if not is_courtesy(text) and not is_device_line(text):
                self._words += word_count(text[:1000])
        self._read = max(self._read, end)
        if self._points and self._words < _FEW_POINTING_WORDS:
            return False
        forwarded = header is not None and header.forward
        return self._words >= (1 if self._replied and not forwarded else _FEW_WORDS)


def _find_machine(texts: list[str], kinds: list[_Kind], raw: list[str]) -> None:
    own = [i for i, kind in enumerate(kinds) if kind is _Kind.OWN]
    for position in machine_lines([texts[i] for i in own], [raw[i] for i in own]):
        kinds[own[position]] = _Kind.MACHINE


def _find_notices(texts: list[str], kinds: list[_Kind]) -> None:
    """Marks legal notices below the writer's words, with or without a blank line before them."""
    seen = False
    for paragraph in _paragraphs(texts, kinds):
        if seen and is_notice(" ".join(texts[i] for i in paragraph)[:_LONGEST_NOTICE]):
            for i in paragraph:
                kinds[i] = _Kind.NOTICE
            continue
        for place, i in enumerate(paragraph):
            if seen and _starts_notice(texts[i]):
                rest = paragraph[place : place + 20]
                if is_notice(" ".join(texts[j] for j in rest)[:_LONGEST_NOTICE]):
                    for j in paragraph[place:]:
                        kinds[j] = _Kind.NOTICE
                    break
            seen = seen or _matter(texts[i])


def _starts_notice(text: str) -> bool:
    return (
        is_notice(text)
        or re.match(
            r"\W{0,4}(?:th(?:is|e) |diese|disclaimer|confidential|ce |cet|este|quest|dit |deze |denne |est[ae] |"
            r"important|privileged)",
            text,
            re.IGNORECASE,
        )
        is not None
    )


def _find_signature(texts: list[str], kinds: list[_Kind]) -> None:
    own: list[int] = []
    for i, kind in enumerate(kinds):
        # What was taken out leaves a gap like a blank line.
        if kind is _Kind.OWN and not (texts[i] and is_device_line(texts[i])):
            own.append(i)
        elif kind is _Kind.OWN:
            kinds[i] = _Kind.SIGNATURE
    start = signature_start([texts[i] for i in own])
    if start < len(own) and any(_matter(texts[i]) for i in own[:start]):
        for i in own[start:]:
            kinds[i] = _Kind.SIGNATURE


def _paragraphs(texts: list[str], kinds: list[_Kind]) -> Iterable[list[int]]:
    paragraph: list[int] = []
    for i, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
        if text and kind is _Kind.OWN:
            paragraph.append(i)
        elif paragraph:
            yield paragraph
            paragraph = []
    if paragraph:
        yield paragraph


def _mark(kinds: list[_Kind], start: int, end: int, kind: _Kind) -> None:
    kinds[start:end] = [kind if old is _Kind.OWN else old for old in kinds[start:end]]


def _matter(text: str) -> bool:
    """Whether a line says something: it has a letter or digit, and is no greeting or courtesy."""
    return any(map(str.isalnum, text)) and not is_courtesy(text)
