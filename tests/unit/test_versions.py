"""Versions of one object that are uploaded within one second, which is as exactly as S3 tells times."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.cases import Answer
from tests.fakes import FakeModels, FakeWorld, context, event, failed, notification, record, ticket


class SlowModels(FakeModels):
    """Models during whose work something happens."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], object] = lambda: None

    def enrich(self, *arguments: Any, **options: Any) -> Any:
        """As Models.enrich."""
        self.meanwhile()
        return super().enrich(*arguments, **options)


@pytest.fixture
def models() -> SlowModels:
    return SlowModels()


@pytest.fixture
def world(models: SlowModels) -> FakeWorld:
    return FakeWorld(models)


def put(world: FakeWorld, subject: str) -> None:
    world.source.put("a", json.dumps(ticket("T-a", subject=subject)).encode(), 1_795_166_000_000)


def invoke(world: FakeWorld, message: str) -> tuple[str, str | None]:
    answer: Answer = world.invoke(event(record(notification("a"), message)))
    (line,) = answer.tickets(message)
    return line["outcome"], line.get("error_type")


def subject(world: FakeWorld) -> str:
    item = world.item("T-a", 1_795_165_200)
    assert item is not None
    return str(json.loads(world.object("a", item["s3_version_id"]))["subject"])


def test_older_version_that_is_stored_last_gives_its_place_back(world: FakeWorld, models: SlowModels) -> None:
    def overtake() -> None:
        """Another container reads the newer version, and is faster."""
        models.meanwhile = lambda: None
        put(world, "newer")
        assert world.handler(event(record(notification("a"), "second")), context()) == {"batchItemFailures": []}
        assert subject(world) == "newer"

    put(world, "older")
    models.meanwhile = overtake
    answer = world.invoke(event(record(notification("a"), "first")))
    (line,) = answer.tickets("first")
    assert (line["outcome"], line["error_type"]) == ("failed", "object_replaced")
    assert failed(answer) == {"first"}
    assert subject(world) == "older"
    assert invoke(world, "first") == ("done", None)
    assert subject(world) == "newer"


def test_newer_version_that_is_stored_last_stands(world: FakeWorld) -> None:
    put(world, "older")
    assert invoke(world, "first") == ("done", None)
    put(world, "newer")
    assert invoke(world, "second") == ("done", None)
    assert subject(world) == "newer"


def test_version_that_is_gone_by_now_stands(world: FakeWorld, models: SlowModels) -> None:
    put(world, "older")
    assert invoke(world, "first") == ("done", None)
    put(world, "newer")
    models.meanwhile = world.source.objects.clear
    assert invoke(world, "second") == ("done", None)
    assert subject(world) == "newer"


def test_inline_tickets_of_one_moment_are_stored_as_they_come(world: FakeWorld) -> None:
    for number in ("one", "other"):
        answer = world.invoke(event(record(ticket("T", subject=number), number)))
        assert [line["outcome"] for line in answer.tickets(number)] == ["done"]
