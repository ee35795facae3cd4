"""Summaries of mails contain the writer's words, not quoted mail or text added by programs.

Each text represents a kind of mail that was once summarized incorrectly.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from enrichment import Enricher, EnrichmentData
from tests.regressions.tickets import ticket

REPLY = "The label printer still jams after the third page, although we cleaned the rollers twice as you advised us."
QUOTED = "Would you tell us which firmware the device has, and send a photograph of the tray?"


@dataclass(frozen=True)
class Case:
    """A body, words that the summary must contain, and words that it must not contain."""

    name: str
    body: str
    must: tuple[str, ...] = ()
    must_not: tuple[str, ...] = ()
    subject: str = "Label printer"


def quoted(name: str, header: str, *also: str, prefix: str = "") -> Case:
    """A reply above a quoted mail that begins with this header."""
    body = f"{REPLY}\n\n{header}\n\n{prefix}{QUOTED}\n"
    return Case(name, body, ("still jams",), ("firmware", "photograph", *also), "Re: Label printer")


QUOTED_MAIL = [
    quoted(
        "attribution-on-two-lines",
        "On Mon, Mar 2, 2026 at 4:41 PM The Printing Helpdesk of Harbour Supplies <\ndesk@harbour.example> wrote:",
        "Harbour",
        prefix="> ",
    ),
    quoted(
        "attribution-on-three-lines",
        "On Monday, 2 March 2026 at 16:41:09 GMT+1,\nPrinting Helpdesk\n<desk@harbour.example> wrote:",
        "Helpdesk",
    ),
    quoted(
        "indented-header",
        "    From: Printing Helpdesk <desk@harbour.example>\n    Sent: Monday, March 2, 2026 4:41 PM\n"
        "    To: Warehouse\n    Subject: Re: Label printer",
        "Sent:",
        "From:",
        prefix="    ",
    ),
    quoted(
        "starred-header",
        "*From:* Printing Helpdesk <desk@harbour.example>\n*Sent:* Monday, March 2, 2026 4:41 PM\n"
        "*To:* Warehouse\n*Subject:* Re: Label printer",
        "Sent:",
    ),
    quoted(
        "german-header",
        "Von: Druckerhilfe <hilfe@hafen.example>\nGesendet: Montag, 2. März 2026 16:41\nAn: Lager\n"
        "Betreff: AW: Etikettendrucker",
        "Betreff",
        "Druckerhilfe",
    ),
    quoted(
        "german-attribution", "Am Mo., 2. März 2026 um 16:41 Uhr schrieb Druckerhilfe <hilfe@hafen.example>:", "Uhr"
    ),
    quoted("french-attribution", "Le lun. 2 mars 2026 à 16:41, Aide <aide@port.example> a écrit :", "crit"),
    quoted(
        "spanish-attribution", "El lun, 2 mar 2026 a las 16:41, Ayuda (<ayuda@puerto.example>) escribió:", "escribi"
    ),
    quoted("dutch-attribution", "Op ma 2 mrt 2026 om 16:41 schreef Hulp <hulp@haven.example>:", "schreef"),
    quoted("danish-attribution", "Den man. 2. mar. 2026 kl. 16.41 skrev Hjælp <hjaelp@havn.example>:", "skrev"),
    quoted(
        "italian-attribution", "Il giorno lun 2 mar 2026 alle 16:41 Aiuto <aiuto@porto.example> ha scritto:", "scritto"
    ),
    quoted(
        "portuguese-attribution",
        "Em seg., 2 de mar. de 2026 às 16:41, Ajuda <ajuda@cais.example> escreveu:",
        "escreveu",
    ),
    quoted(
        "dashes-around-the-attribution",
        "---- On Mon, 02 Mar 2026 16:41:09 +0100 Printing Helpdesk <desk@harbour.example> wrote ----",
        "wrote",
    ),
    Case(
        "word-html",
        '<html xmlns:o="urn:schemas-microsoft-com:office:office"><head><style><!--\np.MsoNormal\n\t{margin:0cm;\n'
        '\tfont-size:10.5pt;}\n--></style></head><body lang="EN-US"><div class="WordSection1">'
        f'<p class="MsoNormal">{REPLY}<o:p></o:p></p><div style="border-top:solid #E1E1E1 1.0pt">'
        '<p class="MsoNormal"><b>From:</b> Printing Helpdesk &lt;desk@harbour.example&gt;<br><b>Sent:</b> Monday, '
        "2 March 2026 16:41<br><b>To:</b> Warehouse<br><b>Subject:</b> RE: Label printer<o:p></o:p></p></div>"
        f'<p class="MsoNormal">{QUOTED}<o:p></o:p></p></div></body></html>',
        ("still jams",),
        ("From:", "Subject:", "photograph", "desk@", "MsoNormal"),
        "Re: Label printer",
    ),
    Case(
        "webmail-html-with-a-long-attribution",
        f'<div dir="ltr">{REPLY}</div><br><div class="gmail_quote"><div dir="ltr" class="gmail_attr">On Mon, Mar 2, '
        '2026 at 4:41 PM Printing Helpdesk &lt;<a href="mailto:desk@harbour.example" rel="noreferrer" '
        'target="_blank">desk@harbour.example</a>&gt; wrote:<br></div><blockquote class="gmail_quote" '
        f'style="margin:0 0 0 .8ex;border-left:1px #ccc solid"><div>{QUOTED}</div></blockquote></div>',
        ("still jams",),
        ("wrote", "desk@", "photograph"),
        "Re: Label printer",
    ),
    Case(
        "quotation-within-a-quotation",
        f'<p>{REPLY}</p><blockquote type="cite"><p>{QUOTED}</p><blockquote type="cite"><p>An older question.</p>'
        "</blockquote><p>A technician of the day shift has ordered a spare roller for the device.</p></blockquote>",
        ("still jams",),
        ("technician", "photograph"),
        "Re: Label printer",
    ),
]

WRITERS_OWN_WORDS = [
    Case(
        "sections-between-lines-of-underscores",
        "Our office has two wishes for the coming month, please read both of them.\n______________________________\n\n"
        "The delivery address on each order form shows the former street and town.\n______________________________\n\n"
        "The monthly statement does not list the credit notes from September at all.\n",
        ("delivery address", "statement"),
    ),
    Case(
        "thanks-in-the-middle",
        "I have looked at the guide which you mentioned on the phone yesterday.\nThanks for ringing back.\n"
        "The deposit of 240 dollars for the projector was not returned to our account.\n"
        "Could somebody find out where the transfer has gone in the meantime?\n",
        ("deposit",),
    ),
    Case(
        "best-of-all-in-the-middle",
        "The calendar shows every meeting of our team twice since the last update.\nBest of all would be a quick fix.\n"
        "The receptionists cannot tell any longer which of the rooms are really free.\n",
        ("receptionists",),
    ),
    Case(
        "kind-of-is-no-greeting",
        "The search in the staff directory returns nothing since the holidays.\nKind of a nuisance.\n"
        "All nurses of the second ward need the telephone list before the night shift.\n",
        ("nurses",),
    ),
    Case(
        "from-and-to-of-a-journey",
        "Please move the rental car that we reserved for the trade fair.\nFrom: 3 June\nTo: 9 June\n"
        "We would also need a child seat in the back, because our daughter travels with us.\n",
        ("child seat",),
    ),
    Case(
        "somebody-wrote-in-a-report",
        "Nobody came to repair the boiler in our flat, although we waited.\nOn Thursday your office wrote:\n"
        "a fitter would be here on Friday morning.\nHe was not, and the cellar is under water since the weekend.\n",
        ("cellar",),
    ),
    Case(
        "letters-that-grow-when-lowered",
        "<p>İİİİİİİİİİİİİİ, İğdır and İskenderun are in the list.</p><style>td {padding:2px}</style>"
        "<p>The invoice for the server room names a customer whom we do not know.</p>"
        "<p>We compared it with those of the last two quarters, and only this one is odd.</p>",
        ("invoice for the server room",),
    ),
    Case(
        "no-spaces-between-words",
        "เครื่องพิมพ์ฉลากของเราหยุดทำงานหลังจากหน้าที่สามแล้วไฟสีแดงก็กะพริบ" * 25,
        ("เครื่องพิมพ์",),
        subject="",
    ),
    Case(
        "a-body-without-letters-of-latin",
        "標籤印表機在第三頁之後停止運作而且紅燈一直閃爍請盡快派人來修理" * 12,
        ("標籤",),
        subject="",
    ),
    Case(
        "abbreviation-within-a-sentence",
        "The form is for the U.S. Customs and the U.K. Border Force, e.g. Sec. 4 and Fig. 2 on p. 9. It breaks in "
        "release v3.0.7 of Deno.land since 11 a.m. Please mend it this week for Miller Bros. and for its Inc. and Co. "
        "partners.",
        (),
        ("is for the U.S. Border Force",),
    ),
]

ADDED_BY_PROGRAMS = [
    Case(
        "hidden-preheader",
        '<html><body><div style="display:none;max-height:0">' + "&nbsp;&zwnj;" * 80 + "</div>"
        f"<p>{REPLY} Please call us.</p></body></html>",
        ("label printer still jams",),
        ("\u200c", "\u00a0"),
    ),
    Case(
        "banner-of-external-mail",
        "[EXTERNAL] This message was sent from outside your company. Do not open attachments or follow links unless "
        f"you trust the sender.\n\n{REPLY}",
        ("still jams",),
        ("EXTERNAL", "follow links"),
    ),
    Case(
        "caution-banner",
        "CAUTION: The sender of this email is outside of our organisation. Never click on a link and never open a file "
        f"if you are in doubt about it.\n\n{REPLY}",
        ("still jams",),
        ("CAUTION", "click on a link"),
    ),
    Case(
        "german-legal-notice",
        f"{REPLY}\n\nDiese Nachricht ist "
        "vertraulich und nur für den Empfänger bestimmt. Sollten Sie sie irrtümlich erhalten haben, löschen Sie sie "
        "bitte und benachrichtigen Sie den Absender.",
        ("still jams",),
        ("vertraulich", "Absender"),
    ),
    Case(
        "german-notice-of-confidential-content",
        f"{REPLY}\n\nDiese E-Mail kann "
        "vertrauliche Informationen enthalten. Wenn Sie nicht der richtige Adressat sind, vernichten Sie diese Mail "
        "bitte sofort.",
        ("still jams",),
        ("vertrauliche", "Adressat"),
    ),
    Case(
        "english-legal-notice",
        f"{REPLY}\n\nThis e-mail and any "
        "attachments are confidential and intended solely for the addressee. If you have received it in error, please "
        "delete it and notify the sender.",
        ("still jams",),
        ("confidential", "addressee"),
    ),
    Case(
        "stack-trace-of-dotnet",
        "The upload of our price list ends with an error each morning.\nSystem.InvalidOperationException: The price "
        "list holds no article.\n   at Depot.Prices.Upload.Reader.First(String list) in D:\\build\\Reader.cs:line 41\n"
        "   at System.Threading.Tasks.ThreadPool.Dispatch()\nPlease say how we can load the list again by ourselves.",
        ("upload of our price list",),
        ("Reader.cs", "ThreadPool"),
    ),
    Case(
        "stack-trace-of-python",
        "The upload of our price list ends with an error each morning.\nTraceback (most recent call last):\n  File "
        '"/srv/depot/prices.py", line 41, in first\n    return rows[0]\nIndexError: list index out of range\n'
        "Can you say how the list is to be loaded again?",
        ("upload of our price list",),
        ("prices.py", "rows[0]"),
    ),
    Case(
        "lines-of-a-system-log",
        "The upload of our price list ends with an error each morning.\nMar  2 05:30:11 depot3 priced[902]: fatal: "
        "price list lost, the upload of the article table was refused\nMar  2 05:30:12 depot3 priced[902]: upload of "
        "the price list failed after attempt 5 of 5, an error of the table\nCan you say how it is to be loaded again?",
        ("upload of our price list",),
        ("priced", "replica"),
    ),
]


CASES = [pytest.param(case, id=case.name) for case in (*QUOTED_MAIL, *WRITERS_OWN_WORDS, *ADDED_BY_PROGRAMS)]


@pytest.mark.parametrize("case", CASES)
def test_summary(case: Case, enricher: Enricher) -> None:
    [result] = enricher.enrich([ticket(case.subject, case.body)])
    assert isinstance(result, EnrichmentData)
    found = result.summary.lower()
    assert not [words for words in case.must if words.lower() not in found], result.summary
    assert not [words for words in case.must_not if words.lower() in found], result.summary
