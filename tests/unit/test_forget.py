"""`tickets forget`: what it removes, what it leaves, and that it can be killed; with the real handler on moto."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from handler.aws.forgetting import holder_of, name_hash, tombstone_key
from handler.tickets.command import app
from handler.tickets.corrections import log_prefix
from tests.support.fakes import notification, ticket
from tests.support.forget_harness import SECRET, Killed, forget_harness
from tests.support.forget_harness import ForgetHarness as Harness
from tests.support.mocked_aws import mocked_aws


@pytest.fixture(scope="module")
def clients() -> Iterator[dict[str, Any]]:
    with mocked_aws():
        yield {name: boto3.client(name) for name in ("s3", "sqs", "dynamodb", "sts")}


@pytest.fixture
def harness(clients: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Harness]:
    with forget_harness(clients, monkeypatch, tmp_path) as made:
        yield made


def fill(harness: Harness) -> None:
    """Stores T-1 in every way, and other tickets beside it."""
    harness.store("a.json", ticket("T-1", body=SECRET))
    harness.store("a.json", ticket("T-1", body=f"{SECRET}, as I said"))
    assert harness.deliver(ticket("T-1", created_at=7, body=SECRET)) == ["done"]  # inline
    harness.store("a.json.old", ticket("T-10"))
    harness.store("b.json", ticket("T-2", customer_id="C-2"))
    harness.store("c.json", ticket("T-3"))
    for name, label in (("T-1", "POSITIVE"), ("T-1", "NEGATIVE"), ("T-2", "POSITIVE")):
        corrected = CliRunner().invoke(app, ["correct", name, "--sentiment", label])
        assert corrected.exit_code == 0, corrected.output
    harness.put("broken.json", b'{"ticket_id": "T-1", "body": "' + SECRET.encode())
    harness.put("invalid.json", ticket("T-1", created_at="yesterday", body=SECRET))
    harness.put("other.json", ticket("T-4", created_at="yesterday"))
    mine = [
        ticket("T-1", subject=[SECRET]),
        json.dumps(ticket("T-1", body=SECRET))[:-9],
        json.dumps({"Type": "Notification", "Message": json.dumps(ticket("T-1", body=SECRET))}),
        harness.notify("a.json"),
        harness.notify("broken.json"),
        harness.notify("invalid.json"),
    ]
    for body in mine:
        harness.dead(body)
    for body in others(harness):
        harness.dead(body)
    harness.update_index()
    assert len(list(harness.index.all_keys())) == 5


def others(harness: Harness) -> list[Any]:
    return [
        ticket("T-3", body="about ticket T-1"),
        harness.notify("other.json"),
        harness.notify("gone.json"),
        harness.notify("a.json", "b.json"),
        "no JSON",
    ]


def is_forgotten(harness: Harness) -> None:
    """Asserts that nothing of T-1 is stored, and everything of the other tickets."""
    stored = harness.everything()
    assert SECRET not in json.dumps(stored)
    assert '"T-1"' not in json.dumps(stored["items"])
    assert {key: len(versions) for key, versions in stored["enriched"].items()} == {
        "a.json.old": 1,
        "b.json": 1,
        "c.json": 1,
        f"{log_prefix('T-2')}1795165200/000001.json": 1,
    }
    assert stored["raw"].keys() == {"a.json.old", "b.json", "c.json", "other.json"}
    assert harness.tickets() == {(name, "1795165200") for name in ("T-10", "T-2", "T-3")}
    assert [key.ticket_id for key in stored["vectors"]] == ["T-10", "T-2", "T-3"]
    assert stored["dlq"] == sorted(body if isinstance(body, str) else json.dumps(body) for body in others(harness))


def test_everything_of_a_ticket_is_removed_and_nothing_else(harness: Harness) -> None:
    fill(harness)
    totals = harness.forget("T-1")
    is_forgotten(harness)
    numbers = {name: totals[name] for name in ("tickets", "raw", "enriched", "correction", "item", "vector", "dlq")}
    assert numbers == {"tickets": 1, "raw": 3, "enriched": 3, "correction": 2, "item": 2, "vector": 2, "dlq": 6}
    assert totals["shared_messages"] == 1
    assert totals["complete"]
    again = harness.forget("T-1")
    assert [again[name] for name in ("raw", "enriched", "correction", "item", "dlq")] == [0] * 5


def test_dry_run_changes_nothing_and_lists_what_is_removed(harness: Harness) -> None:
    fill(harness)
    before = harness.everything()
    planned = harness.run("T-1", "--json")
    assert planned.exit_code == 0
    assert harness.everything() == before
    assert harness.audit() == []
    removed = harness.run("T-1", "--json", "--yes")
    rows, done = ([json.loads(line) for line in result.stdout.splitlines()] for result in (planned, removed))
    assert rows[:-1] == done[:-1]
    assert (rows[-1].pop("dry_run"), done[-1].pop("dry_run")) == (True, False)
    assert rows[-1] == done[-1]
    assert SECRET not in planned.output + removed.output
    place = harness.place
    assert {"kind": "enriched", "place": f"s3://{place}/a.json", "versions": 2} in rows
    assert {"kind": "item", "place": f"{place}/T-1/7", "versions": 1} in rows
    log = f"s3://{place}/{log_prefix('T-1')}1795165200/000001.json"
    assert {"kind": "correction", "place": log, "versions": 1} in rows
    assert {"kind": "vector", "place": f"{harness.index.place}/T-1/7", "versions": 1} in rows


def test_later_deliveries_are_skipped(harness: Harness) -> None:
    fill(harness)
    harness.forget("T-1")
    # A replay of the notification, one of an inline ticket, and a copy of the raw object that came back.
    assert harness.deliver(harness.notify("a.json"), ticket("T-1", created_at=7)) == ["skipped", "skipped"]
    harness.put("copy.json", ticket("T-1", body=SECRET))
    assert harness.deliver(harness.notify("copy.json"), harness.notify("b.json")) == ["skipped", "skipped"]
    assert harness.dead_letters.rejected == []
    # The raw object that came back is found by the next run.
    assert harness.forget("T-1")["raw"] == 1
    is_forgotten(harness)
    assert harness.deliver(harness.notify("gone.json")) == ["rejected"], "not every missing object is forgotten"


def test_raw_object_that_nothing_names_is_removed_by_its_key(harness: Harness) -> None:
    fill(harness)
    harness.put("copy.json", ticket("T-1", body=SECRET))
    assert harness.forget("T-1", "--key", "copy.json", "--key", "b.json")["kept_versions"] == 2
    is_forgotten(harness)
    harness.clients["s3"].delete_object(Bucket=f"{harness.place}-raw", Key="b.json")
    assert harness.deliver(harness.notify("b.json")) == ["rejected"]


def test_other_tickets_under_a_key_that_was_used_again_stay(harness: Harness) -> None:
    s3, raw = harness.clients["s3"], f"{harness.place}-raw"
    s3.put_bucket_versioning(Bucket=raw, VersioningConfiguration={"Status": "Enabled"})
    harness.store("k.json", ticket("T-1", body=SECRET))
    harness.store("k.json", ticket("T-2"))
    s3.delete_object(Bucket=raw, Key="k.json")
    assert harness.forget("T-1")["kept_versions"] == 2
    assert "deleted" in harness.versions(raw)["k.json"], "the marker still hides the other ticket"
    assert [len(harness.versions(bucket)["k.json"]) for bucket in (raw, harness.place)] == [2, 1]
    assert SECRET not in json.dumps(harness.everything())
    harness.forget("T-2")
    assert harness.versions(raw) == harness.versions(harness.place) == {}


@pytest.mark.parametrize(("target", "step"), [(("T-1",), 1), (("--customer", "C-1"), 4)], ids=["ticket", "customer"])
def test_run_that_was_killed_can_be_repeated(harness: Harness, target: tuple[str, ...], step: int) -> None:
    """Kills it before each call, or each fourth; every run continues with what the killed ones left."""
    fill(harness)
    kills, is_over = 0, False

    def kill(_name: str, _params: dict[str, Any]) -> None:
        if len(harness.calls) > kills:
            raise Killed

    while not is_over:
        harness.calls.clear()
        harness.before = kill
        with suppress(Killed):
            is_over = harness.run(*target, "--yes", "--json").exit_code == 0
        harness.before = lambda _name, _params: None
        free_messages(harness)
        kills += step
        assert kills < 300
    assert kills > 20
    stored = harness.everything()
    assert SECRET not in json.dumps(stored)
    if target == ("T-1",):
        is_forgotten(harness)
    else:
        assert harness.tickets() == {("T-2", "1795165200")}
        assert stored["raw"].keys() == {"b.json"}
        assert stored["dlq"] == sorted(
            [json.dumps(harness.notify("gone.json")), json.dumps(harness.notify("a.json", "b.json")), "no JSON"]
        )
    assert harness.deliver(harness.notify("a.json"), ticket("T-1", created_at=7)) == ["skipped", "skipped"]


def free_messages(harness: Harness) -> None:
    """What SQS does when the visibility timeout of a killed process ends."""
    from moto.sqs.models import sqs_backends

    for queue in sqs_backends["123456789012"]["us-east-1"].queues.values():
        for message in queue._messages:
            message.change_visibility(0)
        queue.pending_messages.clear()


def test_customer(harness: Harness) -> None:
    fill(harness)
    harness.dead(ticket("T-5", created_at="yesterday"))  # never stored: only the DLQ knows it
    totals = harness.forget("--customer", "C-1")
    assert (totals["tickets"], totals["item"]) == (5, 4)  # T-1, T-10 and T-3; T-4 and T-5 only from the DLQ
    assert harness.tickets() == {("T-2", "1795165200")}
    assert harness.versions(f"{harness.place}-raw").keys() == {"b.json"}
    assert harness.versions(harness.place).keys() == {"b.json", f"{log_prefix('T-2')}1795165200/000001.json"}
    assert harness.deliver(harness.notify("c.json"), ticket("T-5")) == ["skipped", "skipped"]
    # The customer may come back.
    assert harness.deliver(ticket("T-6")) == ["done"]


def test_ticket_id_of_two_customers_is_left_alone(harness: Harness) -> None:
    harness.store("a.json", ticket("T-1"))
    harness.store("b.json", ticket("T-1", created_at=7, customer_id="C-2"))
    harness.store("c.json", ticket("T-3", body=SECRET))
    result = harness.run("--customer", "C-1", "--yes", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout.splitlines()[-1])["other_customers"] == ["T-1"]
    assert "forget it by its ID" in result.stderr
    assert len(harness.tickets()) == 2
    assert SECRET not in json.dumps(harness.everything())
    harness.forget("T-1")
    assert harness.tickets() == set()


def test_unknown_ticket_gets_a_tombstone(harness: Harness) -> None:
    result = harness.run("T-9", "--yes")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "nothing is stored of 1 ticket; later deliveries will be skipped\n"
    assert harness.deliver(ticket("T-9")) == ["skipped"]


def test_tombstones_do_not_name_tickets_and_are_not_listed(harness: Harness) -> None:
    harness.store("T-1.json", ticket("T-1"))
    harness.forget("T-1")
    assert len(harness.items()) == 2
    for item in harness.items():
        assert item.keys() <= {"ticket_id", "created_at", "forgotten_at", "owner"}
        assert "T-1" not in json.dumps(item)
    tombstone = tombstone_key("ticket", "T-1")["ticket_id"]["S"]
    for arguments in (["show"], ["count"]):
        assert CliRunner().invoke(app, arguments).stdout == ""
    assert CliRunner().invoke(app, ["get", tombstone]).exit_code == 1


# -- a batch that is being processed


@pytest.mark.parametrize("moment", ["BatchGetItem 1", "PutObject 1", "PutItem 1", "BatchGetItem 2"])
def test_ticket_that_is_being_enriched_does_not_come_back(harness: Harness, moment: str) -> None:
    """The ticket is forgotten just before a call of the batch that stores it."""
    harness.store("T-1.json", ticket("T-1", body=SECRET))
    harness.put("T-1.json", ticket("T-1", body=f"{SECRET}, again"))
    harness.forget_at(moment, "T-1")
    assert harness.deliver(harness.notify("T-1.json")) == ["skipped"]
    assert SECRET not in json.dumps(harness.everything())
    assert harness.tickets() == set()


@pytest.mark.parametrize("moment", range(4))
def test_ticket_that_is_being_indexed_does_not_come_back(harness: Harness, moment: int) -> None:
    """The ticket is forgotten just before one of the calls by which `tickets index` reads it and looks once more."""
    harness.store("T-1.json", ticket("T-1", body=SECRET))
    harness.store("T-2.json", ticket("T-2"))
    calls: list[str] = []

    def forget(name: str, _params: dict[str, Any]) -> None:
        calls.append(name)
        if calls.count("BatchGetItem") + calls.count("GetObject") == moment + 1 and "forgotten" not in calls:
            calls.append("forgotten")
            harness.forget_meanwhile("T-1")

    harness.before = forget
    harness.update_index()
    assert "forgotten" in calls
    assert [key.ticket_id for key in harness.index.all_keys()] == ["T-2"]


@pytest.mark.parametrize("target", [("T-1",), ("--customer", "C-1")], ids=["ticket", "customer"])
def test_raw_object_is_found_although_a_delivery_erased_the_item(harness: Harness, target: tuple[str, ...]) -> None:
    """A run is killed after it wrote the tombstone, and a replay makes the function remove the item."""
    harness.store("k.json", ticket("T-1", body=SECRET))

    def kill(name: str, _params: dict[str, Any]) -> None:
        if name == "ReceiveMessage":
            raise Killed

    harness.before = kill
    with pytest.raises(Killed):
        harness.run(*target, "--yes")
    harness.before = lambda _name, _params: None
    assert harness.deliver(harness.notify("k.json")) == ["skipped"]
    assert harness.tickets() == set()
    assert harness.forget(*target)["raw"] == 1
    assert "k.json" not in json.dumps(harness.everything())


def test_correction_of_a_ticket_that_is_forgotten_meanwhile_goes_with_the_next_run(harness: Harness) -> None:
    harness.store("T-1.json", ticket("T-1", body=SECRET))

    def forget(name: str, params: dict[str, Any]) -> None:
        if name == "PutObject" and params["Key"].startswith("corrections/"):
            harness.before = lambda _name, _params: None
            harness.forget_meanwhile("T-1")

    harness.before = forget
    result = CliRunner().invoke(app, ["correct", "T-1", "--sentiment", "POSITIVE"])
    assert (result.exit_code, "run `tickets forget` for it again" in result.stderr) == (1, True)
    assert (harness.tickets(), len(harness.versions(harness.place))) == (set(), 1)
    assert harness.forget("T-1")["correction"] == 1
    assert harness.versions(harness.place) == {}


@pytest.mark.parametrize("moment", ["PutItem 1", "BatchGetItem 2"])
def test_batch_that_was_killed_leaves_nothing_after_its_retry(harness: Harness, moment: str) -> None:
    """The ticket is forgotten before a call of the batch, which is killed there, and delivered again."""
    harness.store("T-1.json", ticket("T-1", body=SECRET))
    harness.put("T-1.json", ticket("T-1", body=f"{SECRET}, again"))
    calls: Counter[str] = Counter()

    def forget_and_kill(name: str, _params: dict[str, Any]) -> None:
        calls[name] += 1
        if name == "PutObject" and calls[name] == 1:
            harness.forget_meanwhile("T-1")
        calls["killed"] += moment == f"{name} {calls[name]}"
        if calls["killed"]:
            raise Killed

    harness.before = forget_and_kill
    assert harness.deliver(harness.notify("T-1.json")) == ["failed"]
    harness.before = lambda _name, _params: None
    assert SECRET in json.dumps(harness.everything()), "otherwise this tests nothing"
    assert harness.deliver(harness.notify("T-1.json")) == ["skipped"]
    assert SECRET not in json.dumps(harness.everything())
    assert harness.tickets() == set()


def test_tickets_of_a_batch_cost_one_more_read(harness: Harness) -> None:
    names = [f"T-{number}.json" for number in range(10)]
    for name in names:
        harness.put(name, ticket(name))
    for outcome, calls in (
        ("done", {"GetObject": 10, "BatchGetItem": 2, "PutObject": 10, "PutItem": 10}),
        ("skipped", {"GetObject": 10, "BatchGetItem": 1}),
    ):
        harness.calls.clear()
        assert harness.deliver(*map(harness.notify, names)) == [outcome] * 10
        assert Counter(harness.calls) == calls


# -- the rest


def test_items_expire_after_their_retention(harness: Harness) -> None:
    harness.deliver(ticket("T-1"))
    harness.handler = harness.build(item_retention_days=30)
    harness.deliver(ticket("T-2"))
    expiry = {item["ticket_id"]["S"]: item.get("expires_at") for item in harness.items()}
    # From the message's SentTimestamp, whenever it is processed.
    assert expiry == {"T-1": None, "T-2": {"N": str(1_795_166_102 + 30 * 86400)}}


def test_audit_lines_say_who_forgot_what_and_when(harness: Harness) -> None:
    fill(harness)
    harness.run("T-1")
    harness.forget("T-1")
    harness.forget("--customer", "C-2")
    begin, end, *more = harness.audit()
    assert begin.pop("time") < end.pop("time")
    arn = harness.clients["sts"].get_caller_identity()["Arn"]
    same = {"target": "ticket", "sha256": name_hash("ticket", "T-1"), "by": arn}
    assert begin == {"event": "begin", **same}
    numbers = {"raw": 3, "enriched": 3, "correction": 2, "item": 2, "dlq": 6, "vector": 2}
    assert end == {"event": "end", **same, **numbers, "complete": True}
    assert [(line["event"], line["target"]) for line in more] == [("begin", "customer"), ("end", "customer")]
    assert "T-1" not in (harness.folder / "audit.jsonl").read_text()


def test_nothing_starts_without_an_audit_file(harness: Harness) -> None:
    harness.store("a.json", ticket("T-1"))
    before = harness.everything()
    result = CliRunner().invoke(app, ["forget", "T-1", "--yes", "--audit", str(harness.folder / "no" / "such")])
    assert result.exit_code == 2
    assert "choose another --audit" in result.stderr
    assert harness.everything() == before


def test_message_that_sqs_does_not_delete_is_reported(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(harness)
    monkeypatch.setattr("handler.aws.sqs.Queue.delete", lambda _self, receipts: [False] * len(receipts))
    result = harness.run("T-1", "--yes", "--json")
    assert result.exit_code == 1
    assert "SQS did not delete 6 DLQ messages" in result.stderr
    assert not harness.audit()[-1]["complete"]
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "give the ID of a ticket, or --customer"),
        (("T-1", "--customer", "C-1"), "give the ID of a ticket, or --customer"),
        (("",), "the ID is empty"),
        (("--customer", ""), "the ID is empty"),
    ],
)
def test_wrong_arguments(harness: Harness, arguments: tuple[str, ...], error: str) -> None:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["forget", *arguments])
    assert result.exit_code == 2
    assert error in result.stderr
    assert harness.calls == []


def test_every_raw_bucket_and_dlq_is_searched(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    place, s3, sqs = harness.place, harness.clients["s3"], harness.clients["sqs"]
    bulk, bulk_dlq = f"{place}-bulk", sqs.create_queue(QueueName=f"{place}-bulk")["QueueUrl"]
    s3.create_bucket(Bucket=bulk)
    both = f"{place}-raw,{bulk}"
    harness.handler = harness.build(raw_bucket=both)
    monkeypatch.setenv("RAW_BUCKET", both)
    monkeypatch.setenv("DLQ_URL", f"{harness.dlq_url},{bulk_dlq}")
    for key, name in (("a.json", "T-1"), ("b.json", "T-2"), ("c.json", "T-3")):
        s3.put_object(Bucket=bulk, Key=key, Body=json.dumps(ticket(name)).encode())
    assert harness.deliver(notification("a.json", bucket=bulk), notification("b.json", bucket=bulk)) == ["done"] * 2
    harness.put("b.json", ticket("T-1"))  # in the live bucket, under the key that another ticket has in the other one
    rejected = [notification(key, bucket=bulk) for key in ("a.json", "c.json")]
    for body in rejected:
        sqs.send_message(QueueUrl=bulk_dlq, MessageBody=json.dumps(body))
    harness.dead(harness.notify("b.json"))
    found = harness.forget("T-1", "--key", "b.json")
    assert (found["raw"], found["dlq"], found["item"]) == (2, 2, 1)
    assert harness.versions(bulk).keys() == {"b.json", "c.json"}
    assert harness.versions(f"{place}-raw") == {}
    left = sqs.receive_message(QueueUrl=bulk_dlq, MaxNumberOfMessages=10)["Messages"]
    assert [json.loads(message["Body"]) for message in left] == [rejected[1]]
    assert harness.dlq() == []
    # The other ticket has the key b.json, so notifications about it are not those of a forgotten one.
    assert harness.deliver(notification("b.json", bucket=bulk), harness.notify("a.json")) == ["skipped", "skipped"]
    assert harness.tickets() == {("T-2", str(ticket()["created_at"]))}


def test_missing_settings_are_named(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLQ_URL")
    monkeypatch.delenv("RAW_BUCKET")
    result = harness.run("T-1")
    assert (result.exit_code, result.stderr) == (2, "tickets: set RAW_BUCKET and DLQ_URL in the environment\n")


@pytest.mark.parametrize(
    ("raw", "ids"),
    [
        (b'{"ticket_id": "T-1", "customer_id": "C-1"}', ("T-1", "C-1")),
        (b'\xef\xbb\xbf{"ticket_id": 12, "customer_id": null}', ("12", None)),
        (b'{"ticket_id": "T-1", "customer_id" : "C-1", "body": "tick', ("T-1", "C-1")),
        (rb'{"Message": "{\"ticket_id\": \"T-1\", \"bo', ("T-1", None)),
        (b'{"ticket_id": "T-1", "body": "my \xff"ticket_id": "T-2"', ("T-1", None)),
        (b"[]", (None, None)),
        (b"\x1f\x8b no gzip", (None, None)),
        (b"", (None, None)),
    ],
)
def test_holder(raw: bytes, ids: tuple[str | None, str | None]) -> None:
    holder = holder_of(raw)
    assert (holder.ticket_id, holder.customer_id) == ids
