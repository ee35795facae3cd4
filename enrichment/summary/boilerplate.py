"""What a mail holds beside its matter: greetings, signatures, quoted mail, mark-up, legal notices."""

from __future__ import annotations

import html
import re
from typing import Final

__all__ = ["is_boilerplate", "matter_end", "plain"]

_GREETING: Final = re.compile(
    r"(?:hi|hello|hey|hiya|dear|greetings|good (?:morning|afternoon|evening|day)|to whom it may concern|hola|bonjour|"
    r"hallo|guten tag|sehr geehrte)\b[^.!?,\n]{0,30}[,.!:\s]*",
    re.IGNORECASE,
)
_COURTESY: Final = re.compile(
    r"(?:i )?hope (?:you|this|all|everyone)\b.{0,60}|(?:many )?thanks?(?: you| a lot| so much| very much)?(?: in advance)?"
    r"(?: for (?:your|the|any) (?:help|time|support|assistance|patience|attention)[^.!?]{0,30})?|"
    r"(?:i )?look(?:ing)? forward to (?:your|hearing)\b.{0,60}|please (?:help|advise|assist|let me know|get back to me)"
    r"(?: (?:me|us|asap|soon|urgently|at your earliest convenience|as soon as possible))*|"
    r"(?:(?:best|kind|kindest|warm|many|with kind|yours)\s+)"
    r"(?:regards|wishes|sincerely|faithfully|truly)(?:,?\s+\w[\w.'-]*){0,3}|"
    r"let me know if you (?:need|have)\b.{0,60}|sent from my\b.{0,40}|get outlook for\b.{0,20}|"
    r"have a (?:nice|good|great|lovely)\b.{0,30}|(?:tel|phone|mobile|fax|email|e-mail|web|www)\b\s?[:.].{0,80}",
    re.IGNORECASE,
)
_NOTICE: Final = re.compile(
    r"\b(?:this (?:e-?mail|message)(?: and any (?:attachments?|files?))?|the information (?:contained )?in this)\b"
    r".{0,60}\b(?:confidential|intended|privileged)|\bif you (?:are not the intended|have received this)\b|"
    r"\bplease consider the environment\b|\bunsubscribe\b",
    re.IGNORECASE,
)
# From here on the text is another's, or nobody's.
_END: Final = re.compile(
    r"^(?:[ \t]*>|-{2,}\s*(?:original|forwarded)\b|-- ?$|_{5,}|on .{4,80} wrote:|am .{4,80} schrieb .{0,60}:|"
    r"from: .+\n(?:(?:sent|date|to|cc|subject): .+\n?)+|(?:(?:best|kind|kindest|warm|many|with kind|yours)\s+)?"
    r"(?:regards|wishes|sincerely|faithfully|truly|cheers|thanks|thank you|thx|br)[,.!]?(?:[ \t]+\w[\w.'-]*){0,3}\s*$)",
    re.IGNORECASE | re.MULTILINE,
)
_TAG: Final = re.compile(r"</?[a-z][^<>]{0,200}>|<!--.*?-->", re.IGNORECASE | re.DOTALL)


def matter_end(body: str) -> int:
    """Where in the body the writer's own matter ends (in characters): before signature and quoted mail.

    The whole length where nothing would be left, as in a reply below its quotation.
    """
    for match in _END.finditer(body):
        if len(body[: match.start()].split()) >= 5:
            return match.start()
    return len(body)


def is_boilerplate(sentence: str) -> bool:
    """Whether a sentence says nothing of the matter."""
    sentence = sentence.strip()
    if sentence.startswith(">") or _NOTICE.search(sentence):
        return True
    bare = sentence.rstrip(".!?, ")
    return bool(_GREETING.fullmatch(sentence) or _COURTESY.fullmatch(bare))


def plain(sentence: str) -> str:
    """A sentence without mark-up, list bullets and runs of white space, and without a leading greeting."""
    text = html.unescape(_TAG.sub(" ", sentence)) if "<" in sentence or "&" in sentence else sentence
    text = re.sub(r"^\s*(?:[-*•·>#]+|\d{1,2}[.)])\s+", "", " ".join(text.split()))
    greeting = re.match(r"(?:hi|hello|hey|dear)\b[^,.!?\n]{0,30}[,!]\s+(?=\S)", text, re.IGNORECASE)
    return text[greeting.end() :] if greeting else text
