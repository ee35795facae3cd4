"""Corrections on the embedded stack: the command with only its documented permissions, the function, and events."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from typer.testing import CliRunner, Result

from enrichment.__main__ import main as enrichment
from handler.app import build
from handler.local import EmbeddedStack
from handler.settings import Settings
from handler.tickets.command import app
from tests.support.fakes import FakeModels, event, record, ticket
from tests.support.result_events import ResultEvents
from tests.support.stack_harness import StackHarness

PAGE = Path(__file__).resolve().parents[2] / "docs" / "corrections.md"
CREATED = ticket()["created_at"]


@pytest.fixture(scope="module")
def stack() -> Iterator[EmbeddedStack]:
    """A separate stack, whose commits are events."""
    with EmbeddedStack(parameters={"ResultEvents": "topic"}) as embedded:
        yield embedded


@pytest.fixture(scope="module")
def collected(stack: EmbeddedStack) -> Iterator[ResultEvents]:
    with ResultEvents(stack) as found:
        yield found


@pytest.fixture(scope="module")
def person(stack: EmbeddedStack) -> dict[str, str]:
    """The environment of a user with the documented permissions."""
    (policy,) = re.findall(r"```json\n(.+?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    table = stack.client("dynamodb").describe_table(TableName=stack.outputs["TableName"])["Table"]["TableArn"]
    document = policy.replace("TABLE_ARN", table).replace("ENRICHED_BUCKET", stack.outputs["EnrichedBucket"])
    iam = stack.client("iam")
    iam.create_user(UserName="ada")
    iam.put_user_policy(UserName="ada", PolicyName="correct", PolicyDocument=document)
    key = iam.create_access_key(UserName="ada")["AccessKey"]
    own = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    return {**stack.environment(), **own, "AWS_SESSION_TOKEN": ""}


Run = Callable[..., Result]


@pytest.fixture
def run(person: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs `tickets` as that person."""

    def invoke(*arguments: str, code: int = 0) -> Result:
        with monkeypatch.context() as patch:
            for name, value in person.items():
                patch.setenv(name, value)
            result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def harness(stack: EmbeddedStack, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], StackHarness]:
    """A function that returns the handler with models of a version."""
    for name, value in (stack.environment() | {"MODEL_BUNDLE": "file:///unused"}).items():
        monkeypatch.setenv(name, value)
    return lambda version: StackHarness(stack, build(Settings.read(), models=FakeModels(version)))


NUMBERS = itertools.count(1)


def enrich(function: StackHarness, raw: dict[str, Any]) -> None:
    number = next(NUMBERS)
    times = {"ApproximateReceiveCount": "1", "SentTimestamp": str(int(time.time() * 1000) + number)}
    answer = function.invoke(event(record(raw, f"m-{number}", attributes=times)))
    assert answer.response == {"batchItemFailures": []}


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_corrections_are_listed_counted_and_events(
    harness: Callable[[str], StackHarness], run: Run, collected: ResultEvents
) -> None:
    function, newer = harness("one@1"), harness("two@2")
    for name in ("T-1", "T-2"):
        enrich(function, ticket(name))
    enrich(function, ticket("T-1"))  # skipped
    [row] = lines(run("correct", "T-1", "--sentiment", "negative", "--json"))
    assert row["corrections"]["sentiment"]["by"].endswith(":user/ada")
    assert [each["ticket_id"] for each in lines(run("show", "--sentiment", "negative", "--json"))] == ["T-1"]
    counts = {(each["by"], each["label"]): each["count"] for each in lines(run("count", "--json"))}
    assert (counts["sentiment", "NEGATIVE"], counts["sentiment", "NEUTRAL"]) == (1, 1)

    enrich(newer, ticket("T-1"))
    enrich(newer, ticket("T-1", body="Another text."))
    item = function.item("T-1", CREATED)
    assert item is not None
    assert (item["sentiment"], item["model_version"]) == ("NEGATIVE", "two@2")
    collected.wait_for([item["event"]["id"]])
    mine = [one for one in collected.events if one["ticket_id"] == "T-1"]
    assert [(one["change"], one["sentiment"], one["confidence"]["sentiment"]) for one in mine] == [
        ("new", "NEUTRAL", "0.8"),
        ("corrected", "NEGATIVE", "1"),
        ("enriched_again", "NEGATIVE", "1"),
        ("updated", "NEGATIVE", "1"),
    ]


def test_exported_corrections_can_be_scored(
    harness: Callable[[str], StackHarness],
    run: Run,
    tmp_path: Path,
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    enrich(harness("one@1"), ticket("T-3", body="This is the third time that it fails. We are losing money!"))
    run("correct", "T-3", "--sentiment", "positive")  # another test counts the negative ones
    file = tmp_path / "corrections.jsonl"
    run("corrections", str(file))
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert "losing money" in next(row["body"] for row in rows if row["ticket_id"] == "T-3")
    assert enrichment(["score", "--bundle", str(bundle), "--json", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"]["sentiment"]["tickets"] == len(rows)


def test_person_who_corrects_cannot_change_the_log(
    stack: EmbeddedStack, harness: Callable[[str], StackHarness], run: Run, person: dict[str, str]
) -> None:
    enrich(harness("one@1"), ticket("T-4"))
    run("correct", "T-4", "--confirm", code=1)  # the fake models have scores of the sentiment only
    run("correct", "T-4", "--sentiment", "positive")
    s3 = boto3.client(
        "s3",
        endpoint_url=person["AWS_ENDPOINT_URL"],
        region_name=person["AWS_DEFAULT_REGION"],
        aws_access_key_id=person["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=person["AWS_SECRET_ACCESS_KEY"],
    )
    bucket = stack.outputs["EnrichedBucket"]
    [key, *_] = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket, Prefix="corrections/")["Contents"]]
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.delete_object(Bucket=bucket, Key=key)
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.put_object(Bucket=bucket, Key="T-1.json", Body=b"")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"", IfNoneMatch="*")
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.list_objects_v2(Bucket=bucket)
