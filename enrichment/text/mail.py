"""Quoted mail: where a mail program has put an older message into a text.

Quoted is what follows a header that a mail program wrote: a block of From, Sent, To and Subject, a line such as "On
<date>, <name> <address> wrote:", or a line such as "---- Original Message ----"; and lines that begin with ">".
tests/unit/text/test_mail.py lists clients and languages. A booking's From and To, a line of underscores, or the
writer's own "on Monday your hotline wrote:" begins no mail. When in doubt, the words stay.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from enrichment.text.patterns import Pattern

__all__ = ["Header", "find_header", "inline_attribution", "is_quoted_line", "names_a_writer"]

_FIELDS: Final = {
    "from": (
        "from von de da van fra från od lähettäjä expéditeur absender mittente afzender afsender remitente remetente"
    ),
    "sent": (
        "sent date gesendet datum envoyé enviado enviada fecha data inviato verzonden sendt dato skickat lähetetty "
        "wysłano odesláno|sent on|sent at|gesendet am|envoyé le|enviado el|enviada em|enviado em|date d'envoi|"
        "data de envio|data invio|verzonden op|dato sendt|päiväys"
    ),
    "to": (
        "to an à a para aan til till do pour vastaanottaja destinataire empfänger destinatario destinatário ontvanger "
        "komu"
    ),
    "subject": "subject betreff objet asunto assunto oggetto onderwerp emne ämne temat aihe předmět sujet betr re",
    "other": (
        "cc bcc kopie copie copia cópia kopi kopia cci cco ccn importance priority priorität wichtigkeit attachments "
        "anlagen anhänge bijlagen allegati adjuntos anexos organization organisation|reply-to|antwort an|répondre à|"
        "responder a|rispondi a|antwoord aan|svar til|pièces jointes|vedhæftede filer|mailed-by|signed-by|"
        "list-unsubscribe|"
        "return-path|message-id|in-reply-to|x-mailer|mime-version|content-type"
    ),
}
_FIELD_OF: Final = {
    name: field
    for field, text in _FIELDS.items()
    for part in [text.split("|")]
    for name in [*part[0].split(), *part[1:]]
}
_MAX_GAP: Final = 1  # blank lines between two fields: some converters put one after each
_MAX_CONTINUED: Final = 3  # lines of a long list of recipients

_SEPARATOR: Final = Pattern(
    r"[-_*=~–—]{2,}+\s*+(?P<what>[^\W\d_][^\n_=*~]{2,60}?)\s*[-_*=~–—]{2,}+:?$|(?P<begin>[^\W\d_][^\n:]{8,60}+)\s?:$"
)
_ORIGINAL: Final = Pattern(
    r"(?:original|forwarded|reply|replied|quoted|previous)\s(?:message|mail|e-mail|email|appointment)|"
    r"(?:ursprüngliche|weitergeleitete|original)[a-z-]{0,3}\s?-?(?:nachricht|mail|e-mail|termin)|originalnachricht|"
    r"message\s(?:d'origine|original|transféré|réexpédié|initial)|courriel\s(?:original|transféré)|"
    r"mensaje\s(?:original|reenviado)|correo\s(?:original|reenviado)|messaggio\s(?:originale|inoltrato)|"
    r"mensagem\s(?:original|encaminhada|reencaminhada)|(?:oorspronkelijk|origineel|doorgestuurd)\s?bericht|"
    r"(?:oprindelig|videresendt|opprinnelig)\w{0,3}\s(?:meddelelse|besked|mail|e-mail|melding)|"
    r"(?:ursprungligt|vidarebefordrat|originalt)\s?meddelande|alkuperäinen\sviesti|wiadomość\soryginalna|"
    r"(?:oryginalna|przekazana)\swiadomość|původní\szpráva",
    re.IGNORECASE,
)
_BEGIN: Final = Pattern(
    r"(?:begin forwarded message|anfang der weitergeleiteten (?:nachricht|e-mail)|début du (?:message|courriel) "
    r"(?:transféré|réexpédié)|"
    r"inicio del mensaje reenviado|inizio messaggio inoltrato|inizio del messaggio inoltrato|"
    r"begin doorgestuurd bericht|start på videresendt (?:besked|meddelelse)|videresendt besked|"
    r"início da mensagem (?:encaminhada|reencaminhada)|vidarebefordrat brev)\s?:?$",
    re.IGNORECASE,
)

_ADDRESS: Final = Pattern(r"[\w.+%-]{1,64}+@[\w-]{1,63}+\.[\w.-]{2,}|<\s?mailto:|@[\w-]{2,63}+\.\w{2,}")
_DATE: Final = Pattern(
    r"\b(?:19|20)\d\d\b|\b\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b|\b\d{1,2}[.:]\d\d\b|\b\d{1,2}h\d\d\b|"
    r"\b\d{1,2}(?:st|nd|rd|th)?\.? (?:de )?[^\W\d_]{3,9}\b|\b[^\W\d_]{3,9}\.? \d{1,2}\b"
)
_FULL_DATE: Final = Pattern(r"\b(?:19|20)\d\d\b|\b\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b|\b\d{4}[./-]\d{1,2}[./-]\d{1,2}\b")
_TIME: Final = Pattern(r"\b\d{1,2}[:.h]\d\d\b")
_OPENER: Final = Pattern(
    r"(?:on|am|le|el|il|op|den|em|på|vào|dnia|dne|w dniu|a|om|no dia|il giorno|at|"
    r"(?:mon|tue|wed|thu|fri|sat|sun|mo|di|mi|do|fr|sa|so|lun|mar|mer|jeu|ven|sam|dim|mié|jue|vie|sáb|dom|gio|ma|wo|"
    r"vr|za|zo|"
    r"man|tir|ons|tor|fre|lør|søn|lör|sön|seg|ter|qua|qui|sex|sab)[^\W\d_]{0,9}[.,]{0,2}|\d{1,4}[-./年]?)[\s\d,.]",
    re.IGNORECASE,
)
_WROTE: Final = (
    r"(?:wrote|writes|schrieb|geschrieben|schreef|geschreven|a\s?écrit|écrit|escribió|escribio|ha scritto|scrive|"
    r"skrev|escreveu|"
    r"napisał(?:\(a\)|a)?|написал(?:\(а\)|а)?|kirjoitti|yazdı|napsal(?:\(a\)|a)?|írta|sent the following)"
)
_ATTRIBUTION: Final = Pattern(
    rf"[^\n]{{0,350}}?(?<!\w){_WROTE}(?!\w)(?:[^\n:]|:(?=[\w/])){{0,200}}?\s*+(?::|-{{2,}}+:?|–|—)\s*+$", re.IGNORECASE
)
# A date and a sender alone: 2026-11-18 10:02 GMT+01:00 Support <help@workspace.example>
_DATED_SENDER: Final = Pattern(r"\d{4}[-/年.]\d{1,2}[-/月.]\d{1,2}[^\n<>]{0,80}<[^\s<>]{1,80}@[^\s<>]{1,80}>\s?:?$")
_OWN: Final = Pattern(
    r"\b(?:you|your|yours|i|we|my|our|he|she|they|the|an?|this|that|his|her|their|someone|somebody|"
    r"du|ihr|ihre?[nmrs]?|ich|wir|mein\w{0,2}|unser\w{0,2}|dein\w{0,2}|der|die|das|ein\w{0,2}|man|"
    r"vous|votre|vos|je|nous|notre|mon|ma|la|les|un|une|ce|cette|on|"
    r"usted|ustedes|su|sus|mi|mis|nuestr[oa]s?|lei|voi|vostr[oaei]|mio|mia|nostr[oaei]|"
    r"jij|jullie|uw|mijn|onze|ons|ik|wij|het|een|de|jeres|vores|min|mit|jeg|vi|i|det|"
    r"você|vocês|seu|sua|meu|minha|nosso|nossa|eu|o|os|as|uma?)\b",
    re.IGNORECASE,
)
_JOINED: Final = 4  # lines into which mail programs wrap an attribution
_LONGEST: Final = 400  # characters of one
# In one line with what it quotes, as systems that drop line ends leave it.
_INLINE: Final = Pattern(
    r"(?<!\w)(?:On|Am|Le|El|Il|Op|Den|Em) (?=[^\n]{0,40}\d)[^\n<>]{6,120}<(?:mailto:)?[^\s<>@]{1,64}@[^\s<>@]{1,80}>"
    rf"[^\n<>:]{{0,40}}?(?:(?<= ){_WROTE}) ?:|(?<!\w)(?:Am|Op|Den) (?=[^\n]{{0,40}}\d)[^\n<>]{{6,80}}(?:schrieb|"
    rf"schreef|skrev) "
    r"[^\n<>:]{1,80}<(?:mailto:)?[^\s<>@]{1,64}@[^\s<>@]{1,80}> ?:"
)


@dataclass(frozen=True, slots=True)
class Header:
    """Lines [start, end) in which a mail program announces another's mail.

    `sure` says that no writer would have written them; without it they count only before lines marked as quoted.
    `forward` says that the program forwarded the mail, so that it may be the matter itself.
    """

    start: int
    end: int
    sure: bool
    forward: bool = False


def is_quoted_line(line: str) -> bool:
    """Whether a line begins with the mark of quoted mail. "> 5 users" may be a comparison, and is not taken for one."""
    return line.startswith(">") and not line.startswith((">=", "> ="))


def find_header(lines: Sequence[str], start: int) -> Header | None:
    """The header that begins at line `start`, if one does; `lines` are stripped."""
    line = lines[start]
    if not line or len(line) > _LONGEST:
        return None
    return _separator(lines, start) or _fields(lines, start) or _attribution(lines, start)


def names_a_writer(line: str) -> bool:
    """Whether a line says that somebody wrote what follows."""
    return re.search(rf"(?<!\w){_WROTE}(?!\w)", line[:_LONGEST], re.IGNORECASE) is not None


def inline_attribution(line: str) -> int:
    """Where in a line an attribution with an address begins, which has its quotation behind it; -1 if none does."""
    if "@" not in line:
        return -1
    match = _INLINE.search(line)
    return match.start() if match and match.start() else -1


def _separator(lines: Sequence[str], start: int) -> Header | None:
    line = lines[start]
    forward = False
    if match := _SEPARATOR.match(line):
        if match["what"] is not None:
            if _ORIGINAL.search(match["what"]) is None:
                return None
        elif _BEGIN.match(line) is None:
            return None
        forward = (
            match["begin"] is not None
            or re.search(
                r"forward|weitergeleitet|transf|réexp|reenv|inoltr|encaminh|doorgest|videres|vidare|przekaz",
                line,
                re.IGNORECASE,
            )
            is not None
        )
        end = start + 1
    elif line.count("_") == len(line) >= 5 or line.count("-") == len(line) >= 20:
        end = start + 1  # a rule, as Outlook on the web draws it above the fields
        after = _next(lines, end)
        below = _fields(lines, after) if after < len(lines) and after - end <= 2 else None
        return Header(start, below.end, sure=True) if below else None
    else:
        return None
    after = _next(lines, end)
    if after < len(lines) and after - end <= 2 and (block := _field_block(lines, after)):
        end = block[0]
    return Header(start, end, sure=True, forward=forward)


def _fields(lines: Sequence[str], start: int) -> Header | None:
    block = _field_block(lines, start)
    if block is None:
        return None
    end, found = block
    address = any(_ADDRESS.search(found.get(name, "")) for name in ("from", "to"))
    if "from" not in found:
        sure = len(found) >= 3 and address
    elif "subject" in found:
        sure = len(found) >= 3 or address
    else:  # a journey has From, To and Date as well
        sure = "sent" in found and address
    return Header(start, end, sure=True) if sure else None


def _field_block(lines: Sequence[str], start: int) -> tuple[int, dict[str, str]] | None:
    """Where a block of header fields ends, and its values by kind of field."""
    found: dict[str, str] = {}
    end = at = start
    continued = gap = 0
    name = value = ""
    while at < len(lines) and at - start < 40:
        line = lines[at]
        field = _field(line)
        if field is not None:
            name, value = field
            if name in found and name != "other":
                break  # the next mail's
            found[name] = value
            continued = gap = 0
            end = at + 1
        elif not found:
            return None
        elif not line:
            gap += 1
            if gap > _MAX_GAP and value:
                break
        elif not value and continued == 0:  # the value stands below its name
            value = found[name] = line
            continued = 1
            end = at + 1
        elif gap == 0 and continued < _MAX_CONTINUED and _goes_on(value, line):
            value = line
            found[name] = f"{found[name]} {line}"[:_LONGEST]
            continued += 1
            end = at + 1
        else:
            break
        at += 1
    return (end, found) if len(found) >= 2 else None


def _field(line: str) -> tuple[str, str] | None:
    name, colon, _ = line[:60].partition(":")
    if not colon:
        return None
    field = _FIELD_OF.get(" ".join(name.strip(" *_>|\t").lower().split()))
    return (field, line.partition(":")[2].strip(" *_\t")) if field else None


def _goes_on(value: str, line: str) -> bool:
    return (
        value.endswith((";", ",", "<", "-", "("))
        or (line[:1] == "<" and "@" in line)
        or (line.endswith((";", ">")) and "@" in line)
    )


def _attribution(lines: Sequence[str], start: int) -> Header | None:
    line = lines[start].lstrip("-–—>*_ ")
    opener = _OPENER.match(line) is not None or _FULL_DATE.search(line, 0, 40) is not None
    if not opener and "@" not in line and not ("<" in line[-3:] and len(line) > 3):
        return None
    joined = ""
    for end in range(start, min(start + _JOINED, len(lines))):
        part = lines[end].lstrip("> ") if end > start else line
        if not part or len(joined) + len(part) > _LONGEST:
            return None
        joined = f"{joined} {part}" if joined else part
        if part[-1] not in ":-–—>*":
            continue
        bare = joined.rstrip("*_ ")
        if _DATED_SENDER.match(bare):
            return Header(start, end + 1, sure=True)
        if _ATTRIBUTION.match(bare):
            return _weighed(lines, start, end + 1, bare, opener=opener)
    return None


def _weighed(lines: Sequence[str], start: int, end: int, text: str, *, opener: bool) -> Header | None:
    if _DATE.search(text) is None and _ADDRESS.search(text) is None and not opener:
        return None
    if _ADDRESS.search(text):
        return Header(start, end, sure=True)
    apart = (start == 0 or not lines[start - 1]) and (end >= len(lines) or not lines[end])
    # Behind the opener, so that "Le" and "El" are not taken for articles of the writer's.
    rest = text.split(maxsplit=1)[-1]
    own = _OWN.search(
        re.sub(
            r"(?:a\s?écrit|ha scritto|\bp\. ?m\.|\ba\. ?m\.)|\b(?:de|a las|a la|à|om|kl|um|alle ore|às|at)\b", " ", rest
        )
    )
    timed = _TIME.search(text) is not None and (start == 0 or not lines[start - 1])
    sure = _FULL_DATE.search(text) is not None and own is None and (apart or timed)
    return Header(start, end, sure=sure)


def _next(lines: Sequence[str], start: int) -> int:
    """The next line that is not blank."""
    while start < len(lines) and not lines[start]:
        start += 1
    return start
