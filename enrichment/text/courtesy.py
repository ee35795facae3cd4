"""Greetings and courtesies: lines and sentences that say nothing of the matter."""

from __future__ import annotations

import re
from typing import Final

from enrichment.text.patterns import Pattern
from enrichment.text.sentences import word_count

__all__ = ["is_boilerplate", "is_courtesy", "points_elsewhere", "without_greeting"]

_WHOM: Final = (
    r"(?:there|all|team|everyone|everybody|support|folks|guys|again|sir|sirs|madam|ladies|gentlemen|friends|colleagues|"
    r"customer|service|care|help ?desk|and|or|to|you|both|zusammen|damen|herren|und|tous|toutes|equipo|allemaal)"
)
_HELLO: Final = (
    r"(?:hi|hello|hey|hiya|dear|greetings|good (?:morning|afternoon|evening|day)|to whom it may concern|hola|buenos "
    r"días|"
    r"buenas tardes|estimad[oa]s?|bonjour|bonsoir|cher|chère|hallo|moin|servus|grüezi|guten (?:tag|morgen|abend)|"
    r"sehr geehrte[rs]?|liebe[rs]?|beste|geachte|goedemorgen|goedemiddag|goedendag|ciao|buongiorno|buonasera|gentile|"
    r"salve|olá|oi|bom dia|boa tarde|prezad[oa]s?|caro|cara|hej|hei|god dag|kære|kjære)"
)
_GREETING: Final = Pattern(
    rf"{_HELLO}\b(?:(?>(?: [^\s,:]{{1,40}}+){{0,5}})[,:]|"
    rf"(?>(?:,? (?:{_WHOM}\b|(?-i:[A-Z])[\w.'’-]{{0,40}}+)){{0,5}})[.!\s–—-]*+)$",
    re.IGNORECASE,
)
_LEADING_GREETING: Final = Pattern(
    rf"{_HELLO}\b(?: (?:[^\s,.!?:]|\.(?=\s[A-Z])){{1,40}}){{0,7}} ?[,!:–—-]\s(?=\S)",
    re.IGNORECASE,
)
_COURTESY: Final = Pattern(
    r"(?:(?:i )?hope (?:you|this|all|everyone)\b.{0,60}|"
    r"(?:many |and )?thanks?(?: you| a lot| so much| very much)?(?: in advance)?"
    r"(?: for (?:your|the|any) (?:help|time|support|assistance|patience|attention|understanding)[^.!?]{0,30})?|"
    r"(?:i )?look(?:ing)? forward to (?:your|hearing)\b.{0,60}|please (?:help|advise|assist|let me know|get back to me)"
    r"(?: (?:me|us|asap|soon|urgently|at your earliest convenience|as soon as possible)){0,6}|"
    r"(?:please )?(?:let me know|do not hesitate|don't hesitate)\b.{0,30}\b(?:questions?|need|have|contact)\b.{0,60}|"
    r"(?:i am|i'm|we are|we're) writing (?:to you )?(?:about|regarding|because of) the following|"
    r"let me (?:describe|explain|summari[sz]e|tell you)\b.{0,30}|forwarding (?:this|it|you)\b.{0,40}|"
    r"fyi\b.{0,60}|(?:please )?see (?:below|attached|attachment)\b.{0,40}|"
    r"have a (?:nice|good|great|lovely)\b.{0,30}|(?:tel|phone|mobile|fax|email|e-mail|web|www)\b\s?[:.].{0,80}|"
    r"(?:vielen |herzlichen |besten )?dank(?:e)?(?: im voraus)?|merci(?: d'avance| beaucoup)?|(?:muchas )?gracias|"
    r"(?:hartelijk )?(?:bedankt|dank)|grazie(?: mille)?|(?:muito )?obrigad[oa]|(?:mange )?tak)$",
    re.IGNORECASE,
)
# "Please see below", "FYI", "Siehe unten": what stands there instead is the matter.
_POINTER: Final = Pattern(
    r"\b(?:fyi|see (?:the )?(?:below|attached|following)|(?:mail|e-mail|email|message|thread|request|case|chain|"
    r"issue|ticket) "
    r"below|below (?:mail|e-mail|email|message|thread|request|case|chain|issue|ticket|is|are)|as below|forwarded? "
    r"(?:mail|e-mail|email|message|"
    r"request|thread|from|you|this|the)|forwarding|z\. ?k\.|zur kenntnis|siehe unten|s\. ?u\.|unten stehend\w*|"
    r"weitergeleitet|voir ci-dessous|ci-dessous|"
    r"pour info|véase abajo|más abajo|abajo|vedi sotto|di seguito|zie onder|onderstaand\w*|hieronder|se nedenfor|"
    r"nedenstående|"
    r"ver abaixo|abaixo|doorgestuurd|can (?:you|someone|somebody) (?:please )?(?:help|look|check|take a look|handle|"
    r"assist|deal)\b"
    r".{0,20}\b(?:this|that|it)\b|please (?:help|handle|take care|look into|check|advise|assist|deal)"
    r"\b.{0,12}(?:\b(?:this|that|it|him|her|them)\b|$))",
    re.IGNORECASE,
)
# A row of a table, a frame of a stack trace, a line of a log, a heading in Markdown.
_MACHINE: Final = Pattern(
    r"[^|\n]*+\|[^|\n]*+\||at [\w$.<>]{1,200}\(|File \"|\[?\d{4}-\d\d-\d\d[ T]\d\d:\d\d|#{1,6} |\*\*[^*]++\*\*$"
)
_LONGEST: Final = 200  # characters: no courtesy is longer


def is_courtesy(text: str) -> bool:
    """Whether a line or sentence is a greeting or a courtesy."""
    text = text.strip()
    if len(text) > _LONGEST:
        return False
    return _GREETING.match(text) is not None or _COURTESY.match(text.rstrip(".!?, ")) is not None


def is_boilerplate(sentence: str) -> bool:
    """Whether a sentence says nothing of the matter: a courtesy, a heading, a word or two, what a machine wrote."""
    sentence = sentence.strip()
    if is_courtesy(sentence):
        return True
    if sentence.endswith(":") and len(sentence.split(maxsplit=6)) < 6:
        return True
    letters = sum(map(str.isalpha, sentence))
    signs = sum(1 for character in sentence if not (character.isspace() or _is_mark(character)))
    return word_count(sentence) < 3 or letters < 0.5 * signs or _MACHINE.match(sentence) is not None


def without_greeting(text: str) -> str:
    """A sentence without the greeting that it begins with ("Hi all, ..."), and then with a capital."""
    match = _LEADING_GREETING.match(text)
    if match is None:
        return text
    rest = text[match.end() :]
    first = rest.split(maxsplit=1)[0]
    # "iPhone" and "eBay" are written so.
    return rest if any(map(str.isupper, first)) else rest[0].upper() + rest[1:]


def points_elsewhere(text: str) -> bool:
    """Whether a short text only points to the mail below it."""
    return _POINTER.search(text[: 2 * _LONGEST]) is not None


def _is_mark(character: str) -> bool:
    # Vowel signs of Thai and the Indic scripts are no letters to Python, and no signs to a reader.
    return (
        character >= "\u0300"
        and not character.isalnum()
        and character.isprintable()
        and not character.isascii()
        and (
            "\u0300" <= character <= "\u036f" or "\u0900" <= character <= "\u109f" or "\u1780" <= character <= "\u17ff"
        )
    )
