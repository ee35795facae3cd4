"""What commit be79fe2 wrote, this release reads, and the reverse: items, enriched objects and DLQ messages.

be79fe2/release.zip has that commit's packages `enrichment` (without `export`) and `handler`, unchanged. Both releases
run as processes on one stack.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from enrichment.manifest import read_manifest
from handler.local import EmbeddedStack

REPO = Path(__file__).resolve().parents[2]
OLD = Path(__file__).parent / "be79fe2"
FAST = ("--wait", "1", "--empty-polls", "1")
DIRECTIONS = [("old", "new"), ("new", "old")]


@dataclass(frozen=True)
class Release:
    """A release's code, and the stack on which it runs."""

    name: str
    code: Path
    dlq: str
    environment: Mapping[str, str]

    def run(self, *command: str, given: str = "", **environment: str) -> str:
        """The output of a module or a script. Fails if it does not end with 0."""
        ran = subprocess.run(
            [sys.executable, *command],
            cwd=self.code,
            env={**self.environment, "PYTHONPATH": str(self.code), "PATH": os.defpath, "COLUMNS": "200", **environment},
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def handle(self, messages: Mapping[str, str], model_version: str) -> dict[str, str]:
        """Pass a batch to the function: the outcomes of its tickets by message id."""
        records = [
            {
                "messageId": message_id,
                "receiptHandle": message_id,
                "body": body,
                "attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": "1795166102000"},
                "messageAttributes": {},
                "eventSource": "aws:sqs",
                "eventSourceARN": "arn:aws:sqs:us-east-1:000000000000:ticket-processing",
                "awsRegion": "us-east-1",
            }
            for message_id, body in messages.items()
        ]
        script = str(Path(__file__).parent / "function.py")
        event = json.dumps({"Records": records})
        place, *lines, response = self.run(script, given=event, MODEL_VERSION=model_version).splitlines()
        assert Path(place).is_relative_to(self.code)
        assert json.loads(response) == {"batchItemFailures": []}, lines
        logged = [json.loads(line) for line in lines if line.startswith("{") and '"outcome"' in line]
        return {line["message_id"]: line["outcome"] for line in logged}


@pytest.fixture(scope="module")
def stack() -> Iterator[EmbeddedStack]:
    """A separate stack, because the tests read its queues."""
    with EmbeddedStack() as embedded:
        yield embedded


@pytest.fixture(scope="module")
def releases(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    folder = tmp_path_factory.mktemp("be79fe2")
    zipfile.ZipFile(OLD / "release.zip").extractall(folder)
    environment = {**stack.environment(), "MODEL_BUNDLE": "file:///unused"}
    return {
        "old": Release("old", folder, "handler.replay", environment),
        "new": Release("new", REPO, "handler.dlq", environment),
    }


def ticket(ticket_id: str) -> str:
    fields: dict[str, Any] = {"ticket_id": ticket_id, "customer_id": "C-1", "created_at": 1774260000, "plan": "gold"}
    return json.dumps({**fields, "subject": "Charged twice", "body": "Our card was charged twice."})


@pytest.mark.parametrize(("writer", "reader"), DIRECTIONS)
def test_tickets_are_listed_and_read(releases: dict[str, Release], writer: str, reader: str) -> None:
    ticket_id = f"T-{writer}"
    assert releases[writer].handle({"m-1": ticket(ticket_id)}, "compact@1") == {"m-1": "done"}
    read = releases[reader].run
    whole = json.loads(read("-m", "handler.tickets", "get", ticket_id, "--json"))
    assert (whole["subject"], whole["plan"]) == ("Charged twice", "gold")
    assert whole["enrichment"]["summary"] == f"The summary of {ticket_id}."
    shown = [json.loads(line) for line in read("-m", "handler.tickets", "show", "--json").splitlines()]
    (item,) = [line for line in shown if line["ticket_id"] == ticket_id]
    assert (item["intent"], item["urgency"], item["needs_review"]) == ("payment_issue", "high", True)
    read("-m", "handler.tickets", "similar", ticket_id)


@pytest.mark.parametrize(("writer", "reader"), DIRECTIONS)
def test_item_of_the_other_release_is_skipped_or_replaced(
    releases: dict[str, Release], stack: EmbeddedStack, writer: str, reader: str
) -> None:
    message = {"m-1": ticket(f"T-again-{writer}")}
    assert releases[writer].handle(message, "compact@1") == {"m-1": "done"}
    # The same content and the same models: nothing to do.
    assert releases[reader].handle(message, "compact@1") == {"m-1": "skipped"}
    # Each release has a bundle of its own.
    assert releases[reader].handle(message, "compact@2") == {"m-1": "done"}
    found = stack.client("dynamodb").get_item(
        TableName=stack.outputs["TableName"],
        Key={"ticket_id": {"S": f"T-again-{writer}"}, "created_at": {"N": "1774260000"}},
    )
    assert found["Item"]["model_version"] == {"S": "compact@2"}


@pytest.mark.parametrize(("writer", "reader"), DIRECTIONS)
def test_dlq_messages_are_shown_and_replayed(
    releases: dict[str, Release], stack: EmbeddedStack, writer: str, reader: str
) -> None:
    sqs, dlq, queue = stack.client("sqs"), stack.outputs["DlqUrl"], stack.outputs["QueueUrl"]
    for url in (dlq, queue):
        sqs.purge_queue(QueueUrl=url)
    body = ticket("T-bad").replace("1774260000", '"yesterday"')
    assert releases[writer].handle({"m-bad": body}, "compact@1") == {"m-bad": "rejected"}
    dlq_command = ["-m", releases[reader].dlq]
    (shown,) = releases[reader].run(*dlq_command, "peek", "--json", *FAST).splitlines()
    assert "schema_violation" in shown
    assert "m-bad" in shown
    releases[reader].run(*dlq_command, "replay", "--yes", "--reason", "schema_violation", *FAST)
    (message,) = sqs.receive_message(QueueUrl=queue, MessageAttributeNames=["All"])["Messages"]
    assert message["Body"] == body
    # The writer rejects it again, whatever marks the reader's replay left.
    assert releases[writer].handle({message["MessageId"]: message["Body"]}, "compact@1") == {
        message["MessageId"]: "rejected"
    }


def test_items_of_this_release_that_are_no_tickets_are_not_listed(
    releases: dict[str, Release], stack: EmbeddedStack
) -> None:
    # Items that count a message's failures; be79fe2 does not know them.
    before = releases["old"].run("-m", "handler.tickets", "count")
    item = {"ticket_id": {"S": "#failures#m-1"}, "created_at": {"N": "0"}, "failures": {"N": "2"}}
    stack.client("dynamodb").put_item(TableName=stack.outputs["TableName"], Item=item)
    assert releases["old"].run("-m", "handler.tickets", "count") == before
    assert releases["new"].run("-m", "handler.tickets", "count") == before


def test_enriched_object_has_every_field_of_the_old_schema(releases: dict[str, Release], stack: EmbeddedStack) -> None:
    assert releases["new"].handle({"m-1": ticket("T-schema")}, "compact@1") == {"m-1": "done"}
    stored = stack.client("s3").get_object(
        Bucket=stack.outputs["EnrichedBucket"], Key="inline/T-schema/1774260000.json"
    )
    enriched = json.loads(stored["Body"].read())
    schema = json.loads((OLD / "enriched_ticket.schema.json").read_text(encoding="utf-8"))
    # Fields that were added since; readers must ignore fields that they do not know.
    added = enriched["enrichment"].keys() - schema["$defs"]["EnrichmentData"]["properties"].keys()
    assert added == {"embedding_model", "language", "review_reasons"}
    for name in added:
        del enriched["enrichment"][name]
    if enriched["metadata"]["language"] is None:  # "en" before, for every ticket
        enriched["metadata"]["language"] = "en"
    jsonschema.validate(enriched, schema)


def test_bundle_manifest_is_read() -> None:
    # Written by be79fe2's `enrichment.export compact`; `features` was named `cues` then.
    manifest, digest = read_manifest((OLD / "bundle.json").read_bytes(), "the fixture")
    assert (manifest.name, manifest.profile, digest[:12]) == ("compact-int8", "compact", "a436912001c3")
    assert manifest.models.features == "cues.json"
    assert manifest.models.intent.labels


def test_fixture_is_the_code_of_that_commit() -> None:
    with zipfile.ZipFile(OLD / "release.zip") as archive:
        names = set(archive.namelist())
        assert archive.testzip() is None
        schema = archive.read("enrichment/enriched_ticket.schema.json")
    assert {"handler/replay/command.py", "handler/tickets/catalogue.py", "enrichment/cues.py"} <= names
    assert schema == (OLD / "enriched_ticket.schema.json").read_bytes()
