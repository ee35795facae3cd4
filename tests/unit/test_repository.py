"""The repository's reads for the page: filters, pages and counts by day; and `tickets upgrade`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from handler.aws.forgetting import item_key
from handler.aws.storage import day_of
from handler.cli.shutdown import Shutdown
from handler.tickets.command import app
from handler.tickets.repository import UNKNOWN_LANGUAGE, URGENCIES, RepositoryError, Selection
from handler.tickets.upgrade import upgrade
from tests.support.mocked_aws import mocked_aws
from tests.support.result_events import is_selected
from tests.support.ticket_table import Harness, ticket_table

DAY = 86_400
START = 20_000 * DAY  # 2024-10-04T00:00:00Z


@pytest.fixture(scope="module")
def aws() -> Iterator[tuple[Any, Any]]:
    """Yields clients of an in-process DynamoDB and S3."""
    with mocked_aws():
        yield boto3.client("dynamodb"), boto3.client("s3")


@pytest.fixture
def harness(aws: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """Yields an empty harness for this test; the command uses its clients, so that it sees all calls."""
    clients = {"dynamodb": aws[0], "s3": aws[1]}
    monkeypatch.setattr("handler.tickets.access.client_factory", lambda _: lambda service, **_options: clients[service])
    with ticket_table(aws, monkeypatch) as made:
        yield made


def ids(items: Any) -> list[str]:
    return [item.ticket_id for item in items]


def pages(harness: Harness, selection: Selection, size: int) -> list[list[str]]:
    found, after = [], None
    while True:
        page = harness.repository.page(selection, size, after)
        found.append(ids(page.items))
        if page.next is None:
            return found
        assert len(page.items) == size
        after = page.next


def items(harness: Harness) -> list[dict[str, Any]]:
    return list(harness.dynamodb.scan(TableName=harness.place)["Items"])


def make_old(harness: Harness, *ticket_ids: str) -> None:
    """Removes what version 0.1 did not write."""
    for item in items(harness):
        if item["ticket_id"]["S"] in ticket_ids:
            key = {name: item[name] for name in ("ticket_id", "created_at")}
            harness.dynamodb.update_item(
                TableName=harness.place,
                Key=key,
                UpdateExpression="REMOVE #day",
                ExpressionAttributeNames={"#day": "day"},
            )


# -- filters


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(needs_review=False), {"plain", "german", "short"}),
        (Selection(needs_review=True), {"unsure"}),
        (Selection(language="de"), {"german"}),
        (Selection(language=UNKNOWN_LANGUAGE), {"short"}),
        (Selection(text="rechnung"), {"german"}),
        (Selection(text="STRASSE"), {"german"}),
        (Selection(text="summary of PLAIN"), {"plain"}),
        (Selection(text="uns"), {"unsure"}),
        (Selection(text="%"), set()),
        (Selection(text="about", language="en", needs_review=False), {"plain"}),
    ],
)
def test_filter(harness: Harness, selection: Selection, expected: set[str]) -> None:
    harness.store("plain", language="en")
    harness.store("german", subject="RECHNUNG Hauptstraße", language="de")
    harness.store("short", subject="x", language=None)
    harness.store("unsure", language="en", needs_review=True, review_reasons=["intent"])
    assert set(ids(harness.repository.newest(selection))) == expected
    assert set(ids(harness.repository.page(selection, 10).items)) == expected
    assert sum(harness.repository.count(selection)["intent"].values()) == len(expected)
    by_day = harness.repository.by_day(selection)
    assert sum(by_day["1970-01-01"]["intent"].values()) == len(expected) if expected else by_day == {}


def test_unknown_language_is_absent_or_null(harness: Harness) -> None:
    harness.store("null", language=None)
    harness.store("absent", language="en")
    harness.dynamodb.update_item(
        TableName=harness.place,
        Key=item_key("absent", 1000),
        UpdateExpression="REMOVE #language",
        ExpressionAttributeNames={"#language": "language"},
    )
    assert set(ids(harness.repository.newest(Selection(language=UNKNOWN_LANGUAGE)))) == {"null", "absent"}


# -- pages


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_pages_are_the_list_in_parts(harness: Harness, size: int) -> None:
    """With many tickets of the same second, in the same urgency and in others."""
    numbers = random.Random(size)
    for number in range(40):
        harness.store(f"t{number:02}", 1000 + numbers.randrange(6), urgency=numbers.choice(URGENCIES))
    whole = ids(harness.repository.newest(Selection()))
    assert [name for page in pages(harness, Selection(), size) for name in page] == whole
    assert len(set(whole)) == 40


@pytest.mark.parametrize(
    "selection",
    [
        Selection(("high", "low")),
        Selection(intent="login_issue"),
        Selection(text="t1"),
        Selection(since=1002, until=1004),
        Selection(since=1003),
    ],
)
def test_pages_of_a_selection(harness: Harness, selection: Selection) -> None:
    for number in range(30):
        intent = ("login_issue", "bug_report")[number % 2]
        harness.store(f"t{number:02}", 1000 + number % 6, urgency=URGENCIES[number % 4], intent=intent)
    whole = ids(harness.repository.newest(selection))
    assert whole
    assert [name for page in pages(harness, selection, 2) for name in page] == whole


def test_newer_tickets_do_not_move_the_following_pages(harness: Harness) -> None:
    for number in range(12):
        harness.store(f"t{number:02}", 1000 + number, urgency=URGENCIES[number % 4])
    first = harness.repository.page(Selection(), 4)
    assert ids(first.items) == ["t11", "t10", "t09", "t08"]
    for number in range(6):
        harness.store(f"new{number}", 2000 + number, urgency=URGENCIES[number % 4])
    harness.dynamodb.delete_item(TableName=harness.place, Key=item_key("t08", 1008))
    assert first.next is not None
    second = harness.repository.page(Selection(), 4, first.next)
    assert ids(second.items) == ["t07", "t06", "t05", "t04"]


def test_page_costs_one_query_per_urgency_wherever_it_is(harness: Harness) -> None:
    for number in range(60):
        harness.store(f"t{number:02}", 1000 + number, urgency=URGENCIES[number % 4])
    after = None
    for _ in range(4):
        harness.forget_calls()
        page = harness.repository.page(Selection(), 10, after)
        assert harness.calls == ["Query"] * 4
        assert {query["Limit"] for query in harness.queries} == {11}
        after = page.next


@pytest.mark.parametrize(
    "position", ["", "x", "e30=", "WzEsIHt9LCAyXQ==", "WyIxIiwge31d", "WzEsIHsieCI6ICJ5In1d", "Wy0xLCB7fV0=", "ü"]
)
def test_invalid_position_is_refused(harness: Harness, position: str) -> None:
    with pytest.raises(RepositoryError, match="begin with the newest tickets"):
        harness.repository.page(Selection(), 10, position)


def test_period_that_ends_before_it_begins_has_no_tickets(harness: Harness) -> None:
    for number in range(8):
        harness.store(f"t{number}", 1000 + number, urgency=URGENCIES[number % 4])
    selection = Selection(since=1005, until=1004)
    assert list(harness.repository.newest(selection)) == []
    assert harness.repository.page(selection, 10).items == []
    assert harness.repository.by_day(selection) == {}
    assert not any(harness.repository.count(selection).values())
    first = harness.repository.page(Selection(), 3)
    assert harness.repository.page(Selection(since=1007), 3, first.next).items == []


# -- by day


def fill(harness: Harness, days: int, per_day: int) -> Counter[tuple[str, str, str]]:
    """Stores tickets of several days; returns their numbers by day, task and label."""
    expected: Counter[tuple[str, str, str]] = Counter()
    for number in range(days * per_day):
        created_at = START + number * DAY // per_day
        intent, urgency = ("login_issue", "bug_report")[number % 2], URGENCIES[number % 4]
        harness.store(f"t{number:03}", created_at, intent=intent, urgency=urgency)
        for task, label in (("intent", intent), ("urgency", urgency), ("sentiment", "NEUTRAL")):
            expected[day_of(created_at), task, label] += 1
    return expected


def counted(harness: Harness, selection: Selection) -> Counter[tuple[str, str, str]]:
    found = harness.repository.by_day(selection)
    assert list(found) == sorted(found)
    return Counter(
        {(day, task, label): number for day, tasks in found.items() for task, labels in tasks.items()
         for label, number in labels.items()}
    )  # fmt: skip


def mark_complete(harness: Harness) -> None:
    result = CliRunner().invoke(app, ["upgrade"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("complete", [True, False])
def test_days_are_counted_whether_or_not_the_index_is_complete(harness: Harness, complete: bool) -> None:
    expected = fill(harness, days=5, per_day=6)
    make_old(harness, "t003", "t011")
    if complete:
        mark_complete(harness)
    assert counted(harness, Selection()) == expected
    some = {key: number for key, number in expected.items() if "2024-10-05" <= key[0] <= "2024-10-06"}
    assert counted(harness, Selection(since=START + DAY, until=START + 3 * DAY - 1)) == some
    high = counted(harness, Selection(("high",)))
    assert {key: number for key, number in high.items() if key[1] == "urgency"} == {
        key: number for key, number in expected.items() if key[2] == "high"
    }


def test_day_costs_one_query_of_its_index(harness: Harness) -> None:
    fill(harness, days=5, per_day=6)
    mark_complete(harness)
    harness.forget_calls()
    harness.repository.by_day(Selection())
    by_index = Counter(query.get("IndexName", "table") for query in harness.queries)
    # The oldest and the newest ticket of each urgency; whether the index is complete; the days.
    assert by_index == {"urgency-index": 8, "table": 1, "day-index": 5}
    assert set(harness.calls) == {"Query"}
    assert all("summary" not in query.get("ProjectionExpression", "summary") for query in harness.queries[-5:])


def test_sparse_years_do_not_cost_a_query_per_day(harness: Harness) -> None:
    harness.store("first", START)
    harness.store("last", START + 9000 * DAY)
    harness.forget_calls()
    assert [*harness.repository.by_day(Selection())] == [day_of(START), day_of(START + 9000 * DAY)]
    assert harness.calls == ["Query"] * 12
    assert harness.repository.by_day(Selection(since=START + 1, until=START + 8000 * DAY)) == {}


def test_day_is_that_of_utc(harness: Harness) -> None:
    harness.store("before", START - 1)
    harness.store("after", START)
    harness.store("last", 253_402_300_799)
    assert {item["ticket_id"]["S"]: item["day"]["S"] for item in items(harness)} == {
        "before": "2024-10-03",
        "after": "2024-10-04",
        "last": "9999-12-31",
    }


# -- upgrade


def test_upgrade_gives_old_items_their_day_and_is_repeatable(harness: Harness) -> None:
    fill(harness, days=3, per_day=4)
    make_old(harness, "t001", "t002", "t007")
    before = {item["ticket_id"]["S"]: item for item in items(harness)}
    harness.forget_calls()
    result = CliRunner().invoke(app, ["upgrade"])
    assert (result.exit_code, result.stderr) == (0, "3 of 12 tickets were put into the index\n")
    assert "Scan" not in harness.calls
    after = {item["ticket_id"]["S"]: item for item in items(harness)}
    assert after.pop("#upgraded").keys() == {"ticket_id", "created_at", "upgraded_at"}
    for name, item in after.items():
        assert item["day"] == {"S": day_of(int(item["created_at"]["N"]))}
        assert {**before[name], "day": item["day"]} == item | (
            {} if "event" in item else {"event": before[name]["event"]}
        )
    harness.forget_calls()
    assert CliRunner().invoke(app, ["upgrade"]).stderr == "0 of 12 tickets were put into the index\n"
    assert "UpdateItem" not in harness.calls
    assert harness.repository.with_id("#upgraded") == []


def test_upgrade_sends_no_event(harness: Harness) -> None:
    """The pipe sends an event for every change of an item that has the attribute `event`."""
    harness.store("old")
    make_old(harness, "old")
    [before] = items(harness)
    assert is_selected({"eventName": "MODIFY", "dynamodb": {"NewImage": before}})
    mark_complete(harness)
    after = next(item for item in items(harness) if item["ticket_id"]["S"] == "old")
    assert not is_selected({"eventName": "MODIFY", "dynamodb": {"OldImage": before, "NewImage": after}})


def test_interrupted_upgrade_does_not_claim_to_be_complete(harness: Harness) -> None:
    for urgency in URGENCIES:
        harness.store(urgency, urgency=urgency)
    make_old(harness, *URGENCIES)
    shutdown, seen = Shutdown(0), list[tuple[int, int]]()

    def on_progress(read: int, changed: int) -> None:
        seen.append((read, changed))
        if len(seen) == 2:
            shutdown.request()

    assert upgrade(harness.dynamodb, harness.place, shutdown, on_progress) is False
    assert seen == [(1, 1)] * 2
    assert [item for item in items(harness) if item["ticket_id"]["S"] == "#upgraded"] == []
    assert upgrade(harness.dynamodb, harness.place, Shutdown(0), lambda *_: None) is True
    assert all("day" in item for item in items(harness) if item["ticket_id"]["S"] in URGENCIES)


@pytest.mark.parametrize("is_stored", [True, False])
def test_upgrade_passes_over_a_ticket_that_is_stored_or_forgotten_meanwhile(harness: Harness, is_stored: bool) -> None:
    harness.store("T-1")
    make_old(harness, "T-1")

    def meanwhile(operation: str, _params: dict[str, Any]) -> None:
        if operation == "UpdateItem":
            harness.before = lambda _name, _params: None
            if is_stored:
                harness.store("T-1", body="Another text.")
            else:
                harness.dynamodb.delete_item(TableName=harness.place, Key=item_key("T-1", 1000))

    harness.before = meanwhile
    mark_complete(harness)
    found = {item["ticket_id"]["S"]: item for item in items(harness)}
    assert found.keys() == {"#upgraded", *(["T-1"] if is_stored else [])}
    if is_stored:
        assert "event" in found["T-1"], "the function's own"
