"""The text that every model reads: joined, normalised, and the same for the same words in any form."""

import html
import itertools
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrichment.text import MAX_CHARACTERS, model_text, read_ticket
from events.generator import TicketGenerator


@pytest.mark.parametrize(
    ("subject", "body", "joined"),
    [
        ("Lift", "It is stuck.", "Lift. It is stuck."),
        ("Lift?", "It is stuck.", "Lift? It is stuck."),
        ("Lift!", "It is stuck.", "Lift! It is stuck."),
        ("Lift.", "It is stuck.", "Lift. It is stuck."),
        ("Lift:", "It is stuck.", "Lift:. It is stuck."),
        (" Lift \n", "\n It is  stuck. ", "Lift. It is stuck."),
        ("", "It is stuck.", "It is stuck."),
        ("  ", "It is stuck.", "It is stuck."),
        ("[EXTERNAL] Lift", "It is stuck.", "Lift. It is stuck."),
        ("Re: [EXT] Lift", "It is stuck.", "Re: Lift. It is stuck."),
        ("Lift", "", "Lift"),
        ("Lift", " \n\t ", "Lift"),
        ("", "", ""),
        ("", "?", "?"),
    ],
)
def test_subject_and_body_are_joined(subject: str, body: str, joined: str) -> None:
    found = read_ticket(subject, body)
    assert found.text == joined
    assert found.text[found.begin :] == " ".join(body.split())


@given(st.text(max_size=60), st.text(max_size=200))
def test_the_body_begins_where_it_is_said_to(subject: str, body: str) -> None:
    found = read_ticket(subject, body)
    assert found.text.startswith(found.subject)
    assert 0 <= found.begin <= len(found.text)
    assert model_text("", body) == found.text[found.begin :]


def test_a_plain_ticket_is_read_word_by_word() -> None:
    for ticket in itertools.islice(TicketGenerator(seed=3, start=1_790_000_000), 200):
        if "<" in ticket["body"] or ">" in ticket["body"]:
            continue
        text = model_text(ticket["subject"], ticket["body"])
        words = f"{ticket['subject']} {ticket['body']}".split()
        # All but a signature at its end is there.
        assert text.split()[-1] in words
        assert len(text.split()) > 0.6 * len(words), (ticket, text)


SHAPES = {
    "paragraphs": lambda lines: "".join(f"<p>{line}</p>" for line in lines),
    "breaks": lambda lines: "<div>" + "<br>\n".join(lines) + "</div>",
    "divs": lambda lines: '<div dir="ltr">' + "".join(f"<div>{line}</div><div><br></div>" for line in lines) + "</div>",
    "a document": lambda lines: (
        "<!DOCTYPE html><html><head><style>p{margin:0}</style></head><body>"
        + "\n".join(
            f'<p class="MsoNormal"><span style="font-size:11.0pt">{line}<o:p></o:p></span></p>' for line in lines
        )
        + "</body></html>"
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_words_give_the_same_text_in_any_form(shape: str) -> None:
    for ticket in itertools.islice(TicketGenerator(seed=4, start=1_790_000_000), 100):
        lines = [line for line in ticket["body"].split("\n") if line.strip()]
        if any("<" in line or line.startswith(">") for line in lines):
            continue
        plain = model_text(ticket["subject"], "\n\n".join(lines))
        assert model_text(ticket["subject"], SHAPES[shape]([html.escape(line) for line in lines])) == plain


def test_wrapped_lines_are_joined_in_any_form() -> None:
    line = "Since the update of the calendar each appointment that was moved by a delegate appears twice. Can you tell why?"
    wrapped = textwrap.fill(line, 60)
    assert model_text("", wrapped + "\nHelp us, please.") == f"{line}\nHelp us, please."
    assert model_text("", f"<p>{wrapped}</p><p>Help us, please.</p>") == f"{line}\nHelp us, please."


def test_a_body_is_cut_only_when_it_was_read() -> None:
    rows = "<tr><td class='a'></td></tr>" * 30_000  # 840 kB of mark-up
    assert model_text("", f"<html><body><table>{rows}</table><p>It is stuck.</p></body></html>") == "It is stuck."
    assert not read_ticket("", "word " * 20_000).cut
    assert read_ticket("", "word " * 100_000).cut
    assert len(model_text("", "word " * 100_000)) == MAX_CHARACTERS
