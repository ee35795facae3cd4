"""Quoted mail by client, language and layout; and what only looks like it."""

import html
from collections.abc import Callable

import pytest

from enrichment.text import model_text

OWN = "The lift on the second floor still stops between two floors, and the alarm bell stays silent."
QUOTED = "Could you tell us the serial number that is printed inside the cabin?"
PERSON = "Lift Service"
ADDRESS = "desk@lifts.example"
WHO = f"{PERSON} <{ADDRESS}>"

# One line as the client writes it above a reply, by client and language.
ATTRIBUTIONS = {
    "gmail en": f"On Tue, Nov 17, 2026 at 9:14 AM {WHO} wrote:",
    "gmail en-gb": f"On Tue, 17 Nov 2026 at 09:14, {WHO} wrote:",
    "gmail de": f"Am Di., 17. Nov. 2026 um 09:14 Uhr schrieb {WHO}:",
    "gmail fr": f"Le mar. 17 nov. 2026 à 09:14, {WHO} a écrit :",
    "gmail es": f"El mar, 17 nov 2026 a las 9:14, {PERSON} (<{ADDRESS}>) escribió:",
    "gmail da": f"Den tirs. 17. nov. 2026 kl. 09.14 skrev {WHO}:",
    "gmail nl": f"Op di 17 nov 2026 om 09:14 schreef {WHO}:",
    "gmail it": f"Il giorno mar 17 nov 2026 alle ore 09:14 {WHO} ha scritto:",
    "gmail pt": f"Em ter., 17 de nov. de 2026 às 09:14, {WHO} escreveu:",
    "apple en": f"On 17 Nov 2026, at 09:14, {WHO} wrote:",
    "apple de": f"Am 17.11.2026 um 09:14 schrieb {WHO}:",
    "apple fr": f"Le 17 nov. 2026 à 09:14, {WHO} a écrit :",
    "apple es": f"El 17 nov 2026, a las 9:14, {WHO} escribió:",
    "apple da": f"Den 17. nov. 2026 kl. 09.14 skrev {WHO}:",
    "apple nl": f"Op 17 nov. 2026 om 09:14 heeft {WHO} het volgende geschreven:",
    "apple it": f"Il giorno 17 nov 2026, alle ore 09:14, {WHO} ha scritto:",
    "apple pt": f"No dia 17/11/2026, às 09:14, {WHO} escreveu:",
    "yahoo en": f"On Tuesday, November 17, 2026 at 09:14:36 AM GMT+1, {WHO} wrote:",
    "yahoo de": f"Am Dienstag, 17. November 2026 um 09:14:36 MEZ hat {WHO} Folgendes geschrieben:",
    "yahoo fr": f"Le mardi 17 novembre 2026 à 09:14:36 UTC+1, {WHO} a écrit :",
    "yahoo es": f"El martes, 17 de noviembre de 2026, 09:14:36 CET, {WHO} escribió:",
    "zoho en": f"---- On Tue, 17 Nov 2026 09:14:36 +0100 {WHO} wrote ----",
    "zoho en colon": f"---- On Tue, 17 Nov 2026 09:14:36 +0100 {WHO} wrote ---",
    "zoho de": f"---- Am Di., 17 Nov. 2026 09:14:36 +0100 {WHO} schrieb ----",
    "thunderbird en": f"On 17/11/2026 09:14, {PERSON} wrote:",
    "thunderbird de": f"Am 17.11.26 um 09:14 schrieb {PERSON}:",
    "thunderbird fr": f"Le 17/11/2026 à 09:14, {PERSON} a écrit :",
    "thunderbird nl": f"Op 17-11-2026 om 09:14 schreef {PERSON}:",
    "thunderbird da": f"Den 17-11-2026 kl. 09:14 skrev {PERSON}:",
    "thunderbird it": f"Il 17/11/2026 09:14, {PERSON} ha scritto:",
    "thunderbird pt": f"Em 17/11/2026 09:14, {PERSON} escreveu:",
    "thunderbird es": f"El 17/11/2026 a las 9:14, {PERSON} escribió:",
    "name first": f"{WHO} wrote:",
    "name first de": f"{WHO} schrieb am Di., 17. Nov. 2026, 09:14:",
    "date and address": f"2026-11-17 9:14 GMT+01:00 {WHO}:",
    "gmail sv": f"Den tis 17 nov. 2026 kl 09:14 skrev {WHO}:",
    "gmail pl": f"wt., 17 lis 2026 o 09:14 {WHO} napisał(a):",
}

# From, Sent, To, Subject, by language.
FIELDS = {
    "en": ("From", "Sent", "To", "Subject"),
    "en date": ("From", "Date", "To", "Subject"),
    "de": ("Von", "Gesendet", "An", "Betreff"),
    "de date": ("Von", "Datum", "An", "Betreff"),
    "fr": ("De", "Envoyé", "À", "Objet"),
    "fr date": ("De", "Date", "À", "Objet"),
    "es": ("De", "Enviado", "Para", "Asunto"),
    "es sent on": ("De", "Enviado el", "Para", "Asunto"),
    "da": ("Fra", "Sendt", "Til", "Emne"),
    "nl": ("Van", "Verzonden", "Aan", "Onderwerp"),
    "it": ("Da", "Inviato", "A", "Oggetto"),
    "pt": ("De", "Enviado", "Para", "Assunto"),
    "pt br": ("De", "Enviada em", "Para", "Assunto"),
    "sv": ("Från", "Skickat", "Till", "Ämne"),
}

SEPARATORS = [
    "-----Original Message-----",
    "----- Original Message -----",
    "-----Ursprüngliche Nachricht-----",
    "-----Message d'origine-----",
    "-----Mensaje original-----",
    "-----Oprindelig meddelelse-----",
    "-----Oorspronkelijk bericht-----",
    "-----Messaggio originale-----",
    "-----Mensagem original-----",
    "---------- Forwarded message ---------",
    "---------- Weitergeleitete Nachricht ---------",
    "-------- Forwarded Message --------",
    "---------- Message transféré ---------",
    "---------- Doorgestuurd bericht ---------",
    "Begin forwarded message:",
    "Anfang der weitergeleiteten Nachricht:",
    "Début du message transféré :",
    "Inicio del mensaje reenviado:",
    "Inizio messaggio inoltrato:",
    "Begin doorgestuurd bericht:",
]


def _fields(language: str, layout: str = "{}: {}", newline: str = "\n") -> str:
    values = (WHO, "Tuesday, November 17, 2026 9:14 AM", "Facility <facility@tower.example>", "Lift")
    return newline.join(layout.format(name, value) for name, value in zip(FIELDS[language], values, strict=True))


def _is_only_own(text: str) -> None:
    assert text == f"Re: Lift. {OWN}"


# -- a line that a client wrote ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("client", ATTRIBUTIONS)
def test_a_reply_above_its_quotation(client: str, newline: str) -> None:
    _is_only_own(model_text("Re: Lift", f"{OWN}\n\n{ATTRIBUTIONS[client]}\n\n{QUOTED}\n".replace("\n", newline)))


@pytest.mark.parametrize("client", ATTRIBUTIONS)
def test_a_reply_with_marked_lines(client: str) -> None:
    quoted = f"> {QUOTED}\n>\n> The lift man"
    _is_only_own(model_text("Re: Lift", f"{OWN}\n\n{ATTRIBUTIONS[client]}\n{quoted}"))
    # Below its quotation, and in the middle of it.
    _is_only_own(model_text("Re: Lift", f"{ATTRIBUTIONS[client]}\n{quoted}\n\n{OWN}"))
    _is_only_own(model_text("Re: Lift", f"{ATTRIBUTIONS[client]}\n{quoted}\n\n{OWN}\n\n{quoted}"))


@pytest.mark.parametrize(
    "client", [c for c in ATTRIBUTIONS if "<" in ATTRIBUTIONS[c] and "first" not in c and c[0] != "d"]
)
@pytest.mark.parametrize("at", ["<", " "], ids=["in the address", "before the verb"])
def test_an_attribution_that_was_wrapped(client: str, at: str) -> None:
    line = ATTRIBUTIONS[client]
    place = line.index("<") + 1 if at == "<" else line.rindex(" ", 0, line.rindex(" "))
    wrapped = line[:place].rstrip(" ") + "\n" + line[place:].lstrip(" ")
    _is_only_own(model_text("Re: Lift", f"{OWN}\n\n{wrapped}\n\n{QUOTED}"))


@pytest.mark.parametrize(
    "client", ["gmail en", "gmail de", "gmail fr", "apple nl", "gmail da", "gmail it", "gmail pt", "gmail es"]
)
def test_an_attribution_in_one_line_with_its_quotation(client: str) -> None:
    _is_only_own(model_text("Re: Lift", f"{OWN} {ATTRIBUTIONS[client]} {QUOTED}"))


# -- fields ------------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "plain": "{}: {}",
    "indented": "    {}: {}",
    "starred": "*{}:* {}",
    "twice starred": "**{}:** {}",
    "spaced": "{} : {}",
    "tabbed": "{}:\t{}",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("language", FIELDS)
def test_fields_above_an_older_mail(language: str, layout: str) -> None:
    _is_only_own(model_text("Re: Lift", f"{OWN}\n\n{_fields(language, LAYOUTS[layout])}\n\n{QUOTED}"))


@pytest.mark.parametrize("language", FIELDS)
def test_fields_below_a_rule_with_gaps_and_long_recipients(language: str) -> None:
    _is_only_own(model_text("Re: Lift", f"{OWN}\n\n{'_' * 32}\n{_fields(language)}\n\n{QUOTED}"))
    _is_only_own(model_text("Re: Lift", f"{OWN}\n\n{_fields(language, newline=chr(10) * 2)}\n\n{QUOTED}"))
    name = FIELDS[language][2]
    recipients = (
        f"{name}: Facility <facility@tower.example>;\nJohanna Weiss <jw@tower.example>;\nCellar <cellar@tower.example>"
    )
    long = _fields(language).replace(f"{name}: Facility <facility@tower.example>", recipients)
    assert recipients in long
    _is_only_own(model_text("Re: Lift", f"{OWN}\n\n{long}\n\n{QUOTED}"))


@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_separator_above_an_older_mail(separator: str) -> None:
    _is_only_own(model_text("Re: Lift", f"{OWN}\n\n{separator}\n{_fields('en')}\n\n{QUOTED}"))
    _is_only_own(model_text("Re: Lift", f"{OWN}\n\n{separator}\n\n{QUOTED}"))


def test_fields_whose_values_stand_below_them() -> None:
    body = f"{OWN}\n\nFrom:\n{WHO}\nSent:\nTuesday, November 17, 2026\nTo:\nFacility\nSubject:\nLift\n\n{QUOTED}"
    _is_only_own(model_text("Re: Lift", body))


# -- HTML --------------------------------------------------------------------------------------------------------------


def _gmail(line: str) -> str:
    return (
        f'<div dir="ltr">{OWN}</div><br><div class="gmail_quote gmail_quote_container"><div dir="ltr" class="gmail_attr">'
        f'{html.escape(line)}<br></div><blockquote class="gmail_quote" style="margin:0px 0px 0px 0.8ex;border-left:1px solid '
        f'rgb(204,204,204);padding-left:1ex"><div dir="ltr">{QUOTED}</div></blockquote></div>'
    )


def _apple(line: str) -> str:
    return (
        f'<html><body style="overflow-wrap: break-word;">{OWN}<br><div><br><blockquote type="cite"><div>{html.escape(line)}</div><br>'
        f"<div><div>{QUOTED}</div></div></blockquote></div><br></body></html>"
    )


def _thunderbird(line: str) -> str:
    return (
        f'<html><body><p>{OWN}</p><div class="moz-cite-prefix">{html.escape(line)}<br></div><blockquote type="cite" '
        f'cite="mid:1@lifts.example"><p>{QUOTED}</p><blockquote type="cite">older</blockquote><p>{QUOTED}</p></blockquote></body></html>'
    )


def _yahoo(line: str) -> str:
    return (
        f'<div class="ydp1yahoo-style-wrap"><div>{OWN}</div></div><div id="ydp2yahoo_quoted_1" class="yahoo_quoted"><div style="font-family:Arial">'
        f"<div>{html.escape(line)}</div><div><br></div><div><div>{QUOTED}</div></div></div></div>"
    )


def _zoho(line: str) -> str:
    return (
        f'<div style="font-family: Verdana"><div>{OWN}<br></div><br><div class="zmail_extra" id="Zm-1"><br>{html.escape(line)}<br><br>'
        f'<blockquote style="margin: 0px;"><div>{QUOTED}</div></blockquote></div></div>'
    )


def _proton(line: str) -> str:
    return f'<div>{OWN}</div><div class="protonmail_quote">{html.escape(line)}<br><blockquote type="cite">{QUOTED}</blockquote></div>'


def _plain_blockquote(line: str) -> str:
    return f"<p>{OWN}</p><p>{html.escape(line)}</p><blockquote><p>{QUOTED}</p></blockquote>"


def _no_blockquote(line: str) -> str:
    return f"<div>{OWN}</div><div><br></div><div>{html.escape(line)}</div><div><br></div><div>{QUOTED}</div>"


def _breaks(line: str) -> str:
    return f"{OWN}<br><br>{html.escape(line)}<br><br>{QUOTED}<br>"


@pytest.mark.parametrize(
    "shape", [_gmail, _apple, _thunderbird, _yahoo, _zoho, _proton, _plain_blockquote, _no_blockquote, _breaks]
)
@pytest.mark.parametrize(
    "client",
    ["gmail en", "gmail de", "gmail fr", "yahoo es", "apple da", "apple nl", "gmail it", "gmail pt", "zoho en"],
)
def test_html_with_an_attribution(shape: Callable[[str], str], client: str) -> None:
    _is_only_own(model_text("Re: Lift", shape(ATTRIBUTIONS[client])))


BORDER = '<div style="border:none;border-top:solid #E1E1E1 1.0pt;padding:3.0pt 0in 0in 0in"><p class="MsoNormal">{fields}</p></div>'
OUTLOOK_FIELDS = {
    "border": BORDER,
    "border, "
    "mac": '<div style="border:none;border-top:solid #B5C4DF 1.0pt;padding:3.0pt 0cm 0cm 0cm"><p class="MsoNormal">{fields}</p></div>',
    "web": '<div id="appendonsend"></div><hr style="display:inline-block;width:98%" tabindex="-1"><div id="divRplyFwdMsg" dir="ltr">'
    "<font>{fields}</font><div>&nbsp;</div></div>",
    "mobile": '<div class="ms-outlook-mobile-reference-message skipProofing" style="padding: 3pt 0in 0in;">{fields}</div>',
    "no mark": "<div>{fields}</div>",
    "own paragraphs": "<p>{fields}</p>",
}


@pytest.mark.parametrize("shape", OUTLOOK_FIELDS)
@pytest.mark.parametrize("language", FIELDS)
def test_html_with_fields(shape: str, language: str) -> None:
    between = "</p><p>" if shape == "own paragraphs" else "<br>\n"
    fields = between.join(
        f"<b>{name}:</b>&nbsp;{html.escape(value)}"
        for name, _, value in (line.partition(": ") for line in _fields(language).split("\n"))
    )
    body = (
        '<html xmlns:o="urn:schemas-microsoft-com:office:office"><head><style><!-- p.MsoNormal {margin:0} --></style></head>'
        f'<body lang="EN-US"><div class="WordSection1"><p class="MsoNormal">{OWN}<o:p></o:p></p><p class="MsoNormal"><o:p>&nbsp;</o:p></p>'
        f"{OUTLOOK_FIELDS[shape].format(fields=fields)}<p class=MsoNormal>{QUOTED}</p></div></body></html>"
    )
    _is_only_own(model_text("Re: Lift", body))


def test_html_replies_between_quotations() -> None:
    quote = f'<blockquote class="gmail_quote" style="border-left:1px solid">{QUOTED}</blockquote>'
    body = (
        f'<div class="gmail_quote"><div class="gmail_attr">{html.escape(ATTRIBUTIONS["gmail en"])}</div>{quote}<div>It is 4711.</div>'
        f"{quote}<div>{OWN}</div></div>"
    )
    assert model_text("Re: Lift", body) == f"Re: Lift. It is 4711.\n{OWN}"


# -- what stays --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "From: 3 June\nTo: 9 June\nWe need two rooms with a view of the lake.",
        "From: Graz\nTo: Bergen\nDate: 17 November 2026\nPlease book me a seat at the window.",
        "From: Graz\nTo: Bergen\nSent: yesterday\nNobody answered my request for a seat.",
        "Von: Graz\nAn: Bergen\nDatum: 17.11.2026\nBitte ein Platz am Fenster.",
        "De: Lyon\nÀ: Nice\nDate: 17/11/2026\nUne place en première, s'il vous plaît.",
        (
            "Two wishes.\n________________________________\nA lamp for the cellar.\n________________________________\nA "
            "key for the roof."
        ),
        "First part.\n-----\nSecond part.\n*****\nThird part.",
        "Yesterday your agent wrote:\nit will be repaired on Friday.\nIt was not.",
        "On Friday your colleague wrote:\n\nit will be repaired soon.\n\nThat was three weeks ago.",
        "On 17 November 2026 you wrote:\nthe part is ordered.\nWe still wait for it.",
        "On November 17, 2026 the technician wrote: part ordered.\nWe still wait for it.",
        "On 17.11.2026 at 09:14 I wrote:\nthe lift is stuck.\nNobody answered.",
        "Am 17.11.2026 um 09:14 habe ich geschrieben:\nder Aufzug steht.\nKeine Antwort.",
        "Le 17 novembre 2026 vous avez écrit :\nla pièce est commandée.\nNous attendons toujours.",
        "The sign on the door says:\n> out of order\nbut the lift runs.",
        "The load is\n> 500 kg on most days, and the lift takes 450.",
        "I got this mail, is it real?\nSubject: You have won a lift\nIt asks for my password.",
        (
            "Is this mail really from you? It said:\nFrom: bank@evil.example\nTo: me@tower.example\nSubject: Your "
            "lift\nI did not click."
        ),
        "To: the manager\nI want my money back for the lost week.",
        "Subject: Lift\nIt is stuck again, for the third time this week.",
        "From now on: no lift after ten.\nTo be clear: we never agreed to that.",
        "Original message on the display: ERR 7. What does it mean?",
        "The forwarded message: I never got it.",
        "- first floor -\nThe door is stuck there.\n- second floor -\nThe light is out there.",
        "You wrote:\nwe will call you.\nNobody called.",
        "He wrote on 3/4/2026 that all is well: it is not.",
    ],
    ids=lambda body: body.replace("\n", " ")[:40],
)
def test_the_writers_own_words_stay(body: str) -> None:
    text = model_text("Lift", body)
    lines = [line.lstrip("> ") for line in body.split("\n") if any(map(str.isalnum, line))]
    assert all(line in text for line in lines), text


def test_a_blockquote_that_indents_or_cites_stays() -> None:
    indented = f'<div>The sign says</div><blockquote style="margin:0 0 0 40px;border:none;padding:0px">{QUOTED}</blockquote><div>{OWN}</div>'
    assert QUOTED in model_text("Lift", indented)
    assert QUOTED in model_text("Lift", f"<p>The sign says</p><blockquote>{QUOTED}</blockquote><p>{OWN}</p>")


@pytest.mark.parametrize(
    "body",
    [
        f"> {QUOTED}",
        f"> {QUOTED}\n> {OWN}",
        f"{ATTRIBUTIONS['gmail en']}\n\n{QUOTED}",
        f"{ATTRIBUTIONS['gmail de']}\n> {QUOTED}",
        f"{_fields('en')}\n\n{QUOTED}",
        f"---------- Forwarded message ---------\n{_fields('en date')}\n\n{QUOTED}",
        f"Begin forwarded message:\n\n{_fields('en date')}\n\n{QUOTED}",
        f"Hi,\n\n{_fields('de')}\n\n{QUOTED}",
        f"FYI\n\n---------- Forwarded message ---------\n{_fields('en date')}\n\n{QUOTED}",
        f"Hi team,\n\nplease see the request below.\n\nThanks\nJohanna\n\n{_fields('en')}\n\n{QUOTED}",
        f"Can someone please look into this?\n\n---------- Forwarded message ---------\n\n{QUOTED}",
        f"Bitte siehe unten.\n\n{_fields('de')}\n\n{QUOTED}",
        (
            f'<div>FYI</div><div class="gmail_quote"><div class="gmail_attr">---------- Forwarded message ---------<br>From: <b>A</b> &lt;{ADDRESS}&gt;'
            f"<br>Date: Tue, Nov 17, 2026<br>Subject: Lift<br>To: b@c.example<br></div><br><br>{QUOTED}</div>"
        ),
        f'<blockquote type="cite">{QUOTED}</blockquote>',
    ],
    ids=lambda body: body.replace("\n", " ")[:40],
)
def test_a_mail_with_nothing_of_the_writers_keeps_the_other(body: str) -> None:
    text = model_text("", body)
    assert QUOTED in text
    assert ADDRESS not in text


def test_of_a_forwarded_thread_only_the_newest_mail_is_read() -> None:
    body = f"---------- Forwarded message ---------\n{_fields('en date')}\n\n{OWN}\n\n{_fields('en')}\n\n{QUOTED}"
    assert model_text("", body) == OWN


@pytest.mark.parametrize("reply", ["Yes, it works again.", "Still stuck!", "Thank you, solved."])
def test_a_short_reply_is_not_drowned_by_its_quotation(reply: str) -> None:
    assert model_text("Re: Lift", f"{reply}\n\n{ATTRIBUTIONS['gmail en']}\n> {QUOTED}") == f"Re: Lift. {reply}"
    assert model_text("RE: Lift", f"{reply}\n\n{_fields('en')}\n\n{QUOTED}") == f"RE: Lift. {reply}"
