"""What a mail holds beside its matter: greetings, signatures, quoted mail, legal notices, tables.

What is left out is blanked and not cut, so that a span of the readable text is one of the text itself.
"""

from __future__ import annotations

import html
import re
from typing import Final

from enrichment.summary.markup import without_markup
from enrichment.text import word_count

__all__ = ["is_boilerplate", "is_item", "plain", "readable"]

_WHOM: Final = (
    r"(?:there|all|team|everyone|everybody|support|folks|guys|again|sir|madam|ladies|gentlemen|friends|colleagues|"
    r"customer|service|care|help ?desk|and|or|to|you|both)"
)
_GREETING: Final = re.compile(
    rf"(?:hi|hello|hey|hiya|dear|greetings|good (?:morning|afternoon|evening|day)|to whom it may concern|hola|bonjour|"
    rf"hallo|moin|guten (?:tag|morgen|abend)|sehr geehrte[rs]?|liebe[rs]?)\b"
    rf"(?:(?: [^\s,:]+){{0,5}}[,:]|(?:,? (?:{_WHOM}\b|(?-i:[A-Z][\w.'’-]*))){{0,5}}[.!\s–—-]*)",
    re.IGNORECASE,
)
_LEADING_GREETING: Final = re.compile(
    r"(?:hi|hello|hey|hiya|dear|hallo|good (?:morning|afternoon|evening|day))\b(?: [^\s,.!?:]+){0,4} ?[,!:–—-]\s+"
    r"(?=\S)",
    re.IGNORECASE,
)
_COURTESY: Final = re.compile(
    r"(?:i )?hope (?:you|this|all|everyone)\b.{0,60}|"
    r"(?:many |and )?thanks?(?: you| a lot| so much| very much)?(?: in advance)?"
    r"(?: for (?:your|the|any) (?:help|time|support|assistance|patience|attention|understanding)[^.!?]{0,30})?|"
    r"(?:i )?look(?:ing)? forward to (?:your|hearing)\b.{0,60}|please (?:help|advise|assist|let me know|get back to me)"
    r"(?: (?:me|us|asap|soon|urgently|at your earliest convenience|as soon as possible))*|"
    r"(?:please )?(?:let me know|do not hesitate|don't hesitate)\b.{0,30}\b(?:questions?|need|have|contact)\b.{0,60}|"
    r"(?:i am|i'm|we are|we're) writing (?:to you )?(?:about|regarding|because of) the following|"
    r"let me (?:describe|explain|summari[sz]e|tell you)\b.{0,30}|forwarding (?:this|it|you)\b.{0,40}|"
    r"fyi\b.{0,60}|(?:please )?see (?:below|attached|attachment)\b.{0,40}|"
    r"have a (?:nice|good|great|lovely)\b.{0,30}|(?:tel|phone|mobile|fax|email|e-mail|web|www)\b\s?[:.].{0,80}",
    re.IGNORECASE,
)
# A legal notice, to the end of its paragraph.
_NOTICE: Final = re.compile(
    r"\b(?:(?:this (?:e-?mail|message|communication)(?: and any (?:attachments?|files?))?|"
    r"the information (?:contained )?in this)\b.{0,80}\b(?:confidential|intended (?:only|solely|for)|privileged)|"
    r"if you are not the intended|"
    r"if you have received this .{1,30} (?:in error|by mistake)|please consider the environment|"
    r"to unsubscribe.{0,40} (?:click|visit|reply))\b[^\n]*(?:\n[^\S\n]*\S[^\n]*)*",
    re.IGNORECASE,
)
_QUOTED: Final = re.compile(r"^[ \t]*>.*$|^[ \t]*```[^`]{0,8000}```", re.MULTILINE)  # mail, or code
# From here on the text is another's.
_OTHERS: Final = re.compile(
    r"^[ \t]*(?:-{2,}[ \t]*(?:original|forwarded)\b.*|_{5,}|on .{4,120}\bwrote:[ \t\r]*$|"
    r"am .{4,120}\bschrieb\b.{0,60}:[ \t\r]*$|"
    r"begin forwarded message:|from: .+\n(?:(?:sent|date|to|cc|reply-to|subject): .*\n?)+)",
    re.IGNORECASE | re.MULTILINE,
)
# From here on it is the writer's name and address.
_SIGNATURE: Final = re.compile(
    r"^[ \t]*(?:--[ \t]?$|(?:sent from my|get outlook for)\b.*|(?:(?:[\w-]+[ \t]+){0,2}(?:regards|wishes|greetings)|"
    r"(?:yours[ \t]+)?(?:sincerely|faithfully|truly|gratefully|respectfully|cordially)(?:[ \t]+yours)?|cheers|thanks|"
    r"many thanks|thank you|thx|br|rgds|mit (?:freundlichen|besten) grüßen|viele grüße|kind(?:est)?|best|"
    r"warm(?:est|ly)?)[ \t]*[,.!]*(?:[ \t]+[\w.'’-]+){0,3}[ \t\r]*$)",
    re.IGNORECASE | re.MULTILINE,
)
_POSTSCRIPT: Final = re.compile(r"^[ \t]*p\.? ?s\.?[:.,\s]", re.IGNORECASE | re.MULTILINE)
_NAMES: Final = (
    r"(?:[A-Z][\w.'’-]*|and|of|the|de|van|von|der|la|&)(?:,? (?:[A-Z][\w.'’-]*|and|of|the|de|van|von|der|la|&)){0,5}"
)
_NAME_BLOCK: Final = re.compile(
    rf"\n\s*(?:\n[-–—~/ \t]*|[–—~/][ \t]*){_NAMES}[ \t\r]*(?:\n[ \t]*{_NAMES}[ \t\r]*){{0,4}}\Z"
)
# A row of a table, a frame of a stack trace, a line of a log, a heading in Markdown.
_MACHINE: Final = re.compile(r".*\|.*\||at [\w$.<>]+\(|File \"|\[?\d{4}-\d\d-\d\d[ T]\d\d:\d\d|#{1,6} |\*\*[^*]+\*\*$")
_LABEL: Final = re.compile(r"\s*(?:[-*•·>#+]+|\(?(?:\d{1,2}|[a-z])[.)]|p\.? ?s\.?:?)\s+", re.IGNORECASE)
_SIGNATURE_WORDS: Final = 50  # a closing word with more than that behind it closed nothing
_NAME_BLOCK_CHARACTERS: Final = 300


def readable(body: str) -> str:
    """The body with all that is not the writer's matter blanked out, of the same length.

    Blanked are mark-up, quoted and forwarded mail, legal notices, and signatures.
    """
    text = _QUOTED.sub(_blank, without_markup(body))
    for match in _OTHERS.finditer(text):
        ends = _has_words(text[: match.start()])
        text = _blanked(text, match.start(), len(text) if ends else match.end())
        if ends:  # else it is a reply below its quotation: only the header goes
            break
    for match in _NOTICE.finditer(text):
        if _has_words(text[: match.start()]):
            text = _blanked(text, match.start(), match.end())
    return _without_signature(text)


def is_boilerplate(sentence: str) -> bool:
    """Whether a sentence says nothing of the matter: a courtesy, a heading, a word or two, what a machine wrote."""
    sentence = sentence.strip()
    if _GREETING.fullmatch(sentence) or _COURTESY.fullmatch(sentence.rstrip(".!?, ")):
        return True
    if sentence.endswith(":") and len(sentence.split()) < 6:
        return True
    letters, signs = sum(map(str.isalpha, sentence)), sum(not character.isspace() for character in sentence)
    return word_count(sentence) < 3 or letters < 0.5 * signs or _MACHINE.match(sentence) is not None


def plain(sentence: str) -> str:
    """A sentence without bullets, runs of white space, marks of HTML and Markdown, and without a leading greeting."""
    text = (html.unescape(sentence) if "&" in sentence else sentence).replace("**", "")
    text = " ".join(text.split())
    for prefix in (_LABEL, _LEADING_GREETING):
        if match := prefix.match(text):
            text = text[match.end() :]
    return text


def is_item(sentence: str) -> bool:
    """Whether a sentence is an item of a list."""
    return _LABEL.match(sentence) is not None


def _without_signature(text: str) -> str:
    postscripts = [match.start() for match in _POSTSCRIPT.finditer(text)]
    end = postscripts[-1] if postscripts else len(text)
    parts = text[:end].rsplit(maxsplit=_SIGNATURE_WORDS)
    tail = len(parts[0]) if len(parts) > _SIGNATURE_WORDS else 0
    for match in _SIGNATURE.finditer(text, tail, end):
        if _has_words(text[: match.start()]):
            return _blanked(text, match.start(), end)
    end = len(text[:end].rstrip())
    begin = max(0, end - _NAME_BLOCK_CHARACTERS)
    names = _NAME_BLOCK.search(text[begin:end])
    if names and _has_words(text[: begin + names.start()]):
        return _blanked(text, begin + names.start(), end)
    return text


def _has_words(text: str) -> bool:
    return len(text.split(maxsplit=5)) >= 5


def _blanked(text: str, begin: int, end: int) -> str:
    return text[:begin] + re.sub(r"[^\n]", " ", text[begin:end]) + text[end:]


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])
