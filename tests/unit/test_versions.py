"""Versions of one object that are uploaded within the same second, the resolution of S3's timestamps."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.cases import Answer
from tests.support.fakes import FakeHarness, FakeModels, context, event, failed, notification, record, ticket


class SlowModels(FakeModels):
    """Models that call `meanwhile` while they work."""

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
def harness(models: SlowModels) -> FakeHarness:
    return FakeHarness(models)


def put(harness: FakeHarness, subject: str) -> None:
    harness.source.put("a", json.dumps(ticket("T-a", subject=subject)).encode(), 1_795_166_000_000)


def invoke(harness: FakeHarness, message: str) -> tuple[str, str | None]:
    answer: Answer = harness.invoke(event(record(notification("a"), message)))
    (line,) = answer.tickets(message)
    return line["outcome"], line.get("error_type")


def subject(harness: FakeHarness) -> str:
    item = harness.item("T-a", 1_795_165_200)
    assert item is not None
    return str(json.loads(harness.object("a", item["s3_version_id"]))["subject"])


def test_older_version_stored_last_is_replaced_on_retry(harness: FakeHarness, models: SlowModels) -> None:
    def overtake() -> None:
        """Another container processes the newer version faster."""
        put(harness, "newer")
        other = harness.build(harness.models)
        assert other(event(record(notification("a"), "second")), context()) == {"batchItemFailures": []}
        models.meanwhile = lambda: None
        assert subject(harness) == "newer"

    put(harness, "older")
    models.meanwhile = overtake
    answer = harness.invoke(event(record(notification("a"), "first")))
    (line,) = answer.tickets("first")
    assert (line["outcome"], line["error_type"]) == ("failed", "object_replaced")
    assert failed(answer) == {"first"}
    assert subject(harness) == "older"
    assert invoke(harness, "first") == ("done", None)
    assert subject(harness) == "newer"


def test_newer_version_stored_last_is_kept(harness: FakeHarness) -> None:
    put(harness, "older")
    assert invoke(harness, "first") == ("done", None)
    put(harness, "newer")
    assert invoke(harness, "second") == ("done", None)
    assert subject(harness) == "newer"


def test_version_is_kept_if_its_object_is_gone(harness: FakeHarness, models: SlowModels) -> None:
    put(harness, "older")
    assert invoke(harness, "first") == ("done", None)
    put(harness, "newer")
    models.meanwhile = harness.source.objects.clear
    assert invoke(harness, "second") == ("done", None)
    assert subject(harness) == "newer"


def test_inline_tickets_with_equal_times_are_all_stored(harness: FakeHarness) -> None:
    for number in ("one", "other"):
        answer = harness.invoke(event(record(ticket("T", subject=number), number)))
        assert [line["outcome"] for line in answer.tickets(number)] == ["done"]
