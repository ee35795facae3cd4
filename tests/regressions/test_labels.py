"""Labels depend on the writer's words only, not on mark-up, banners or quoted mail around them."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest

from enrichment import Enricher, EnrichmentData, parse_ticket
from events.generator import TicketGenerator
from tests.regressions.tickets import ticket

TASKS = ("intent", "urgency", "sentiment")
WORDS = (
    "The receipt for September lists 31 licences, although our department has used 24 of them since the spring. "
    "Please correct the sum and send the new receipt by Wednesday."
)
PRAISE = "Wonderful, the scanner is as fast as on its first day. Many thanks to the whole team for this kind help!"
# HTML that a word processor writes before the first paragraph of a mail.
HEAD = (
    '<html xmlns:v="urn:schemas-microsoft-com:vml" xmlns:m="http://schemas.microsoft.com/office/2004/12/omml"><head>'
    '<meta name="Generator" content="Microsoft Word 15"><!--[if !mso]><style>v\\:* {behavior:url(#default#VML);}'
    "</style><![endif]--><style><!--\n@font-face\n\t{font-family:Aptos;\n\tpanose-1:2 11 0 4 2 2 2 2;}\np.MsoNormal\n"
    '\t{margin:0cm;\n\tfont-size:12.0pt;\n\tfont-family:"Aptos",sans-serif;}\nspan.EmailStyle18\n'
    "\t{mso-style-type:personal-compose;\n\tcolor:windowtext;}\n.MsoChpDefault\n\t{mso-style-type:export-only;}\n"
    '--></style></head><body lang="EN-US" link="#467886" style="word-wrap:break-word"><div class="WordSection1">'
)


def paragraphs(text: str) -> str:
    """A text as HTML, one paragraph per line."""
    return "".join(f"<p>{html.escape(line, quote=False)}</p>" for line in text.split("\n") if line.strip())


def labels(enricher: Enricher, subject: str, body: str) -> tuple[str, ...]:
    [result] = enricher.enrich([ticket(subject, body)])
    assert isinstance(result, EnrichmentData)
    return tuple(getattr(result, task) for task in TASKS)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(f"{HEAD}{paragraphs(WORDS)}</div></body></html>", id="word-html"),
        pytest.param(paragraphs(WORDS.replace(". ", ".\n")), id="simple-html"),
        pytest.param(f"<div dir=ltr>{WORDS.replace('. ', '.<br><br>')}</div>", id="line-breaks"),
        pytest.param(
            "CAUTION: External email. Do not reply, do not follow its links and do not open its attachments unless "
            f"you are sure that it can be trusted.\n\n{WORDS}",
            id="banner",
        ),
        pytest.param(
            f"{WORDS}\n\nOn Mon, Mar 2, 2026 at 4:41 PM Licences <sales@quay.example> wrote:\n> Your login was blocked "
            "after five attempts.\n> The server will be down at once, this is critical!",
            id="quoted-mail",
        ),
    ],
)
def test_markup_banners_and_quotes_do_not_change_labels(body: str, enricher: Enricher) -> None:
    assert labels(enricher, "Receipt for September", body) == labels(enricher, "Receipt for September", WORDS)


def test_angry_quoted_mail_does_not_change_labels(enricher: Enricher) -> None:
    thread = (
        f"{PRAISE}\n\nOn Mon, Mar 2, 2026 at 4:41 PM Reception <desk@clinic.example> wrote:\n"
        "> It is a disgrace that your scanner fails for the fourth time\n"
        "> Patients are waiting, we need it this very minute, I am beside myself\n"
        "> Everything hangs, nothing is read, and your hotline rings out\n"
        "> Send us our money at once, or our lawyer will write to you."
    )
    assert labels(enricher, "Re: Scanner", thread) == labels(enricher, "Re: Scanner", PRAISE)


Enriched = list[EnrichmentData]


def enriched(enricher: Enricher, shape: Callable[[str], str]) -> Enriched:
    """Generated tickets, enriched with their bodies converted by `shape`."""
    plain = (
        made
        for made in TicketGenerator(seed=23, start=1_780_000_000)
        if "<" not in made["body"] and made["metadata"]["language"] == "en"
    )
    tickets = [parse_ticket(json.dumps({**made, "body": shape(made["body"])})) for made in islice(plain, 40)]
    results = enricher.enrich(tickets)
    found = [result for result in results if isinstance(result, EnrichmentData)]
    assert len(found) == len(tickets)
    return found


@pytest.fixture(scope="module")
def from_text(enricher: Enricher) -> Enriched:
    return enriched(enricher, lambda body: body)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(paragraphs, id="paragraphs"),
        pytest.param(lambda body: f"{HEAD}{paragraphs(body)}</div></body></html>", id="word-html"),
    ],
)
def test_html_gets_the_labels_and_embedding_of_its_text(
    shape: Callable[[str], str], enricher: Enricher, from_text: Enriched
) -> None:
    from_html = enriched(enricher, shape)
    pairs = list(zip(from_text, from_html, strict=True))
    same = {task: np.mean([getattr(a, task) == getattr(b, task) for a, b in pairs]) for task in TASKS}
    assert min(same.values()) >= 0.97, same
    assert np.mean([np.dot(a.embedding, b.embedding) for a, b in pairs]) >= 0.98
