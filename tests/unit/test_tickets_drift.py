"""The command `tickets drift`, on a table and a bucket in this process."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest
from samtranslator.yaml_helper import yaml_parse
from typer.testing import CliRunner, Result

from enrichment.ticket import EnrichmentData, RawTicket, enriched_json
from handler.aws.storage import AwsTicketSink
from handler.cli.output import moment
from handler.ports import Write
from handler.tickets.command import app
from tests.support.fakes import FakeModels
from tests.support.mocked_aws import mocked_aws

REPOSITORY = Path(__file__).resolve().parents[2]
DAY = 86_400
NOW = 1_795_000_000
INTENTS = ("bug_report", "login_issue", "payment_issue", "feature_request", "general_inquiry")
EVEN = (0.2,) * 5
ONE_DOUBLED = (0.4, 0.15, 0.15, 0.15, 0.15)


class Stores:
    """A table as in the template and a bucket, filled as the function does it."""

    def __init__(self) -> None:
        self.dynamodb: Any = boto3.client("dynamodb")
        self.s3: Any = boto3.client("s3")
        resources = yaml_parse((REPOSITORY / "template.yaml").read_text(encoding="utf-8"))["Resources"]
        names = ("AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode")
        properties = resources["TicketTable"]["Properties"]
        self.dynamodb.create_table(TableName="tickets", **{name: properties[name] for name in names})
        self.s3.create_bucket(Bucket="enriched")
        self.s3.put_bucket_versioning(Bucket="enriched", VersioningConfiguration={"Status": "Enabled"})
        self._sink = AwsTicketSink(self.s3, self.dynamodb, "enriched", "tickets")
        self._numbers = random.Random(5)

    def fill(self, count: int, days_ago: int, shares: Sequence[float] = EVEN, *, topic: int = 0) -> None:
        """Stores tickets; each has the embedding of its topic with some noise, and a label drawn from the shares."""
        # Labels in their exact shares, because the simulated ones are in test_drift.py.
        intents = [intent for intent, share in zip(INTENTS, shares, strict=True) for _ in range(round(share * count))]
        self._numbers.shuffle(intents)
        for number, intent in enumerate(intents):
            created = NOW - days_ago * DAY + number
            raw = RawTicket(
                ticket_id=f"T-{days_ago}-{number}", subject="s", body="b", created_at=created, customer_id="C"
            )
            [result] = FakeModels().enrich([raw])
            assert isinstance(result, EnrichmentData)
            place = 100 + self._numbers.randrange(200)
            vector = [0.6 if i == topic else 0.8 if i == place else 0.0 for i in range(384)]
            urgency = ("critical", "high", "medium", "low")[number % 4]
            fields = {"intent": intent, "embedding": vector, "urgency": urgency, "needs_review": number % 5 == 0}
            enrichment = result.model_copy(update=fields)
            key = f"{raw.ticket_id}.json"
            assert self._sink.store(Write(raw, enrichment, enriched_json(raw, enrichment), key, "0" * 64, 1))


@pytest.fixture(scope="module")
def stores() -> Iterator[Stores]:
    """Two periods: 160 tickets of 20 days ago, with one intent doubled, and 160 of three days ago."""
    with mocked_aws() as patch:
        for name in ("MODEL_BUNDLE", "FORCE_COLOR"):
            patch.delenv(name, raising=False)
        patch.setenv("TABLE_NAME", "tickets")
        patch.setenv("ENRICHED_BUCKET", "enriched")
        made = Stores()
        made.fill(160, days_ago=20, shares=ONE_DOUBLED, topic=1)
        made.fill(160, days_ago=3)
        yield made


def write_bundle(folder: Path, bundle: Path, shares: Sequence[float], *, topic: int = 0) -> str:
    """Writes a bundle.json whose training texts have these intents and this topic; returns its address."""
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    manifest["reference"] = {
        "texts": 2000,
        "labels": {
            "intent": dict(zip(INTENTS, shares, strict=True)),
            "urgency": dict.fromkeys(("critical", "high", "medium", "low"), 0.25),
            "sentiment": {"NEUTRAL": 1.0},
        },
        "languages": {"en": 1.0},
        "embedding": [0.6 if i == topic else 0.004 if 100 <= i < 300 else 0.0 for i in range(384)],
    }
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    return f"file://{folder}"


@pytest.fixture
def alike(bundle: Path, tmp_path: Path) -> str:
    """A bundle whose training texts are like the tickets of three days ago."""
    return write_bundle(tmp_path, bundle, EVEN)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["drift", *arguments])


def when(days_ago: int) -> str:
    return moment(NOW - days_ago * DAY)


def flagged(result: Result) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    return [(row["name"], row["label"]) for row in rows if row["drifted"]]


def test_tickets_like_the_training_texts_are_not_flagged(stores: Stores, alike: str) -> None:
    result = run("--since", when(5), "--bundle", alike, "--json")
    assert (result.exit_code, flagged(result)) == (0, [])
    names = {json.loads(line)["name"] for line in result.stdout.splitlines()}
    assert names == {"psi", "share", "confidence", "language", "review", "embedding"}
    assert "160 tickets from" in result.stderr
    assert "160 embeddings" in result.stderr


def test_other_labels_and_other_texts_are_flagged_with_exit_code_3(
    stores: Stores, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_BUNDLE", write_bundle(tmp_path, bundle, ONE_DOUBLED, topic=1))
    result = run("--since", when(5), "--json")
    assert result.exit_code == 3
    assert {("psi", "intent"), ("share", "intent bug_report"), ("embedding", "")} == set(flagged(result))


def test_earlier_period_as_baseline(stores: Stores) -> None:
    result = run("--since", when(5), "--baseline", f"{when(30)}..{when(10)}", "--json")
    assert result.exit_code == 3
    assert {("share", "intent bug_report"), ("embedding", "")} == set(flagged(result))
    rows = {(row["name"], row["label"]): row for row in map(json.loads, result.stdout.splitlines())}
    bugs = rows["share", "intent bug_report"]
    assert (bugs["baseline"], bugs["recent"]) == (pytest.approx(0.4, abs=0.01), pytest.approx(0.2, abs=0.01))
    assert rows["review", ""]["baseline"] == pytest.approx(0.2, abs=0.01)
    assert rows["confidence", "intent"]["recent"] == pytest.approx(0.9)


def test_period_ends_before_its_last_second(stores: Stores) -> None:
    begin = NOW - 20 * DAY
    result = run("--since", when(5), "--baseline", f"{when(20)}..{moment(begin + 120)}", "--sample", "0")
    assert "120 tickets from" in result.stderr


def test_lines_in_a_pipe_have_seven_columns(stores: Stores, alike: str) -> None:
    result = run("--since", when(25), "--bundle", alike, "--sample", "10")
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert {len(row) for row in rows} == {7}
    (bugs,) = [row for row in rows if row[1] == "intent bug_report"]
    assert (bugs[0], bugs[2], bugs[3], bugs[6]) == ("share", "0.200", "0.300", "drift")
    assert ", 10 embeddings, " in result.stderr


def test_only_the_newest_tickets_are_compared_up_to_the_limit(stores: Stores, alike: str) -> None:
    result = run("--since", when(25), "--bundle", alike, "--limit", "100", "--sample", "0")
    assert "100 tickets from" in result.stderr
    assert "raise --limit 100" in result.stderr
    assert result.exit_code == 0  # the older ones, which differ, were not read


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--since", when(5)), 1, "tickets: set MODEL_BUNDLE, give --bundle, or compare with an earlier period"),
        (("--since", when(5), "--bundle", "file:///nowhere"), 1, "bundle.json cannot be read"),
        (("--since", when(5), "--bundle", "s3://enriched/nothing"), 1, "bundle.json cannot be read"),
        (("--since", when(5), "--bundle", "bundle"), 1, "must be file:///folder or s3://bucket/prefix"),
        (("--since", when(5), "--baseline", when(9)), 2, "is not FROM..TO"),
        (("--since", when(5), "--baseline", f"{when(6)}..{when(9)}"), 2, "ends before it begins"),
        (("--since", when(5), "--baseline", f"{when(9)}..{when(2)}"), 2, "ends after --since begins"),
        ((), 2, "Missing option"),
    ],
)
def test_error_is_named(stores: Stores, arguments: tuple[str, ...], code: int, message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_bundle_without_a_distribution_is_named(stores: Stores, alike: str) -> None:
    manifest = json.loads(Path(alike.removeprefix("file://"), "bundle.json").read_text(encoding="utf-8"))
    del manifest["reference"]
    stores.s3.put_object(Bucket="enriched", Key="older/bundle.json", Body=json.dumps(manifest).encode())
    result = run("--since", when(5), "--bundle", "s3://enriched/older")
    assert result.exit_code == 1
    assert "does not have the distribution of its training texts; build it with this version" in result.stderr


def test_too_few_tickets_are_named(stores: Stores, alike: str) -> None:
    result = run("--since", when(1), "--bundle", alike)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "only 0 tickets since" in result.stderr
