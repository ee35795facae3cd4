"""`tickets compare`: two bundles' labels, with the real sink and corrections and an in-process DynamoDB and S3."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner, Result

from enrichment.ticket import ShadowLabels
from handler.tickets.command import app
from handler.tickets.compare import sign_test
from tests.support.mocked_aws import mocked_aws
from tests.support.ticket_table import VERSION, Harness, ticket_table

SHADOW = "candidate@cccccccccccc"


@pytest.fixture(scope="module")
def aws() -> Iterator[tuple[Any, Any]]:
    """Yields clients of an in-process DynamoDB and S3."""
    with mocked_aws():
        yield boto3.client("dynamodb"), boto3.client("s3")


@pytest.fixture
def harness(aws: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """Yields an empty harness for this test; the command uses its clients, so that it sees all calls."""
    clients = {"dynamodb": aws[0], "s3": aws[1], "sts": boto3.client("sts")}
    monkeypatch.setattr("handler.tickets.access.client_factory", lambda _: lambda service, **_options: clients[service])
    with ticket_table(aws, monkeypatch) as made:
        yield made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def compared(*arguments: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Runs the command with --json; returns its rows, and the lines on standard error."""
    result = run("compare", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()], result.stderr.splitlines()


def same(rows: Sequence[dict[str, Any]], task: str) -> dict[str, Any]:
    (row,) = [row for row in rows if row["measure"] == "same" and row["task"] == task]
    return row


def label(harness: Harness, ticket_id: str, created_at: int = 1000, *, version: str = SHADOW, **shadow: str) -> None:
    """Stores a ticket: bug_report, low and NEUTRAL by the first bundle, and by the second one except `shadow`."""
    labels = {"intent": "bug_report", "urgency": "low", "sentiment": "NEUTRAL"} | shadow
    found = ShadowLabels.model_validate(
        {
            "model_version": version,
            **labels,
            **{f"{task}_confidence": 0.5 for task in labels},
            "differs": list(shadow),
        }
    )
    harness.store(ticket_id, created_at, shadow=found)


def test_item_has_the_second_bundle_and_its_labels_that_differ(harness: Harness) -> None:
    label(harness, "T-1", intent="login_issue", sentiment="NEGATIVE")
    label(harness, "T-2")
    harness.store("T-3")
    found = {name: (harness.item(name).model_extra or {}).get("shadow") for name in ("T-1", "T-2", "T-3")}
    assert found == {
        "T-1": {"model_version": SHADOW, "intent": "login_issue", "sentiment": "NEGATIVE"},
        "T-2": {"model_version": SHADOW},
        "T-3": None,
    }


def test_differences_are_counted_by_pair_of_labels(harness: Harness) -> None:
    for number in range(6):
        label(harness, f"same-{number}", 1000 + number)
    for number in range(3):
        label(harness, f"login-{number}", 2000 + number, intent="login_issue")
    label(harness, "both", 3000, intent="payment_issue", urgency="high")
    harness.store("not-shadowed", 4000)
    harness.forget_calls()
    rows, notes = compared()
    intent = same(rows, "intent")
    assert (intent["of"], intent["tickets"], intent["share"]) == (10, 6, 0.6)
    assert (same(rows, "urgency")["share"], same(rows, "sentiment")["share"]) == (0.9, 1.0)
    assert [
        (row["task"], row["primary"], row["shadow"], row["tickets"], row["examples"])
        for row in rows
        if row["measure"] == "differs"
    ] == [
        ("intent", "bug_report", "login_issue", 3, ["login-2", "login-1", "login-0"]),
        ("intent", "bug_report", "payment_issue", 1, ["both"]),
        ("urgency", "low", "high", 1, ["both"]),
    ]
    assert notes[0] == f"10 tickets, primary {VERSION}, shadow {SHADOW}"
    assert notes[1].startswith("intent: 4 of 10 tickets differ, and nobody has decided any of them")
    assert notes[3] == "sentiment: both bundles give all 10 tickets the same label"
    # From an index, and without objects.
    assert set(harness.calls) == {"Query"}
    assert {query["IndexName"] for query in harness.queries} == {"urgency-index"}


def test_corrections_say_which_bundle_is_right(harness: Harness) -> None:
    for number in range(12):
        label(harness, f"T-{number}", 1000 + number, intent="login_issue")
    for number in range(8):
        assert run("correct", f"T-{number}", "--intent", "login_issue").exit_code == 0
    assert run("correct", "T-8", "--confirm").exit_code == 0  # the primary's label
    assert run("correct", "T-9", "--intent", "payment_issue").exit_code == 0
    # Both agree about these; a correction of them says nothing about either.
    label(harness, "agreed", 3000)
    assert run("correct", "agreed", "--intent", "payment_issue").exit_code == 0
    rows, notes = compared("--examples", "2")
    intent = same(rows, "intent")
    assert (intent["tickets"], intent["of"]) == (1, 13)
    assert (intent["primary_right"], intent["shadow_right"], intent["neither_right"]) == (1, 8, 1)
    assert intent["p_value"] == pytest.approx(2 * (1 + 9) / 2**9)
    (difference,) = [row for row in rows if row["measure"] == "differs"]
    # Counted by what the primary predicted, although the item has the corrected label; undecided ones are shown first.
    assert (difference["primary"], difference["shadow"]) == ("bug_report", "login_issue")
    assert difference["examples"] == ["T-11", "T-10"]
    expected = (
        "the shadow is right in 8 of 10 disagreements that people decided, the primary in 1 (p = 0.039: hardly chance)"
    )
    assert notes[1] == f"intent: {expected}"
    assert intent["sentence"] == notes[1]


def test_without_a_confirmation_the_sentence_says_what_is_missing(harness: Harness) -> None:
    for number in range(7):
        label(harness, f"T-{number}", 1000 + number, sentiment="NEGATIVE")
        assert run("correct", f"T-{number}", "--sentiment", "NEGATIVE").exit_code == 0
    _, notes = compared()
    assert "sentiment: the shadow is right in 7 of 7 disagreements" in notes[3]
    assert "says nothing for the primary until they also confirm what is right" in notes[3]


def test_correction_stays_in_the_comparison_when_the_ticket_is_enriched_again(harness: Harness) -> None:
    label(harness, "T-1", intent="login_issue")
    assert run("correct", "T-1", "--intent", "login_issue").exit_code == 0
    label(harness, "T-1", intent="payment_issue")
    rows, _ = compared()
    intent = same(rows, "intent")
    assert (intent["primary_right"], intent["shadow_right"], intent["neither_right"]) == (0, 0, 1)


def test_correction_keeps_the_shadow_of_the_item(harness: Harness) -> None:
    label(harness, "T-1", urgency="high")
    before = (harness.item("T-1").model_extra or {})["shadow"]
    assert run("correct", "T-1", "--urgency", "high").exit_code == 0
    assert (harness.item("T-1").model_extra or {})["shadow"] == before


def test_only_the_newest_pair_of_bundles_is_compared(harness: Harness) -> None:
    label(harness, "old", 1000, version="candidate@000000000000", intent="login_issue")
    label(harness, "new", 2000)
    rows, notes = compared()
    assert same(rows, "intent")["of"] == 1
    assert notes[0].endswith("; 1 tickets of other bundles were left out")


@pytest.mark.parametrize(
    ("arguments", "tickets"),
    [((), 3), (("--since", "1970-01-01T00:33:00Z"), 2), (("--intent", "payment_issue"), 1), (("--limit", "2"), 2)],
)
def test_tickets_are_selected(arguments: tuple[str, ...], tickets: int, harness: Harness) -> None:
    for number, name in enumerate(("a", "b", "c")):
        label(harness, name, 1000 * (number + 1), intent="login_issue")
    assert run("correct", "c", "--intent", "payment_issue").exit_code == 0
    rows, notes = compared(*arguments)
    assert same(rows, "intent")["of"] == tickets
    assert ("older tickets were not read" in notes[0]) == ("--limit" in arguments)


def test_lines_of_a_pipe(harness: Harness) -> None:
    label(harness, "T-1", intent="login_issue")
    result = run("compare")
    assert result.stdout.splitlines()[:2] == [
        "same\tintent\t\t\t0\t0.000\t0\t0\t0\t",
        "differs\tintent\tbug_report\tlogin_issue\t1\t1.000\t0\t0\t0\tT-1",
    ]


def test_without_a_shadow_the_remedy_is_named(harness: Harness) -> None:
    harness.store("T-1")
    result = run("compare")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "tickets: no such ticket has labels of two bundles; SHADOW_BUNDLE names the second one (docs/models.md)\n"
    )


def test_unexpected_attribute_is_an_error_of_one_line(harness: Harness) -> None:
    label(harness, "T-1")
    harness.dynamodb.update_item(
        TableName=harness.place,
        Key={"ticket_id": {"S": "T-1"}, "created_at": {"N": "1000"}},
        UpdateExpression="SET shadow = :shadow",
        ExpressionAttributeValues={":shadow": {"S": "mine"}},
    )
    result = run("compare")
    assert (result.exit_code, result.stderr) == (1, "tickets: ticket T-1 has an unexpected shadow in the table\n")


@pytest.mark.parametrize(("one", "other"), [(0, 0), (0, 1), (1, 1), (2, 7), (7, 2), (0, 10), (6, 6)])
def test_sign_test_counts_all_outcomes(one: int, other: int) -> None:
    total = one + other
    sums = [sum(outcome) for outcome in product((0, 1), repeat=total)]
    extreme = [number for number in sums if abs(2 * number - total) >= abs(one - other)]
    assert sign_test(one, other) == pytest.approx(float(Fraction(len(extreme), len(sums))))


def test_sign_test_of_many() -> None:
    assert 0 < sign_test(4700, 5300) < 1e-8
    assert sign_test(5000, 5000) == 1.0
