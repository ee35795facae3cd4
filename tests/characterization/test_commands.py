"""The commands: exit codes and all JSON lines that they print; of other output only the number of lines."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.characterization.harness import (
    Event,
    Finished,
    Product,
    get,
    run_command,
    run_demo,
    ticket_processor,
    wait_until,
)
from tests.characterization.snapshots import Snapshots, in_any_order, rounded, shape, without_times_and_ids

MODEL_FIELDS = re.compile(
    "(intent|urgency|sentiment)(_confidence)?|summary|embedding|scores|truncated|needs_review|cosine|model_version"
)
ONE_POLL = ["--wait", "1", "--empty-polls", "1"]  # nothing else reads these queues, so one empty response is enough
START = 1_767_225_600
TICKET = {"ticket_id": "CMD-1", "subject": "Refund", "body": "Where is my refund? It has not come for ten days."}


class Shell:
    """Runs one command with different arguments, and records the results in `runs`."""

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self.runs: list[dict[str, Any]] = []
        self._name = name

    def run(
        self, *arguments: str, environment: Mapping[str, str] | None = None, label: str = "", ordered: bool = True
    ) -> list[Any]:
        """Runs the command; records its exit code and JSON lines, and returns the lines."""
        done = self._run(arguments, environment)
        rows = done.rows()
        found = without_times_and_ids([_without_models(row) for row in rows], self.environment)
        self._record(label or " ".join(arguments), done, found if ordered else in_any_order(found))
        return rows

    def run_for_people(self, *arguments: str) -> None:
        """Runs the command; records its exit code and the number of lines."""
        done = self._run(arguments, None)
        self._record(" ".join(arguments), done, len(done.out.splitlines()))

    def run_for_models(self, *arguments: str) -> list[Any]:
        """Runs the command and returns its JSON lines, whose number depends on the models."""
        done = self._run(arguments, None)
        assert done.code == 0
        return done.rows()

    def without(self, *names: str) -> dict[str, str]:
        """The environment without some variables."""
        return {name: value for name, value in self.environment.items() if name not in names}

    def _run(self, arguments: Sequence[str], environment: Mapping[str, str] | None) -> Finished:
        return run_command(self._name, arguments, self.environment if environment is None else environment)

    def _record(self, label: str, done: Finished, stdout: Any) -> None:
        is_usage = "usage:" in done.err.lower()  # its length depends on the terminal
        errors = "usage" if is_usage else len(done.err.splitlines())
        label = without_times_and_ids(label, self.environment)
        self.runs.append({"run": label, "exit code": done.code, "lines on stderr": errors, "stdout": stdout})


def _without_models(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_models(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {k: shape(v) if MODEL_FIELDS.fullmatch(k) else _without_models(v) for k, v in value.items()}


def _model_values(row: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in row.items() if MODEL_FIELDS.fullmatch(name) and name != "model_version"}
    return rounded({"ticket_id": row["ticket_id"], **found})


# -- dlq-replay


@pytest.fixture
def dlq(product: Product) -> Shell:
    """The command, with ten messages in the DLQ that the handler rejected for different reasons."""
    events = [Event.load(name) for name in ("not-json", "mixed", "object-gone", "wrong-bucket")]
    objects = {key: body for event in events for key, body in event.objects.items()}
    product.through_handler(Event("several", [record for event in events for record in event.records][:10], objects))
    product.through_handler(events[2], clean=False)
    product.through_handler(events[3], clean=False)
    product.sqs.purge_queue(QueueUrl=product.environment["QUEUE_URL"])  # the uploads' notifications
    return Shell("dlq-replay", product.environment)


def test_dlq_replay_reads(dlq: Shell, snapshots: Snapshots) -> None:
    dlq.run("count", "--json")
    dlq.run("count", "--json", "--reason", "message_invalid", *ONE_POLL)
    dlq.run("peek", "--json", "--limit", "100", *ONE_POLL, ordered=False)
    dlq.run("peek", "--json", "--match", "rejection.errors[0].stage == 'fetch'", *ONE_POLL, ordered=False)
    dlq.run("--dry-run", "--json", *ONE_POLL)
    dlq.run("--dry-run", "--json", "--from-s3", f"s3://{dlq.environment['RAW_BUCKET']}/EVT-MIX-")
    dlq.run_for_people("peek", *ONE_POLL)
    dlq.run_for_people("count")
    snapshots.check("commands/dlq-replay-reads", "behaviour", dlq.runs)


def test_dlq_replay_sends(dlq: Shell, product: Product, snapshots: Snapshots, tmp_path: Path) -> None:
    audit = str(tmp_path / "audit.jsonl")
    some = ("--json", "--yes", "--reason", "schema_violation", "--audit", audit, *ONE_POLL)
    dlq.run(*some, label="with an audit file")
    dlq.run(*some, label="the same once more")
    written = [json.loads(line) for line in Path(audit).read_text(encoding="utf-8").splitlines()]
    dlq.run("--json", "--yes", "--limit", "1", "--reason", "object_gone", "--rate", "100", *ONE_POLL)
    dlq.run_for_people("--yes", *ONE_POLL)
    dlq.run("count", "--json")
    dlq.run("--json", "--yes", "--from-s3", f"s3://{dlq.environment['RAW_BUCKET']}/EVT-MIX-")
    sent = [
        {
            "body": message["Body"],
            "attributes": {n: a.get("StringValue") for n, a in message.get("MessageAttributes", {}).items()},
        }
        for message in product.take(product.environment["QUEUE_URL"])
    ]
    found = {"runs": dlq.runs, **without_times_and_ids({"audit": written, "sent": sent}, dlq.environment)}
    snapshots.check("commands/dlq-replay-sends", "behaviour", found | {"sent": in_any_order(found["sent"])})


def test_dlq_replay_keeps_messages_too_large_for_the_destination(
    dlq: Shell, product: Product, snapshots: Snapshots
) -> None:
    """Messages that were not sent are not deleted."""
    small = product.sqs.create_queue(QueueName="small", Attributes={"MaximumMessageSize": "1024"})["QueueUrl"]
    large = ["1" * 1500, "2" * 1500]
    for body in large:
        product.sqs.send_message(QueueUrl=product.environment["DLQ_URL"], MessageBody=body)
    dlq.run("--json", "--yes", "--force", "--destination", small, *ONE_POLL, label="into a queue of 1 KiB")
    left = [message["Body"] for message in product.take(product.environment["DLQ_URL"])]
    arrived = [message["Body"] for message in product.take(small)]
    assert sorted(left) == large
    assert len(arrived) == 10
    snapshots.check("commands/dlq-replay-partly", "behaviour", dlq.runs)


def test_dlq_replay_errors(dlq: Shell, product: Product, snapshots: Snapshots) -> None:
    dlq.run("--native", "--yes", "--json")  # the emulator has no StartMessageMoveTask
    dlq.run("--native", "--limit", "1")
    dlq.run("--from-s3", "s3://bucket/", "--reason", "x")
    dlq.run("--from-s3", "no-place", "--yes")
    dlq.run("--json")  # no confirmation possible: standard input is not a terminal
    dlq.run("--match", "][")
    dlq.run("--older-than", "yesterday")
    dlq.run("--rate", "0")
    dlq.run("count", "--json", environment=dlq.without("DLQ_URL"), label="count without a queue")
    dlq.run("--yes", environment=dlq.without("QUEUE_URL"), label="without a destination")
    dlq.run("count", "--source", "no-such-queue")
    dlq.run("--yes", "--source", product.queue, label="two queues that do not belong together")
    snapshots.check("commands/dlq-replay-errors", "behaviour", dlq.runs)


# -- tickets


@pytest.fixture(scope="module")
def tickets(product: Product) -> Shell:
    """The command, with the ten tickets of a sample event in the table."""
    product.through_handler(Event.load("ten-tickets"))
    return Shell("tickets", product.environment)


def test_tickets(tickets: Shell, snapshots: Snapshots) -> None:
    shown = tickets.run("show", "--json")
    tickets.run("show", "--json", "--limit", "2")
    tickets.run("show", "--json", "--since", "2100-01-01")
    first = shown[-1]["ticket_id"]
    tickets.run("get", first, "--json")
    tickets.run_for_people("show")
    tickets.run_for_people("count", "--since", "2100-01-01")
    urgent = tickets.run_for_models("show", "--json", "--urgent")
    similar = tickets.run_for_models("similar", first, "--json", "--limit", "3")
    counted = tickets.run_for_models("count", "--json")
    behaviour = {
        "runs": tickets.runs,
        "fields of similar": list(similar[0]),
        "number of similar": len(similar),
        "fields of count": list(counted[0]),
        "totals of count": {
            by: sum(row["count"] for row in counted if row["by"] == by) for by in ("intent", "urgency", "sentiment")
        },
    }
    snapshots.check("commands/tickets", "behaviour", behaviour)
    decided = {
        "show": [_model_values(row) for row in shown],
        "show --urgent": [row["ticket_id"] for row in urgent],
        "similar": [[row["ticket_id"], round(row["cosine"], 4)] for row in similar],
        "count": counted,
    }
    snapshots.check("commands/tickets", "models", decided)


def test_tickets_errors(tickets: Shell, snapshots: Snapshots) -> None:
    shell = Shell("tickets", tickets.environment)
    shell.run("get", "no-such-ticket")
    shell.run("get", "no-such-ticket", "--json")
    shell.run("similar", "no-such-ticket", "--json")
    shell.run("show", "--urgent", "--urgency", "low")
    shell.run("show", "--since", "yesterday")
    shell.run("show", "--limit", "0")
    shell.run("show", "--json", environment={}, label="show without an environment")
    shell.run("show", "--json", environment=shell.environment | {"TABLE_NAME": "none"}, label="no such table")
    shell.run("show", "--json", environment=shell.environment | {"AWS_ENDPOINT_URL": "x"}, label="no URL")
    snapshots.check("commands/tickets-errors", "behaviour", shell.runs)


def test_tickets_forget(product: Product, snapshots: Snapshots, tmp_path: Path) -> None:
    product.through_handler(Event.load("ten-tickets"))
    shell = Shell("tickets", product.environment)
    options = ("--json", "--audit", str(tmp_path / "audit.jsonl"), *ONE_POLL)
    first = product.items()[0]
    name, customer = first["ticket_id"]["S"], first["customer_id"]["S"]
    shell.run("forget", name, *options, label="forget: a dry run")
    shell.run("forget", name, "--yes", *options, label="forget")
    shell.run("forget", name, "--yes", *options, label="forget: the same once more")
    shell.run("forget", "--customer", customer, *options, label="forget a customer whose ticket is gone: a dry run")
    shell.run("get", name, "--json", label="get a forgotten ticket")
    shell.run("forget")
    shell.run("forget", "T-1", "--customer", "C-1")
    shell.run("forget", "T-1", environment=shell.without("DLQ_URL"), label="forget without a queue")
    shell.run("forget", "T-1", environment=shell.environment | {"TABLE_NAME": "none"}, label="forget: no such table")
    shell.run_for_people("forget", name, *ONE_POLL)
    audit = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {"runs": shell.runs, "audit": without_times_and_ids(audit, product.environment)}
    product.through_handler(Event.load("ten-tickets"))  # other tests list all ten
    snapshots.check("commands/tickets-forget", "behaviour", found)


# -- ticket-generator, ticket-processor, python -m enrichment, the demo


def test_ticket_generator(product: Product, snapshots: Snapshots, tmp_path: Path) -> None:
    shell = Shell("ticket-generator", product.environment)
    quickly = ["--rate", "0", "--seed", "11", "--start", str(START)]
    shell.run("--out", "-", "--count", "3", *quickly)
    shell.run("--out", "-", "--count", "0", *quickly)
    shell.run("--out", str(tmp_path / "tickets.jsonl"), "--count", "2", *quickly, label="into a file")
    shell.run("--bucket", product.environment["RAW_BUCKET"], "--count", "1", *quickly)
    shell.run("--count", "1")
    shell.run("--bucket", "one", "--out", "two")
    shell.run("--out", str(tmp_path / "no" / "such"), "--count", "1", *quickly, label="into no folder")
    shell.run("--bucket", "no-such-bucket", "--count", "1", *quickly)
    shell.run("--count", "-1")
    snapshots.check("commands/ticket-generator", "behaviour", shell.runs)


def test_ticket_processor_errors(product: Product, snapshots: Snapshots, tmp_path: Path) -> None:
    shell = Shell("ticket-processor", product.environment)
    shell.run(environment={}, label="no environment")
    shell.run(environment=shell.without("QUEUE_URL", "TABLE_NAME"), label="two settings missing")
    shell.run(environment=shell.environment | {"NUM_WORKERS": "0", "LOG_LEVEL": "loud"}, label="two settings wrong")
    shell.run(environment=shell.environment | {"MODEL_BUNDLE": (tmp_path / "none").as_uri()}, label="no bundle")
    shell.run("--wait", "60")
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        shell.run(environment=shell.environment | {"HEALTH_PORT": port}, label="port taken")
    snapshots.check("commands/ticket-processor-errors", "behaviour", shell.runs)


def test_ticket_processor_runs(product: Product, snapshots: Snapshots) -> None:
    event = Event.load("mixed")
    product.prepare(event)
    with ticket_processor(product.environment | {"QUEUE_URL": product.queue}) as (port, end):
        wait_until(lambda: get(port, "/readyz")[0] == 200)
        ready = {path: get(port, path) for path in ("/livez", "/readyz", "/no-such-page")}
        product.send(event)
        wait_until(lambda: 'result="deleted"} 6.0' in get(port, "/metrics")[1])
        metrics = get(port, "/metrics")[1]
        done = end()
    series = [line for line in metrics.splitlines() if line.startswith("# TYPE") or re.match(r"\w+_total\{", line)]
    buckets = sorted({line.partition("{")[0] for line in metrics.splitlines() if "_bucket{" in line})
    log = [json.loads(line) for line in [*done.out.splitlines(), *done.err.splitlines()]]
    lines = sorted([{"fields": sorted(line), "outcome": line.get("outcome")} for line in log], key=json.dumps)
    found = {"pages": ready, "series": series, "histograms": buckets, "exit code": done.code, "log": lines}
    snapshots.check("commands/ticket-processor-runs", "behaviour", found)


def test_enrichment(bundle: Path, snapshots: Snapshots, tmp_path: Path) -> None:
    shell = Shell("enrichment", {})
    ticket = {**TICKET, "created_at": START, "customer_id": "C-1"}
    good, mixed = tmp_path / "good.jsonl", tmp_path / "mixed.jsonl"
    good.write_text(json.dumps(ticket), encoding="utf-8")
    mixed.write_text("\n".join([json.dumps(ticket), "", "no JSON", json.dumps(ticket | {"priority": "HIGH"}), "{}"]))
    shell.run("--bundle", str(bundle), str(good), label="a good file")
    rows = shell.run("--bundle", str(bundle), str(mixed), label="good and bad lines")
    shell.run("--bundle", str(bundle), str(tmp_path / "none"), label="no file")
    shell.run("--bundle", str(tmp_path / "none"), str(good), label="no bundle")
    shell.run(label="no arguments")
    snapshots.check("commands/enrichment", "behaviour", shell.runs)
    decided = [_model_values({"ticket_id": row["ticket_id"], **row["enrichment"]}) for row in rows]
    snapshots.check("commands/enrichment", "models", decided)


def test_demo(bundle: Path, snapshots: Snapshots) -> None:
    done = run_demo(bundle, 12)
    result = json.loads(done.out.splitlines()[-1])
    # The seed determines which of the twelve are invalid, so these numbers are always the same.
    numbers = {name: result[name] for name in ("sent", "done", "skipped", "rejected", "failed", "lost")}
    snapshots.check("commands/demo", "behaviour", {"exit code": done.code, "fields": list(result), "numbers": numbers})
