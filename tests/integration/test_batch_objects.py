"""ENRICHED_OBJECTS=batch on the embedded stack: the function with its role, and every reader with its permissions."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from enrichment import Enricher
from handler.app import build
from handler.aws.batch_objects import BATCHES, BatchRange, read_enriched
from handler.aws.forgetting import tombstone_key
from handler.aws.outbox import DynamoOutbox
from handler.aws.storage import AwsTicketSink
from handler.local import EmbeddedStack
from handler.local.reconciliation import stored_tickets
from handler.result_event import batch_place
from handler.settings import Settings
from handler.tickets.command import app
from handler.tickets.drift import DRIFT_ATTRIBUTES
from handler.tickets.repository import Selection, TicketRepository
from handler.tickets.similarity import vector_of
from tests.integration.test_forgetting import operator_of
from tests.integration.test_page import ended, get, link_of, start
from tests.integration.test_role import outcome_of_forgotten_ticket, settings_of_role
from tests.integration.test_storage import write
from tests.integration.test_tickets import credentials_of_user
from tests.support.cases import load_cases, run_case
from tests.support.fakes import event, notification, record, ticket
from tests.support.result_events import check_event, rendered
from tests.support.stack_harness import StackHarness

CREATED = ticket()["created_at"]
TEXTS = {
    "B-1": ("Charged twice", "Our card was billed two times for the same month. Grüße 🎫, please return one payment."),
    "B-2": ("Charged twice", "Our card was billed two times for the same month. Please return one payment, 日本語."),
    "B-3": ("Cannot log in", "The sign-in page refuses my password since this morning, and no reset mail arrives."),
    "B-4": ("Dark mode", "Could you offer a black background? At night the white screen hurts my eyes."),
}


@pytest.fixture(scope="module")
def stack() -> Iterator[EmbeddedStack]:
    """A separate stack, with the setting on."""
    with EmbeddedStack(parameters={"EnrichedObjects": "batch"}) as embedded:
        yield embedded


def place_of(item: Mapping[str, Any]) -> BatchRange | None:
    place = batch_place(item.get("s3_batch"))
    return None if place is None else BatchRange(*place)


class Harness(StackHarness):
    """A harness that follows the ranges of the items it has read."""

    def __init__(self, stack: EmbeddedStack, handler: Any) -> None:
        super().__init__(stack, handler)
        self._client, self._bucket = stack.client("s3"), stack.outputs["EnrichedBucket"]
        self.places: dict[tuple[str, str], BatchRange] = {}

    def item(self, ticket_id: str, created_at: int) -> Mapping[str, Any] | None:
        found = super().item(ticket_id, created_at)
        if found is not None and (place := place_of(found)) is not None:
            self.places[found["s3_key"], found["s3_version_id"]] = place
        return found

    def object(self, key: str, version_id: str) -> bytes:
        return read_enriched(self._client, self._bucket, key, version_id, self.places.get((key, version_id)))


@pytest.fixture(scope="module")
def harness(stack: EmbeddedStack, enricher: Enricher) -> Iterator[Harness]:
    """The function with the role's credentials, as on Lambda."""
    with settings_of_role(stack) as settings:
        assert settings.enriched_objects == "batch", "the template passes its parameter on"
        yield Harness(stack, build(settings, models=enricher))


def deliver(harness: StackHarness, *names: str) -> list[str]:
    records = [record(notification(f"{name}.json", bucket=harness.raw_bucket), name) for name in names]
    for each in records:
        each["attributes"]["ApproximateFirstReceiveTimestamp"] = str(int(time.time() * 1000))
    answer = harness.invoke(event(*records))
    return [line["outcome"] for name in names for line in answer.tickets(name)]


def store(harness: StackHarness, texts: Mapping[str, tuple[str, str]]) -> None:
    for name, (subject, body) in texts.items():
        raw = ticket(name, subject=subject, body=body, customer_id=f"C-{name}", seen={"at": [1, 2]})
        harness.put_object(f"{name}.json", json.dumps(raw, indent=1, ensure_ascii=False).encode())
    assert deliver(harness, *texts) == ["done"] * len(texts)


@pytest.fixture(scope="module")
def stored(harness: Harness) -> dict[str, Mapping[str, Any]]:
    """The items of the tickets in TEXTS, which share an object."""
    store(harness, TEXTS)
    items = {name: harness.item(name, CREATED) for name in TEXTS}
    return {name: item for name, item in items.items() if item is not None}


@pytest.fixture
def run(stack: EmbeddedStack, stored: Mapping[str, Any], tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    """Runs `tickets` as a user who may read and correct; returns the lines."""
    actions = ("dynamodb:Query", "dynamodb:BatchGetItem", "dynamodb:GetItem", "dynamodb:UpdateItem")
    name = f"reader-{time.monotonic_ns()}"
    user = credentials_of_user(stack, name, *actions, "s3:GetObjectVersion", "s3:GetObject", "s3:PutObject")
    bucket = f"arn:aws:s3:::{stack.outputs['EnrichedBucket']}"
    listing = {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": bucket}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [listing]})
    stack.client("iam").put_user_policy(UserName=name, PolicyName="log", PolicyDocument=policy)
    with pytest.MonkeyPatch.context() as patch:
        for setting, value in user.items():
            patch.setenv(setting, value)
        patch.setenv("VECTOR_INDEX", f"sqlite://{tmp_path}")
        patch.delenv("MODEL_BUNDLE", raising=False)

        def lines(*arguments: str) -> list[str]:
            result = CliRunner().invoke(app, list(arguments))
            assert result.exit_code == 0, (result.output, result.exception)
            return result.stdout.splitlines()

        yield lines


# -- the function


@pytest.mark.parametrize("case", load_cases(), ids=lambda case: case.name)
def test_sample_event_has_the_same_results(case: Any, harness: Harness) -> None:
    run_case(case, harness.invoke, harness)


def test_items_name_ranges_of_one_object(stack: EmbeddedStack, stored: Mapping[str, Mapping[str, Any]]) -> None:
    places = [place for item in stored.values() if (place := place_of(item)) is not None]
    assert len(places) == len(TEXTS)
    assert len({place.key for place in places}) == 1
    assert {item["s3_key"] for item in stored.values()} == {f"{name}.json" for name in TEXTS}
    s3, bucket = stack.client("s3"), stack.outputs["EnrichedBucket"]
    content = s3.get_object(Bucket=bucket, Key=places[0].key)["Body"].read()
    lines = content.splitlines()
    assert [json.loads(line)["ticket_id"] for line in lines] == list(TEXTS), "it is JSON Lines"
    assert [content[place.offset : place.offset + place.length] for place in places] == lines
    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert not set(keys) & {f"{name}.json" for name in TEXTS}, "there is no other object of these tickets"


def test_all_stored_tickets_are_reconciled(stack: EmbeddedStack, stored: Mapping[str, Any]) -> None:
    found = stored_tickets(stack, stack.environment())
    assert {f"{name}.json" for name in stored} <= found.keys()


def test_forgotten_ticket_is_erased_with_the_roles_permissions(stack: EmbeddedStack, harness: Harness) -> None:
    """The ticket is forgotten by somebody else while its object is written: the function blanks it itself."""
    names = ["F-1", "F-2"]
    for name in names:
        harness.put_object(f"{name}.json", json.dumps(ticket(name, body=f"secret of {name}")).encode())
    s3, bucket = stack.client("s3"), stack.outputs["EnrichedBucket"]
    outcome = outcome_of_forgotten_ticket(stack, harness, "F-0")
    assert outcome == ("skipped", "", 0)
    sink = AwsTicketSink(s3, stack.client("dynamodb"), bucket, stack.outputs["TableName"])
    orphan = sink.put_together([(name, json.dumps(ticket(name, body=f"secret of {name}")).encode()) for name in names])
    stack.client("dynamodb").put_item(
        TableName=stack.outputs["TableName"],
        Item={
            **tombstone_key("ticket", "F-1"),
            "forgotten_at": {"S": "now"},
        },
    )
    assert deliver(harness, *names) == ["skipped", "done"]
    versions = s3.list_object_versions(Bucket=bucket, Prefix=orphan[0].key)["Versions"]
    assert len(versions) == 1
    content = s3.get_object(Bucket=bucket, Key=orphan[0].key)["Body"].read().decode()
    assert "secret of F-1" not in content
    assert "secret of F-2" in content


def test_outbox_says_where_the_ticket_is(stack: EmbeddedStack) -> None:
    outputs, dynamodb = stack.outputs, stack.client("dynamodb")
    sink = AwsTicketSink(stack.client("s3"), dynamodb, outputs["EnrichedBucket"], outputs["TableName"], outbox=True)
    writes = [write(ticket_id=f"O-{number}", key=f"O-{number}.json") for number in range(2)]
    placed = sink.put_together([(each.ticket.ticket_id, each.body) for each in writes])
    assert [sink.commit(each, place) for each, place in zip(writes, placed, strict=True)] == ["clear", "clear"]
    assert sink.commit(writes[1], placed[1]) == "clear", "a commit whose answer was lost is repeated"
    events = [json.loads(entry.body) for entry in DynamoOutbox(dynamodb, outputs["TableName"]).due(10**10)]
    for found, each, place in zip(events, writes, placed, strict=True):
        check_event(found)
        assert found["s3_key"] == each.key
        assert found["s3_batch"] == {"key": place.key, "offset": str(place.offset), "length": str(place.length)}
    key = {"ticket_id": {"S": "O-1"}, "created_at": {"N": str(CREATED)}}
    item = dynamodb.get_item(TableName=outputs["TableName"], Key=key)["Item"]
    from_pipe = rendered({"eventName": "INSERT", "dynamodb": {"NewImage": item}})
    check_event(from_pipe)
    assert from_pipe == {name: value for name, value in events[1].items() if name != "s3_batch"}


# -- readers


def test_whole_ticket(run: Callable[..., list[str]], stored: Mapping[str, Any]) -> None:
    for name, (subject, body) in TEXTS.items():
        (line,) = run("get", name, "--json")
        found = json.loads(line)
        assert (found["ticket_id"], found["subject"], found["body"]) == (name, subject, body)
        assert found["seen"] == {"at": [1, 2]}
    fields = dict(line.split("\t", 1) for line in run("get", "B-2"))
    assert fields["s3_batch"] == stored["B-2"]["s3_batch"]


def test_lists_say_where_the_ticket_is(run: Callable[..., list[str]], stored: Mapping[str, Any]) -> None:
    rows = {row["ticket_id"]: row for row in map(json.loads, run("show", "--json", "--limit", "1000"))}
    for name, item in stored.items():
        assert rows[name]["s3_batch"] == item["s3_batch"]


def test_similar_tickets_search_and_duplicates(run: Callable[..., list[str]]) -> None:
    similar = [json.loads(line)["ticket_id"] for line in run("similar", "B-1", "--json", "--limit", "1")]
    assert similar == ["B-2"]
    run("index")
    assert [json.loads(line)["ticket_id"] for line in run("similar", "B-1", "--json", "--limit", "1")] == ["B-2"]
    groups = [json.loads(line) for line in run("duplicates", "--json", "--threshold", "0.8", "--since", "2026-11-01")]
    assert {"B-1", "B-2"} <= {row["ticket_id"] for row in groups}


def test_drift_reads_embeddings(stack: EmbeddedStack, stored: Mapping[str, Any]) -> None:
    tickets = TicketRepository(
        stack.client("dynamodb"),
        lambda: stack.client("s3"),
        table=stack.outputs["TableName"],
        bucket=stack.outputs["EnrichedBucket"],
    )
    found = {item.ticket_id: item for item in tickets.newest(Selection(), shown=DRIFT_ATTRIBUTES)}
    assert [len(vector_of(tickets.whole(found[name]))) for name in stored] == [384] * len(stored)


def test_corrections_keep_the_range(run: Callable[..., list[str]], tmp_path: Path) -> None:
    run("correct", "B-3", "--sentiment", "NEUTRAL")
    run("correct", "B-4", "--confirm")
    file = tmp_path / "corrected.jsonl"
    run("corrections", str(file))
    found = {row["ticket_id"]: row for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    assert {name: row["body"] for name, row in found.items()} == {name: TEXTS[name][1] for name in ("B-3", "B-4")}


def test_page_shows_the_ticket(stack: EmbeddedStack, stored: Mapping[str, Any], tmp_path: Path) -> None:
    assert stored
    settings = {**stack.environment(), "VECTOR_INDEX": f"sqlite://{tmp_path}"}
    with ended(start(settings, "handler.tickets", "serve", "--port", "0")) as process:
        port, path = link_of(process)
        _, cookie, _ = get(port, path)
        status, _, shown = get(port, "/ticket?id=B-1", cookie)
        assert status == 200
        assert html.escape("billed two times for the same month. Grüße 🎫") in shown
        status, _, choice = get(port, "/choice?id=B-1&task=sentiment&fragment=1", cookie)
        assert status == 200
        assert all(label in choice for label in ("POSITIVE", "NEGATIVE", "NEUTRAL"))
        _, _, download = get(port, "/ticket.json?id=B-1", cookie)
        assert json.loads(download)["body"] == TEXTS["B-1"][1]
        process.terminate()
        process.communicate()
    assert process.returncode == 0


def test_range_needs_its_permission(stack: EmbeddedStack, stored: Mapping[str, Any]) -> None:
    assert stored
    user = credentials_of_user(stack, "reader-of-versions", "dynamodb:Query", "s3:GetObjectVersion")
    with pytest.MonkeyPatch.context() as patch:
        for setting, value in user.items():
            patch.setenv(setting, value)
        result = CliRunner().invoke(app, ["get", "B-1"])
    assert result.exit_code == 1
    assert "s3:GetObject on batches/*" in result.stderr


# -- switching and forgetting


def test_switching_back_reads_and_skips_both(stack: EmbeddedStack, harness: Harness, enricher: Enricher) -> None:
    texts = {f"S-{number}": ("Subject", f"Text {number} of a ticket.") for number in range(3)}
    store(harness, texts)
    single = Harness(stack, build(Settings.read(enriched_objects="ticket"), models=enricher))
    assert deliver(single, *texts) == ["skipped"] * 3
    time.sleep(1.01)  # S3's times are in seconds
    store(single, {"S-0": ("Subject", "Changed.")})
    assert deliver(harness, *texts) == ["skipped"] * 3
    items = {name: harness.item(name, CREATED) for name in texts}
    assert [item is not None and "s3_batch" in item for item in items.values()] == [False, True, True]
    bodies = {
        name: json.loads(harness.object(item["s3_key"], item["s3_version_id"]))["body"]
        for name, item in items.items()
        if item is not None
    }
    assert bodies == {name: body for name, (_, body) in texts.items()} | {"S-0": "Changed."}


def test_documented_permissions_forget_a_ticket(stack: EmbeddedStack, harness: Harness, tmp_path: Path) -> None:
    texts = {f"P-{number}": ("Subject", f"A secret of P-{number}.") for number in range(3)}
    store(harness, texts)
    before = {name: harness.item(name, CREATED) for name in texts}
    objects = {name: harness.object(item["s3_key"], item["s3_version_id"]) for name, item in before.items() if item}
    with pytest.MonkeyPatch.context() as patch:
        for setting, value in operator_of(stack).items():
            patch.setenv(setting, value)
        patch.setenv("VECTOR_INDEX", f"sqlite://{tmp_path}")
        options = ("--audit", str(tmp_path / "audit.jsonl"), "--wait", "1", "--empty-polls", "1", "--json")
        result = CliRunner().invoke(app, ["forget", "P-1", "--yes", *options])
    assert result.exit_code == 0, (result.output, result.exception)
    assert json.loads(result.stdout.splitlines()[-1])["complete"]
    s3, bucket = stack.client("s3"), stack.outputs["EnrichedBucket"]
    texts_left = [
        s3.get_object(Bucket=bucket, Key=entry["Key"], VersionId=entry["VersionId"])["Body"].read()
        for entry in s3.list_object_versions(Bucket=bucket, Prefix=BATCHES)["Versions"]
    ]
    assert not any(b"secret of P-1" in text for text in texts_left)
    assert harness.item("P-1", CREATED) is None
    for name in ("P-0", "P-2"):
        item = harness.item(name, CREATED)
        assert item == before[name]
        assert item is not None
        assert harness.object(item["s3_key"], item["s3_version_id"]) == objects[name]
