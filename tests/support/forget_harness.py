"""A harness for `tickets forget`: a table, two buckets and a DLQ on moto, with the real handler that fills them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse
from typer.testing import CliRunner, Result

from handler.app import Handler, build
from handler.aws.sqs import Queue
from handler.cli.shutdown import Shutdown
from handler.dlq.options import Options
from handler.metrics import make_logger
from handler.settings import Settings
from handler.tickets.command import app
from handler.tickets.forgetting import Forgetting, Stores, Target
from handler.tickets.repository import TicketRepository
from handler.tickets.search.indexer import Indexer
from handler.tickets.search.sqlite import SqliteIndex
from tests.support.fakes import FakeDeadLetters, FakeMetrics, FakeModels, context, event, notification, record

__all__ = ["SECRET", "ForgetHarness", "Killed", "forget_harness"]

TEMPLATE = Path(__file__).resolve().parents[2] / "template.yaml"
_PLACES = count(1)
SECRET = "my secret is 4711"


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in the program catches it."""


@dataclass
class ForgetHarness:
    """A table, two buckets and a DLQ, with the handler that fills them; `before` is called before each AWS call."""

    clients: dict[str, Any]
    place: str
    folder: Path
    handler: Handler = field(init=False)
    before: Callable[[str, dict[str, Any]], object] = lambda _name, _params: None
    calls: list[str] = field(default_factory=list)
    dlq_url: str = ""

    def __post_init__(self) -> None:
        self.models = FakeModels()
        self.metrics = FakeMetrics()
        self.dead_letters = FakeDeadLetters()
        self.dlq_url = self.clients["sqs"].create_queue(QueueName=self.place)["QueueUrl"]
        self.index = SqliteIndex(self.folder / f"{self.place}.{self.place}.sqlite")

    def update_index(self) -> None:
        repository = TicketRepository(
            self.clients["dynamodb"], lambda: self.clients["s3"], table=self.place, bucket=self.place
        )
        Indexer(repository, self.index, {self.models.version: "encoder@000000000000"}).reconcile()

    def build(self, *, raw_bucket: str = "", **settings: Any) -> Handler:
        return build(
            Settings(
                model_bundle="file:///none",
                raw_bucket=raw_bucket or f"{self.place}-raw",
                enriched_bucket=self.place,
                table_name=self.place,
                queue_url="https://sqs.invalid/queue",
                dlq_url=self.dlq_url,
                **settings,
            ),
            dead_letters=self.dead_letters,
            models=self.models,
            metrics=self.metrics,
            logger=make_logger("INFO"),
        )

    def put(self, key: str, body: Mapping[str, Any] | bytes) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.clients["s3"].put_object(Bucket=f"{self.place}-raw", Key=key, Body=raw)

    def deliver(self, *bodies: Any) -> list[str]:
        """Passes messages to the handler; returns the outcomes, as the metrics count them."""
        self.metrics.outcomes.clear()
        self.handler(event(*(record(body, f"m-{n}") for n, body in enumerate(bodies))), context())
        return sorted(self.metrics.outcomes.elements())

    def notify(self, *keys: str) -> dict[str, Any]:
        return notification(*keys, bucket=f"{self.place}-raw")

    def store(self, key: str, body: Mapping[str, Any]) -> None:
        self.put(key, body)
        assert self.deliver(self.notify(key)) == ["done"]

    def dead(self, body: Any) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        self.clients["sqs"].send_message(QueueUrl=self.dlq_url, MessageBody=text)

    def run(self, *arguments: str) -> Result:
        options = ("--audit", str(self.folder / "audit.jsonl"), "--wait", "1", "--empty-polls", "1")
        return CliRunner().invoke(app, ["forget", *arguments, *options], catch_exceptions=False)

    def forget(self, *arguments: str) -> dict[str, Any]:
        """Runs the command with --json and --yes; returns its totals."""
        result = self.run(*arguments, "--yes", "--json")
        assert result.exit_code == 0, (result.output, result.exception)
        return dict(json.loads(result.stdout.splitlines()[-1]))

    def forget_meanwhile(self, ticket_id: str) -> None:
        """As `forget`, while another thread is in the middle of something: the command needs the main thread."""
        place, before, self.before = self.place, self.before, lambda _name, _params: None
        dlq = Queue(self.clients["sqs"], self.dlq_url)
        stores = Stores(self.clients["dynamodb"], self.clients["s3"], [dlq], place, [f"{place}-raw"], place, self.index)
        Forgetting(Target("ticket", ticket_id), stores, Options(empty_polls=1), Shutdown(0)).run([], dry_run=False)
        self.before = before

    def forget_at(self, moment: str, ticket_id: str) -> None:
        """Forgets a ticket just before the call that `moment` names with its number: "PutItem 2"."""
        calls: Counter[str] = Counter()

        def forget(name: str, _params: dict[str, Any]) -> None:
            calls[name] += 1
            if moment == f"{name} {calls[name]}":
                self.forget_meanwhile(ticket_id)

        self.before = forget

    def versions(self, bucket: str) -> dict[str, list[str]]:
        """The contents of all versions by key; a delete marker is None."""
        s3, found = self.clients["s3"], dict[str, list[str]]()
        answer = s3.list_object_versions(Bucket=bucket)
        for entry in answer.get("Versions", []):
            body = s3.get_object(Bucket=bucket, Key=entry["Key"], VersionId=entry["VersionId"])["Body"].read()
            found.setdefault(entry["Key"], []).append(body.decode())
        for entry in answer.get("DeleteMarkers", []):
            found.setdefault(entry["Key"], []).append("deleted")
        return found

    def items(self) -> list[dict[str, Any]]:
        return list(self.clients["dynamodb"].scan(TableName=self.place)["Items"])

    def tickets(self) -> set[tuple[str, str]]:
        return {
            (item["ticket_id"]["S"], item["created_at"]["N"])
            for item in self.items()
            if not item["ticket_id"]["S"].startswith("#")
        }

    def dlq(self) -> list[str]:
        """The bodies in the DLQ; they stay visible."""
        sqs, bodies = self.clients["sqs"], []
        ask = {"QueueUrl": self.dlq_url, "MaxNumberOfMessages": 10, "VisibilityTimeout": 60}
        received = []
        while messages := sqs.receive_message(**ask).get("Messages", []):
            received += messages
        for message in received:
            bodies.append(message["Body"])
            sqs.change_message_visibility(
                QueueUrl=self.dlq_url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
            )
        return sorted(bodies)

    def everything(self) -> dict[str, Any]:
        """All that is stored, for comparisons."""
        return {
            "raw": self.versions(f"{self.place}-raw"),
            "enriched": self.versions(self.place),
            "items": sorted(self.items(), key=json.dumps),
            "dlq": self.dlq(),
            "vectors": sorted(self.index.all_keys()),
        }

    def audit(self) -> list[dict[str, Any]]:
        file = self.folder / "audit.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@cache
def _table_definition() -> dict[str, Any]:
    properties = yaml_parse(TEMPLATE.read_text(encoding="utf-8"))["Resources"]["TicketTable"]["Properties"]
    names = ("AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode")
    return {name: properties[name] for name in names}


@contextmanager
def forget_harness(clients: dict[str, Any], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[ForgetHarness]:
    """Yields a harness with stores of its own, which the environment names; moto is running."""
    place = f"forget-{next(_PLACES)}"
    clients["dynamodb"].create_table(TableName=place, **_table_definition())
    for bucket in (place, f"{place}-raw"):
        clients["s3"].create_bucket(Bucket=bucket)
    clients["s3"].put_bucket_versioning(Bucket=place, VersioningConfiguration={"Status": "Enabled"})
    made = ForgetHarness(clients, place, folder)
    names = {"TABLE_NAME": place, "ENRICHED_BUCKET": place, "RAW_BUCKET": f"{place}-raw", "DLQ_URL": made.dlq_url}
    names |= {"VECTOR_INDEX": f"sqlite://{folder}"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)

    def client_factory(_: object) -> Callable[..., Any]:
        return lambda service, **_options: clients[service]

    monkeypatch.setattr("handler.tickets.access.client_factory", client_factory)

    def record_call(params: dict[str, Any], model: Any, **_: Any) -> None:
        made.calls.append(model.name)
        if model.name == "ReceiveMessage":
            params["WaitTimeSeconds"] = 0  # nothing else sends to this queue
        made.before(model.name, params)

    monkeypatch.setattr("handler.app.client_factory", client_factory)
    made.handler = made.build()
    for client in clients.values():
        client.meta.events.register("provide-client-params", record_call)
    yield made
    for client in clients.values():
        client.meta.events.unregister("provide-client-params", record_call)
