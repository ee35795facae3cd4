"""What mail servers add: banners above a mail from outside, and legal notices below it."""

from __future__ import annotations

import re
from typing import Final

from enrichment.text.patterns import Pattern

__all__ = ["is_notice", "without_banner"]

_THIS_MAIL: Final = (
    r"(?:th(?:is|e) (?:e-?mail|mail|message|communication|sender)(?! address)|diese (?:e-?mail|mail|nachricht)|"
    r"dieser absender|(?:ce|cet) "
    r"(?:e-?mail|courriel|message|expéditeur)|cet expéditeur|este (?:correo|mensaje|e-?mail)(?: electrónico)?|"
    r"quest[ao] (?:e-?mail|messaggio|mail)|"
    r"dit (?:bericht|e-?mail)|deze (?:e-?mail|mail|afzender)|denne (?:e-?mail|mail|besked)|est[ae] (?:e-?mail|"
    r"mensagem|correio)|"
    r"(?:sie|you) (?:erhalten|don't often get|do not often get|rarely get)|(?:e-?mail|message|mail) (?:originat|came|"
    r"comes|from|is from|was sent|received))"
)
_OUTSIDE: Final = (
    r"(?:outside|external|extern(?:e[nrsm]?|al)?\b|außerhalb|ausserhalb|extérieur|externe|fuera|exterior|externo|"
    r"externa|esterno|esterna|all'esterno|"
    r"buiten|externe|ekstern|uden for|udefra|fora d|don't often get|do not often get|rarely get|unbekannt|unknown "
    r"sender|not from inside)"
)
_MARK: Final = (
    r"(?:caution|warning|attention|attenzione|achtung|warnung|vorsicht|hinweis|external|extern|externe|externo|"
    r"esterno|ekstern|"
    r"atención|aviso|advertencia|precaución|cuidado|atenção|avviso|avertissement|prudence|let op|waarschuwing|advarsel|"
    r"obs|notice|notice|important|be careful|security notice|stop|ext)"
)
_SAYS_OUTSIDE: Final = Pattern(
    rf"[\W_]{{0,20}}(?:(?:{_MARK})[\W_]{{1,12}}(?:(?:e-?mail|mail|sender|message|nachricht|absender)[\W_]{{1,12}})?)?"
    rf"(?:{_THIS_MAIL})(?:[^.!?\n]|\.(?=\w)){{0,120}}?{_OUTSIDE}(?:[^.!?\n]|\.(?=\w)){{0,160}}(?:[.!?]+|$)",
    re.IGNORECASE,
)
_ALONE: Final = Pattern(
    r"[\W_]{0,20}(?:caution|warning|achtung|attention|\*+|-+)?[\W_]{0,12}(?:external|extern(?:e|er|es)?|externo|"
    r"esterno|ekstern)[\W_]{1,3}"
    r"(?:e-?mail|sender|message|mail|nachricht|absender|courriel|expéditeur|correo|mittente|afzender|afsender)"
    r"(?:[\W_]{0,20}$|[.!:]\s{1,3}(?=(?:please )?(?:do not|don't|never|avoid|be (?:careful|cautious|wary|vigilant)|"
    r"(?:use|exercise) caution|think before|only click|klicken|öffnen|ne cliquez|n'ouvrez|no (?:haga|abra)|"
    r"non (?:cliccare|aprire)|klik|open geen|åbn|não (?:clique|abra))\b))|"
    r"(?:you (?:don't|do not|don’t) often (?:get|receive) e-?mails? from|sie erhalten (?:nicht häufig|selten) "
    r"e-?mails von|vous n'obtenez pas souvent d'e-?mails? |"
    r"no suele recibir (?:correos|correo) |non si ricevono spesso messaggi )(?:[^\n.]|\.(?=\w)){1,160}(?:\.\s|$)"
    r"(?:[^\n.]{1,60}(?:important|wichtig|importan)[^\n.]{0,10}(?:\.|$))?|"
    r"[\[(<*{][\W_]{0,4}(?:external|extern(?:e|er|es)?|ext|externo|esterno|ekstern)(?: (?:e-?mail|sender|mail|"
    r"message))?[\W_]{0,4}[\])>*}]",
    re.IGNORECASE,
)
# What a banner says next; never enough by itself.
_ADVICE: Final = Pattern(
    r"[\W_]{0,10}(?:please )?(?:(?:do not|don't|never|avoid|be (?:careful|cautious|wary|vigilant)|use caution|"
    r"exercise caution|think before|treat|verify|only click|"
    r"stop and think|report|learn why|some people who received|make sure|ensure|if (?:you (?:are unsure|don't|do not|"
    r"suspect|are not sure)|in doubt|suspicious)|"
    r"(?:klicken|öffnen|antworten|seien|bitte|prüfen|geben) |ne (?:cliquez|pas)|n'ouvrez|soyez|méfiez|no (?:haga|"
    r"abra|hagas|abras|pulse)|tenga|evite|verifique|"
    r"non (?:cliccare|aprire|fare)|prestare|fare attenzione|klik|open geen|wees|undlad|åbn|vær|klik ikke|não "
    r"(?:clique|abra)|tenha|desconfie|caution|external)\b)"
    r"[^.!?\n]{0,260}(?:[.!?]+|$)",
    re.IGNORECASE,
)
_BANNER_TAIL: Final = Pattern(
    r"link|attach|click|sender|content|open|trust|safe|suspicious|caution|phish|why this is important|"
    r"anh[aä]ng|anlage|absender|vertrau|pièce|lien|expéditeur|enlace|adjunto|remitente|"
    r"allegat|mittente|bijlage|afzender|vedhæft|afsender|anexo|remetente",
    re.IGNORECASE,
)

_SINGLE: Final = Pattern(
    r"[\W_]{0,8}(?:please (?:consider|think of) the environment|think before (?:you )?print|bitte denken sie an die "
    r"umwelt|"
    r"pensez à l'environnement|avant d'imprimer|antes de imprimir|prima di stampare|denk aan het milieu|tænk på "
    r"miljøet|"
    r"if you (?:have )?received? this .{1,40} (?:in error|by mistake)|if you are not the intended|"
    r"(?:to|click here to) unsubscribe\b|unsubscribe (?:here|from)|um sich abzumelden|pour vous désabonner|"
    r"(?:this (?:e-?mail|message) (?:has been|was) (?:scanned|checked)|virus-free|virenfrei|scanned by)\b)",
    re.IGNORECASE,
)
# Families of what a legal notice says; it says things of at least three, and who reads it never does.
_SAYS: Final = tuple(
    Pattern(pattern, re.IGNORECASE)
    for pattern in (
        (
            r"confidential|privileged|vertraulich|confidentiel|confidencial|riservat|vertrouwelijk|fortrolig|"
            r"proprietary|"
            r"geheim|geschützt|konfidenti|poufn"
        ),
        (
            r"intended (?:only|solely|exclusively|for|recipient|addressee)|for the (?:sole|exclusive) use|solely for|"
            r"only for the (?:use|person|addressee|individual)|(?:ausschlie(?:ß|ss)lich|nur|allein|lediglich) für|"
            r"bestimmungsgemäß|(?:ist|sind) .{0,40}bestimmt|destiné|exclusivement|réservé|exclusiv[ao]|(?:únic|"
            r"exclusiv|"
            r"sol)amente|dirigid[oa]|destinad|esclusiv|destinat|"
            r"uitsluitend|alleen bestemd|bestemd (?:voor|is)|udelukkende|kun (?:beregnet|bestemt)|beregnet (?:til|for)|"
            r"endast avsett"
        ),
        (
            r"recipient|addressee|empfänger|adressat|destinataire|destinatari|destinatário|geadresseerde|ontvanger|"
            r"modtager|mottagare|person or entity|to whom (?:it is|they are) addressed"
        ),
        (
            r"(?:this|the) (?:e-?mail|message|communication|transmission|mail)|diese[rs]? (?:e-?mail|mail|nachricht)|"
            r"ce(?:t|tte)? (?:e-?mail|message|courriel|transmission)|"
            r"este (?:correo|mensaje|e-?mail)|quest[oa] (?:e-?mail|messaggio|mail|comunicazione)|dit (?:bericht|"
            r"e-?mail)|"
            r"deze (?:e-?mail|mail)|denne (?:e-?mail|mail|besked|meddelelse)|est[ae] (?:e-?mail|mensagem|correio)|any "
            r"attachments?|anhänge|anlagen|pièces jointes|allegati"
        ),
        (
            r"\b(?:delete|destroy|löschen|vernichten|supprimer|détruire|eliminar|elimine|borr|destru|cancell|distrugg|"
            r"verwijder|vernietig|slet|apag|elimin)"
        ),
        (
            r"in error|by mistake|irrtümlich|versehentlich|par erreur|por error|por equivocación|per errore|ten "
            r"onrechte|"
            r"per abuis|abusievelijk|ved en fejl|ved en fejltagelse|por engano|nicht der richtige|not the (?:intended|"
            r"named)|"
            r"n'êtes pas le|no es (?:el|usted)|non (?:è|siete) il|niet de (?:beoogde|geadresseerde)|ikke (?:er )?den|"
            r"não "
            r"(?:é|for)"
        ),
        (
            r"prohibited|unauthori[sz]ed|untersagt|nicht gestattet|unbefugt|interdite?s?\b|prohibid|vietat|proibid|"
            r"verboden|niet toegestaan|forbudt|strictly|"
            r"disclos|disseminat|weitergabe|divulg|diffusion|verspreid|openbaarmaking|videregiv|dissémin|views|"
            r"opinions|"
            r"liability|virus|haftung|responsab|aansprakelijk"
        ),
    )
)
_PERSONAL: Final = Pattern(
    r"\b(?:I|I'm|my|ich|mein\w*|je|j'ai|mon|ma|mes|yo|mi|mio|mia|ik|mijn|jeg|min|mit|eu|meu|minha)\b"
)


def without_banner(paragraph: str, *, after_banner: bool = False) -> str:
    """A line from the top of a mail without the banner that a mail server put before the writer's words.

    `after_banner` says that the line above it was one: then advice alone is part of it.
    """
    rest = paragraph
    if match := _ALONE.match(rest):
        rest = rest[match.end() :].lstrip(" :-–—|")
    if match := _SAYS_OUTSIDE.match(rest):
        rest = rest[match.end() :].lstrip()
    elif rest is paragraph and not after_banner:
        return paragraph
    while rest and (match := _ADVICE.match(rest)) and _BANNER_TAIL.search(match[0]):
        rest = rest[match.end() :].lstrip()
    return rest if any(map(str.isalnum, rest)) else ""


def is_notice(paragraph: str) -> bool:
    """Whether a paragraph is a legal notice, or one of the lines that mail servers and list managers add."""
    if _SINGLE.match(paragraph):
        return True
    if len(paragraph) < 60 or _PERSONAL.search(paragraph):
        return False
    said = [pattern.search(paragraph) is not None for pattern in _SAYS]
    confidential, intended, recipient, _, _, error, _ = said
    return sum(said) >= 3 and (intended or error) and (confidential or recipient or error)
