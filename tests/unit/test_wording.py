"""The text templates: every slot can be filled, every list is used, and the texts express their labels."""

import itertools
import random
import re
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from events.wording import STYLES, Writer

DATA: dict[str, Any] = tomllib.loads(
    (Path(__file__).parents[2] / "events" / "templates.toml").read_text(encoding="utf-8")
)
NAMES: dict[str, Any] = DATA["variables"] | DATA["phrases"]
CASES: list[dict[str, Any]] = [{**t, **case} for t in DATA["templates"] for case in t.get("cases", [{}])]
METADATA_FIELDS = {"intent", "category", "kind", "tags", "weight", "urgency", "sentiment", "language", "cases"}


def _texts(entry: Any) -> Iterator[str]:
    match entry:
        case str():
            yield entry
        case list():
            for item in entry:
                yield from _texts(item)
        case {"ago": _} | {"least": _} | {"hex": _}:
            return
        case dict():
            for item in entry.values():
                yield from _texts(item)


def _slots(text: str) -> Iterator[str]:
    while slot := re.search(r"\{([^{}]*)\}", text):
        yield slot[1]
        text = text[: slot.start()] + text[slot.end() :]
    assert not set(text) & set("{|}"), f"unbalanced brace or bar: {text}"


def _named(entry: Any) -> set[str]:
    slots = itertools.chain.from_iterable(map(_slots, _texts(entry)))
    return {slot.removeprefix("^").partition(":")[0] for slot in slots if "|" not in slot}


def test_templates_offer_enough_variety() -> None:
    assert {"login_issue", "payment_issue", "bug_report", "feature_request", "account", "billing"} <= {
        case["category"] for case in CASES
    }
    assert len(DATA["templates"]) >= 30
    assert sum(isinstance(entry, list) for entry in DATA["variables"].values()) >= 36


def test_every_slot_is_defined_and_every_list_is_used() -> None:
    parts = set().union(*CASES) - METADATA_FIELDS
    used = {"subject", "prefix"} | _named(DATA["shapes"]) | _named(NAMES)
    assert used <= NAMES.keys() | parts
    for case in CASES:
        own = {key: case[key] for key in case.keys() - METADATA_FIELDS}
        assert _named(own) <= NAMES.keys() | own.keys(), case["subject"]
        used |= _named(own)
    assert NAMES.keys() | parts <= used


def test_alternatives_are_not_slot_names() -> None:
    shared = {
        "ask",
        "tone",
        "impact",
        "parting",
        "emoji",
        "disclaimer",
        "signoff",
        "thread",
        "colleague",
        "when",
        "since",
    }
    for text in _texts([DATA["templates"], DATA["shapes"], NAMES]):
        for slot in _slots(text):
            assert "|" not in slot or not shared & set(slot.split("|")), text


def test_every_case_renders_in_every_shape_and_sentiment() -> None:
    written = 0
    for case, shape, sentiment in itertools.product(CASES, DATA["shapes"], ("POSITIVE", "NEGATIVE", "NEUTRAL")):
        if case["kind"] not in shape.get("kinds", ("fault", "wish", "errand")):
            continue
        for urgency in case.get("urgency") or case["impact"]:
            labels = (case["intent"], case["kind"], urgency, sentiment)
            writer = Writer(random.Random(written), NAMES | case, labels, datetime(2026, 1, 1, tzinfo=UTC))
            assert "{" not in writer.write(shape.get("subject", "{prefix}{subject}")) + writer.write(shape["body"])
            written += 1
    assert written > 4000


def test_every_text_expresses_its_sentiment() -> None:
    for tone in DATA["phrases"]["tone"].values():
        assert all(tone["NEGATIVE"]) and all(tone["POSITIVE"])  # noqa: PT018 - one condition for both
    for shape in DATA["shapes"]:
        if "whole" not in shape.get("kinds", ()):
            assert "{impact}" in shape["body"]
            assert "{tone}" in shape["body"] or "{opener}" in shape["body"]


def test_html_is_escaped() -> None:
    assert STYLES["html"]("a < b\nc\n\nd & e") == "<div>\n<p>a &lt; b<br>c</p>\n<p>d &amp; e</p>\n</div>"
