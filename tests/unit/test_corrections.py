"""Corrections: `tickets correct` and `tickets corrections`, with the real sink and an in-process DynamoDB and S3."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from typer.testing import CliRunner, Result

from handler.aws.corrections import TASKS, with_corrections
from handler.aws.forgetting import item_key, name_hash, tombstone_key
from handler.aws.outbox import OUTBOX
from handler.messages import is_reserved
from handler.result_event import event_of_item
from handler.tickets.access import opened_to_correct
from handler.tickets.command import app
from handler.tickets.corrections import log_prefix
from handler.tickets.drift import distribution
from handler.tickets.follow import follow_tickets
from handler.tickets.repository import Selection
from tests.support.mocked_aws import mocked_aws
from tests.support.result_events import is_selected, rendered
from tests.support.ticket_table import VERSION, Harness, ticket_table

OTHER_VERSION = "compact-int8@ba9876543210"


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


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in the program catches it."""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def rows(*arguments: str) -> list[dict[str, Any]]:
    """Runs a command with --json; returns its rows."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def correct(*arguments: str) -> dict[str, Any]:
    [row] = rows("correct", *arguments)
    return row


def log(harness: Harness) -> dict[str, dict[str, Any]]:
    """The entries of the log by key."""
    entries = harness.s3.list_objects_v2(Bucket=harness.place, Prefix="corrections/").get("Contents", [])
    keys = [entry["Key"] for entry in entries]
    return {key: json.loads(harness.s3.get_object(Bucket=harness.place, Key=key)["Body"].read()) for key in keys}


def stored(harness: Harness, ticket_id: str, created_at: int = 1000) -> dict[str, Any]:
    return dict(harness.dynamodb.get_item(TableName=harness.place, Key=item_key(ticket_id, created_at))["Item"])


def kill_at(harness: Harness, operation: str) -> None:
    def before(name: str, _params: dict[str, Any]) -> None:
        if name == operation:
            raise Killed

    harness.before = before


def once_before(harness: Harness, operation: str, work: Any) -> None:
    """Calls `work` before the first call of an operation, as another process at that moment would."""

    def before(name: str, _params: dict[str, Any]) -> None:
        if name == operation:
            harness.before = lambda _name, _params: None
            work()

    harness.before = before


# -- correct


def test_correction_shows_at_once_in_lists_filters_and_counts(harness: Harness) -> None:
    harness.store("T-1")
    harness.store("T-2")
    before = harness.repository.whole(harness.item("T-1"))
    row = correct("T-1", "--intent", "login_issue", "--urgency", "HIGH")
    assert (row["intent"], row["urgency"], row["sentiment"]) == ("login_issue", "high", "NEUTRAL")
    assert [each["ticket_id"] for each in rows("show", "--intent", "login_issue")] == ["T-1"]
    assert [each["ticket_id"] for each in rows("show", "--urgent")] == ["T-1"]
    counts = {(each["by"], each["label"]): each["count"] for each in rows("count")}
    assert (counts["intent", "login_issue"], counts["intent", "bug_report"], counts["urgency", "high"]) == (1, 1, 1)
    assert harness.repository.whole(harness.item("T-1")) == before, "the object has the model's labels for good"


def test_item_has_the_persons_label_and_the_models(harness: Harness) -> None:
    harness.store("T-1")
    correct("T-1", "--intent", "login_issue")
    item = harness.item("T-1")
    [entry] = log(harness).values()
    label = item.corrections["intent"]
    assert (label.label, label.predicted, label.confidence) == ("login_issue", "bug_report", 0.75)
    assert item.intent_confidence == 1.0
    assert (label.by, label.at) == (entry["by"], entry["at"])
    assert item.corrections.keys() == {"intent"}


def test_log_says_who_decided_what_and_when(harness: Harness) -> None:
    harness.store("T-1")
    version = harness.item("T-1").s3_version_id
    correct("T-1", "--intent", "login_issue", "--sentiment", "negative")
    [(key, entry)] = log(harness).items()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("at"))
    assert entry == {
        "ticket_id": "T-1",
        "created_at": 1000,
        "labels": {"intent": "login_issue", "sentiment": "NEGATIVE"},
        "predicted": {"intent": "bug_report", "sentiment": "NEUTRAL"},
        "by": boto3.client("sts").get_caller_identity()["Arn"],
        "model_version": VERSION,
        "s3_key": "T-1/1000.json",
        "s3_version_id": version,
    }
    assert key == f"corrections/{name_hash('ticket', 'T-1')}/1000/000001.json"


@pytest.mark.parametrize("ticket_id", ["jo@example.com", "a/../b", "ü ✓", "x" * 256])
def test_key_of_the_log_does_not_reveal_the_ticket(harness: Harness, ticket_id: str) -> None:
    harness.store(ticket_id)
    correct(ticket_id, "--intent", "login_issue")
    [key] = log(harness)
    assert re.fullmatch(r"corrections/[0-9a-f]{64}/1000/000001\.json", key)
    assert key.startswith(log_prefix(ticket_id))
    assert is_reserved(key)


def test_last_of_several_corrections_is_in_force_and_all_are_kept(harness: Harness) -> None:
    harness.store("T-1")
    for intent in ("login_issue", "payment_issue", "bug_report"):
        correct("T-1", "--intent", intent)
    item = harness.item("T-1")
    assert (item.intent, item.corrections["intent"].predicted) == ("bug_report", "bug_report")
    history = list(log(harness).values())
    assert [entry["labels"]["intent"] for entry in history] == ["login_issue", "payment_issue", "bug_report"]
    assert {entry["predicted"]["intent"] for entry in history} == {"bug_report"}
    times = [entry["at"] for entry in history]
    assert times == sorted(set(times))
    with opened_to_correct() as (_, corrections):
        assert [each.at for each in corrections.of(item)] == times


def test_order_of_corrections_does_not_depend_on_clocks(harness: Harness) -> None:
    harness.store("T-1")
    correct("T-1", "--intent", "login_issue")
    [(key, entry)] = log(harness).items()
    later = {**entry, "at": "2999-01-01T00:00:00.000Z", "labels": {"intent": "payment_issue"}}
    harness.s3.put_object(Bucket=harness.place, Key=key.replace("000001", "000002"), Body=json.dumps(later).encode())
    assert correct("T-1", "--sentiment", "positive")["intent"] == "payment_issue", "its item was missing an entry"
    assert correct("T-1", "--intent", "bug_report")["intent"] == "bug_report"
    assert [each["at"] for each in log(harness).values()][1:] == [
        f"2999-01-01T00:00:00.00{number}Z" for number in range(3)
    ]


def test_ticket_with_the_same_id_is_named_by_its_time(harness: Harness) -> None:
    harness.store("T-1", 1000)
    harness.store("T-1", 2000)
    correct("T-1", "--intent", "login_issue", "--created-at", "1000")
    assert [(item.created_at, item.intent) for item in harness.repository.with_id("T-1")] == [
        (2000, "bug_report"),
        (1000, "login_issue"),
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["T-1", "--intent", "nonsense"], 1, "intent cannot be nonsense; choose one of bug_report, login_issue"),
        (["T-1", "--intent", "LOGIN_ISSUE"], 1, "intent cannot be LOGIN_ISSUE"),
        (["T-9", "--intent", "login_issue"], 1, "no ticket T-9"),
        (["T-1"], 2, "--intent, --urgency"),
        (["T-1", "--urgency", "soon"], 2, "soon"),
    ],
)
def test_invalid_correction_is_refused_and_not_logged(
    harness: Harness, arguments: list[str], code: int, line: str
) -> None:
    harness.store("T-1")
    result = run("correct", *arguments)
    assert result.exit_code == code
    assert line in result.stderr
    assert log(harness) == {}


def test_ticket_without_scores_is_refused(harness: Harness) -> None:
    harness.store("T-1", scores={})
    result = run("correct", "T-1", "--intent", "login_issue")
    assert (result.exit_code, log(harness)) == (1, {})
    assert "has no scores for intent; enrich the ticket again" in result.stderr


def test_unknown_caller_is_refused(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handler.tickets.access.caller", lambda _sts: None)
    harness.store("T-1")
    result = run("correct", "T-1", "--intent", "login_issue")
    assert (result.exit_code, log(harness)) == (1, {})
    assert "STS does not say who you are" in result.stderr


def test_missing_setting_is_named(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TABLE_NAME")
    result = run("correct", "T-1", "--intent", "login_issue")
    assert (result.exit_code, "set TABLE_NAME" in result.stderr) == (2, True)


# -- review


@pytest.mark.parametrize(
    ("reasons", "decided", "left"),
    [
        (["intent"], ["intent"], []),
        (["intent"], ["urgency"], ["intent"]),
        (["intent", "urgency"], ["intent"], ["urgency"]),
        (["language"], ["intent"], ["language"]),
        (["language", "sentiment"], [*TASKS], []),
        ([], ["intent"], []),
    ],
)
def test_decision_ends_the_review_of_its_task(
    harness: Harness, reasons: list[str], decided: list[str], left: list[str]
) -> None:
    harness.store("T-1", needs_review=bool(reasons), review_reasons=reasons)
    labels = {"intent": "login_issue", "urgency": "high", "sentiment": "NEGATIVE"}
    correct("T-1", *(part for task in decided for part in (f"--{task}", labels[task])))
    item = harness.item("T-1")
    assert (item.review_reasons, item.needs_review) == (left, bool(left))
    event = event_of_item(stored(harness, "T-1"))
    assert [name for name, value in event.review_reasons.model_dump().items() if value] == left
    for task in decided:
        assert item.corrections[task].uncertain == (task in reasons or "language" in reasons)


def test_confirming_all_labels_ends_the_review(harness: Harness) -> None:
    harness.store("T-1", needs_review=True, review_reasons=["language"])
    row = correct("T-1", "--confirm", "--urgency", "high")
    assert (row["intent"], row["urgency"], row["needs_review"]) == ("bug_report", "high", False)
    assert rows("show", "--needs-review") == []
    [entry] = log(harness).values()
    assert entry["labels"] == {"intent": "bug_report", "urgency": "high", "sentiment": "NEUTRAL"}


# -- killed, and at the same time


def test_log_is_written_before_the_item(harness: Harness) -> None:
    harness.store("T-1")
    harness.forget_calls()
    correct("T-1", "--intent", "login_issue")
    writes = [name for name in harness.calls if name in {"PutObject", "UpdateItem"}]
    assert writes == ["PutObject", "UpdateItem"]


def test_item_in_a_transaction_of_a_worker_is_corrected_after_it(harness: Harness) -> None:
    harness.store("T-1")

    def refuse() -> None:
        raise ClientError({"Error": {"Code": "TransactionConflictException"}}, "UpdateItem")

    once_before(harness, "UpdateItem", refuse)
    assert CliRunner().invoke(app, ["correct", "T-1", "--intent", "login_issue"]).exit_code == 0
    assert (harness.item("T-1").intent, len(log(harness))) == ("login_issue", 1)


@pytest.mark.parametrize("repair", ["repeat", "apply"])
def test_kill_between_log_and_item_is_repaired(harness: Harness, repair: str) -> None:
    harness.store("T-1")
    harness.store("T-2")
    kill_at(harness, "UpdateItem")
    with pytest.raises(Killed):
        CliRunner().invoke(app, ["correct", "T-1", "--intent", "login_issue"])
    harness.before = lambda _name, _params: None
    assert harness.item("T-1").intent == "bug_report"
    assert len(log(harness)) == 1
    if repair == "repeat":
        correct("T-1", "--intent", "login_issue")
    else:
        result = run("corrections", "--apply")
        assert (result.exit_code, result.stderr) == (0, "1 of 1 corrected tickets were changed\n")
        assert run("corrections", "--apply").stderr == "0 of 1 corrected tickets were changed\n"
    assert harness.item("T-1").intent == "login_issue"
    assert stored(harness, "T-1")["event"]["M"]["change"] == {"S": "corrected"}
    assert len(log(harness)) == 1, "a repeated command does not log again"


def test_lost_answer_of_the_log_makes_no_second_entry(harness: Harness) -> None:
    """Botocore repeats a put whose answer was lost; the repeated one finds the object."""
    harness.store("T-1")
    put = harness.s3.put_object

    def twice(**request: Any) -> Any:
        put(**request)
        return put(**request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness.s3, "put_object", twice)
        assert correct("T-1", "--intent", "login_issue")["intent"] == "login_issue"
    assert len(log(harness)) == 1


def test_two_people_at_the_same_time_are_both_logged(harness: Harness) -> None:
    harness.store("T-1")
    once_before(harness, "PutObject", lambda: correct("T-1", "--intent", "login_issue"))
    correct("T-1", "--intent", "payment_issue")
    assert [entry["labels"]["intent"] for entry in log(harness).values()] == ["login_issue", "payment_issue"]
    assert harness.item("T-1").intent == "payment_issue"


def test_nothing_in_the_log_is_overwritten(harness: Harness) -> None:
    harness.store("T-1")
    for intent in ("login_issue", "payment_issue"):
        correct("T-1", "--intent", intent)
    once_before(harness, "PutObject", lambda: correct("T-1", "--sentiment", "positive"))
    correct("T-1", "--sentiment", "negative")
    versions = harness.s3.list_object_versions(Bucket=harness.place, Prefix="corrections/")
    assert len(versions["Versions"]) == 4
    assert len({entry["Key"] for entry in versions["Versions"]}) == 4
    assert "DeleteMarkers" not in versions


def test_numbers_go_on_after_earlier_entries_expired(harness: Harness) -> None:
    harness.store("T-1")
    for intent in ("login_issue", "payment_issue"):
        correct("T-1", "--intent", intent)
    first, second = log(harness)
    harness.s3.delete_object(Bucket=harness.place, Key=first)
    correct("T-1", "--intent", "login_issue")
    assert list(log(harness)) == [second, second.replace("000002", "000003")]
    for key in log(harness):
        harness.s3.delete_object(Bucket=harness.place, Key=key)
    assert correct("T-1", "--intent", "login_issue")["intent"] == "login_issue"
    assert correct("T-1", "--sentiment", "positive")["intent"] == "login_issue", "the item knows what is in force"


def test_ticket_that_is_enriched_meanwhile_is_corrected_as_it_is_then(harness: Harness) -> None:
    harness.store("T-1")
    once_before(
        harness,
        "UpdateItem",
        lambda: harness.store("T-1", model_version=OTHER_VERSION, intent="payment_issue", intent_confidence=0.5),
    )
    correct("T-1", "--intent", "login_issue")
    item = harness.item("T-1")
    assert (item.intent, item.model_version) == ("login_issue", OTHER_VERSION)
    assert (item.corrections["intent"].predicted, item.corrections["intent"].confidence) == ("payment_issue", 0.5)


def test_ticket_that_is_forgotten_meanwhile_is_not_corrected(harness: Harness) -> None:
    harness.store("T-1")

    def forget() -> None:
        tombstone = {**tombstone_key("ticket", "T-1"), "forgotten_at": {"S": "now"}}
        harness.dynamodb.put_item(TableName=harness.place, Item=tombstone)
        harness.dynamodb.delete_item(TableName=harness.place, Key=item_key("T-1", 1000))

    once_before(harness, "PutObject", forget)
    result = run("correct", "T-1", "--intent", "login_issue")
    assert result.exit_code == 1
    assert "was forgotten meanwhile; run `tickets forget` for it again" in result.stderr
    assert harness.repository.with_id("T-1") == []


# -- enriched again


@pytest.mark.parametrize(
    "again",
    [{"model_version": OTHER_VERSION}, {"body": "Another text."}, {"body": "Another.", "model_version": OTHER_VERSION}],
    ids=["bundle", "content", "both"],
)
def test_correction_survives_when_the_ticket_is_enriched_again(harness: Harness, again: dict[str, Any]) -> None:
    harness.store("T-1")
    correct("T-1", "--intent", "login_issue", "--sentiment", "negative")
    before = harness.item("T-1").corrections
    labels: dict[str, Any] = {"intent": "payment_issue", "intent_confidence": 0.5, "urgency": "high"}
    harness.store("T-1", **labels, **again, needs_review=True, review_reasons=["intent", "urgency"])
    item = harness.item("T-1")
    assert (item.intent, item.urgency, item.sentiment) == ("login_issue", "high", "NEGATIVE")
    assert (item.review_reasons, item.needs_review, item.intent_confidence) == (["urgency"], True, 1.0)
    intent = item.corrections["intent"]
    assert intent == before["intent"].model_copy(
        update={"predicted": "payment_issue", "confidence": 0.5, "uncertain": True}
    )
    event = event_of_item(stored(harness, "T-1"))
    assert (event.intent, event.confidence.intent, event.review_reasons.intent) == ("login_issue", "1", False)
    assert event.change == ("updated" if "body" in again else "enriched_again")
    whole = harness.repository.whole(item)["enrichment"]
    assert (whole["intent"], whole["sentiment"]) == ("payment_issue", "NEUTRAL")


def test_correction_between_reading_and_storing_survives(harness: Harness) -> None:
    harness.store("T-1")
    once_before(harness, "PutItem", lambda: correct("T-1", "--intent", "login_issue"))
    harness.store("T-1", model_version=OTHER_VERSION, intent="payment_issue")
    item = harness.item("T-1")
    assert (item.intent, item.model_version) == ("login_issue", OTHER_VERSION)
    once_before(harness, "PutItem", lambda: correct("T-1", "--intent", "bug_report"))
    harness.store("T-1", intent="payment_issue")
    assert harness.item("T-1").intent == "bug_report"


def test_apply_restores_what_an_earlier_version_of_the_function_overwrote(harness: Harness) -> None:
    harness.store("T-1")
    correct("T-1", "--intent", "login_issue")
    harness.dynamodb.delete_item(TableName=harness.place, Key=item_key("T-1", 1000))
    result = run("corrections", "--apply")
    assert result.exit_code == 1
    assert "there is no ticket T-1 of 1000" in result.stderr
    harness.store("T-1")
    assert harness.item("T-1").intent == "bug_report"
    assert run("corrections", "--apply").exit_code == 0
    assert harness.item("T-1").intent == "login_issue"


# -- events


def test_pipe_and_webhook_send_the_correction(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULT_WEBHOOK", "https://helpdesk.example.com")
    harness.store("T-1", needs_review=True, review_reasons=["intent"], language=None)
    before = stored(harness, "T-1")
    ids = {event_of_item(before).event_id}
    for intent in ("login_issue", "payment_issue"):
        correct("T-1", "--intent", intent)
        item = stored(harness, "T-1")
        record = {"eventName": "MODIFY", "dynamodb": {"OldImage": before, "NewImage": item}}
        assert is_selected(record)
        event = event_of_item(item)
        assert rendered(record) == event.model_dump(exclude_none=True)
        assert (event.change, event.intent, event.needs_review, event.language) == ("corrected", intent, False, "und")
        assert json.loads(outbox(harness)[-1]["body"]["S"]) == event.model_dump(exclude_none=True)
        ids.add(event.event_id)
    assert len(ids) == 3
    assert len(outbox(harness)) == 2


def test_event_is_written_in_the_transaction_of_the_item(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULT_WEBHOOK", "on")
    harness.store("T-1")
    once_before(harness, "TransactWriteItems", lambda: harness.store("T-1", model_version=OTHER_VERSION))
    correct("T-1", "--intent", "login_issue")
    assert len(outbox(harness)) == 1, "the attempt that lost the race left none"
    assert "UpdateItem" not in harness.calls
    kill_at(harness, "TransactWriteItems")
    with pytest.raises(Killed):
        CliRunner().invoke(app, ["correct", "T-1", "--intent", "payment_issue"])
    assert (len(outbox(harness)), harness.item("T-1").intent) == (1, "login_issue")


def outbox(harness: Harness) -> list[Any]:
    answer = harness.dynamodb.query(
        TableName=harness.place,
        KeyConditionExpression="ticket_id = :outbox",
        ExpressionAttributeValues={":outbox": {"S": OUTBOX}},
        ScanIndexForward=False,
    )
    return list(answer["Items"])


def test_followed_list_shows_a_corrected_ticket_again(harness: Harness) -> None:
    harness.store("T-1")
    lists = follow_tickets(harness.repository, Selection(), list(harness.repository.newest(Selection())), 20)
    assert [item.intent for item in next(lists)] == ["bug_report"]
    correct("T-1", "--intent", "login_issue")
    assert [item.intent for item in next(lists)] == ["login_issue"]
    assert next(lists) == []


def test_drift_compares_predictions(harness: Harness) -> None:
    harness.store("T-1", needs_review=True, review_reasons=["intent"])
    harness.store("T-2", needs_review=True, review_reasons=["intent"])
    before = distribution(list(harness.repository.newest(Selection())))
    correct("T-1", "--intent", "login_issue")
    assert distribution(list(harness.repository.newest(Selection()))) == before


# -- get


def test_get_shows_both_labels(harness: Harness) -> None:
    harness.store("T-1")
    before = run("get", "T-1", "--json").stdout
    assert "corrections" not in json.loads(before)
    correct("T-1", "--intent", "login_issue")
    fields = dict(line.split("\t") for line in run("get", "T-1").stdout.splitlines())
    assert fields["enrichment.intent"] == "bug_report"
    assert fields["corrections.intent.label"] == "login_issue"
    assert "arn:aws:" in fields["corrections.intent.by"]
    found = json.loads(run("get", "T-1", "--json").stdout)
    assert found.pop("corrections")["intent"]["label"] == "login_issue"
    assert found == json.loads(before)


# -- export


def test_export_is_one_labelled_ticket_per_line(harness: Harness) -> None:
    harness.store("T-1", subject="Seite lädt nicht ✓")
    harness.store("T-2")
    harness.store("T-3")
    correct("T-1", "--intent", "login_issue")
    correct("T-1", "--intent", "payment_issue")
    correct("T-1", "--urgency", "high")
    correct("T-3", "--confirm")
    first, third = sorted(rows("corrections"), key=lambda row: str(row["ticket_id"]))
    assert [*first] == [
        *("ticket_id", "created_at", "customer_id", "subject", "body", "intent", "urgency"),
        *("predicted", "model_version", "at"),
    ]
    assert (first["subject"], first["body"]) == ("Seite lädt nicht ✓", "First line.\n\nSecond line.")
    assert (first["intent"], first["urgency"], first["customer_id"]) == ("payment_issue", "high", "C-1")
    assert first["predicted"] == {"intent": "bug_report", "urgency": "low"}
    assert third["predicted"] == {task: third[task] for task in TASKS}


def test_export_has_the_text_that_was_corrected(harness: Harness) -> None:
    key = harness.store("T-1", body="The first text.")
    correct("T-1", "--intent", "login_issue")
    corrected = harness.item("T-1").s3_version_id
    harness.store("T-1", body="Another text.")
    [row] = rows("corrections")
    assert row["body"] == "The first text."
    harness.s3.delete_object(Bucket=harness.place, Key=key, VersionId=corrected)
    [row] = rows("corrections")
    assert row["body"] == "Another text.", "what is left of the ticket"
    harness.dynamodb.delete_item(TableName=harness.place, Key=item_key("T-1", 1000))
    result = run("corrections", "--json")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "1 corrected tickets have no readable object any more" in result.stderr


def test_export_to_a_file_is_complete_or_absent(harness: Harness, tmp_path: Path) -> None:
    for ticket_id in ("T-1", "T-2"):
        harness.store(ticket_id)
        correct(ticket_id, "--intent", "login_issue")
    file = tmp_path / "corrections.jsonl"
    result = run("corrections", str(file))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"2 tickets in {file}\n")
    before = file.read_text(encoding="utf-8")
    assert [json.loads(line) for line in before.splitlines()] == rows("corrections")
    kill_at(harness, "GetObject")
    with pytest.raises(Killed):
        CliRunner().invoke(app, ["corrections", str(file)])
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_text(encoding="utf-8") == before
    harness.before = lambda _name, _params: None
    result = run("corrections", str(tmp_path / "none" / "x"))
    assert (result.exit_code, "choose another file" in result.stderr) == (1, True)


def test_list_of_corrections_can_begin_at_a_time(harness: Harness) -> None:
    for ticket_id in ("T-1", "T-2"):
        harness.store(ticket_id)
        correct(ticket_id, "--intent", "login_issue")
    [key] = [key for key in log(harness) if key.startswith(log_prefix("T-1"))]
    old = {**log(harness)[key], "at": "2020-01-01T00:00:00.000Z"}
    harness.s3.put_object(Bucket=harness.place, Key=key, Body=json.dumps(old).encode())
    assert [row["ticket_id"] for row in rows("corrections", "--since", "2021-01-01")] == ["T-2"]
    lines = [line.split("\t") for line in run("corrections").stdout.splitlines()]
    assert [line[:6] for line in lines] == [
        [each["at"], each["ticket_id"], "1000", "intent", "bug_report", "login_issue"]
        for each in sorted(log(harness).values(), key=lambda each: str(each["at"]))
    ]


def test_damaged_entry_is_named(harness: Harness) -> None:
    harness.store("T-1")
    key = f"{log_prefix('T-1')}1000/000001.json"
    harness.s3.put_object(Bucket=harness.place, Key=key, Body=b"{}")
    result = run("corrections")
    assert (result.exit_code, f"s3://{harness.place}/{key} is not a correction" in result.stderr) == (1, True)


@pytest.mark.parametrize("arguments", [["out.jsonl"], ["--json"]])
def test_applying_does_not_export(harness: Harness, arguments: list[str]) -> None:
    result = run("corrections", "--apply", *arguments)
    assert (result.exit_code, "--apply exports nothing" in result.stderr) == (2, True)


# -- keys


def test_enriched_ticket_with_a_similar_key_is_not_taken_for_a_correction(harness: Harness) -> None:
    harness.store("corrections")
    harness.store("T-1")
    correct("T-1", "--intent", "login_issue")
    keys = harness.s3.list_objects_v2(Bucket=harness.place, Prefix="corrections/")
    assert "corrections/1000.json" in {entry["Key"] for entry in keys["Contents"]}
    assert [row["ticket_id"] for row in rows("corrections")] == ["T-1"]
    assert not is_reserved("corrections/1000.json")
    assert not is_reserved("corrections/" + "a" * 63 + "/x")


def test_decisions_of_one_ticket_are_copied_whole(harness: Harness) -> None:
    """An entry that another process has logged but not applied is not lost by the next correction."""
    harness.store("T-1")
    kill_at(harness, "UpdateItem")
    with pytest.raises(Killed):
        CliRunner().invoke(app, ["correct", "T-1", "--intent", "login_issue"])
    harness.before = lambda _name, _params: None
    row = correct("T-1", "--sentiment", "negative")
    assert (row["intent"], row["sentiment"]) == ("login_issue", "NEGATIVE")


def test_old_item_is_corrected_too(harness: Harness) -> None:
    """Items of version 0.1 have no review_reasons, language, day or event."""
    harness.store("T-1", needs_review=True, review_reasons=["intent"])
    names = ("review_reasons", "language", "day", "event")
    harness.dynamodb.update_item(
        TableName=harness.place,
        Key=item_key("T-1", 1000),
        UpdateExpression="REMOVE " + ", ".join(f"#{name}" for name in names),
        ExpressionAttributeNames={f"#{name}": name for name in names},
    )
    assert correct("T-1", "--intent", "login_issue")["needs_review"] is False
    event = event_of_item(stored(harness, "T-1"))
    assert (event.change, event.language) == ("corrected", "und")


def test_correction_of_an_item_is_pure(harness: Harness) -> None:
    harness.store("T-1")
    item = stored(harness, "T-1")
    copy = json.loads(json.dumps(item))
    decision = {"intent": {"M": {"label": {"S": "x"}, "by": {"S": "b"}, "at": {"S": "a"}}}}
    changed = with_corrections(item, decision)
    assert item == copy
    assert with_corrections(changed, decision) == changed
