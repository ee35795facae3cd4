"""The extractive summary: which sentences it may take, which it takes, and how it ends."""

import re
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrichment import Enricher, EnrichmentData, RawTicket
from enrichment.summary.extractive import closed, outline, plain, summarize
from enrichment.text.courtesy import is_boilerplate

Summarize = Callable[[str, str], str]


@pytest.fixture(scope="module")
def summary(enricher: Enricher) -> Summarize:
    """The summary of a ticket, on real weights."""

    def of(subject: str, body: str) -> str:
        ticket = RawTicket(ticket_id="T", customer_id="C", created_at=0, subject=subject, body=body)
        [result] = enricher.enrich([ticket])
        assert isinstance(result, EnrichmentData)
        return result.summary

    return of


@pytest.fixture(scope="module")
def count_tokens(enricher: Enricher) -> Callable[[str], int]:
    """The encoder's count of tokens."""
    return enricher._encoder.count_tokens


def _words(text: str) -> int:
    return len(text.split())


def _candidates(body: str) -> list[str]:
    found = outline("", body)
    return [" ".join(found.text[s.start : s.end].split()) for s in found.sentences]


# -- what may be taken -------------------------------------------------------------------------------------------------

LETTER = """Hi Support Team,

I hope this email finds you well.

We have been using your product since 2019 and it has always served us well,
but since the update on 12 Nov. the calendar sync with Outlook duplicates
every appointment that was moved by a delegate. Is there a way to stop the
sync for single calendars?

Steps to reproduce:
1. Open a shared calendar as delegate.
2. Move an appointment by one hour.

Thanks in advance for your help!

Best regards,
Johanna Weiss
Head of IT | Kessler & Partner GmbH
Tel: +49 30 1234567

This e-mail and any attachments are confidential and intended solely for the
addressee. If you are not the intended recipient, please delete it. Any views
expressed are those of the author.
"""


def test_of_a_letter_only_its_matter_is_left() -> None:
    assert _candidates(LETTER) == [
        LETTER[LETTER.index("We have") : LETTER.index(" Is there")].replace("\n", " "),
        "Is there a way to stop the sync for single calendars?",
        "1. Open a shared calendar as delegate.",
        "2. Move an appointment by one hour.",
    ]


MATTER = "Two of the three chairs were sent back in October and only one was refunded."


@pytest.mark.parametrize(
    "tail",
    [
        "Best regards\nPeter Novak",
        "Kind regards,\nPeter",
        "Many thanks\nPeter Novak, Berlin",
        "Yours faithfully,\n\nP. Novak\nManaging Director\nNovak Ltd\n12 Main Street",
        "Sunny greetings from Porto\nInês",
        "Thanks, Peter",
        "Cheers!\n\nPeter",
        "Mit freundlichen Grüßen\nPeter Novak",
        "-- \nPeter Novak\nSales",
        "Peter Novak\nHead of Sales",
        "Moira Kinsella",
        "Sent from my iPhone",
        "Get Outlook for iOS",
        "On Tue, Nov 17, 2026 at 9:14 AM Support <help@shop.example> wrote:\n> Dear Peter,\n> we refunded 89 euros.",
        "On 17 November 2026 Support wrote:\n\nDear Peter, we refunded 89 euros to your card.",
        "Am Mo., 16. Nov. 2026 um 09:14 Uhr schrieb Support:\nWir haben es erstattet.",
        "-----Original Message-----\nFrom: Support\nWe refunded 89 euros to your card.",
        "---------- Forwarded message ---------\nWe refunded 89 euros to your card.",
        "Begin forwarded message:\n\nWe refunded 89 euros to your card.",
        "From: Support <help@shop.example>\nSent: Monday\nTo: Peter\nSubject: Refund\n\nWe refunded 89 euros.",
        "> We refunded 89 euros to your card.\n>> Where is my refund, I asked you?",
        "This e-mail is confidential. If you read it by mistake, delete it.\nIt holds no views of ours.",
        "The information in this message is intended only for the addressee. Anyone else must delete it.",
        "If you have received this message in error, tell us. We are sorry for the trouble.",
        "Please consider the environment before printing this mail. Trees are few.",
        "To unsubscribe from these mails click here. You may also write to us.",
        "Please let me know if you have any further questions about this.",
        "Looking forward to hearing from you soon.\nThank you for your patience!",
        "Have a nice weekend!",
        "Phone: +49 30 1234567\nwww.example.com/chairs",
    ],
    ids=lambda tail: re.sub(r"\W+", " ", tail)[:24].strip(),
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["unix", "windows"])
def test_what_follows_the_matter_is_left_out(tail: str, newline: str) -> None:
    assert _candidates(f"{MATTER}\n\n{tail}\n".replace("\n", newline)) == [MATTER]


@pytest.mark.parametrize(
    "greeting",
    [
        "Hi,",
        "Hello!",
        "Dear Ms. Weiss,",
        "Dear Sir or Madam:",
        "Hi Support Team",
        "hey there",
        "Good morning all!",
        "To whom it may concern,",
        "Sehr geehrte Damen und Herren,",
        "Hallo zusammen,",
        "Hi lovely people,",
        "Bonjour",
    ],
)
def test_greetings_are_left_out(greeting: str) -> None:
    assert _candidates(f"{greeting}\n\n{MATTER}") == [MATTER]
    assert plain(f"Hi there, {MATTER}") == MATTER


@pytest.mark.parametrize(
    "sentence",
    [
        "Hello my app crashes at once!",
        "Hi, my app crashes at once!",
        "Dear me, what a mess this is",
        "I cannot unsubscribe from your newsletter.",
        "This message was sent to an address that I never gave you.",
        "This email is about the chairs that I ordered.",
        "Thanks to your update nothing works any more.",
        "Best of all would be a refund of the money.",
        "On Monday the driver wrote: nobody at home.",
        "From: and to: are mixed up in my reports.",
        "Please advise your driver to ring the bell twice.",
    ],
)
def test_what_only_looks_like_boilerplate_stays(sentence: str) -> None:
    assert sentence in _candidates(f"{MATTER} Nothing has happened since then.\n{sentence}\nIt is a shame, really.")


def test_a_reply_below_its_quotation_is_found() -> None:
    quoted = "On Monday, Support wrote:\n> Your refund of 89 euros was sent.\n> Is there anything else we can do?\n\n"
    assert _candidates(quoted + MATTER) == [MATTER]


def test_a_forwarded_mail_without_a_word_is_the_matter() -> None:
    header = "---------- Forwarded message ---------\nFrom: Ines\nDate: Mon, 16 Nov 2026\nTo: b@corp.example\n\n"
    assert _candidates(header + MATTER) == [MATTER]


def test_thanks_in_the_middle_end_nothing() -> None:
    more = "The other chair is still on its way and nobody can tell me where it is or when it comes. " * 4
    assert _candidates(f"{MATTER}\nThanks\n{more}")[0] == MATTER
    assert len(_candidates(f"{MATTER}\nThanks\n{more}")) == 5


def test_a_postscript_is_matter() -> None:
    assert _candidates(f"{MATTER}\n\nRegards\nPeter\n\nP.S. The third chair wobbles a lot.") == [
        MATTER,
        "The third chair wobbles a lot.",
    ]


def test_what_machines_wrote_is_left_out() -> None:
    machine = """2026-11-20 02:00:07 ERROR java.lang.NullPointerException: row is null
    at com.example.importer.Row.parse(Row.java:88)
Traceback (most recent call last):
  File "/srv/run.py", line 12, in main
    job.run()
Item | Price | Count
1007 | 0.75 | 12
```
GET /orders?id=17 and then wait for the answer
```
**What we expected**
"""
    assert _candidates(f"{MATTER}\n\n{machine}\nPlease tell us what to do.") == [MATTER, "Please tell us what to do."]


@pytest.mark.parametrize("sentence", ["", "Hello", "OK!", "...", "Thanks a lot!", "12 34 56 78", "Expected result:"])
def test_boilerplate_has_nothing_to_say(sentence: str) -> None:
    assert is_boilerplate(sentence)


# -- what is taken -----------------------------------------------------------------------------------------------------


def _summarize(body: str, vectors: list[list[float]], *, tokens: int = 50, subject: str = "") -> str:
    ticket = outline(subject, body)
    found = np.asarray(vectors, np.float32)
    assert len(found) == len(ticket.sentences)
    whole = np.asarray([1, 0, 0], np.float32)
    return summarize(ticket, whole, found, max_tokens=tokens, min_words=3, count_tokens=_words)


NEAR, NEARER, OTHER, FAR = [0.8, 0.6, 0], [0.96, 0.28, 0], [0.8, 0, 0.6], [0.1, 0.99, 0]


def test_the_nearest_sentences_come_in_their_order() -> None:
    body = "The first one here. The second one here. The third one here."
    assert _summarize(body, [NEAR, NEARER, OTHER], tokens=8) == "The second one here. The third one here."
    assert _summarize(body, [OTHER, FAR, NEARER], tokens=8) == "The first one here. The third one here."
    assert _summarize(body, [OTHER, FAR, NEARER], tokens=4) == "The third one here."


def test_nothing_is_said_twice() -> None:
    body = "The lamp is dead. The lamp is quite dead. The door is stuck."
    assert _summarize(body, [NEARER, NEARER, OTHER]) == "The lamp is dead. The door is stuck."


def test_an_aside_is_left_out_though_there_is_room() -> None:
    body = "The lamp is dead. I like your shop. The door is stuck."
    assert _summarize(body, [NEARER, FAR, OTHER]) == "The lamp is dead. The door is stuck."


def test_a_sentence_that_takes_up_the_subject_comes_first() -> None:
    body = "The hall is quite cold. The lamps flicker all night."
    assert _summarize(body, [NEAR, OTHER], tokens=5) == "The hall is quite cold."
    assert _summarize(body, [NEAR, OTHER], tokens=5, subject="Lamps flicker") == "The lamps flicker all night."
    assert _summarize(body, [NEAR, OTHER], tokens=5, subject="Just a question!") == "The hall is quite cold."


def test_an_item_gives_way_to_a_sentence() -> None:
    body = "Open the lamp now.\n- Open the lamp now.\nOpen the door now."
    assert _summarize(body, [FAR, NEAR, OTHER], tokens=4) == "Open the door now."
    assert (
        _summarize("- The lamp is dead\n- The door is stuck", [NEARER, OTHER]) == "The lamp is dead. The door is stuck."
    )


def test_a_sentence_too_long_for_the_rest_is_passed_over() -> None:
    body = "The lamp in the hall is dead since yesterday. The door is stuck. It is cold."
    assert _summarize(body, [NEARER, OTHER, NEAR], tokens=10) == "The lamp in the hall is dead since yesterday."
    assert _summarize(body, [OTHER, NEAR, NEARER], tokens=8) == "The door is stuck. It is cold."


def test_sentences_that_the_encoder_did_not_read_are_not_taken() -> None:
    body = "The lamp is dead. The door is stuck."
    assert _summarize(body, [[0, 0, 0], OTHER]) == "The door is stuck."
    assert _summarize(body, [[0, 0, 0], [0, 0, 0]], subject="Lamp and door") == "Lamp and door."
    assert _summarize(body, [[0, 0, 0], [0, 0, 0]]) == body


LONG = "my sister moved out of the flat last month, and she would like to keep her lists because she made them for the"


def test_a_sentence_longer_than_a_summary_ends_with_a_clause() -> None:
    assert _summarize(LONG, [NEAR], tokens=20) == "my sister moved out of the flat last month."
    assert _summarize(LONG.replace(",", ""), [NEAR], tokens=12) == "my sister moved out of the flat last month and she."
    assert _summarize(LONG, [NEAR], tokens=6) == "my sister moved out."
    assert _summarize("the and of the and of", [NEAR], tokens=3) == "the and of."


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        ("It is dead", "It is dead."),
        (" It is dead. ", "It is dead."),
        ("Dead!", "Dead!"),
        ("Dead?", "Dead?"),
        ("We entered them:", "We entered them."),
        ("Dear all, -", "Dear all, -."),
        ("So then…", "So then..."),
        ("发票有误。", "发票有误."),
        ("什么？", "什么?"),
        ("什么！", "什么!"),
        ("Nice 😀", "Nice 😀."),
        ("", ""),
        (" : ", ""),
    ],
)
def test_a_summary_ends_as_a_sentence(text: str, ended: str) -> None:
    assert closed(text) == ended


# -- on real weights ---------------------------------------------------------------------------------------------------


def test_a_letter_is_summarised_by_its_matter(summary: Summarize) -> None:
    found = summary("Sync problems", LETTER)
    assert "duplicates every appointment" in found
    assert not re.search(r"Hi Support|hope|Thanks|regards|Weiss|confidential|Tel", found)


@pytest.mark.parametrize(
    ("subject", "body", "expected"),
    [
        ("Printer broken", "", "Printer broken."),
        ("Printer broken!", "It is dead.", "Printer broken!"),
        ("Is it broken?", "one two " * 9 + "three", "Is it broken?"),
        ("  Printer \n broken ", "Help.", "Printer broken."),
        ("", "It is dead.", "It is dead."),
        ("", "help", "help."),
        ("", "", ""),
        (" \n", "\t", ""),
        ("", "?", "?"),
        ("", "<p></p>", ""),
        ("", "> Where is my parcel?", "Where is my parcel?"),
        ("Only courtesies", "Hello,\n\nhope you are well.\n\nKind regards\n" + "Joe Doe\n" * 10, "Only courtesies."),
    ],
)
def test_a_body_under_twenty_words_is_summarised_by_the_subject(
    summary: Summarize, subject: str, body: str, expected: str
) -> None:
    assert summary(subject, body) == expected


def test_a_body_of_twenty_words_speaks_for_itself(summary: Summarize) -> None:
    body = "The printer in the hall on the second floor has been dead since the storm of last night, sadly so."
    assert _words(body) == 20
    assert summary("Printer", body) == body
    assert summary("Printer", body.replace(", sadly", "")) == "Printer."


PIECES = st.sampled_from(
    [
        "The printer is dead.",
        "Hi all,",
        "what now?!",
        "no capitals no stop",
        "Best regards\nJoe",
        "> quoted",
        "<p>",
        "</p>",
        "It costs 4.99, i.e. more than before; why",
        "发票有误。请更正！",
        "😀",
        "x" * 300,
        "word " * 70,
        "a,b;c:d",
        "- item",
        "?",
    ]
)


@settings(max_examples=40)
@given(
    st.text(max_size=40) | st.sampled_from(["Printer", "x" * 3000, "word " * 200]),
    st.text(max_size=300) | st.lists(PIECES, max_size=8).map("\n".join) | st.lists(PIECES, max_size=8).map(" ".join),
)
def test_every_summary_is_short_whole_and_ended(
    summary: Summarize, count_tokens: Callable[[str], int], subject: str, body: str
) -> None:
    found = summary(subject, body)
    assert count_tokens(found) <= 50
    assert found == found.strip()
    assert not found or found[-1] in ".!?"
    assert len(found) <= 1100
    # No word is cut: whatever stands in the summary stands, whole, in the ticket.
    words = {word.lower() for word in re.findall(r"[^\W\u3000-\u9fff]+", f"{subject} {body}")}
    assert {word.lower() for word in re.findall(r"[^\W\u3000-\u9fff]+", found)} <= words


def test_sentences_come_whole_and_in_their_order(summary: Summarize) -> None:
    sentences = [
        "Our three branches cannot print invoices since the update on Monday.",
        "The printers themselves work from any other program.",
        "We tried two drivers and a new cable.",
        "Forty customers wait for their papers.",
        "Would a return to the old version be possible?",
    ]
    found = summary("", " ".join(sentences))
    places = [found.find(sentence) for sentence in sentences]
    taken = [place for place in places if place >= 0]
    assert len(taken) >= 2
    assert taken == sorted(taken)
    assert " ".join(s for s, place in zip(sentences, places, strict=True) if place >= 0) == found


@pytest.fixture(scope="module")
def page_seconds(summary: Summarize) -> float:
    """How long a page of prose takes."""
    begin = time.process_time()
    summary("Lamp", "The lamp in the hall is dead since yesterday, and the door is stuck as well. " * 60)
    return time.process_time() - begin


@pytest.mark.parametrize(
    "body",
    [
        "The lamp is dead. " * 10_000,
        "\n".join(f"Sentence number {i} speaks of the lamp" for i in range(10_000)),
        "mr. " * 50_000,
        "<b " * 50_000,
        "<style>" * 20_000,
        "Thanks\n" * 20_000,
        "P.S. " * 30_000,
        "> a\n" * 50_000,
        "From: a\n" * 20_000,
        "- " * 100_000,
        "(" * 100_000,
        "_" * 100_000,
        "\n" * 100_000 + "x",
        "word " * 200_000,
    ],
    ids=lambda body: repr(body[:18]),
)
def test_huge_bodies_have_summaries_too(
    summary: Summarize, count_tokens: Callable[[str], int], page_seconds: float, body: str
) -> None:
    begin = time.process_time()
    found = summary("Lamp", body)
    seconds = time.process_time() - begin
    assert count_tokens(found) <= 50
    assert found[-1] in ".!?"
    # As a page of prose takes, some times over; quadratic searches would take hundreds of times as long.
    assert seconds < 20 * page_seconds


@pytest.mark.parametrize(("subject", "expected"), [("Lamp", "Lamp."), ("", "")])
def test_a_word_of_100_000_characters_is_no_summary(summary: Summarize, subject: str, expected: str) -> None:
    assert summary(subject, "x" * 100_000) == expected


def test_a_huge_subject_costs_no_more_than_a_long_body(summary: Summarize, page_seconds: float) -> None:
    begin = time.process_time()
    assert summary("lamp door " * 100_000, "The lamp is dead. " * 10_000)[-1] in ".!?"
    assert time.process_time() - begin < 20 * page_seconds


def test_a_huge_subject_is_shortened_between_words(summary: Summarize) -> None:
    found = summary("The lamp, which is dead, and the door, which is stuck, " * 2000, "")
    assert found.startswith("The lamp, which is dead, and the door, which is stuck, The lamp")
    assert found.endswith((" dead.", " door.", " stuck.", " lamp."))
