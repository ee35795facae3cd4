"""All steps before the models take time in proportion to the text, whatever it holds."""

import re
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrichment.summary.extractive import outline, plain
from tests.support.speed import budget

PUMPED = {
    "a tag that never ends": "<a " + "=" * 2000 + " " * 4000 + "x",
    "exclamation marks": "!" * 32_768,
    "a closing word and spaces": "Thanks" + " " * 32_000 + "§",
    "dot leaders": "Chapter one " + "." * 32_000 + " 7 and so on",
    "angle brackets": "<" * 32_768,
    "a number without end": "&#" + "1" * 30_000 + ";",
    "ampersands": "&" * 32_768,
}
# What a pattern or a loop of the package begins with, ends with, or repeats.
PIECES = [
    ("<a "
    ""), "<p>", "<b>", "<!--", "<style>", "<div hidden>", "<blockquote>", "<div style='display:none'>", '<b" ="', "</p>", "-->",
    ("On 1 "
    ""), "On Mon, 1 Jan 2026 a wrote ", "wrote:\n", "schrieb ", "From: a\n", "From: a@b.cc\nTo: b\n", "Subject: ", "<a@b.cc> ", "> a\n", ">",
    "-----", "_____\n", "Original Message ", "at a.b(", "at a(b:1)\n", 'File "x", line 1\n', "#0 ", "a::", "x@http://", "Error: ", "goroutine 1 [",
    ("2026-11-18 02:00:07 "
    ""), "2026-11-18 02:00:07 ERROR x\n", "Nov 18 02:00:07 a ", "[", "]", "{", '{"level":', 'time="', "```\n",
    "Thanks\n", "Thanks, ", "Best regards, Joe\n", "P.S. ", "--\n", "Name Name\n", "Name ", "this email is confidential ", "intended recipient ",
    "CAUTION: ", "external ", "[EXTERNAL] ", "this message ", "Hi all, ", "please see below ", "i hope you ",
    ("mr. "
    ""), "U.S. ", "(a! ", "e.g.\n", "...", "! ", "? ", "字。", "ก", "\u200c", "\U000e0041", "&amp; ", "\r\n", "\n", " \n", " ", "\t",
    "a", "1", "1 ", "-", "- ", "* ", "**", "|", "'", '"', "=", "/", ":", "a:", "a.", ";", ",", "x" * 40, "word ",
]  # fmt: skip


def _seconds(text: str) -> float:
    best = float("inf")
    tracer = sys.gettrace()
    sys.settrace(None)  # coverage would be measured too
    try:
        for _ in range(3):
            begin = time.process_time()
            found = outline("Lamp", text)
            for sentence in found.sentences[:50]:
                plain(found.text[sentence.start : sentence.end])
            best = min(best, time.process_time() - begin)
    finally:
        sys.settrace(tracer)
    return best


@pytest.mark.parametrize("name", PUMPED)
def test_known_pumps_stay_within_budget(name: str) -> None:
    assert _seconds(PUMPED[name]) < budget(0.2)


@settings(max_examples=40, deadline=None)
@given(
    pump=st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join),
    before=st.sampled_from(["", "The lift is stuck since Monday morning.\n\n", "<p>The lift</p>", "<b>"]),
    after=st.sampled_from(["", "§", "x", "\nend", "</p>", '">']),
)
def test_twice_the_text_takes_at_most_three_times_as_long(pump: str, before: str, after: str) -> None:
    def text(size: int) -> str:
        return before + pump * (size // len(pump)) + after

    half = whole = float("inf")
    # Other processes can slow down one measurement and not the other: what remains in every round is the code's.
    for _ in range(8):
        half, whole = min(half, _seconds(text(16_384))), min(whole, _seconds(text(32_768)))
        # Under some milliseconds the clock says more about the machine than about the text.
        if whole < 3 * max(half, 0.01):
            break
    else:
        pytest.fail(f"16 kB take {half:.3f} s and 32 kB {whole:.3f} s, in the best of 8 rounds")
    assert whole < budget(0.2)


@pytest.mark.parametrize(
    "piece",
    ["<b>", "<p>", "<p>a</p>", "a\n", "> a\n", "<div style='display:none'>", "Thanks\n", "a b ", "&amp;", "字。"],
)
def test_a_megabyte_stays_within_budget(piece: str) -> None:
    assert _seconds("The lift.\n\n" + piece * (1_048_576 // len(piece.encode()))) < budget(0.5)


def test_no_group_is_repeated_possessively() -> None:
    # Before Python 3.11.5 (cpython#106052), (?:...)*+ keeps what its last, failed repetition had read: Debian 12 has
    # 3.11.2. An atomic group, (?>(?:...)*), means the same and works everywhere.
    root = Path(__file__).parents[3]
    repeated = re.compile(r"\)(?:[*+?]|\{{1,2}[0-9,]+\}{1,2})\+")
    found = {
        f"{path.relative_to(root)}:{number}"
        for package in ("enrichment", "handler", "events")
        for path in (root / package).rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if repeated.search(line)
    }
    assert found == set()
