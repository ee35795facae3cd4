"""Words, sentences and paragraphs."""

import re
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrichment.text import sentences, word_count
from enrichment.text.sentences import unwrapped


def _split(text: str, start: int = 0) -> list[str]:
    return [text[s.start : s.end] for s in sentences(text, start)]


@pytest.mark.parametrize(
    "parts",
    [
        ["It broke.", "It is hot!", "Is it safe?", "I wait..."],
        ["Dr. Kessler and Mrs. Ono saw approx. 300 of them, e.g. on 12 Nov. in the lab.", "All were bad."],
        ["It costs $4.99 instead of 5.25 in version 2.4.1.", "Why?"],
        ["See fig. 3 and no. 7.", "Did it help?", "No.", "It got worse."],
        ["Our limit is 25.", "We need 40."],
        ["It starts at 9 a.m. and stops at 5 p.m. every day.", "Strange."],
        ["We are Acme Inc. and pay for 10 seats.", "Help us."],
        ["J. R. Hartley wrote it.", "So did I.", "Thanks."],
        ["Es begann am 3. November.", "Seitdem ist z.B. der Drucker tot."],
        ["I waited... and waited… and waited.", "Nothing."],
        ["It said 'Try again!' and closed.", "'Again?' it asked."],
        ["The coat (mine is old but perfect!) I got from you.", "I love it."],
        ["(It is new.)", "The next one is not."],
        ["He said “stop.”", "So we stopped."],
        ["What?!", "Again!!", "Really..."],
        ["my wifi is down.", "i restarted it.", "no luck"],
        ["The map is wrong.", "v2 was right.", "iPhones have it too."],
        ["Look at https://example.com/a?b=1.2&c=d!e now.", "It is empty."],
    ],
    ids=lambda parts: parts[0][:24],
)
def test_prose_is_split_into_its_sentences(parts: list[str]) -> None:
    assert _split(" ".join(parts)) == parts


@pytest.mark.parametrize(
    "parts",
    [
        ["我们的发票有误。", "请更正！", "什么时候？", "谢谢"],
        ["「もう動きません。」", "再起動しました。"],
    ],
)
def test_chinese_and_japanese_need_no_spaces(parts: list[str]) -> None:
    assert _split("".join(parts)) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("no full stop here\nnor here\n\nnor here", ["no full stop here", "nor here", "nor here"]),
        ("one\r\ntwo\r\n\r\nthree", ["one", "two", "three"]),
        (
            "We need:\n1. Paper\n2. Ink\na. black\n- or blue",
            ["We need:", "1. Paper", "2. Ink", "a. black", "- or blue"],
        ),
        ("Done.\n---\n***\n...\n!!!\nGood.", ["Done.", "Good."]),
        ("  \n\t ", []),
        ("", []),
        ("?!... --- ***", []),
        ("one", ["one"]),
    ],
)
def test_a_line_ends_a_sentence(text: str, parts: list[str]) -> None:
    assert _split(text) == parts


WRAPPED = """Since the update of the calendar each of our appointments that was moved by
a delegate appears twice, and the copies cannot be deleted by anyone but the
owner. Is there a cure?
Steps, in the order in which we took them on the machine of the assistant:
open the calendar as a delegate
close it again
- move an appointment by an hour, and wait until the next sync has finished
- look at the owner's calendar"""


def test_lines_that_a_mail_program_wrapped_are_joined() -> None:
    assert [" ".join(part.split()) for part in _split(unwrapped(WRAPPED.split("\n")))] == [
        WRAPPED.partition(" Is there")[0].replace("\n", " "),
        "Is there a cure?",
        "Steps, in the order in which we took them on the machine of the assistant:",
        "open the calendar as a delegate",
        "close it again",
        "- move an appointment by an hour, and wait until the next sync has finished",
        "- look at the owner's calendar",
    ]


def test_long_lines_of_a_chat_are_not_taken_for_wrapped_ones() -> None:
    lines = ["i pay for the large plan and it shows me the small one since " + "monday " * 9, "please correct it"]
    assert _split(unwrapped(lines)) == [line.strip() for line in lines]


def test_sentences_are_sought_from_a_position_on() -> None:
    text = "Printer. Dead. Again. It smokes. Help!"
    assert _split(text, text.index("It")) == ["It smokes.", "Help!"]


PIECES = re.findall(r"\S+", "Dr. no. 3. a. J. e.g. p.m. word Word (so so.) ! ?' ... … 。 don't 4.99 😀 字字 - Nov.")
TEXTS = st.text() | st.lists(st.sampled_from([*PIECES, "\n", "\n\n", "\r\n", " ", "x" * 60])).map(" ".join)


@given(TEXTS, st.integers(0, 20))
def test_spans_are_ordered_trimmed_and_hold_every_word_once(text: str, start: int) -> None:
    start = min(start, len(text))
    spans = sentences(text, start)
    assert all(a.end <= b.start for a, b in pairwise(spans))
    assert all(start <= span.start < span.end <= len(text) for span in spans)
    parts = [text[span.start : span.end] for span in spans]
    assert all(part == part.strip() for part in parts)
    # Nothing lost and nothing cut: the words between the cuts are the words of the whole.
    assert [word for part in parts for word in re.findall(r"\w+", part)] == re.findall(r"\w+", text[start:])


def test_splitting_takes_time_in_proportion_to_the_text() -> None:
    def seconds(times: int) -> float:
        best = float("inf")
        for _ in range(3):
            begin = time.process_time()
            for piece in ("mr. ", "(a! ", "a\n", "x", " ", "e.g.\n"):
                sentences(piece * times)
            best = min(best, time.process_time() - begin)
        return best

    # Quadratic would be 256 times as long.
    assert seconds(16_000) < 80 * seconds(1000)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("... !", 0),
        ("one", 1),
        ("it's a two-way 4 x 4", 6),
        ("über Straße", 2),
        ("发票有误。", 4),
        ("ok 发票", 3),
    ],
)
def test_words_are_counted(text: str, count: int) -> None:
    assert word_count(text) == count
