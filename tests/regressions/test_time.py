"""Texts that were once processed in quadratic or cubic time.

Each is enriched together with nine normal tickets, in a child process, because a regression would take hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.regressions.children import Child
from tests.regressions.tickets import raw

# Five times the budget of one second.
SECONDS: Final = 5.0
GOOD = "The backup of our customer file stops every night, and nobody in the office can tell the reason."
TEXTS = {
    "exclamation-marks": "!" * 32_768,
    "question-marks-and-spaces": "? " * 16_384,
    "closing-word-and-spaces": "The coffee machine is out of order since Tuesday.\nRegards" + " " * 32_000 + "§",
    "closing-word-and-tabs": "The coffee machine is out of order since Tuesday.\nThanks" + "\t" * 32_000 + "§",
    "tag-of-equals-signs-and-spaces": "<b " + "=" * 2_000 + " " * 4_000 + "y",
    "tag-that-never-ends": '<img alt="' + "a='\" " * 6_000,
    "many-tags-that-never-end": "<td " * 8_000,
    "comments-that-never-end": "<!--" * 8_000,
    "dots-of-a-table-of-contents": "Part two " + "." * 24_000 + " 9 and the rest of it",
    "ampersands": "&" * 32_000,
    "digits-of-a-reference": "&#" + "1" * 32_000 + ";",
    "quotation-marks-of-mail": "> " * 16_000,
    "dashes": "-" * 32_000,
    "line-ends": "\n" * 32_000 + "x",
    "brackets": "[" * 16_000 + "(" * 16_000,
}


@pytest.fixture(scope="module")
def child(bundle: Path) -> Iterator[Child]:
    with Child(bundle) as found:
        yield found


@pytest.mark.parametrize("name", TEXTS)
def test_pathological_text_does_not_delay_the_batch(name: str, child: Child) -> None:
    tickets = [raw(f"GOOD-{number}", "Backup", GOOD) for number in range(9)]
    assert child.enrich([*tickets, raw("SLOW", "Help", TEXTS[name])], SECONDS) == 10
