"""ENRICHED_OBJECTS=batch: which tickets share an object, and that one ticket never affects another."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from enrichment.ticket import enriched_json
from handler.aws.batch_objects import BatchRange, batch_key, hour_prefixes_since, line_of
from handler.aws.forgetting import name_hash
from handler.errors import ServiceFailed, Throttled
from handler.messages import is_reserved
from handler.tickets.repository import Item
from tests.support.cases import Answer
from tests.support.fakes import FakeHarness, FakeModels, context, event, failed, notification, record, ticket
from tests.support.waiting import eventually


@pytest.fixture
def harness() -> FakeHarness:
    return FakeHarness(enriched_objects="batch")


def put(harness: FakeHarness, *keys: str, modified: int = 1_795_166_000_000, **fields: Any) -> None:
    for key in keys:
        harness.source.put(key, json.dumps({**ticket(f"T-{key}"), **fields}).encode(), modified)


def deliver(harness: FakeHarness, *keys: str, receive_count: int = 1) -> Answer:
    return harness.invoke(event(*(record(notification(key), f"m-{key}", receive_count) for key in keys)))


def outcome(answer: Answer, key: str) -> str:
    (line,) = answer.tickets(f"m-{key}")
    return str(line["outcome"])


def stored(harness: FakeHarness, key: str) -> dict[str, Any]:
    """The ticket that the item names."""
    name = (f"T-{key}", ticket()["created_at"])
    if name not in harness.sink.placed:
        return dict(json.loads(harness.sink.objects[key][-1]))
    placed = harness.sink.placed[name]
    (content,) = harness.sink.objects[placed.key]
    return dict(json.loads(content[placed.offset : placed.offset + placed.length]))


# -- a batch


def test_tickets_of_a_batch_share_one_object(harness: FakeHarness) -> None:
    put(harness, "a", "b", "c")
    answer = deliver(harness, "a", "b", "c")
    assert answer.response == {"batchItemFailures": []}
    assert harness.sink.together == [["T-a", "T-b", "T-c"]]
    assert [stored(harness, key)["ticket_id"] for key in "abc"] == ["T-a", "T-b", "T-c"]
    assert harness.sink.objects.keys() == {"batches/1"}, "the put of the batch is the only one"


def test_single_ticket_has_an_object_of_its_own(harness: FakeHarness) -> None:
    put(harness, "a")
    deliver(harness, "a")
    assert harness.sink.together == []
    assert harness.sink.objects.keys() == {"a"}


def test_by_default_every_ticket_has_an_object_of_its_own() -> None:
    harness = FakeHarness()
    put(harness, "a", "b")
    deliver(harness, "a", "b")
    assert harness.sink.together == []
    assert harness.sink.objects.keys() == {"a", "b"}


def test_text_beyond_ascii_is_in_its_range(harness: FakeHarness) -> None:
    put(harness, "a", subject="Grüße 🎫")
    put(harness, "b", subject="日本語")
    put(harness, "c")
    deliver(harness, "a", "b", "c")
    assert [stored(harness, key)["subject"] for key in "abc"] == ["Grüße 🎫", "日本語", "Printer"]


def test_redelivery_is_skipped_and_a_new_version_is_stored(harness: FakeHarness) -> None:
    put(harness, "a", "b")
    deliver(harness, "a", "b")
    again = deliver(harness, "a", "b")
    assert [outcome(again, key) for key in "ab"] == ["skipped", "skipped"]
    assert len(harness.sink.together) == 1
    put(harness, "a", "b", modified=1_795_166_001_000, subject="Newer")
    deliver(harness, "a", "b")
    assert [stored(harness, key)["subject"] for key in "ab"] == ["Newer", "Newer"]
    assert sorted(harness.sink.changes[2:]) == [("T-a", "updated"), ("T-b", "updated")]


def test_stale_version_is_skipped_and_its_neighbour_is_stored(harness: FakeHarness) -> None:
    put(harness, "a", subject="new")
    deliver(harness, "a")
    put(harness, "a", subject="old", modified=1_795_165_999_999)
    put(harness, "b")
    harness.sink.blind = True  # the newer version arrives after this batch has read the table
    answer = deliver(harness, "a", "b")
    assert (outcome(answer, "a"), outcome(answer, "b")) == ("skipped", "done")
    assert stored(harness, "a")["subject"] == "new"


@pytest.mark.parametrize(("first", "second"), [("ticket", "batch"), ("batch", "ticket")])
def test_switching_enriches_nothing_again(first: str, second: str) -> None:
    harness = FakeHarness(enriched_objects=first)
    put(harness, "a", "b")
    deliver(harness, "a", "b")
    harness.handler = harness.build(harness.models, enriched_objects=second)
    answer = deliver(harness, "a", "b")
    assert [outcome(answer, key) for key in "ab"] == ["skipped", "skipped"]
    assert len(harness.models.seen) == 1
    newer = FakeModels("newer@111111111111")
    harness.handler = harness.build(newer, enriched_objects=second)
    deliver(harness, "a", "b")
    assert [stored(harness, key)["enrichment"]["model_version"] for key in "ab"] == [newer.version] * 2
    assert len(harness.sink.placed) == (2 if second == "batch" else 0)


# -- failures


def test_failed_put_fails_its_tickets_and_no_others(harness: FakeHarness) -> None:
    harness.sink.faults_together.set(ServiceFailed("PutObject: 500"), "T-a")
    put(harness, "a", "b")
    answer = deliver(harness, "a", "b")
    assert failed(answer) == {"m-a", "m-b"}
    assert harness.sink.items == {}
    assert answer.tickets("m-a")[0]["error_type"] == "service_failed"
    harness.sink.faults_together.clear()
    assert deliver(harness, "a", "b", receive_count=2).response == {"batchItemFailures": []}
    assert harness.sink.items.keys() == {("T-a", ticket()["created_at"]), ("T-b", ticket()["created_at"])}


def test_commit_that_fails_leaves_the_others_alone(harness: FakeHarness) -> None:
    harness.sink.faults.set(Throttled("PutItem: throttled"), "T-a")
    put(harness, "a", "b", "c")
    answer = deliver(harness, "a", "b", "c")
    assert failed(answer) == {"m-a"}
    assert stored(harness, "b")["ticket_id"] == "T-b"


def test_ticket_that_cannot_be_written_is_not_in_the_object(
    harness: FakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:

    def broken(raw: Any, enrichment: Any) -> bytes:
        if raw.ticket_id == "T-b":
            raise RuntimeError("a bug")
        return enriched_json(raw, enrichment)

    monkeypatch.setattr("handler.batch.enriched_json", broken)
    put(harness, "a", "b", "c")
    answer = deliver(harness, "a", "b", "c")
    assert failed(answer) == {"m-b"}
    assert harness.sink.together == [["T-a", "T-c"]]
    assert [stored(harness, key)["ticket_id"] for key in "ac"] == ["T-a", "T-c"]


@pytest.mark.parametrize("count", [2, 20])  # also more than there are threads: some stores do not even begin
def test_put_that_hangs_is_out_of_time_and_erased_if_it_was_forgotten(harness: FakeHarness, count: int) -> None:
    gate = harness.sink.faults_together.hang("T-a")
    harness.seconds = [1, 30, 30, 30, 0.26, 0.1]  # at last, to settle each: all threads wait
    keys = ["a", *(f"b-{number}" for number in range(count - 1))]
    put(harness, *keys)
    answer = deliver(harness, *keys)
    assert failed(answer) == {f"m-{key}" for key in keys}
    assert {line["error_type"] for key in keys for line in answer.tickets(f"m-{key}")} == {"out_of_time"}
    harness.sink.forgotten_ids = {"T-a", f"T-{keys[-1]}"}
    gate.set()  # now the object and the items are written after all
    eventually(lambda: set(harness.sink.searched) >= {"T-a", f"T-{keys[-1]}"})
    eventually(lambda: ("T-a", ticket()["created_at"]) not in harness.sink.items)


def test_many_batches_at_once_do_not_block_each_other(harness: FakeHarness) -> None:
    """Tickets wait for their object on the threads that write objects: more of them than there are threads."""
    keys = [[f"{batch}-{number}" for number in range(10)] for batch in range(6)]
    for group in keys:
        put(harness, *group)
    answers: list[Any] = []

    def run(group: list[str]) -> None:
        events = event(*(record(notification(key), f"m-{key}") for key in group))
        answers.append(harness.handler(events, context()))

    threads = [threading.Thread(target=run, args=(group,)) for group in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [{"batchItemFailures": []}] * 6
    assert len(harness.sink.items) == 60


# -- which tickets share an object


def test_two_versions_of_a_ticket_do_not_share_an_object(harness: FakeHarness) -> None:
    put(harness, "a", "b", "c")
    put(harness, "copy", ticket_id="T-a", subject="Another", modified=1_795_166_001_000)
    deliver(harness, "a", "b", "copy", "c")
    assert sorted(harness.sink.together) == [["T-a", "T-b"], ["T-a", "T-c"]]


def test_large_tickets_are_split(harness: FakeHarness) -> None:
    put(harness, *"abcdefghij", body="x" * 900_000)
    deliver(harness, *"abcdefghij")
    assert sorted(len(ids) for ids in harness.sink.together) == [2, 4, 4]
    sizes = [len(harness.sink.objects[f"batches/{number}"][0]) for number in (1, 2, 3)]
    assert max(sizes) < 4.2 * 1024 * 1024


def test_many_tickets_are_split_and_keys_stay_within_the_limit(harness: FakeHarness) -> None:
    keys = [f"{number:02}" for number in range(45)]
    put(harness, *keys)
    harness.invoke(event(record(notification(*keys))))
    assert sorted(len(ids) for ids in harness.sink.together) == [5, 20, 20]


# -- forgotten tickets


def test_forgotten_ticket_is_searched_since_its_message_was_first_received(harness: FakeHarness) -> None:
    put(harness, "a", "b")
    harness.sink.forgotten_ids = {"T-a"}
    records = [record(notification(key), f"m-{key}") for key in "ab"]
    for number, each in enumerate(records):
        each["attributes"]["ApproximateFirstReceiveTimestamp"] = str(1_795_166_000_000 + number)
    harness.invoke(event(*records))
    assert harness.sink.searched == {"T-a": 1_795_166_000_000}


def test_by_default_no_objects_are_searched() -> None:
    harness = FakeHarness()
    put(harness, "a")
    harness.sink.forgotten_ids = {"T-a"}
    deliver(harness, "a")
    assert harness.sink.searched == {"T-a": None}


# -- keys and lines

MOMENT = datetime(2026, 11, 26, 13, 45, 12, 123_999, UTC)


def test_keys_sort_by_time_and_name_their_tickets() -> None:
    key = batch_key(["T-1", "Ü"], MOMENT)
    hashes = name_hash("ticket", "T-1")[:4] + name_hash("ticket", "Ü")[:4]
    assert key.startswith("batches/2026-11-26/134512123-")
    assert key.endswith(f"-{hashes}.jsonl")
    assert batch_key(["T-1"], MOMENT) != batch_key(["T-1"], MOMENT)
    assert key < batch_key(["T-1"], MOMENT.replace(microsecond=124_000))
    assert len(batch_key(["T-1"] * 20, MOMENT)) < 128
    assert "T-1" not in key


def test_raw_ticket_may_not_have_the_key_of_a_batch_object() -> None:
    assert is_reserved(batch_key(["T-1"], MOMENT))
    assert not is_reserved("batches/2026-11-26/T-1.json")
    assert not is_reserved("batches/7.json")


@pytest.mark.parametrize("body", [b'{"a": [1,\n 2],\r\n"b": "x\\ny"}', b"{}"])
def test_line_has_the_same_bytes_except_line_breaks(body: bytes) -> None:
    line = line_of(body)
    assert (len(line), json.loads(line)) == (len(body), json.loads(body))
    assert not {b"\n", b"\r"} & {line[place : place + 1] for place in range(len(line))}


def test_hours_to_search_reach_back_for_clocks_that_differ() -> None:
    now = datetime.now(UTC)
    begin = now.replace(minute=5, second=0, microsecond=0) - timedelta(days=1)
    prefixes = hour_prefixes_since(int(begin.timestamp() * 1000))
    assert prefixes[0] == f"batches/{begin - timedelta(hours=1):%Y-%m-%d/%H}"
    assert f"batches/{now:%Y-%m-%d/%H}" in prefixes
    assert len(prefixes) in {26, 27}, "every hour of a day, and that before; the next one if it is near"
    assert batch_key(["T-1"], now).startswith(tuple(prefixes))


def test_range_is_read_from_both_forms_of_an_item() -> None:
    place = BatchRange("batches/x", 5, 7)
    item = Item(ticket_id="T-1", created_at=1, s3_batch="batches/x:5+7")
    assert item.batch == BatchRange.in_item({"s3_batch": {"S": "batches/x:5+7"}}) == place
    assert BatchRange.in_item({}) is Item(ticket_id="T-1", created_at=1).batch is None
