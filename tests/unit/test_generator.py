"""Generated tickets: reproducible by seed, varied and well-formed."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from enrichment import parse_ticket
from events.generator import TicketGenerator

INTENTS = {
    "login_issue", "payment_issue", "bug_report", "feature_request", "account_management", "performance_issue",
    "security_concern", "data_request", "integration_help", "general_inquiry",
}  # fmt: skip
CATEGORIES = {
    "login_issue", "payment_issue", "bug_report", "feature_request", "account", "billing", "performance", "security",
    "data", "integration", "general",
}  # fmt: skip
URGENCIES = {"critical", "high", "medium", "low"}
SENTIMENTS = {"POSITIVE", "NEGATIVE", "NEUTRAL"}
START = 1_763_000_000


@pytest.fixture(scope="module")
def tickets() -> list[dict[str, Any]]:
    return list(itertools.islice(TicketGenerator(seed=11, start=START), 3000))


def test_same_seed_gives_the_same_tickets() -> None:
    first, second, other = (list(itertools.islice(TicketGenerator(seed, start=START), 50)) for seed in (3, 3, 4))
    assert first == second
    assert first != other


def test_without_a_start_only_the_times_differ() -> None:
    def stripped(now: int) -> list[Any]:
        made = itertools.islice(TicketGenerator(3, now=lambda: now), 50)
        return [(t["ticket_id"], t["customer_id"], t["metadata"], t.get("priority")) for t in made]

    assert stripped(START) == stripped(START + 123_456_789)
    assert next(TicketGenerator(3, now=lambda: 5))["created_at"] == 5


def test_tickets_with_a_start_are_8_to_15_seconds_apart(tickets: list[dict[str, Any]]) -> None:
    times = [ticket["created_at"] for ticket in tickets]
    assert times[0] == START
    assert {later - earlier for earlier, later in itertools.pairwise(times)} == set(range(8, 16))


def test_start_at_the_epoch_gives_no_negative_times() -> None:
    assert all(ticket["created_at"] >= 0 for ticket in itertools.islice(TicketGenerator(1, start=0), 200))


def test_each_ticket_fits_the_schema_and_has_true_labels(tickets: list[dict[str, Any]]) -> None:
    for ticket in tickets:
        parsed = parse_ticket(json.dumps(ticket))
        assert parsed.model_extra == {}
        known = {key: ticket["metadata"][key] for key in ("source", "language", "tags")}
        expected = {**ticket, "metadata": known}
        expected.pop("priority", None)
        assert parsed.model_dump(exclude={"priority"}) == expected
        assert ticket["subject"] or ticket["body"]
        assert "\n" not in ticket["subject"]
        assert ticket["metadata"].keys() == {"source", "language", "tags", "truth"}
        truth = ticket["metadata"]["truth"]
        assert truth.keys() == {"intent", "urgency", "sentiment"}
        assert truth["intent"] in INTENTS
        assert truth["urgency"] in URGENCIES
        assert truth["sentiment"] in SENTIMENTS
    assert len({ticket["ticket_id"] for ticket in tickets}) == len(tickets)


def test_every_category_and_label_appears(tickets: list[dict[str, Any]]) -> None:
    seen = {key: Counter(t["metadata"]["truth"][key] for t in tickets) for key in ("intent", "urgency", "sentiment")}
    for key, labels, minimum in (("intent", INTENTS, 90), ("urgency", URGENCIES, 150), ("sentiment", SENTIMENTS, 300)):
        assert seen[key].keys() == labels
        assert min(seen[key].values()) >= minimum
    assert {tag for ticket in tickets for tag in ticket["metadata"]["tags"]} >= CATEGORIES


def test_body_lengths_range_from_empty_to_a_page(tickets: list[dict[str, Any]]) -> None:
    lengths = sorted(len(ticket["body"].split()) for ticket in tickets)
    assert lengths[0] == 0
    assert 10 < lengths[len(lengths) // 10] < 30
    assert 40 < lengths[len(lengths) // 2] < 90
    assert lengths[-1] > 400


def test_priority_is_often_absent_and_usually_correct(tickets: list[dict[str, Any]]) -> None:
    truths = [t["metadata"]["truth"]["urgency"] for t in tickets]
    given = [(str(t["priority"]).lower(), truth) for t, truth in zip(tickets, truths, strict=True) if t.get("priority")]
    valid = [(priority, truth) for priority, truth in given if priority in URGENCIES]
    assert 0.4 < sum("priority" not in ticket for ticket in tickets) / len(tickets) < 0.6
    assert 0.75 < sum(priority == truth for priority, truth in valid) / len(valid) < 0.95
    assert len(given) > len(valid), "some priorities are invalid"
    assert any(ticket.get("priority", "") is None for ticket in tickets)


@pytest.mark.parametrize(
    "is_unusual",
    [
        lambda t: not t["body"],
        lambda t: not t["subject"],
        lambda t: "<p>" in t["body"],
        lambda t: "\n> " in t["body"],
        lambda t: "😡" in t["body"],
        lambda t: "â€™" in t["body"],
        lambda t: t["body"].isupper(),
        lambda t: t["subject"].startswith("Fwd: "),
        lambda t: "\n1. " in t["body"],
        lambda t: re.search(r"\n\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", t["body"]),
    ],
    ids=["empty-body", "no-subject", "html", "quoted", "emoji", "mojibake", "capitals", "forwarded", "steps", "log"],
)
def test_some_tickets_are_unusual(
    tickets: list[dict[str, Any]], is_unusual: Callable[[dict[str, Any]], object]
) -> None:
    assert 3 <= sum(bool(is_unusual(ticket)) for ticket in tickets) <= len(tickets) / 4


def test_some_tickets_are_not_english(tickets: list[dict[str, Any]]) -> None:
    languages = Counter(ticket["metadata"]["language"] for ticket in tickets)
    assert len(languages) >= 8
    assert languages["en"] > 0.9 * len(tickets)


def test_texts_have_no_template_artifacts(tickets: list[dict[str, Any]]) -> None:
    artifacts = re.compile(
        r"[{}]|\S  | [,;]| \.\s|,,|[,;]\.|\?\.|\b(?!that\b|had\b)([a-z]+) \1\b|(?<!/)\b[Aa] [aeioAEIO]\w|\n{3}"
    )
    for ticket in tickets:
        for text in (ticket["subject"], ticket["body"]):
            artifact = artifacts.search(text)
            assert artifact is None, text[max(0, artifact.start() - 40) : artifact.end() + 40]
            assert text == text.strip()
