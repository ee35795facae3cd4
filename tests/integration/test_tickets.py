"""The `tickets` command on tickets that the real handler enriched, with only its documented permissions."""

from __future__ import annotations

import itertools
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from typer.testing import CliRunner

from enrichment import EnrichedTicket, Enricher
from handler.app import Handler, build
from handler.local import EmbeddedStack
from handler.settings import Settings
from handler.tickets.command import app

# Other tests share the table: these tickets have dates in the far future, so that lists begin with them. Tickets that
# are added during --watch are slightly older, so that the tests may run in any order.
START = 4_102_444_800
SINCE = "2100-01-01"
WATCHED, SINCE_WATCHED = START - 86400, "2099-12-31"
TEXTS = {
    "tickets-locked-out": ("Cannot log in", "My password is refused since this morning. I cannot sign in.", "high"),
    "tickets-refused": ("Login refused", "The sign-in page does not accept my password any more.", "critical"),
    "tickets-invoice": (
        "Invoice",
        "We were charged twice for the invoice of May, please refund one of them.",
        "medium",
    ),
    "tickets-dark": ("An idea", "It would be lovely to have a dark mode in the mobile app. Thank you!", "low"),
    "tickets-empty": ("", "", "low"),
}
RUNNER = CliRunner()


@pytest.fixture(scope="module")
def handler(stack: EmbeddedStack, enricher: Enricher) -> Iterator[Handler]:
    """The Lambda handler on the stack's services, with the session's models."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.environment().items():
            patch.setenv(name, value)
        yield build(Settings.read(model_bundle="file:///not-opened"), models=enricher)


Enrich = Callable[..., None]


@pytest.fixture(scope="module")
def enrich(handler: Handler) -> Enrich:
    """A function that passes tickets to the handler as inline messages."""
    numbers = itertools.count()

    def send(*tickets: dict[str, Any]) -> None:
        records: list[dict[str, Any]] = [
            {"messageId": f"tickets-{next(numbers)}", "receiptHandle": "none", "body": json.dumps(ticket)}
            for ticket in tickets
        ]
        for record in records:
            record |= {"eventSource": "aws:sqs", "attributes": {"SentTimestamp": str(int(time.time() * 1000))}}
        assert handler({"Records": records}, None) == {"batchItemFailures": []}

    return send


def raw(ticket_id: str, created_at: int, subject: str, body: str, priority: str) -> dict[str, Any]:
    return {
        "ticket_id": ticket_id, "subject": subject, "body": body, "created_at": created_at, "customer_id": "C-1",
        "priority": priority, "seat": {"row": 7},
    }  # fmt: skip


@pytest.fixture(scope="module")
def stored(enrich: Enrich) -> list[dict[str, Any]]:
    """The raw tickets that were enriched, newest last."""
    tickets = [raw(ticket_id, START + number, *texts) for number, (ticket_id, texts) in enumerate(TEXTS.items())]
    enrich(*tickets)
    return tickets


def credentials_of_user(stack: EmbeddedStack, name: str, *actions: str) -> dict[str, str]:
    """The environment of a new user with only these permissions on the stack's table and enriched bucket."""
    iam, outputs = stack.client("iam"), stack.outputs
    table = stack.client("dynamodb").describe_table(TableName=outputs["TableName"])["Table"]["TableArn"]
    resources = [table, f"{table}/index/*", f"arn:aws:s3:::{outputs['EnrichedBucket']}/*"]
    document = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": list(actions), "Resource": resources}],
    }
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="rights", PolicyDocument=json.dumps(document))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    environment = stack.environment()
    return {
        **{setting: environment[setting] for setting in ("TABLE_NAME", "ENRICHED_BUCKET", "AWS_ENDPOINT_URL")},
        "AWS_DEFAULT_REGION": environment["AWS_DEFAULT_REGION"],
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        "AWS_SESSION_TOKEN": "",
    }


@pytest.fixture(scope="module")
def reader(stack: EmbeddedStack) -> dict[str, str]:
    """The environment of a user with only the permissions that the command documents: a scan is denied."""
    name = f"tickets-reader-{uuid.uuid4()}"  # pytest-xdist may set a module up twice, for two parts of it
    return credentials_of_user(stack, name, "dynamodb:Query", "s3:GetObjectVersion")


Run = Callable[..., list[str]]


@pytest.fixture
def run(reader: Mapping[str, str], stored: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs the command as the reader and returns its output lines."""
    for name, value in reader.items():
        monkeypatch.setenv(name, value)

    def lines(*arguments: str) -> list[str]:
        result = RUNNER.invoke(app, list(arguments))
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()

    return lines


def test_scan_is_denied(reader: Mapping[str, str]) -> None:
    """A control: this is what makes the other tests prove that the command never scans."""
    client = boto3.client(
        "dynamodb",
        endpoint_url=reader["AWS_ENDPOINT_URL"],
        region_name=reader["AWS_DEFAULT_REGION"],
        aws_access_key_id=reader["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=reader["AWS_SECRET_ACCESS_KEY"],
    )
    with pytest.raises(ClientError, match="AccessDenied"):
        client.scan(TableName=reader["TABLE_NAME"])


def test_enriched_tickets_are_listed_newest_first(run: Run, stored: list[dict[str, Any]]) -> None:
    rows = [line.split("\t") for line in run("show", "--since", SINCE, "--limit", "5")]
    assert [row[5] for row in rows] == [ticket["ticket_id"] for ticket in reversed(stored)]
    assert [row[1] for row in rows] == [ticket["priority"] for ticket in reversed(stored)]
    assert rows[-1][0] == f"{SINCE}T00:00:00Z"
    assert rows[-1][2] == "login_issue"
    urgent = run("show", "--urgent", "--since", SINCE, "--json")
    assert [json.loads(line)["ticket_id"] for line in urgent] == ["tickets-refused", "tickets-locked-out"]


def test_list_shows_the_labels_of_the_stored_objects(run: Run, stored: list[dict[str, Any]]) -> None:
    lines = run("show", "--since", SINCE, "--json")
    found = [json.loads(line) for line in lines]
    assert len(found) == len(stored)
    for item in found[-2:]:
        whole = json.loads(*run("get", item["ticket_id"], "--json"))
        for name in ("intent", "urgency", "sentiment", "summary", "needs_review", "model_version", "processed_at"):
            assert whole["enrichment"][name] == item[name]
    like_first = ("--sentiment", found[-1]["sentiment"].lower(), "--intent", found[-1]["intent"])
    assert run("show", "--since", SINCE, "--json", *like_first) == [
        line
        for line, item in zip(lines, found, strict=True)
        if (item["sentiment"], item["intent"]) == (found[-1]["sentiment"], found[-1]["intent"])
    ]
    unsure = [line for line, item in zip(lines, found, strict=True) if item["needs_review"]]
    assert run("show", "--since", SINCE, "--json", "--needs-review") == unsure


def test_get_shows_all_fields(run: Run, stored: list[dict[str, Any]]) -> None:
    (line,) = run("get", "tickets-invoice", "--json")
    ticket = EnrichedTicket.model_validate_json(line)
    assert ticket.model_dump(exclude={"enrichment", "metadata"}) == stored[2]
    fields = dict(line.split("\t") for line in run("get", "tickets-invoice"))
    assert fields["body"] == stored[2]["body"]
    assert fields["seat"] == "row 7"
    assert fields["enrichment.intent"] == "payment_issue"
    assert fields["enrichment.embedding"].endswith("… (384 numbers)")
    assert fields["s3_key"] == f"inline/tickets-invoice/{START + 2}.json"


def test_get_shows_the_committed_version(run: Run, stack: EmbeddedStack) -> None:
    bucket, key = stack.outputs["EnrichedBucket"], f"inline/tickets-dark/{START + 3}.json"
    before = run("get", "tickets-dark", "--json")
    stack.client("s3").put_object(Bucket=bucket, Key=key, Body=b"a writer that lost the race for the item")
    assert run("get", "tickets-dark", "--json") == before


def test_most_similar_ticket_is_a_paraphrase(run: Run) -> None:
    rows = [line.split("\t") for line in run("similar", "tickets-locked-out", "--among", "4")]
    assert rows[0][6] == "tickets-refused"
    assert {row[6] for row in rows} == set(TEXTS) - {"tickets-locked-out"}
    cosines = [float(row[0]) for row in rows]
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[0] > 0.6 > cosines[1]
    vectors = [json.loads(*run("get", name, "--json"))["enrichment"]["embedding"] for name in list(TEXTS)[:2]]
    assert cosines[0] == pytest.approx(sum(a * b for a, b in zip(*vectors, strict=True)), abs=1e-4)


def test_ticket_without_text_has_no_similar_tickets(run: Run) -> None:
    result = RUNNER.invoke(app, ["similar", "tickets-empty"])
    assert (result.exit_code, result.stderr) == (
        1,
        "tickets: ticket tickets-empty has no text, so there are no similar tickets\n",
    )


def test_labels_are_counted(run: Run) -> None:
    rows = [line.split("\t") for line in run("count", "--since", SINCE)]
    assert [row[1:] for row in rows if row[0] == "urgency"] == [
        ["critical", "1"], ["high", "1"], ["medium", "1"], ["low", "2"],
    ]  # fmt: skip
    assert {kind: sum(int(row[2]) for row in rows if row[0] == kind) for kind in ("intent", "sentiment")} == {
        "intent": 5,
        "sentiment": 5,
    }


def test_missing_permission_is_a_one_line_error(
    stack: EmbeddedStack, stored: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in credentials_of_user(stack, "tickets-blind", "dynamodb:Query").items():
        monkeypatch.setenv(name, value)
    for command in ("get", "similar"):
        result = RUNNER.invoke(app, [command, "tickets-dark"])
        assert (result.exit_code, result.stdout) == (1, "")
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("tickets: GetObject: AccessDenied: ")
        assert "s3:GetObjectVersion" in result.stderr
        assert "; the role needs " in result.stderr


def test_unreachable_service_is_a_one_line_error(reader: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**reader, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    result = RUNNER.invoke(app, ["get", "tickets-dark"])
    assert result.exit_code == 1
    assert result.stderr == (
        'tickets: Could not connect to the endpoint URL: "http://127.0.0.1:9/"; '
        "check AWS_ENDPOINT_URL and the network\n"
    )


def start(reader: Mapping[str, str], *arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
    """Start the command in a separate process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    command = [sys.executable, "-m", "handler.tickets", *arguments]
    # Wide, because a narrow terminal breaks ids into two lines.
    terminal = {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "200", "LINES": "60"}
    return subprocess.Popen(command, env={**kept, **terminal, **reader}, **streams)


def read_until(output: int, wanted: bytes, seconds: float = 60) -> bytes:
    """Read until the output contains `wanted`, the stream ends, or the time is up."""
    seen, deadline = b"", time.monotonic() + seconds
    while wanted not in seen and select.select([output], [], [], max(0.0, deadline - time.monotonic()))[0]:
        try:
            part = os.read(output, 65536)
        except OSError:  # a closed terminal on Linux
            break
        if not part:
            break
        seen += part
    assert wanted in seen
    return seen


def test_watch_updates_a_terminal_until_ctrl_c(reader: Mapping[str, str], enrich: Enrich, run: Run) -> None:
    master, slave = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
    with start(reader, "show", "--urgency", "low", "--watch", "0.1", start_new_session=True, **streams) as process:
        os.close(slave)
        try:
            read_until(master, b"tickets-empty")
            enrich(raw("tickets-watched", WATCHED, "Hello", "Where can I read about the new plans?", "low"))
            read_until(master, b"tickets-watched")
            process.send_signal(signal.SIGINT)
            assert b"Traceback" not in read_until(master, b"\x1b[?25h")  # the cursor is shown again
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(master)


def test_watch_writes_each_ticket_once_to_a_pipe(reader: Mapping[str, str], enrich: Enrich, run: Run) -> None:
    arguments = ("show", "--urgency", "critical", "--since", SINCE_WATCHED, "--watch", "0.1", "--json")
    with start(reader, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            first = read_until(process.stdout.fileno(), b"\n")
            enrich(raw("tickets-piped", WATCHED, "Down", "The whole shop is down.", "critical"))
            second = read_until(process.stdout.fileno(), b"\n")
            process.send_signal(signal.SIGTERM)
            rest, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    found = [json.loads(line)["ticket_id"] for line in (first + second + rest).splitlines()]
    assert found == ["tickets-refused", "tickets-piped"]
    assert (process.returncode, errors) == (0, b"")


def test_watch_on_a_closed_pipe_prints_no_traceback(reader: Mapping[str, str], run: Run) -> None:
    with start(reader, "show", "--watch", "0.1", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == b""
