"""The `tickets` command: what it reads and prints, with the real sink and an in-process DynamoDB and S3."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from typer.main import get_command
from typer.testing import CliRunner, Result

from enrichment.ticket import MAX_CREATED_AT
from handler.cli.output import age, harmless, moment, write, write_whole
from handler.settings import Settings
from handler.tickets.access import AccessSettings
from handler.tickets.command import app, main
from handler.tickets.follow import follow_tickets
from handler.tickets.options import since_seconds
from handler.tickets.repository import URGENCIES, Item, ObjectUnreadable, RepositoryError, Selection, TicketRepository
from handler.tickets.rows import ticket_row
from handler.tickets.similarity import Similarity, similar
from tests.support.mocked_aws import mocked_aws
from tests.support.ticket_table import VERSION, Harness, ticket_table

REPOSITORY = Path(__file__).resolve().parents[2]
CONTROL_CHARACTERS = "Re:\tyour\r\nbill \x1b]0;owned\x07\x9b31m \u202etxt.exe\u202c ✓ é"


@pytest.fixture(scope="module")
def aws() -> Iterator[tuple[Any, Any]]:
    """Yields clients of an in-process DynamoDB and S3."""
    with mocked_aws():
        yield boto3.client("dynamodb"), boto3.client("s3")


@pytest.fixture
def harness(aws: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """Yields an empty harness for this test, to which the environment variables also point."""
    with ticket_table(aws, monkeypatch) as made:
        yield made


def ids(items: Any) -> list[str]:
    return [item.ticket_id for item in items]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


# -- lists


def test_list_is_sorted_by_time_then_severity(harness: Harness) -> None:
    for ticket_id, created_at, urgency in [
        ("a", 10, "low"), ("b", 40, "medium"), ("c", 20, "critical"), ("d", 30, "low"), ("e", 30, "critical"),
        ("f", 30, "high"),
    ]:  # fmt: skip
        harness.store(ticket_id, created_at, urgency=urgency)
    assert ids(harness.repository.newest(Selection())) == ["b", "e", "f", "d", "c", "a"]


def test_list_costs_one_index_query_per_urgency_and_no_scan(harness: Harness) -> None:
    for number in range(40):
        harness.store(f"t{number:02}", number, urgency=URGENCIES[number % 4])
    harness.forget_calls()
    assert ids(islice(harness.repository.newest(Selection(), 10), 10)) == [f"t{n}" for n in range(39, 29, -1)]
    assert harness.calls == ["Query"] * 4
    assert {query["ExpressionAttributeValues"][":key"]["S"] for query in harness.queries} == set(URGENCIES)
    assert {(query["IndexName"], query["Limit"]) for query in harness.queries} == {("urgency-index", 10)}


def test_pages_are_read_on_demand_and_grow(harness: Harness) -> None:
    for number in range(45):
        harness.store(f"t{number:02}", number, urgency="low")
    harness.forget_calls()
    tickets = harness.repository.newest(Selection(("low",)), 5)
    seen = []
    for taken in (5, 1, 9, 1, 29):
        list(islice(tickets, taken))
        seen.append([query["Limit"] for query in harness.queries])
    assert seen == [[5], [5, 10], [5, 10], [5, 10, 20], [5, 10, 20, 40]]
    assert list(tickets) == []
    assert set(harness.calls) == {"Query"}


def test_only_selected_urgencies_are_queried(harness: Harness) -> None:
    for urgency in URGENCIES:
        harness.store(urgency, urgency=urgency)
    harness.forget_calls()
    assert ids(harness.repository.newest(Selection(("critical", "high")))) == ["critical", "high"]
    assert len(harness.queries) == 2


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), {"plain", "old", "login", "angry", "unsure"}),
        (Selection(intent="login_issue"), {"login", "unsure"}),
        (Selection(intent="login"), set()),
        (Selection(sentiment="NEGATIVE"), {"angry", "unsure"}),
        (Selection(needs_review=True), {"unsure"}),
        (Selection(since=1000), {"plain", "login", "angry", "unsure"}),
        (Selection(since=1001), set()),
        (Selection(("high",), "login_issue", "NEGATIVE", needs_review=True, since=1000), {"unsure"}),
        (Selection(("low",), "login_issue", "NEGATIVE", needs_review=True, since=1000), set()),
    ],
)
def test_selection_requires_all_its_conditions(harness: Harness, selection: Selection, expected: set[str]) -> None:
    harness.store("plain")
    harness.store("old", 999)
    harness.store("login", intent="login_issue")
    harness.store("angry", sentiment="NEGATIVE")
    harness.store("unsure", intent="login_issue", sentiment="NEGATIVE", urgency="high", needs_review=True)
    assert set(ids(harness.repository.newest(selection))) == expected
    assert sum(harness.repository.count(selection)["intent"].values()) == len(expected)


def test_selective_filter_reads_on_until_the_limit(harness: Harness) -> None:
    for number in range(30):
        harness.store(f"t{number:02}", number, sentiment="NEGATIVE" if number % 10 == 0 else "NEUTRAL")
    angry = islice(harness.repository.newest(Selection(sentiment="NEGATIVE"), 2), 2)
    assert ids(angry) == ["t20", "t10"]


def test_count_reads_only_the_counted_attributes(harness: Harness) -> None:
    harness.store("a", intent="login_issue", urgency="high", sentiment="NEGATIVE")
    harness.store("b", intent="login_issue", urgency="low")
    harness.store("c", intent="bug_report", urgency="low")
    harness.forget_calls()
    assert harness.repository.count(Selection()) == {
        "intent": {"login_issue": 2, "bug_report": 1},
        "urgency": {"high": 1, "low": 2},
        "sentiment": {"NEGATIVE": 1, "NEUTRAL": 2},
    }
    assert harness.calls == ["Query"] * 4
    assert not any("summary" in query["ProjectionExpression"] for query in harness.queries)


def test_id_is_looked_up_by_the_table_key(harness: Harness) -> None:
    harness.store("twice", 1000)
    harness.store("twice", 2000)
    harness.store("other", 3000)
    harness.forget_calls()
    assert [item.created_at for item in harness.repository.with_id("twice")] == [2000, 1000]
    assert harness.repository.with_id("none") == []
    assert harness.calls == ["Query"] * 2
    assert not any("IndexName" in query for query in harness.queries)


def test_largest_created_at_is_exact(harness: Harness) -> None:
    harness.store("late", MAX_CREATED_AT)
    assert harness.item("late").created_at == MAX_CREATED_AT


def test_item_with_unexpected_attribute_is_named(harness: Harness) -> None:
    item = {"ticket_id": {"S": "odd"}, "created_at": {"N": "7"}, "urgency": {"S": "low"}}
    harness.dynamodb.put_item(TableName=harness.place, Item=item)
    assert harness.item("odd").subject == ""
    harness.dynamodb.put_item(TableName=harness.place, Item={**item, "subject": {"L": []}})
    with pytest.raises(RepositoryError, match="ticket odd has an unexpected subject in the table"):
        list(harness.repository.newest(Selection()))


# -- whole tickets


def test_whole_ticket_is_read_in_the_committed_version(harness: Harness) -> None:
    key = harness.store("t", subject="committed")
    harness.s3.put_object(Bucket=harness.place, Key=key, Body=b'{"subject": "lost the race"}')
    assert harness.repository.whole(harness.item("t"))["subject"] == "committed"


@pytest.mark.parametrize("body", [b"\xff", b"[]", b"{}", b'{"enrichment": null}'])
def test_invalid_object_is_named(harness: Harness, body: bytes) -> None:
    version = harness.s3.put_object(Bucket=harness.place, Key="k", Body=body)["VersionId"]
    item = Item(ticket_id="t", created_at=1, s3_key="k", s3_version_id=version)
    with pytest.raises(
        ObjectUnreadable, match=f"s3://{harness.place}/k in version {version} is .*; enrich the ticket again"
    ):
        harness.repository.whole(item)


def test_missing_object_is_named(harness: Harness) -> None:
    key = harness.store("t")
    harness.s3.delete_object(Bucket=harness.place, Key=key, VersionId=harness.item("t").s3_version_id)
    with pytest.raises(ObjectUnreadable, match="is gone"):
        harness.repository.whole(harness.item("t"))
    with pytest.raises(ObjectUnreadable, match="ticket x names no object"):
        harness.repository.whole(Item(ticket_id="x", created_at=1))


def test_missing_bucket_raises_client_error(harness: Harness) -> None:
    harness.store("t")
    with pytest.raises(ClientError, match="NoSuchBucket"):
        TicketRepository(harness.dynamodb, lambda: harness.s3, table=harness.place, bucket="elsewhere").whole(
            harness.item("t")
        )


# -- similar tickets


def similarity(harness: Harness, ticket_id: str, *, limit: int = 10, among: int = 1000) -> Similarity:
    read: list[int] = []
    found = similar(
        harness.repository,
        harness.item(ticket_id),
        limit=limit,
        among=among,
        begin=read.append,
        advance=lambda: read.append(1),
    )
    assert read == [found.compared] + [1] * found.compared
    return found


def test_similar_tickets_are_ordered_by_cosine(harness: Harness) -> None:
    vectors = {"query": (3.0, 4.0), "same": (6.0, 8.0), "near": (4.0, 3.0), "across": (-4.0, 3.0), "none": (0.0,)}
    for created_at, (ticket_id, vector) in enumerate(vectors.items()):
        harness.store(ticket_id, created_at, vector=vector)
    harness.store("against", vector=(-3.0, -4.0))
    found = similarity(harness, "query")
    assert [(item.ticket_id, round(cosine, 6)) for cosine, item in found.matches] == [
        ("same", 1.0),
        ("near", 0.96),
        ("none", 0.0),  # equal cosines: the newer ticket first
        ("across", 0.0),
        ("against", -1.0),
    ]
    assert (found.compared, found.oldest, found.unreadable, found.foreign) == (5, None, 0, 0)
    assert ids(item for _, item in similarity(harness, "query", limit=2).matches) == ["same", "near"]


@pytest.mark.parametrize(
    ("query", "among", "compared", "oldest"),
    [
        ("t9", 3, ["t8", "t7", "t6"], 6),
        ("t0", 3, ["t9", "t8", "t7"], 7),
        ("t7", 3, ["t9", "t8", "t6"], 6),
        ("t6", 3, ["t9", "t8", "t7"], 7),
        ("t0", 9, [f"t{n}" for n in range(9, 0, -1)], None),
        ("t5", 8, ["t9", "t8", "t7", "t6", "t4", "t3", "t2", "t1"], 1),
    ],
)
def test_newest_tickets_are_compared_and_the_cutoff_is_reported(
    harness: Harness, query: str, among: int, compared: list[str], oldest: int | None
) -> None:
    for number in range(10):
        harness.store(f"t{number}", number, urgency=URGENCIES[number % 4])
    found = similarity(harness, query, among=among)
    assert ids(item for _, item in found.matches) == compared
    assert (found.compared, found.oldest) == (len(compared), oldest)


def test_tickets_that_cannot_be_compared_are_counted(harness: Harness) -> None:
    harness.store("query")
    harness.store("foreign", model_version="full@0123456789ab")
    gone = harness.store("gone")
    harness.s3.delete_object(Bucket=harness.place, Key=gone, VersionId=harness.item("gone").s3_version_id)
    for ticket_id, vector in {"short": [1.0], "none": [], "words": ["a"] * 384}.items():
        body = json.dumps({"ticket_id": ticket_id, "enrichment": {"embedding": vector}}).encode()
        version = harness.s3.put_object(Bucket=harness.place, Key=ticket_id, Body=body)["VersionId"]
        texts = {"ticket_id": ticket_id, "urgency": "low", "s3_key": ticket_id, "s3_version_id": version}
        item = {name: {"S": text} for name, text in texts.items()}
        harness.dynamodb.put_item(
            TableName=harness.place, Item={**item, "created_at": {"N": "5"}, "model_version": {"S": VERSION}}
        )
    found = similarity(harness, "query")
    assert ids(item for _, item in found.matches) == ["foreign"]
    assert (found.compared, found.unreadable, found.foreign) == (5, 4, 1)


def test_similar_to_empty_ticket_raises(harness: Harness) -> None:
    harness.store("empty", vector=(0.0,))
    with pytest.raises(RepositoryError, match="ticket empty has no text"):
        similarity(harness, "empty")


def test_objects_are_read_concurrently(harness: Harness) -> None:
    own = harness.store("query")
    for number in range(8):
        harness.store(f"t{number}")
    barrier = threading.Barrier(4)

    def meet(name: str, params: dict[str, Any]) -> None:
        if name == "GetObject" and params["Key"] != own:
            barrier.wait(timeout=30)  # raises if three others do not arrive

    harness.before = meet
    assert similarity(harness, "query").compared == 8


def test_error_or_ctrl_c_stops_reading(harness: Harness) -> None:
    own = harness.store("query")
    for number in range(60):
        harness.store(f"t{number}")

    def delay(_name: str, _params: dict[str, Any]) -> None:
        time.sleep(0.05)  # the first call must return before all have started

    def deny_access(name: str, params: dict[str, Any]) -> None:
        time.sleep(0.05)
        if name == "GetObject" and params["Key"] != own:
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, name)

    def interrupt() -> None:
        raise KeyboardInterrupt

    item, options, harness.before = harness.item("query"), {"limit": 10, "among": 1000}, delay
    with pytest.raises(KeyboardInterrupt):
        similar(harness.repository, item, begin=lambda _: None, advance=interrupt, **options)
    assert 1 < harness.calls.count("GetObject") < 60
    harness.forget_calls()
    harness.before = deny_access
    with pytest.raises(ClientError, match="AccessDenied"):
        similar(harness.repository, item, begin=lambda _: None, advance=lambda: None, **options)
    assert 1 < harness.calls.count("GetObject") < 60


# -- output


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (86399, "23h"), (86400, "1d"),
        (364 * 86400, "364d"), (800 * 86400, "2y"), (-1, "-1s"), (-7200, "-2h"),
    ],
)  # fmt: skip
def test_age_uses_its_largest_unit(seconds: int, text: str) -> None:
    assert age(10**9 - seconds, now=10**9) == text


def test_times_beyond_the_calendar_stay_numbers() -> None:
    assert moment(1_790_000_000) == "2026-09-21T14:13:20Z"
    assert moment(2**53 - 1) == str(2**53 - 1)


def test_lines_have_nine_columns_and_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    item = Item(
        ticket_id="T\t1",
        created_at=0,
        subject=CONTROL_CHARACTERS,
        summary="Two\nlines.",
        needs_review=True,
        urgency="low",
    )
    item = item.model_copy(update={"language": "de"})
    write([ticket_row(item), ticket_row(item, 0.5)], "lines")
    plain, with_cosine = capsys.readouterr().out.splitlines()
    cells = ["1970-01-01T00:00:00Z", "low", "", "", "yes", "T 1", "Re: your bill txt.exe ✓ é", "Two lines."]
    cells.append("de")
    assert plain.split("\t") == cells
    assert with_cosine.split("\t") == ["0.5000", *cells]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[1;31mb\x1b[0m", "ab"),
        ("a\x9b2Jb", "ab"),
        ("a\x1b]8;;http://x\x1b\\link\x1b]8;;\x07b", "alinkb"),
        ("a\x1bP1$r0\x9cb", "ab"),
        ("an unfinished \x1b]0;title", "an unfinished ]0;title"),
        ("\x07\x08\x7f\x85a\x8d\x1bcb", " acb"),
        ("\u202eevil\u202c \u2066i\u2067j\u2069 \u200f", "evil ij "),
        ("one\r\ntwo\tthree", "one\ntwo three"),
        ("نمی\u200cخواهم", "نمی\u200cخواهم"),
        ("क्\u200dष 👩\u200d🚒 ❤\ufe0f", "क्\u200dष 👩\u200d🚒 ❤\ufe0f"),
    ],
)
def test_text_keeps_joiners_and_loses_what_controls_a_terminal(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_json_keeps_joiners_readable(capsys: pytest.CaptureFixture[str]) -> None:
    write_whole({"subject": "نمی\u200cخواهم \u202e\x9b"}, {}, "json")
    out = capsys.readouterr().out
    assert out == '{"subject": "نمی\u200cخواهم \\u202e\\u009b"}\n'


def test_json_lines_are_printable_and_equal_the_item(capsys: pytest.CaptureFixture[str]) -> None:
    stored = {
        "ticket_id": "T",
        "created_at": 3,
        "subject": CONTROL_CHARACTERS,
        "score": Decimal("0.125"),
        "tags": {"b", "a"},
    }
    item = Item.model_validate(stored)
    write([ticket_row(item), ticket_row(item, -0.5)], "json")
    plain, with_cosine = capsys.readouterr().out.splitlines()
    assert plain.isprintable()
    assert "é" in plain
    assert json.loads(plain) == {**item.model_dump(), "score": 0.125, "tags": ["a", "b"]}
    assert json.loads(with_cosine) == {"cosine": -0.5, **json.loads(plain)}


WHOLE = {
    "ticket_id": "T",
    "created_at": 0,
    "body": "one\r\n\ttwo\x1b[31m",
    "priority": None,
    "metadata": {"tags": ["a", "b"], "extra": {}, "deep": [{"x": 1}]},
    "enrichment": {"embedding": [0.123456] * 384, "scores": {"urgency": {"low": 0.25, "high": 0.75}}},
}


def test_whole_ticket_has_one_field_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    write_whole(WHOLE, {"s3_key": "k"}, "lines")
    assert dict(line.split("\t") for line in capsys.readouterr().out.splitlines()) == {
        "ticket_id": "T",
        "created_at": "1970-01-01T00:00:00Z",
        "body": "one two",
        "priority": "null",
        "metadata.tags": "a, b",
        "metadata.extra": "{}",
        "metadata.deep": '{"x": 1}',
        "enrichment.embedding": "0.1235, 0.1235, 0.1235, 0.1235, … (384 numbers)",
        "enrichment.scores.urgency": "high 0.75, low 0.25",
        "s3_key": "k",
    }


def test_whole_ticket_as_json_equals_the_stored_one(capsys: pytest.CaptureFixture[str]) -> None:
    write_whole(WHOLE, {"s3_key": "k"}, "json")
    assert json.loads(capsys.readouterr().out) == WHOLE


class Screen(io.StringIO):
    """A standard output that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Returns a terminal with 100 columns and no colours."""
    for name, value in {"COLUMNS": "100", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    return Screen()


def run_on(output: io.StringIO, *arguments: str) -> object:
    """Runs the command with an output that can be read while it runs; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as end:
            app(list(arguments))
    return end.value.code


def shown(screen: Screen) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())


def test_terminal_table_fits_the_width(harness: Harness, screen: Screen) -> None:
    long_id = "T" * 60
    harness.store("short", 1, subject="word " * 100, urgency="critical", needs_review=True, language="en")
    harness.store(long_id, 2, subject="[red]not markup[/]")
    assert run_on(screen, "show") == 0
    heading, *lines = shown(screen).splitlines()
    assert heading.split() == ["age", "urgency", "intent", "sentiment", "?", "lang", "ticket", "subject"]
    assert all(len(line) <= 100 for line in lines)
    assert long_id in "".join(re.findall("T+", "\n".join(lines)))
    assert "[red]not" in "\n".join(lines)
    (short,) = [line for line in lines if "short" in line]
    assert re.match(r"\d+y  critical  bug_report  NEUTRAL    \?  en    short +word word .*…$", short)


def test_wide_terminal_shows_summaries(harness: Harness, screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    harness.store("t")
    assert run_on(screen, "show") == 0
    assert "Summary of t." in shown(screen)


def test_terminal_keeps_the_lines_of_a_body(harness: Harness, screen: Screen) -> None:
    harness.store("t", subject=CONTROL_CHARACTERS)
    assert run_on(screen, "get", "t") == 0
    lines = [line.rstrip() for line in shown(screen).splitlines()]
    place = lines.index(next(line for line in lines if line.startswith("body ")))
    assert [line.split()[-2:] for line in lines[place : place + 3]] == [["First", "line."], [], ["Second", "line."]]
    assert "\x1b]" not in screen.getvalue()


def test_empty_list_is_reported_on_a_terminal(
    harness: Harness, screen: Screen, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_on(screen, "show") == 0
    assert (screen.getvalue(), capsys.readouterr().err) == ("", "no such tickets\n")


# -- the command


def test_show_in_a_pipe(harness: Harness) -> None:
    for number, urgency in enumerate(URGENCIES):
        harness.store(urgency, number, urgency=urgency)
    assert [line.split("\t")[5] for line in run("show").stdout.splitlines()] == list(reversed(URGENCIES))
    assert [line.split("\t")[5] for line in run("show", "--urgent").stdout.splitlines()] == ["high", "critical"]
    assert [line.split("\t")[5] for line in run("show", "--urgency", "LOW").stdout.splitlines()] == ["low"]
    assert [json.loads(line)["ticket_id"] for line in run("show", "--json", "--limit", "2").stdout.splitlines()] == [
        "low",
        "medium",
    ]
    nothing = run("show", "--intent", "none")
    assert (nothing.exit_code, nothing.output) == (0, "")


def test_sentiment_option_is_case_insensitive(harness: Harness) -> None:
    harness.store("angry", sentiment="NEGATIVE")
    harness.store("calm")
    assert run("show", "--sentiment", "negative").stdout.split("\t")[5] == "angry"


@pytest.mark.parametrize(
    ("since", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("3d", 3 * 86400), ("1w", 7 * 86400)]
)
def test_since_accepts_a_duration(since: str, seconds: int) -> None:
    earliest = int(time.time()) - seconds
    assert earliest <= since_seconds(since) <= int(time.time()) - seconds


@pytest.mark.parametrize("since", ["2026-09-21", "2026-09-21T00:00:00Z", "2026-09-21T02:00+02:00"])
def test_since_accepts_a_time_and_assumes_utc(harness: Harness, since: str) -> None:
    assert since_seconds(since) == int(datetime(2026, 9, 21, tzinfo=UTC).timestamp())


def test_since_is_inclusive(harness: Harness) -> None:
    harness.store("inside", 86400)
    harness.store("outside", 86399)
    assert [line.split("\t")[5] for line in run("show", "--since", "1970-01-02").stdout.splitlines()] == ["inside"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "--since", "yesterday"), ("show", "--urgent", "--urgency", "low"), ("show", "--urgency", "urgent"),
        ("show", "--limit", "0"), ("show", "--watch", "0"), ("show", "--watch=soon"), ("similar", "t", "--among", "0"),
    ],
)  # fmt: skip
def test_invalid_options_exit_2(harness: Harness, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Invalid value" in result.stderr
    assert harness.calls == []


def test_count_in_a_pipe(harness: Harness) -> None:
    for ticket_id, urgency, intent in [("a", "low", "x"), ("b", "low", "y"), ("c", "critical", "y")]:
        harness.store(ticket_id, urgency=urgency, intent=intent)
    lines = ["intent\ty\t2", "intent\tx\t1", "urgency\tcritical\t1", "urgency\tlow\t2", "sentiment\tNEUTRAL\t3"]
    assert run("count").stdout.splitlines() == lines
    assert json.loads(run("count", "--urgent", "--json").stdout.splitlines()[0]) == {
        "by": "intent",
        "label": "y",
        "count": 1,
    }


def test_created_at_selects_among_tickets_with_the_same_id(harness: Harness) -> None:
    for created_at in (1000, 2000, 3000):
        harness.store("t", created_at, subject=f"of {created_at}")
    newest = run("get", "t", "--json")
    assert json.loads(newest.stdout)["subject"] == "of 3000"
    assert newest.stderr == "the newest of 3; --created-at shows the others: 2000, 1000\n"
    chosen = run("get", "t", "--created-at", "2000", "--json")
    assert (json.loads(chosen.stdout)["subject"], chosen.stderr) == ("of 2000", "")
    none = run("get", "t", "--created-at", "5")
    assert (none.exit_code, none.stdout, none.stderr) == (
        1,
        "",
        "tickets: no ticket t of 5, but of 3000, 2000, 1000\n",
    )


def test_similar_reports_what_was_left_out(harness: Harness) -> None:
    harness.store("query", 9)
    harness.store("near", 8, vector=(0.8, 0.6))
    harness.store("foreign", 7, vector=(0.6, 0.8), model_version="other")
    gone = harness.store("gone", 6)
    harness.s3.delete_object(Bucket=harness.place, Key=gone, VersionId=harness.item("gone").s3_version_id)
    harness.store("older", 5)
    result = run("similar", "query", "--among", "3")
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == ["0.8000", "0.6000"]
    assert result.stderr == (
        "compared with 3 tickets; tickets older than 1970-01-01T00:00:06Z were not compared (raise --among); "
        "1 of them have no readable object; 1 come from another model version, so their cosines are less meaningful\n"
    )
    everything = run("similar", "query", "--json", "--limit", "1")
    assert json.loads(everything.stdout)["ticket_id"] == "older"
    assert "left out" not in everything.stderr


@pytest.mark.parametrize("command", ["get", "similar"])
def test_unknown_id_exits_1_with_one_line(harness: Harness, command: str) -> None:
    result = run(command, "unknown")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "tickets: no ticket unknown\n")


@pytest.mark.parametrize("arguments", [("get", "t"), ("show", "--watch")])
def test_aws_error_is_one_line_with_a_remedy(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("TABLE_NAME", "elsewhere")
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"tickets: Query: ResourceNotFoundException: .*; check TABLE_NAME, .*\n", result.stderr)


def test_aws_error_without_a_remedy_is_one_line(harness: Harness) -> None:
    result = run("get", "")
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"tickets: Query: ValidationException: .*\n", result.stderr)


def test_missing_region_is_one_line(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    assert run("show").stderr == "tickets: You must specify a region; set AWS_DEFAULT_REGION\n"


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"TABLE_NAME": None, "ENRICHED_BUCKET": None}, "set TABLE_NAME and ENRICHED_BUCKET in the environment"),
        ({"TABLE_NAME": ""}, "set TABLE_NAME in the environment"),
        (
            {"ENRICHED_BUCKET": None, "AWS_ENDPOINT_URL": "here"},
            "set ENRICHED_BUCKET in the environment; AWS_ENDPOINT_URL: Input should be a valid URL, .*",
        ),
    ],
)
@pytest.mark.parametrize("arguments", [("show",), ("get", "t")])
def test_missing_settings_are_named_in_one_line(
    harness: Harness,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str | None],
    line: str,
    arguments: tuple[str, ...],
) -> None:
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(f"tickets: {line}\n", result.stderr)


def test_settings_match_those_of_the_function() -> None:
    for name, own in AccessSettings.model_fields.items():
        assert own.is_required() == Settings.model_fields[name].is_required()
    assert {name for name in AccessSettings.model_fields if AccessSettings.model_fields[name].is_required()} == {
        "table_name",
        "enriched_bucket",
    }


def test_characters_that_cannot_be_encoded_are_replaced(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.store("t", subject="Grüße ✓")
    output = io.BytesIO()
    monkeypatch.setattr(sys, "argv", ["tickets", "show"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="latin-1"))
    with pytest.raises(SystemExit):
        main()
    assert "Grüße ?" in output.getvalue().decode("latin-1")


def test_command_is_installed() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"]["tickets"] == "handler.tickets.command:main"


# -- watching


def test_watch_returns_each_ticket_once_and_oldest_first(harness: Harness) -> None:
    for number in range(5):
        harness.store(f"t{number}", number)
    first = list(islice(harness.repository.newest(Selection()), 3))
    rounds = follow_tickets(harness.repository, Selection(), first, 3)
    assert ids(next(rounds)) == ["t2", "t3", "t4"]
    assert ids(next(rounds)) == []
    for number in range(5, 12):  # more than the limit
        harness.store(f"t{number}", number)
    harness.store("late", 3)  # older than some already returned
    harness.store("ancient", 1)
    assert ids(next(rounds)) == ["late", *(f"t{number}" for number in range(5, 12))]
    harness.store("t4", 4, intent="login_issue")  # enriched again
    (again,) = next(rounds)
    assert (again.ticket_id, again.intent) == ("t4", "login_issue")
    assert ids(next(rounds)) == []


def test_watch_remembers_a_bounded_number_of_tickets(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handler.tickets.follow._REMEMBERED", 20)
    rounds = follow_tickets(harness.repository, Selection(), [], 10)
    assert next(rounds) == []
    for number in range(30):
        harness.store(f"t{number}", number)
    assert ids(next(rounds)) == [f"t{number}" for number in range(30)]
    harness.forget_calls()
    assert next(rounds) == []
    assert {query["ExpressionAttributeValues"][":created_at"]["N"] for query in harness.queries} == {"10"}


class Watcher(threading.Thread):
    """Plays the user of a watching command: waits for a text, acts, and finally ends the command."""

    def __init__(self, output: io.StringIO, steps: list[tuple[str, Callable[[], object]]], last: str, end: int) -> None:
        super().__init__(daemon=True)
        self._output, self._steps, self._last, self._end = output, steps, last, end
        self._deadline = time.monotonic() + 30

    def run(self) -> None:
        for text, act in self._steps:
            if self._saw(text):
                act()
        self._saw(self._last)
        # Only while the command is watching: otherwise SIGTERM would end the test run.
        while not self._watching() and time.monotonic() < self._deadline:
            time.sleep(0.01)
        if self._watching():
            os.kill(os.getpid(), self._end)

    def _saw(self, text: str) -> bool:
        while text not in self._output.getvalue():
            if time.monotonic() > self._deadline:
                return False
            time.sleep(0.01)
        return True

    @staticmethod
    def _watching() -> bool:
        return signal.getsignal(signal.SIGTERM) is signal.default_int_handler


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_watch_in_a_pipe_ends_cleanly(
    harness: Harness, capsys: pytest.CaptureFixture[str], end: signal.Signals
) -> None:
    pipe = io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    harness.store("first", 1)
    watcher = Watcher(pipe, [("first", lambda: harness.store("second", 2))], "second", end)
    watcher.start()
    assert run_on(pipe, "show", "--watch", "0.1") == 0
    watcher.join()
    assert [line.split("\t")[5] for line in pipe.getvalue().splitlines()] == ["first", "second"]
    assert capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGTERM) is before


def test_watched_counts_are_printed_again_after_a_change(harness: Harness) -> None:
    pipe = io.StringIO()
    harness.store("first", urgency="low", intent="x")
    watcher = Watcher(
        pipe, [("NEUTRAL\t1", lambda: harness.store("b", urgency="high", intent="x"))], "NEUTRAL\t2", signal.SIGINT
    )
    watcher.start()
    assert run_on(pipe, "count", "--watch", "0.1") == 0
    watcher.join()
    assert pipe.getvalue().splitlines() == [
        "intent\tx\t1", "urgency\tlow\t1", "sentiment\tNEUTRAL\t1",
        "intent\tx\t2", "urgency\thigh\t1", "sentiment\tNEUTRAL\t2",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["show", "count"])
def test_watch_redraws_the_terminal(harness: Harness, screen: Screen, command: str) -> None:
    text = {"show": "second", "count": "login_issue"}[command]
    harness.store("first", 1)
    watcher = Watcher(
        screen, [("Ctrl-C ends", lambda: harness.store("second", 2, intent="login_issue"))], text, signal.SIGINT
    )
    watcher.start()
    assert run_on(screen, command, "--watch", "0.1") == 0
    watcher.join()
    assert text in shown(screen)
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex(text)  # the cursor is shown again


@pytest.mark.parametrize("command", ["show", "count"])
@pytest.mark.parametrize(
    ("arguments", "pause"),
    [
        ([], None),
        (["--watch"], 2.0),
        (["--watch", "--json"], 2.0),
        (["--watch", "7"], 7.0),
        (["--json", "--watch", ".5"], 0.5),
        (["--watch=3", "--json"], 3.0),
    ],
)
def test_watch_interval_is_optional(command: str, arguments: list[str], pause: float | None) -> None:
    commands: Any = get_command(app)
    with commands.make_context("tickets", [command, *arguments]) as context:
        name, found, rest = commands.resolve_command(context, [command, *arguments])
        assert found.make_context(name, rest, parent=context).params["watch"] == pause


def test_table_of_the_fixture_paginates(harness: Harness) -> None:
    """Checks the fixture: without pages, the paging tests would prove nothing."""
    for number in range(3):
        harness.store(f"t{number}", number)
    answer = harness.dynamodb.query(
        TableName=harness.place,
        IndexName="urgency-index",
        KeyConditionExpression="urgency = :u",
        ExpressionAttributeValues={":u": {"S": "low"}},
        Limit=2,
    )
    assert (len(answer["Items"]), "LastEvaluatedKey" in answer) == (2, True)
    assert all(earlier <= later for earlier, later in pairwise(item["created_at"]["N"] for item in answer["Items"]))
