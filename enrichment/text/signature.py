"""Signatures: a closing word with a name below it, a name and address at the end, a phone's "Sent from ..."."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from enrichment.text.patterns import Pattern

__all__ = ["is_device_line", "signature_start"]

_MAX_LINES: Final = 14  # of a signature
_MAX_WORDS: Final = 70
_MAX_LINE: Final = 120  # characters of one of its lines

_CLOSING: Final = Pattern(
    r"(?:(?:(?:with|many|my|our|very|sunny|sincere) ){0,2}(?:(?:kind(?:est)?|best|warm(?:est)?|friendly) )"
    r"?(?:regards|wishes|greetings)|"
    r"(?:[\w-]{1,12} ){0,2}(?:regards|wishes|greetings)(?: from [\w-]{1,20})?|"
    r"(?:thanks|thank you)(?: (?:and|&) (?:(?:kind|best|warm) )?regards)|"
    r"(?:yours |very )?(?:sincerely|faithfully|truly|gratefully|respectfully|cordially)(?: yours)?|cheers|kind|best|"
    r"warm(?:est|ly)?|all the best|take care|"
    r"(?:many )?thanks(?: (?:again|a lot|so much|very much|in advance))?|thank you(?: (?:again|so much|very much|in "
    r"advance))?|thx|ty|br|rgds|kr|"
    r"(?:mit )?(?:(?:freundliche[nm]?|beste[nm]?|viele[n]?|liebe[n]?|schöne[n]?|herzliche[n]?) (?:grüße[n]?|gruß|"
    r"grüsse[n]?|gruss))|grüße|gruß|mfg|lg|vg|hochachtungsvoll|"
    r"(?:vielen |besten |herzlichen )?dank(?:e)?(?: (?:im voraus|und (?:viele |beste )?(?:grüße|gruß)))?|"
    r"(?:bien |très )?cordialement|(?:sincères |meilleures |cordiales )?salutations(?: distinguées)?|bien à vous|"
    r"amicalement|merci(?: (?:d'avance|beaucoup))?|bonne journée|"
    r"(?:un )?(?:cordial )?saludos?(?: cordiales)?|atentamente|(?:muchas )?gracias(?: de antemano)?|"
    r"(?:med )?(?:venlig|bedste|kærlig)(?:e)? hilsen(?:er)?|mvh|hilsen|vh|(?:mange |på forhånd )?tak|med vänliga "
    r"hälsningar|"
    r"(?:met )?(?:vriendelijke|hartelijke) groet(?:en)?|groet(?:en|jes)?|mvg|(?:alvast )?bedankt|(?:hartelijk )"
    r"?dank(?: u| je)?|"
    r"(?:cordiali |distinti )?saluti|cordialmente|grazie(?: mille)?|un saluto|"
    r"atenciosamente|(?:com os )?(?:melhores )?cumprimentos|(?:muito )?obrigad[oa]|att|abraços?)"
    r"(?P<rest>[\s,.!;–—-].*)?$",
    re.IGNORECASE,
)
_DELIMITER: Final = Pattern(r"(?:--|—|__)\s?$")
_DEVICE: Final = Pattern(
    r"(?:sent (?:from|via|with|using)|get|von|gesendet (?:von|mit|über)|envoyé (?:de|depuis|avec)|télécharger|"
    r"obtenez|enviado (?:desde|con|do|de|a partir)|obtener|inviato (?:da|con)|scarica|"
    r"verzonden (?:vanaf|met|via)|verstuurd (?:vanaf|met|via)|download|sendt (?:fra|med)|hent|skickat från|holen sie "
    r"sich|laden sie)"
    r"[^.?!\n]{0,30}?\b(?:i ?phone|i ?pad|i ?pod|apple watch|android|samsung|galaxy|huawei|xiaomi|pixel|blackberry|"
    r"smartphone|mobile(?: device| phone)?|handy|mobilgerät|"
    r"outlook|yahoo|gmail|gmx|web\.de|windows|mail app|proton ?mail|proton|app|phone|téléphone|teléfono|mobiel|móvil|"
    r"mobil|tablet|thunderbird|zoho mail|spark|airmail)\b[^?!\n]{0,50}$",
    re.IGNORECASE,
)
_POSTSCRIPT: Final = Pattern(r"p\.? ?s\.?[:.,\s]", re.IGNORECASE)
_SENTENCE: Final = Pattern(
    r"(?:please|can|could|would|will|shall|i|i'm|i've|i'd|we|we've|we're|my|our|it|it's|this|that|these|those|there|"
    r"if|and|but|also|so|however|when|what|why|how|where|who|is|are|do|does|did|"
    r"the|a|an|you|your|in|on|at|for|since|after|before|because|now|still|bitte|ich|wir|es|das|die|der|je|nous|il|"
    r"merci de|por favor|yo|no|non|io|ik|wij|het|jeg|vi|det|eu)\b",
    re.IGNORECASE,
)
_CONTACT: Final = Pattern(
    r"[\w.+-]{1,64}@[\w.-]{2,80}|\bwww\.|https?://|\b(?:tel|phone|mobile|mobil|fax|cell|office|direct|telefon|"
    r"e-?mail|ph|m|t|f|p|o|d)\b\.?\s?[:.+(\d]|\+?\d[\d\s()./-]{6,20}\d",
    re.IGNORECASE,
)
_NAME_WORD: Final = Pattern(r"[^\W\d_][\w.'’&-]*$")
_PARTICLES: Final = frozenset("and of the from aus de da di do dos van von der den la le du del & zu af y e".split())
# Title case at the end of a ticket that is no name.
_MATTER: Final = frozenset(
    "urgent urgently asap help please thanks thank thx danke merci gracias invoice attached refund order error issue "
    "problem "
    "question request response reply answer immediately today tomorrow now not no yes working broken missing failed "
    "access "
    "account password login update cancel payment ticket support chair table product item items number see above "
    "below".split()
)


def is_device_line(line: str) -> bool:
    """Whether a line is what a phone or a mail program puts below each mail."""
    return len(line) <= _MAX_LINE and _DEVICE.match(line) is not None and len(line.split()) <= 12


def signature_start(lines: Sequence[str]) -> int:
    """Where the signature at the end of these stripped lines begins; len(lines) if there is none.

    A signature never holds a sentence, and never a postscript.
    """
    last = len(lines)
    while last and not lines[last - 1]:
        last -= 1
    tail = _tail(lines, last)
    for start in range(tail, last):
        line = lines[start]
        if not line or not any(lines[:start]):
            continue
        if _DELIMITER.match(line) and start + 1 < last and all(map(_belongs, lines[start + 1 : last])):
            return start
        if _closes(line) and all(map(_belongs, lines[start + 1 : last])):
            return start
    return _name_block(lines, tail, last)


def _tail(lines: Sequence[str], last: int) -> int:
    """The first line that may belong to a signature that ends before `last`."""
    start, count, words = last, 0, 0
    while start:
        line = lines[start - 1]
        if len(line) > _MAX_LINE or _POSTSCRIPT.match(line):
            break
        count, words = count + bool(line), words + len(line.split())
        if count > _MAX_LINES or words > _MAX_WORDS:
            break
        start -= 1
    return start


def _closes(line: str) -> bool:
    match = _CLOSING.match(line)
    if match is None:
        return False
    rest = (match["rest"] or "").strip(" ,.!;–—-\t")
    words = rest.replace(",", " ").split()
    return len(words) <= 4 and all(_is_name_word(word) for word in words)


def _belongs(line: str) -> bool:
    """Whether a line may stand in a signature: no sentence does."""
    if not line:
        return True
    words = line.split()
    if _CONTACT.search(line) or len(words) == 1:
        return True
    if line[-1] in "?!" and len(words) > 2:
        return False
    if _SENTENCE.match(line) and len(words) > 3:
        return False
    if line[-1] == "." and len(words) > 5 and sum(word[:1].islower() for word in words) >= len(words) / 2:
        return False
    return not (line[0].islower() and len(words) > 3)


def _name_block(lines: Sequence[str], tail: int, last: int) -> int:
    """Where a name, with or without a role and an address, stands alone at the end."""
    start = at = last
    contact = False
    while at > tail and (not lines[at - 1] or _contact_or_name(lines[at - 1])):
        at -= 1
        contact = contact or _CONTACT.search(lines[at]) is not None
        # Without an address, a name counts only below a blank line.
        if _is_name(lines[at]) and at and (contact or not lines[at - 1]):
            start = at
    before = start - 1
    while before >= 0 and not lines[before]:
        before -= 1
    block = [line for line in lines[start:last] if line]
    if before < 0 or not 1 <= len(block) <= 8 or lines[before].endswith((":", "-")):
        return len(lines)
    if any(word.lower().strip(".,") in _MATTER for line in block for word in line.split()[:3]):
        return len(lines)
    return start


def _is_name(line: str) -> bool:
    bare = line.strip(" -–—~/,")
    words = bare.replace(",", " ").split()
    return 2 <= len(words) <= 5 and not bare.isupper() and all(map(_is_name_word, words))


def _contact_or_name(line: str) -> bool:
    if _CONTACT.search(line):
        return True
    words = line.replace(",", " ").replace("|", " ").replace("/", " ").split()
    return len(words) <= 8 and all(_is_name_word(word) or word[:1].isdigit() for word in words)


def _is_name_word(word: str) -> bool:
    return word.lower() in _PARTICLES or (_NAME_WORD.match(word) is not None and word[0].isupper())
