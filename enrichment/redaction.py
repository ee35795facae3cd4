"""Redaction: personal data and secrets in a text are replaced by tokens such as [EMAIL].

    redact("Call +49 30 901820 or mail jane@example.com")  ->  "Call [PHONE] or mail [EMAIL]"
    redact_ticket(ticket, enrichment)                      ->  copies of both, all their texts redacted

What has a check digit or a grammar of its own (cards, IBANs, mail and IP addresses) is recognised by it. Phone numbers
and secrets are not: the words before them decide, in several languages. The time is linear in the length of a text.
Import this module only where redaction is on: it brings in phonenumbers and python-stdnum.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

import phonenumbers
import pydantic_core
from phonenumbers import NumberParseException, PhoneNumber
from stdnum import iban, luhn, numdb

from enrichment.ticket import EnrichmentData, RawTicket

__all__ = ["Kind", "Span", "find", "redact", "redact_json", "redact_ticket"]

Kind = Literal["EMAIL", "IBAN", "CARD", "IP", "SECRET", "PHONE"]


_MAX_NAME: Final = 100  # characters
_MAX_SUMMARY: Final = 2000  # characters; a longer one is a subject, which has the words around what it holds
_MIN_KNOWN: Final = 4  # characters of a finding that is looked for in the summary; "123" may be part of anything
_CAMEL_CASE: Final = re.compile(r"(?<=[a-z])(?=[A-Z])|_")
# Names are matched too, because otherwise the end of one and the begin of the next would look like a value.
_JSON_STRING: Final = re.compile(rb'("[^"\\]*+(?>(?:\\.[^"\\]*+)*)")(\s*+:)?', re.DOTALL)


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A part of a text: the characters from `begin` up to `end`, and what they are."""

    begin: int
    end: int
    kind: Kind


def redact(text: str, *, name: str = "") -> str:
    """The text with a token like [EMAIL] in place of each finding. `name` is the field's, and may say what it holds."""
    prefix = f"{_CAMEL_CASE.sub(' ', name)[:_MAX_NAME]}: " if name else ""
    found = find(prefix + text)
    return _replaced(prefix + text, [span for span in found if span.end > len(prefix)], len(prefix))


def _replaced(text: str, found: Sequence[Span], end: int = 0) -> str:
    parts = []
    for span in found:
        parts += [text[end : max(span.begin, end)], f"[{span.kind}]"]
        end = span.end
    return "".join([*parts, text[end:]])


def redact_json(raw: bytes) -> bytes:
    """JSON text, or a part of it, with its string values redacted; names and numbers stay as they are."""
    name = ""

    def replaced(match: re.Match[bytes]) -> bytes:
        nonlocal name
        value = json.loads(match[1])
        if match[2]:
            name = value
            return match[0]
        other = redact(value, name=name)
        return match[0] if other == value else json.dumps(other, ensure_ascii=False).encode()

    return _JSON_STRING.sub(replaced, raw)


def redact_ticket(ticket: RawTicket, enrichment: EnrichmentData) -> tuple[RawTicket, EnrichmentData]:
    """Copies of a ticket and its enrichment: subject, body, summary, tags and all string values of unknown fields.

    The ids stay as they are, and so do numbers and the names of fields.
    """
    metadata = ticket.metadata.model_copy(
        update={
            "source": redact(ticket.metadata.source, name="source"),
            "tags": [redact(tag) for tag in ticket.metadata.tags],
        }
    )
    found = {text: find(text) for text in (ticket.subject, ticket.body)}
    texts = {name: _replaced(text, found[text]) for name, text in (("subject", ticket.subject), ("body", ticket.body))}
    copy = ticket.model_copy(update={**texts, "metadata": metadata})
    for model in (copy, metadata):
        model._unread = redact_json(model._unread)  # noqa: SLF001 - a ticket's own part
        if model.model_extra:  # of a ticket that was not read from JSON
            extra = pydantic_core.from_json(redact_json(pydantic_core.to_json(model.model_extra)))
            object.__setattr__(model, "__pydantic_extra__", extra)
    summary = enrichment.summary
    if len(summary) <= _MAX_SUMMARY:
        # It may have what the ticket says, but not the words around it.
        values = {text[span.begin : span.end]: span.kind for text, spans in found.items() for span in spans}
        for value, kind in values.items():
            if len(value) >= _MIN_KNOWN:
                summary = summary.replace(value, f"[{kind}]")
    return copy, enrichment.model_copy(update={"summary": redact(summary)})


def find(text: str) -> list[Span]:
    """All findings, in the order of the text and without overlaps."""
    found: list[Span] = []
    # Of two that overlap the earlier kind wins, and covers both: half a number must not stay.
    for finder in (_secrets, _emails, _ibans, _cards, _ips):
        found = _merged(found, list(finder(text)))
    return _merged(found, list(_phones(text, found)))


def _merged(first: Sequence[Span], second: Sequence[Span]) -> list[Span]:
    if not second:
        return list(first)
    result: list[Span] = []
    ranked = [(span, 0) for span in first] + [(span, 1) for span in second]
    rank = 0
    for span, place in sorted(ranked, key=lambda entry: (entry[0].begin, entry[1])):
        if result and span.begin < result[-1].end:
            kind = result[-1].kind if rank <= place else span.kind
            result[-1] = Span(result[-1].begin, max(result[-1].end, span.end), kind)
            rank = min(rank, place)
        else:
            result.append(span)
            rank = place
    return result


class _Words:
    """A set of words; those with an asterisk stand for all words that begin so."""

    def __init__(self, words: str) -> None:
        self._whole = frozenset(word for word in words.split() if not word.endswith("*"))
        self._begins = tuple(word[:-1] for word in words.split() if word.endswith("*"))

    def __contains__(self, word: str) -> bool:
        return word in self._whole or word.startswith(self._begins)


def _words_before(text: str, end: int) -> list[str]:
    """The words of the line before a place, in lower case, the last one first."""
    before = text[max(0, end - _BEFORE) : end].rpartition("\n")[2].lower()
    return _WORD.findall(before)[::-1]


def _is_part(text: str, begin: int, also: str = "") -> bool:
    """Whether what begins there is the rest of a word, or follows one of the characters `also`."""
    before = text[max(0, begin - 1) : begin]
    return before.isalnum() or (before != "" and before in also)


_BEFORE: Final = 48  # characters before a finding in which words that say what it is are looked for
_WORD: Final = re.compile(r"[^\W\d_]+|#")

# -- mail addresses ----------------------------------------------------------------------------------------------------

_LOCAL_PART_BACKWARDS: Final = re.compile(r"[\w.+'&%~-]++")
_DOMAIN: Final = re.compile(r"[\w-]++(?:\.[\w-]++)+")
_TOP_LEVEL: Final = re.compile(r"[^\W\d_]{2,63}|xn--[a-z0-9-]+", re.IGNORECASE)
_PIXELS: Final = re.compile(r"[0-9]x\.")  # icon@2x.png
_MAX_PART: Final = 255  # characters on each side of the @


def _emails(text: str) -> Iterator[Span]:
    place = text.find("@")
    while place >= 0:
        domain = _DOMAIN.match(text, place + 1, place + 1 + _MAX_PART)
        local = domain and _LOCAL_PART_BACKWARDS.match(text[max(0, place - _MAX_PART) : place][::-1])
        if local and domain and not _PIXELS.match(domain[0]):
            name, labels = local[0][::-1].lstrip("'.-&%~"), domain[0].split(".")
            while len(labels) > 1 and not _TOP_LEVEL.fullmatch(labels[-1]):
                labels.pop()
            if name and len(labels) > 1:
                yield Span(place - len(name), place + 1 + len(".".join(labels)), "EMAIL")
        place = text.find("@", place + 1)


# -- IBANs and cards ---------------------------------------------------------------------------------------------------

_SPACE: Final = " \u00a0\u2007\u2009\u202f"
_IBAN_START: Final = re.compile(rf"[A-Za-z]{{2}}[0-9]{{2}}(?=[{_SPACE}.-]?[A-Za-z0-9])")
_IBAN_REST: Final = re.compile(rf"(?:[{_SPACE}.-]?[A-Za-z0-9])*")
_MAX_IBAN: Final = 68  # 34 characters and their separators
_CARD_BLOCKS: Final = re.compile(rf"[0-9]++(?>(?:[{_SPACE}.-][0-9]++)*)(?![^\W_])")
_DIGITS: Final = re.compile(r"[0-9]++")
_MIN_CARD, _MAX_CARD, _MAX_CARD_BLOCKS = 13, 19, 5  # digits, and groups of them
_CARD_SIZES: Final = frozenset({(4, 4, 4, 4), (4, 4, 4, 4, 3), (4, 6, 5), (4, 6, 4)})
# Ranges and lengths of Visa, Mastercard, American Express, Discover, Diners, JCB, UnionPay, Maestro and Dankort.
_ISSUED: Final = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)"
    r"[0-9]{12}|3[47][0-9]{13}|(?:6011|64[4-9][0-9]|65[0-9]{2})[0-9]{12,15}|3(?:0[0-59]|[689][0-9])[0-9]{11}|"
    r"35(?:2[89]|[3-8][0-9])[0-9]{12}|62[0-9]{14,17}|(?:5018|5020|5038|5893|6304|6759|676[1-3])[0-9]{9,15}|5019[0-9]{12}"
)


def _ibans(text: str) -> Iterator[Span]:
    for start in _IBAN_START.finditer(text):
        wanted = _iban_length(start[0][:2].upper())
        rest = _IBAN_REST.match(text, start.end(), start.start() + _MAX_IBAN)
        places = [place for place in range(*rest.span()) if text[place].isalnum()] if rest else []
        if not wanted or len(places) < wanted - 4 or _is_part(text, start.start()):
            continue
        end = places[wanted - 5] + 1
        is_whole = not text[end : end + 1].isalnum()
        if is_whole and iban.is_valid(text[start.start() : end].translate(_NO_SPACE), check_country=False):
            yield Span(start.start(), end, "IBAN")


_NO_SPACE: Final = dict.fromkeys(map(ord, _SPACE))


@cache
def _iban_length(country: str) -> int:
    """The number of characters of a country's IBAN, 0 if it has none."""
    _, properties = numdb.get("iban").info(country)[0]
    return 4 + sum(map(int, re.findall(r"([0-9]+)!", properties["bban"]))) if properties else 0


def _cards(text: str) -> Iterator[Span]:
    for sequence in _CARD_BLOCKS.finditer(text):
        if len(sequence[0]) < _MIN_CARD or _is_part(text, sequence.start(), ".,"):
            continue
        blocks = list(_DIGITS.finditer(text, *sequence.span()))
        first = 0
        while first < len(blocks):
            last = _card_end(blocks, first)
            if last is not None:
                yield Span(blocks[first].start(), blocks[last].end(), "CARD")
                first = last
            first += 1


def _card_end(blocks: Sequence[re.Match[str]], first: int) -> int | None:
    """The last block of a card number that begins with the block `first`, None if none begins there."""
    found, number, sizes = None, "", []
    for last in range(first, min(first + _MAX_CARD_BLOCKS, len(blocks))):
        number += blocks[last][0]
        sizes.append(len(blocks[last][0]))
        if len(number) > _MAX_CARD:
            break
        # Parts of a longer sequence have to be grouped as on a card.
        is_all = first == 0 and last == len(blocks) - 1
        if (is_all or len(sizes) == 1 or tuple(sizes) in _CARD_SIZES) and _is_card(number):
            found = last
    return found


def _is_card(number: str) -> bool:
    return len(number) >= _MIN_CARD and _ISSUED.fullmatch(number) is not None and luhn.is_valid(number)


# -- IP addresses ------------------------------------------------------------------------------------------------------

_IPV4: Final = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?!\w|\.[0-9]|-(?![0-9]{1,3}\.[0-9]{1,3}\.)[0-9])")
_IPV6: Final = re.compile(r":[0-9A-Fa-f:.]++(?!\w)")
_FIRST_GROUP: Final = re.compile(r"[0-9A-Fa-f]{1,4}\Z")
_MAX_IPV6: Final = 45  # characters
_VERSION_WORDS: Final = frozenset(
    "v ver version versions versión versione versie versão release build firmware kernel driver section sections "
    "chapter abschnitt kapitel treiber upgraded upgrade downgraded updated update macos ios ipados android "
    "windows linux debian ubuntu chrome firefox edge safari java app".split()
)
_ADDRESS_WORDS: Final = frozenset(
    "ip ips address addresses adresse adressen dirección indirizzo adres host hosts server servers serveur "
    "servidor ping gateway http https ssh source src dst destination resolves dns subnet vpn proxy firewall".split()
)


def _ips(text: str) -> Iterator[Span]:
    for match in _IPV4.finditer(text):
        if _is_part(text, match.start(), ".") or not _is_address(match[0]):
            continue
        word = next((w for w in _words_before(text, match.start()) if w in _VERSION_WORDS | _ADDRESS_WORDS), "")
        if word not in _VERSION_WORDS:
            yield Span(*match.span(), "IP")
    for match in _IPV6.finditer(text):
        group = _FIRST_GROUP.search(text[max(0, match.start() - 4) : match.start()])
        begin = match.start() - (len(group[0]) if group else 0)
        number = text[begin : match.end()].rstrip(".")
        if number.endswith(":") and not number.endswith("::"):
            number = number[:-1]
        has_digit = any(map(str.isdigit, number))
        if len(number) <= _MAX_IPV6 and has_digit and not _is_part(text, begin, ":.") and _is_address(number):
            yield Span(begin, begin + len(number), "IP")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


# -- passwords, keys and codes -----------------------------------------------------------------------------------------

_SECRET_NAMES: Final = re.compile(
    # What may end a longer word: Adminpasswort, db_password.
    r"(?:(?P<word>passwor[dt]|passwd|kennwort|passphrase)|(?<![^\W_])(?:(?P<name>"
    r"passcode|pwd|mot de passe|mdp|contraseña|contrasena|wachtwoord|lösenord|adgangskode|passord|senha|palavra-passe|"
    r"salasana|hasło|heslo|jelszó|parola|пароль|"
    r"(?:api|access|secret|private|signing|licen[cs]e|activation|recovery|product|client|webhook|auth|bearer|refresh|"
    r"session|encryption)[ _-]?(?:access[ _-]?)?(?:key|token|secret)|"
    r"(?:api|lizenz|zugangs|aktivierungs|geheim)-?(?:schlüssel|token)|"
    r"clé (?:d['’])?api|clé (?:secrète|de licence|d['’]activation)|jeton d['’]accès|"
    r"clave (?:de )?(?:la )?(?:api|licencia)|clave secreta|chiave (?:api|segreta|di licenza)|chave (?:da |de )?api|"
    r"api-(?:sleutel|nyckel|nøgle|nøkkel)|klucz api)|"
    r"(?P<code>(?:code )?pin(?:-?code)?|cvv2?|cvc2?|otp|(?:verification|security|one-time|backup|2fa|login) code|"
    r"(?:sicherheits|bestätigungs)code|code de (?:vérification|sécurité)|código de (?:verificación|seguridad))|"
    r"(?P<weak>secret|token|pass|pw|clave|authorization|key)))(?![^\W_])",
    re.IGNORECASE,
)
# All names begin with one of these.
_SECRET_BEGINS: Final = (
    "passw passp passc passo kennw pwd mot mdp contrase wachtw lösen adgang senha palavra salasana hasło heslo "
    "jelsz парол api acce secret priv sign licen activ recov prod client webh auth bearer refr sess encr lizenz "
    "zugang aktiv geheim clé jeton clave chiav chav klucz code pin cvv cvc otp veri secu one back 2fa login "
    "sicherh bestä cód token pass pw key"
).split()
_ASSIGNED: Final = re.compile(
    r"[\"'`*]{0,2}(?:\s{0,3}(?::=|=>|[:=])\s{0,3}|>)(?:(?:bearer|basic|token)\s)?", re.IGNORECASE
)
_SAID: Final = re.compile(
    r"\s(?:(?:for|of|to|zum|zur|für|pour|de|du|del|para|voor|van|per)\s(?:\S{1,30}\s){1,6}?)?"
    r"(?:(?:(?:is|was|has been)\s)?(?:changed|set|reset)\sto|is|was|lautet|ist|war|est|es|era|é|è|är|er|to|as|jest)"
    r"(?::\s{1,3}|\s(?:now\s|jetzt\s|ahora\s)?:?\s?)",
    re.IGNORECASE,
)
_VALUE: Final = re.compile(
    r"\"[^\"\n]{3,200}\"|'[^'\n]{3,200}'|`[^`\n]{3,200}`|“[^”\n]{3,200}”|„[^“”\n]{3,200}[“”]|«[^»\n]{3,200}»|[^\s<]++"
)
_QUOTES: Final = "\"'`“”„«»"
_PROSE: Final = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_GOES_ON: Final = re.compile(
    r" (?!(?:and|but|und|aber|et|mais|y|pero|en|maar|e|ma|mas|och|men|og)\b)[^\W\d_]", re.IGNORECASE
)
# A number of another kind: a date, a time, a version, an amount; or the name of an algorithm, such as SHA256.
_PLAIN_NUMBER: Final = re.compile(r"[v$€£]?[0-9]+(?:[.,:/-][0-9]+)*[%€$]?|(?-i:[A-Z]{2,}-?[0-9]+)", re.IGNORECASE)
_STATES: Final = frozenset(
    "see no none not null true false n/a wrong invalid incorrect expired missing required unknown empty yes reset "
    "forgotten siehe nein falsch vergessen voir non oublié ver sí incorrecta geen onjuist".split()
)


def _secrets(text: str) -> Iterator[Span]:
    end = 0
    for begin in _secret_starts(text):
        name = _SECRET_NAMES.match(text, begin)
        if name is None or begin < end:
            continue
        is_code = name["code"] is not None
        value = None
        if assigned := _ASSIGNED.match(text, name.end()):
            value = _VALUE.match(text, assigned.end())
            if value and not _is_assigned_secret(text, value, is_code=is_code, is_weak=name["weak"] == "key"):
                value = None
        elif not name["weak"]:
            said = _SAID.match(text, name.end())
            if said or text[name.end() : name.end() + 1].isspace():
                value = _VALUE.match(text, said.end() if said else name.end() + 1)
            if value and not _looks_secret(value[0], is_code=is_code, min_length=4 if said else 6):
                value = None
        elif name["weak"].lower() == "authorization":
            continue
        if value:
            bare = _bare(value[0])
            start = value.start() + value[0].index(bare)
            end = start + len(bare)
            yield Span(start, end, "SECRET")


def _secret_starts(text: str) -> list[int]:
    """The places where a name of a secret may begin."""
    lower = text.lower()
    if len(lower) != len(text):  # a few characters have two in lower case
        lower = "".join(c if len(c.lower()) > 1 else c.lower() for c in text)
    starts = []
    # Much faster than a search for the whole expression, which most texts do not have.
    for begin in _SECRET_BEGINS:
        place = lower.find(begin)
        while place >= 0:
            starts.append(place)
            place = lower.find(begin, place + 1)
    return sorted(starts)


def _bare(value: str) -> str:
    """A value without its quotation marks, or without the punctuation of the sentence behind it."""
    if value[0] in _QUOTES and value[-1] in _QUOTES and len(value) > 1:
        return value[1:-1]
    return value.rstrip(".,;:?)]}>" + _QUOTES) or value


def _is_assigned_secret(text: str, value: re.Match[str], *, is_code: bool, is_weak: bool) -> bool:
    """Whether what follows "name:" is a secret and not prose."""
    bare = _bare(value[0])
    if len(bare) < 3 or bare[0] in "([{<" or not bare.strip("*•.…_-xX") or bare.lower() in _STATES:
        return False
    if is_code:
        return any(map(str.isdigit, bare))
    if is_weak:
        return _looks_secret(value[0], is_code=False, min_length=8)
    is_prose = _PROSE.fullmatch(bare) and _GOES_ON.match(text, value.end())
    return value[0][0] in _QUOTES or not is_prose


def _looks_secret(value: str, *, is_code: bool, min_length: int) -> bool:
    """Whether a word after "the password is" is one that prose does not have."""
    bare = _bare(value)
    has_digit = any(map(str.isdigit, bare))
    if is_code:
        return has_digit and 3 <= len(bare) <= 12 and bare.replace("-", "").isalnum()
    if len(bare) < min_length or _PLAIN_NUMBER.fullmatch(bare) or bare[0] in "([{<":
        return False
    has_letter = any(map(str.isalpha, bare))
    inner = bare[1:-1]
    is_odd = any(character in "_!@#$%^&*+=~|" for character in inner) or bare.count("-") >= 3
    return has_letter and (has_digit or is_odd or re.search(r"[a-z][A-Z]", bare) is not None)


# -- phone numbers -----------------------------------------------------------------------------------------------------

_PHONE_RUN: Final = re.compile(rf"[0-9][0-9{_SPACE}()./–-]*+")
_PHONE_GAP: Final = re.compile(rf"[{_SPACE}]?[().–/-]{{0,2}}[{_SPACE}]?\(?")
_DATE: Final = re.compile(
    r"(?<![0-9])(?:(?:19|20)[0-9]{2}[-./][01]?[0-9][-./][0-3]?[0-9]|[0-3]?[0-9][-./][0-3]?[0-9][-./](?:19|20)[0-9]{2})(?![0-9])"
)
_NORTH_AMERICAN: Final = re.compile(r"(?:1[-. ])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[-.])[2-9][0-9]{2}[-.][0-9]{4}")
# The last of these words before a number says what it is. Those with an asterisk stand for all that begin so.
_PHONE_WORDS: Final = _Words(
    "phone phones telephone telefon* telefoon* teléfono téléphone telemóvel telemovel tel tél mobile mobil* "
    "mobiel móvil cell cellphone cellulare celular call calls called ring dial dialled text sms whatsapp signal "
    "fax hotline line landline voicemail reach reached contact handy* anruf* rufnummer rückruf* rufen ruf "
    "erreich* durchwahl festnetz office büro bureau oficina kantoor portable joindre rappel* appel* llam* llám* "
    "bellen bel chiam* lig* ring zadzwo* kontakt direct emergency mob ph gsm tlf"
)
_OTHER_WORDS: Final = _Words(
    "# order orders invoice* ticket* track* customer* contract* reference* ref serial policy case claim sku item "
    "article account* user* id ids po quote request* version build run imei isbn ean vat tax siret siren nif kvk* "
    "iban bic card zip plz meter parcel shipment ups usps dhl fedex meeting seats rows code codice pid timestamp "
    "epoch bestell* rechnung* kund* vertrag* sendung* auftrag* aktenzeichen steuer* commande facture suivi colis "
    "client pedido factura seguimiento factuur* klant* ordine fattura encomenda membership loyalty supplier "
    "member"
)
_MY_NUMBER: Final = re.compile(
    r"\b(?:my|our|meine|mon|mi)(?: (?:new|old|direct|private|work|home|uk|us|neue|nouveau|nuevo))?"
    r" (?:number|nummer|numéro|número)\b",
    re.IGNORECASE,
)
_LETTER_LABEL: Final = re.compile(r"(?:^|[\s|])[TMPF][:.]?\s*\Z")
# A national number in groups, of which only the last ones may be short.
_TRUNK_GROUPS: Final = re.compile(rf"\(?0[0-9]{{1,5}}\)?(?:[{_SPACE}/-]{{1,3}}[0-9]{{2,8}}){{1,4}}")
_SAYS_PHONE_AFTER: Final = re.compile(
    r" ?\((?:mobile?|mobil|whatsapp|cell|office|home|work|büro|privat)\b", re.IGNORECASE
)
_GOES_ON_AS_NUMBER: Final = re.compile(r"[^\W_]|[,.:][0-9]|\s?[%€$£]")
_MIN_PHONE, _MAX_PHONE, _MAX_NATIONAL = 7, 15, 12  # digits
_MAX_DIALLED: Final = 18  # digits, with 011, or with 00 and (0)
# Where national numbers begin with a zero; others are recognised by the words before them.
_TRUNK_ZERO: Final = ("GB", "DE", "FR", "NL", "BE", "CH", "AT", "IT", "SE", "IE", "AU")
_ANY_LENGTH: Final = ("US", "GB", "DE", "ES", "NO")  # these have all lengths of national numbers
# Checks of numbers in one text; beyond it, what looks like a phone number counts as one, so that the time stays short.
_MAX_CHECKS: Final = 500
_MAX_PHONE_BLOCKS: Final = 8
_NEAR: Final = 20  # characters between two numbers of one list


_Named = Literal["phone", "other", ""]


class _Checks:
    """Checks numbers with phonenumbers: at most _MAX_CHECKS of them, whatever is beyond passes."""

    def __init__(self) -> None:
        self._left = _MAX_CHECKS

    def possible(self, number: str, regions: Sequence[str] = ()) -> bool:
        """Whether the length is that of a number of a region; without regions, an international number."""
        return self._any(number, regions, phonenumbers.is_possible_number)

    def valid(self, number: str, regions: Sequence[str] = ()) -> bool:
        """Whether the digits, too, are those of a number of a region."""
        return self._any(number, regions, phonenumbers.is_valid_number)

    def _any(self, number: str, regions: Sequence[str], check: Callable[[PhoneNumber], bool]) -> bool:
        for region in regions or (None,):
            self._left -= 1
            if self._left < 0:
                return True
            with suppress(NumberParseException):
                if check(phonenumbers.parse(number, region)):
                    return True
        return False


def _phones(text: str, others: Sequence[Span]) -> Iterator[Span]:
    """Phone numbers outside the other findings, which are in the order of the text."""
    checks, previous, other = _Checks(), -_BEFORE, 0
    for run in _PHONE_RUN.finditer(text):
        if len(run[0]) < _MIN_PHONE or _is_part(text, run.start(), "#$€£"):
            continue
        blocks = []
        for block in _DIGITS.finditer(text, *run.span()):
            while other < len(others) and others[other].end <= block.start():
                other += 1
            if other == len(others) or others[other].begin >= block.end():
                blocks.append(block)
        first, named = 0, _named(text, run.start())
        while first < len(blocks):
            is_near = named == "" and blocks[first].start() - previous <= _NEAR  # "030 1234567 or 030 1234568"
            last = _phone_end(text, blocks, first, "phone" if is_near else named, checks)
            if last is not None:
                begin, previous = _phone_begin(text, blocks[first]), blocks[last].end()
                yield Span(begin, previous, "PHONE")
                first = last
            first += 1


def _phone_begin(text: str, block: re.Match[str]) -> int:
    """Where a number that begins with a block begins, with its plus sign and parenthesis."""
    begin = block.start()
    for _ in range(2):
        if text[max(0, begin - 1) : begin] in {"+", "("}:
            begin -= 1
    return begin


def _phone_end(text: str, blocks: Sequence[re.Match[str]], first: int, named: _Named, checks: _Checks) -> int | None:
    """The last block of the longest phone number that begins with the block `first`, None if none begins there."""
    begin = _phone_begin(text, blocks[first])
    if (first and text[begin - 1] not in _SPACE + "/") or (named == "other" and "+" not in text[begin : begin + 2]):
        return None
    for last in reversed(_phone_ends(text, blocks, first)):
        end = blocks[last].end()
        is_named = named == "phone" or _SAYS_PHONE_AFTER.match(text, end) is not None
        number = text[begin:end]
        is_whole = _GOES_ON_AS_NUMBER.match(text, end) is None
        if is_whole and _may_be_phone(number, is_named=is_named) and _is_phone(number, checks, is_named=is_named):
            return last
    return None


def _phone_ends(text: str, blocks: Sequence[re.Match[str]], first: int) -> list[int]:
    """The blocks that may be the last one of a phone number, by the number of digits and what separates them."""
    ends, digits = [], 0
    for last in range(first, min(first + _MAX_PHONE_BLOCKS, len(blocks))):
        gap = text[blocks[last - 1].end() : blocks[last].start()] if last > first else ""
        digits += len(blocks[last][0])
        if digits > _MAX_DIALLED or not _PHONE_GAP.fullmatch(gap):
            break
        if digits >= _MIN_PHONE:
            ends.append(last)
    return ends


def _named(text: str, begin: int) -> _Named:
    """What the words before a number say that it is."""
    before = text[max(0, begin - _BEFORE) : begin].rstrip("+(")
    for word in _words_before(text, begin):
        if word in _PHONE_WORDS:
            return "phone"
        if word in _OTHER_WORDS:
            return "other"
    return "phone" if _MY_NUMBER.search(before) or _LETTER_LABEL.search(before) else ""


def _may_be_phone(number: str, *, is_named: bool) -> bool:
    """Whether it is worth asking phonenumbers."""
    if is_named or number.startswith(("+", "(+", "00", "011")):
        return not _DATE.search(number)
    return _NORTH_AMERICAN.fullmatch(number) is not None or (
        number.lstrip("(")[0] == "0" and _TRUNK_GROUPS.fullmatch(number) is not None and not _DATE.search(number)
    )


def _is_phone(number: str, checks: _Checks, *, is_named: bool) -> bool:
    """Whether a number is a phone number; `is_named` if the words around it say so."""
    digits = re.sub(r"[^0-9]", "", number.replace("(0)", ""))
    if number.startswith(("+", "(+")):
        return len(digits) <= _MAX_PHONE and (is_named or checks.possible("+" + digits))
    for prefix in ("00", "011"):
        abroad = digits.removeprefix(prefix)
        is_abroad = abroad != digits and not abroad.startswith("0") and len(abroad) <= _MAX_PHONE
        if is_abroad and (checks.possible if is_named else checks.valid)("+" + abroad):
            return True
    if not _MIN_PHONE <= len(digits) <= _MAX_NATIONAL:
        return False
    if is_named:
        return checks.possible(number, _ANY_LENGTH)
    return _NORTH_AMERICAN.fullmatch(number) is not None or checks.valid(number, _TRUNK_ZERO)
