"""Stored tickets become events: stream, pipe and topic on the embedded stack, with the template's filter and template.

The emulator's pipe delivers raw records, so the filter and the InputTemplate are evaluated here; another test compares
that evaluation with the emulator's EventBridge.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from handler.app import build
from handler.local import EmbeddedStack
from handler.settings import Settings
from tests.support.canaries import WORD, valid
from tests.support.fakes import FakeModels, event, record, ticket
from tests.support.result_events import PATTERNS, ResultEvents, matches
from tests.support.stack_harness import StackHarness

if TYPE_CHECKING:
    from collections.abc import Callable

    from handler.ports import Models


@pytest.fixture(scope="module")
def stack() -> Iterator[EmbeddedStack]:
    with EmbeddedStack(parameters={"ResultEvents": "topic"}) as embedded:
        yield embedded


@pytest.fixture(scope="module")
def collected(stack: EmbeddedStack) -> Iterator[ResultEvents]:
    with ResultEvents(stack) as found:
        yield found


@pytest.fixture
def harness(stack: EmbeddedStack, monkeypatch: pytest.MonkeyPatch) -> Callable[[Models], StackHarness]:
    for name, value in (stack.environment() | {"MODEL_BUNDLE": "file:///unused"}).items():
        monkeypatch.setenv(name, value)
    return lambda models: StackHarness(stack, build(Settings.read(), models=models))


def sent(message: Any, name: str, time: int = 1) -> dict[str, Any]:
    return record(message, name, attributes={"ApproximateReceiveCount": "1", "SentTimestamp": str(time)})


def of(collected: ResultEvents, ticket_id: str) -> list[dict[str, Any]]:
    return [found for found in collected.events if found["ticket_id"] == ticket_id]


def test_each_commit_is_an_event_that_says_what_changed(
    harness: Callable[[Models], StackHarness], collected: ResultEvents
) -> None:
    raw = valid("T-changes", body="Canary one.")
    function, newer = harness(FakeModels("one@1")), harness(FakeModels("two@2"))
    ids: list[str] = []
    for handler, message in (
        (function, raw),
        (function, raw),  # skipped: no event
        (newer, raw),
        (newer, {**raw, "body": "Canary two."}),
    ):
        handler.invoke(event(sent(message, f"m-{len(ids)}", len(ids) + 1)))
        item = handler.item("T-changes", raw["created_at"])
        assert item is not None
        ids.append(item["event"]["id"])
    assert len(set(ids)) == 3
    collected.wait_for(ids)
    found = of(collected, "T-changes")
    assert [(one["change"], one["model_version"]) for one in found] == [
        ("new", "one@1"),
        ("enriched_again", "two@2"),
        ("updated", "two@2"),
    ]
    assert [one["event_id"] for one in found] == list(dict.fromkeys(ids))
    assert WORD not in json.dumps(found).lower()
    stored = function.item("T-changes", raw["created_at"])
    assert stored is not None
    assert found[-1]["s3_version_id"] == stored["s3_version_id"]


def test_only_commits_are_events(harness: Callable[[Models], StackHarness], collected: ResultEvents) -> None:
    function = harness(FakeModels())
    before = len(collected.deliveries)
    bad, good = {**ticket("T-bad"), "created_at": "never"}, ticket("T-good")
    function.invoke(event(sent(bad, "bad"), sent(good, "good")))
    # An item that counts failures, and the removal of a ticket.
    function.forget("T-good", good["created_at"])
    function.invoke(event(sent(good, "again", 2)))
    item = function.item("T-good", good["created_at"])
    assert item is not None
    collected.wait_for([item["event"]["id"]])
    assert [one["change"] for one in of(collected, "T-good")] == ["new", "new"]
    assert of(collected, "T-bad") == []
    kinds = [delivery.record["eventName"] for delivery in collected.deliveries[before:]]
    assert kinds == ["INSERT", "REMOVE", "INSERT"]
    assert collected.deliveries[before + 1].event is None


def test_pattern_matching_equals_that_of_eventbridge(
    stack: EmbeddedStack, harness: Callable[[Models], StackHarness], collected: ResultEvents
) -> None:
    raw = ticket("T-patterns")
    function, newer = harness(FakeModels("one@1")), harness(FakeModels("two@2"))
    function.invoke(event(sent(raw, "first")))
    newer.invoke(event(sent(raw, "second", 2)))
    function.forget("T-patterns", raw["created_at"])
    function.invoke(event(sent(raw, "third", 3)))
    item = function.item("T-patterns", raw["created_at"])
    assert item is not None
    collected.wait_for([item["event"]["id"]])
    records = [dict(delivery.record) for delivery in collected.deliveries]
    assert {each["eventName"] for each in records} >= {"INSERT", "MODIFY", "REMOVE"}
    image = records[0]["dynamodb"]["NewImage"]
    others: list[dict[str, Any]] = [
        {"created_at": {"N": "-1"}},
        {"event": {"M": {}}},
        {"event": {"S": "x"}},
        {"ticket_id": {"S": "#1"}},
    ]
    records += [{"eventName": "INSERT", "dynamodb": {"NewImage": {**image, **other}}} for other in others]
    client = stack.client("events")
    envelope = {"id": "1", "account": "1", "source": "s", "time": "2026-11-26T00:00:00Z"}
    for pattern in PATTERNS:
        for each in records:
            answer = client.test_event_pattern(
                EventPattern=json.dumps({"detail": pattern}),
                Event=json.dumps({**envelope, "region": "r", "resources": [], "detail-type": "t", "detail": each}),
            )
            assert answer["Result"] == matches(pattern, each), each
