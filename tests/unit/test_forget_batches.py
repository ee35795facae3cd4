"""`tickets forget` with ENRICHED_OBJECTS=batch: a ticket leaves an object, and its neighbours keep every byte."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import boto3
import pytest

from handler.aws.batch_objects import BATCHES, blank_tickets, day_prefixes, keys_with
from handler.aws.forgetting import name_hash
from handler.aws.storage import AwsTicketSink
from handler.errors import ServiceFailed
from handler.tickets.repository import Item, ObjectUnreadable, TicketRepository, item_of
from tests.support.fakes import context, event, record, ticket
from tests.support.forget_harness import SECRET, ForgetHarness, Killed, forget_harness
from tests.support.mocked_aws import mocked_aws


@pytest.fixture(scope="module")
def clients() -> Iterator[dict[str, Any]]:
    with mocked_aws():
        yield {name: boto3.client(name) for name in ("s3", "sqs", "dynamodb", "sts")}


@pytest.fixture
def harness(
    clients: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ForgetHarness]:
    with forget_harness(clients, monkeypatch, tmp_path_factory.mktemp("forget")) as made:
        made.handler = made.build(enriched_objects="batch")
        yield made


def deliver(harness: ForgetHarness, *keys: str, receive_count: int = 1) -> list[str]:
    """Passes the notifications of raw objects to the handler as one batch; returns the outcomes by key."""
    harness.metrics.outcomes.clear()
    records = [record(harness.notify(key), f"m-{key}", receive_count) for key in keys]
    for each in records:
        each["attributes"]["ApproximateFirstReceiveTimestamp"] = str(int(time.time() * 1000))
    harness.handler(event(*records), context())
    return sorted(harness.metrics.outcomes.elements())


def put(harness: ForgetHarness, *names: str, **fields: Any) -> list[str]:
    """Puts raw tickets with these ids; returns their keys."""
    for name in names:
        text = f"{SECRET}, {name}. Grüße 🎫" if name == "T-1" else f"Text of {name}, 日本語."
        harness.put(f"{name}.json", ticket(name, **{"body": text, **fields}))
    return [f"{name}.json" for name in names]


def store(harness: ForgetHarness, *names: str, **fields: Any) -> None:
    """Stores tickets in one object."""
    assert deliver(harness, *put(harness, *names, **fields)) == ["done"] * len(names)


def repository(harness: ForgetHarness) -> TicketRepository:
    return TicketRepository(
        harness.clients["dynamodb"], lambda: harness.clients["s3"], table=harness.place, bucket=harness.place
    )


def items(harness: ForgetHarness) -> dict[str, Item]:
    found = [item for item in harness.items() if not item["ticket_id"]["S"].startswith("#")]
    return {item["ticket_id"]["S"]: item_of(item) for item in found}


def ranges(harness: ForgetHarness, names: Iterable[str]) -> dict[str, bytes]:
    """The bytes that the items of these tickets name, read as any other program would."""
    found = {}
    for name in names:
        place = items(harness)[name].batch
        assert place is not None, name
        wanted = f"bytes={place.offset}-{place.offset + place.length - 1}"
        answer = harness.clients["s3"].get_object(Bucket=harness.place, Key=place.key, Range=wanted)
        found[name] = answer["Body"].read()
        assert json.loads(found[name])["ticket_id"] == name
    return found


def versions(harness: ForgetHarness) -> dict[str, list[str]]:
    return {key: found for key, found in harness.versions(harness.place).items() if key.startswith(BATCHES)}


def orphan(harness: ForgetHarness, *names: str) -> str:
    """Writes an object whose tickets are never committed, as a process does that is killed; returns its key."""
    sink = AwsTicketSink(harness.clients["s3"], harness.clients["dynamodb"], harness.place, harness.place)
    bodies = [(name, json.dumps(ticket(name, body=SECRET if name == "T-1" else "other")).encode()) for name in names]
    return sink.put_together(bodies)[0].key


def owner(name: str) -> list[str]:
    return [name_hash("ticket", name)]


# -- what is removed, and what stays


def test_ticket_is_removed_and_its_neighbours_keep_every_byte(harness: ForgetHarness) -> None:
    store(harness, "T-0", "T-1", "T-2")
    before = ranges(harness, ["T-0", "T-2"])
    totals = harness.forget("T-1")
    assert (totals["enriched"], totals["item"], totals["complete"]) == (1, 1, True)
    assert SECRET not in json.dumps(harness.everything())
    assert ranges(harness, ["T-0", "T-2"]) == before
    assert [len(found) for found in versions(harness).values()] == [1], "no earlier version is left"
    assert repository(harness).whole(items(harness)["T-2"])["body"] == "Text of T-2, 日本語."
    assert harness.forget("T-1")["enriched"] == 0


def test_earlier_versions_of_a_ticket_are_removed(harness: ForgetHarness) -> None:
    store(harness, "T-1", "T-2")
    time.sleep(1.01)  # S3 has times in seconds, and of two versions within one the second may be stale
    store(harness, "T-1", "T-3", subject="changed")
    before = ranges(harness, ["T-2", "T-3"])
    assert len(versions(harness)) == 2
    assert harness.forget("T-1")["enriched"] == 2
    assert SECRET not in json.dumps(harness.everything())
    assert ranges(harness, ["T-2", "T-3"]) == before


def test_what_was_never_committed_is_removed(harness: ForgetHarness) -> None:
    store(harness, "T-2", "T-3")
    orphan(harness, "T-1", "T-2")
    before = ranges(harness, ["T-2", "T-3"])
    assert harness.forget("T-1")["enriched"] == 1
    assert SECRET not in json.dumps(versions(harness))
    assert ranges(harness, ["T-2", "T-3"]) == before


def test_object_of_forgotten_tickets_alone_is_deleted(harness: ForgetHarness) -> None:
    store(harness, "T-1", "T-2")
    store(harness, "T-3", "T-4", customer_id="C-77")
    harness.forget("T-1")
    assert len(versions(harness)) == 2
    harness.forget("T-2")
    assert len(versions(harness)) == 1
    totals = harness.forget("--customer", "C-77")
    assert (totals["tickets"], totals["enriched"]) == (2, 2)
    assert versions(harness) == {}


def test_tickets_of_a_customer_in_several_objects(harness: ForgetHarness) -> None:
    for number in range(3):
        put(harness, f"mine-{number}", customer_id="C-77", body=SECRET)
        put(harness, f"other-{number}")
        assert deliver(harness, f"mine-{number}.json", f"other-{number}.json") == ["done", "done"]
    others = [f"other-{number}" for number in range(3)]
    before = ranges(harness, others)
    assert harness.forget("--customer", "C-77")["enriched"] == 3
    assert SECRET not in json.dumps(harness.everything())
    assert ranges(harness, others) == before


def test_object_at_the_end_of_its_retention_is_deleted(harness: ForgetHarness) -> None:
    store(harness, "T-1", "T-2")
    (key,) = versions(harness)
    harness.clients["s3"].delete_object(Bucket=harness.place, Key=key)  # as the lifecycle rule does
    assert versions(harness)[key][-1] == "deleted"
    with pytest.raises(ObjectUnreadable, match="is gone"):
        repository(harness).whole(items(harness)["T-2"])
    harness.forget("T-1")
    assert versions(harness) == {}


def test_version_that_a_repeated_put_left_is_removed(harness: ForgetHarness) -> None:
    """botocore repeats a put whose answer was lost: then there are two versions with the same text."""
    store(harness, "T-1", "T-2")
    ((key, (content,)),) = versions(harness).items()
    harness.clients["s3"].put_object(Bucket=harness.place, Key=key, Body=content.encode())
    before = ranges(harness, ["T-2"])
    harness.forget("T-1")
    assert [len(found) for found in versions(harness).values()] == [1]
    assert SECRET not in json.dumps(versions(harness))
    assert ranges(harness, ["T-2"]) == before


def test_dry_run_changes_nothing(harness: ForgetHarness) -> None:
    store(harness, "T-1", "T-2")
    (key,) = versions(harness)
    before = harness.everything()
    planned = harness.run("T-1", "--json")
    rows = [json.loads(line) for line in planned.stdout.splitlines()]
    assert {"kind": "enriched", "place": f"s3://{harness.place}/{key}", "versions": 1} in rows
    assert harness.everything() == before


def test_ticket_that_was_stored_in_both_ways_is_removed(harness: ForgetHarness) -> None:
    store(harness, "T-1", "T-2")
    batch, harness.handler = harness.handler, harness.build()
    time.sleep(1.01)
    store(harness, "T-1", "T-2", subject="changed")
    assert items(harness)["T-1"].batch is None
    assert harness.forget("T-1")["enriched"] == 2
    assert SECRET not in json.dumps(harness.everything())
    harness.handler = batch
    assert deliver(harness, "T-2.json") == ["skipped"]


def test_by_default_a_run_only_looks_whether_there_are_such_objects(harness: ForgetHarness) -> None:
    harness.handler = harness.build()
    store(harness, "T-1")
    asked: list[Mapping[str, Any]] = []
    harness.before = lambda name, params: asked.append(params) if name == "ListObjectVersions" else None
    harness.forget("T-1")
    assert [each["Prefix"] for each in asked].count(BATCHES) == 2
    assert [each for each in asked if each["Prefix"].startswith(BATCHES + "2")] == []


# -- at the same time


def test_two_who_forget_tickets_of_one_object_both_succeed(harness: ForgetHarness) -> None:
    """The second one begins and ends between the first one's read and its write."""
    store(harness, "T-0", "T-1", "T-2")
    before = ranges(harness, ["T-0"])
    (key,) = versions(harness)
    s3, puts = harness.clients["s3"], []

    def interrupt(name: str, _params: Mapping[str, Any]) -> None:
        if name == "PutObject":
            puts.append(name)
            if len(puts) == 1:
                blank_tickets(s3, harness.place, key, owner("T-2"))

    harness.before = interrupt
    assert blank_tickets(s3, harness.place, key, owner("T-1")) == 1
    assert len(puts) == 3, "one was refused and repeated"
    (found,) = versions(harness)[key]
    assert SECRET not in found
    assert "T-2" not in found
    assert ranges(harness, ["T-0"]) == before


def test_many_who_forget_at_once(harness: ForgetHarness) -> None:
    names = [f"T-{number}" for number in range(6)]
    store(harness, *names)
    (key,) = versions(harness)
    before = ranges(harness, ["T-5"])
    errors: list[BaseException] = []

    def forget(name: str) -> None:
        try:
            blank_tickets(harness.clients["s3"], harness.place, key, owner(name))
        except BaseException as error:  # the main thread raises it
            errors.append(error)

    threads = [threading.Thread(target=forget, args=(name,)) for name in names[:5]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    (found,) = versions(harness)[key]
    assert [name for name in names if name in found] == ["T-5"]
    assert ranges(harness, ["T-5"]) == before


def test_others_that_keep_changing_the_object_end_the_attempt(
    harness: ForgetHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(harness, "T-1", "T-2")
    ((key, (content,)),) = versions(harness).items()
    s3, is_own = harness.clients["s3"], list[bool]()
    monkeypatch.setattr("handler.aws.batch_objects._PAUSE", 0)
    monkeypatch.setattr("handler.aws.batch_objects._MAX_RACES", 3)

    def change(name: str, _params: Mapping[str, Any]) -> None:
        if name == "PutObject" and not is_own:
            is_own.append(True)
            s3.put_object(Bucket=harness.place, Key=key, Body=content.encode() + b" " * len(versions(harness)[key]))
            is_own.clear()

    harness.before = change
    with pytest.raises(ServiceFailed, match="keep changing"):
        blank_tickets(s3, harness.place, key, owner("T-1"))


def test_neighbours_can_be_read_at_every_moment(harness: ForgetHarness) -> None:
    store(harness, "T-0", "T-1", "T-2")
    found = items(harness)
    tickets, reading, read = repository(harness), list[bool](), []

    def look(name: str, _params: Mapping[str, Any]) -> None:
        if name in {"PutObject", "DeleteObject"} and not reading:
            reading.append(True)
            read.append([tickets.whole(found[each])["ticket_id"] for each in ("T-0", "T-2")])
            reading.clear()

    harness.before = look
    blank_tickets(harness.clients["s3"], harness.place, next(iter(versions(harness))), owner("T-1"))
    assert read == [["T-0", "T-2"]] * 2
    with pytest.raises(ObjectUnreadable, match="was forgotten"):
        tickets.whole(found["T-1"])


@pytest.mark.parametrize("moment", ["PutObject 1", "DeleteObject 1", "DeleteObject 2", "ListObjectVersions 4"])
def test_run_that_was_killed_can_be_repeated(harness: ForgetHarness, moment: str) -> None:
    store(harness, "T-0", "T-1", "T-2")
    orphan(harness, "T-1", "T-3")
    before = ranges(harness, ["T-0", "T-2"])
    calls: Counter[str] = Counter()

    def kill(name: str, _params: Mapping[str, Any]) -> None:
        calls[name] += 1
        if moment == f"{name} {calls[name]}":
            raise Killed

    harness.before = kill
    with pytest.raises(Killed):
        harness.run("T-1", "--yes")
    harness.before = lambda _name, _params: None
    assert SECRET in json.dumps(harness.everything()), "otherwise this tests nothing"
    assert harness.forget("T-1")["complete"]
    assert SECRET not in json.dumps(harness.everything())
    assert ranges(harness, ["T-0", "T-2"]) == before


# -- in flight


@pytest.mark.parametrize("moment", ["PutObject 1", "PutItem 1", "PutItem 2", "BatchGetItem 2"])
def test_ticket_that_is_being_enriched_does_not_come_back(harness: ForgetHarness, moment: str) -> None:
    """The ticket is forgotten just before a call of the batch that stores it together with another one."""
    store(harness, "T-1")
    put(harness, "T-1", "T-2", subject="changed")
    harness.forget_at(moment, "T-1")
    assert deliver(harness, "T-1.json", "T-2.json") == ["done", "skipped"]
    harness.before = lambda _name, _params: None
    assert SECRET not in json.dumps(harness.everything())
    assert harness.tickets() == {("T-2", str(ticket()["created_at"]))}
    assert ranges(harness, ["T-2"])


@pytest.mark.parametrize("has_raw", [True, False])
def test_killed_batch_leaves_nothing_after_its_retry(harness: ForgetHarness, has_raw: bool) -> None:
    """The process had read the table before the ticket was forgotten, and wrote its object after the search."""
    put(harness, "T-1", "T-2")
    harness.forget("T-1", "--key", "T-1.json")
    if has_raw:
        put(harness, "T-1")
    orphan(harness, "T-1", "T-2")
    assert SECRET in json.dumps(versions(harness))
    assert deliver(harness, "T-1.json", "T-2.json", receive_count=2) == ["done", "skipped"]
    assert SECRET not in json.dumps(versions(harness))
    assert '"T-2"' in json.dumps(versions(harness)).replace("\\", "")


# -- the search


def test_search_reads_keys_only_and_every_day(harness: ForgetHarness) -> None:
    s3, bucket = harness.clients["s3"], harness.place
    days = ["batches/2025-01-31/", "batches/2026-11-26/"]
    for day in days:
        for place, names in enumerate((["T-1", "T-2"], ["T-3", "T-4"])):
            hashes = "".join(name_hash("ticket", name)[:4] for name in names)
            s3.put_object(Bucket=bucket, Key=f"{day}12000000{place}-012345-{hashes}.jsonl", Body=b"{}\n{}\n")
    s3.put_object(Bucket=bucket, Key="batches/other.json", Body=b"{}")
    assert day_prefixes(s3, bucket) == days
    harness.calls.clear()
    found = [key for day in days for key in keys_with(s3, bucket, day, owner("T-4"))]
    assert [key[:28] for key in found] == [f"{day}120000001" for day in days]
    assert Counter(harness.calls) == {"ListObjectVersions": 2}


def test_search_reads_every_page(harness: ForgetHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    s3, bucket = harness.clients["s3"], harness.place
    key = "batches/2026-11-26/120000000-012345-" + owner("T-1")[0][:4] + ".jsonl"
    for number in range(7):
        s3.put_object(Bucket=bucket, Key=key.replace("120000000", f"12000000{number}"), Body=b"{}")
        s3.put_object(Bucket=bucket, Key=key.replace("120000000", f"12000000{number}"), Body=b"{}")
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    found = list(keys_with(s3, bucket, "batches/2026-11-26/", owner("T-1")))
    assert [each[19:28] for each in found] == [f"12000000{number}" for number in range(7)]


def test_ticket_with_the_same_first_digits_stays(harness: ForgetHarness) -> None:
    """A key has the beginnings of hashes only: the object is read, and its lines decide."""
    store(harness, "T-1", "T-2")
    (key,) = versions(harness)
    before = versions(harness)
    other = owner("T-1")[0][:4] + "0" * 60
    assert list(keys_with(harness.clients["s3"], harness.place, key[:19], [other])) == [key]
    assert blank_tickets(harness.clients["s3"], harness.place, key, [other]) == 0
    assert versions(harness) == before
    harness.clients["s3"].delete_object(Bucket=harness.place, Key=key)
    hidden = versions(harness)
    assert blank_tickets(harness.clients["s3"], harness.place, key, [other]) == 0
    assert versions(harness) == hidden


def test_range_of_another_ticket_is_never_returned(harness: ForgetHarness) -> None:
    store(harness, "T-1", "T-2")
    found = items(harness)
    one, other = found["T-1"], found["T-2"]
    wrong = Item.model_validate({**one.model_dump(), "s3_batch": (other.model_extra or {})["s3_batch"]})
    with pytest.raises(ObjectUnreadable, match="is another ticket"):
        repository(harness).whole(wrong)
