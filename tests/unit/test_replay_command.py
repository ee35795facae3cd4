"""What `dlq-replay` refuses before it asks AWS for anything: exit code 2, and one line that says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from handler.replay import command as replay
from handler.replay.display import sentence
from handler.replay.jobs import Order
from handler.replay.look import Tally
from handler.replay.move import Move

REPO = Path(__file__).resolve().parents[2]
QUEUES = {
    "DLQ_URL": "https://sqs.invalid/1/dead",
    "QUEUE_URL": "https://sqs.invalid/1/live",
    "RAW_BUCKET": "tickets-raw",
}
AWS = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",  # discard: nothing is there
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_MAX_ATTEMPTS": "1",
}


def run(*arguments: str, **environment: str | None) -> Result:
    env = {**AWS, **QUEUES, **environment}
    return CliRunner().invoke(replay.app, arguments, env=env, catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--native", "--yes", "--reason", "x", "--limit", "3"], "--native goes without --reason, --limit"),
        (["--native", "--yes", "--older-than", "2h"], "--native goes without --older-than"),
        (["--native", "--dry-run", "--audit", "x"], "--native goes without --audit, --dry-run"),
        (["--native", "--max-replays", "3"], "--native goes without --max-replays"),
        (["--native", "--yes", "--rate", "0.5"], "a whole number from 1 to 500"),
        (["--native", "--yes", "--rate", "501"], "a whole number from 1 to 500"),
        (["--from-s3", "s3://tickets-raw/", "--match", "body"], "--from-s3 goes without --match"),
        (["--from-s3", "s3://tickets-raw/", "--native", "--message-id", "x"], "--message-id, --native"),
        (["--from-s3", "tickets-raw/2026"], "is not like s3://bucket/prefix"),
    ],
)
def test_what_does_not_go_together(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.startswith("dlq-replay: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--match", "body."],
        ["--match", "nothing(body)"],
        ["--older-than", "yesterday"],
        ["count", "--newer-than", "2"],
        ["--limit", "0"],
        ["--rate", "0"],
        ["--wait", "0"],
        ["peek", "--yes"],
        ["nonsense"],
        ["--no-such-option"],
    ],
)
def test_options_that_mean_nothing(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_queues_that_nobody_named() -> None:
    assert "--source, or DLQ_URL" in run("--yes", DLQ_URL="").stderr
    assert "--source, or DLQ_URL" in run("count", DLQ_URL="").stderr
    assert "--destination, or QUEUE_URL" in run("--yes", QUEUE_URL="").stderr
    assert run("--yes", QUEUE_URL="").exit_code == 2


def test_an_address_that_is_none() -> None:
    result = run("count", AWS_ENDPOINT_URL="nonsense")
    assert result.exit_code == 2
    assert result.stderr == "dlq-replay: AWS_ENDPOINT_URL: Invalid endpoint: nonsense\n"


def test_a_region_that_nobody_named(tmp_path: Path) -> None:
    result = run("count", AWS_DEFAULT_REGION=None, AWS_REGION=None, AWS_CONFIG_FILE=str(tmp_path / "none"))
    assert result.exit_code == 2
    assert "set AWS_DEFAULT_REGION" in result.stderr


def test_help_names_the_commands_and_the_default() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "Without a command: replay." in result.stdout
    for command in ("count", "peek", "replay"):
        assert command in result.stdout


def test_importing_it_reads_no_environment_and_asks_nobody() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, "-c", "import handler.replay.command"],
        cwd=REPO,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_sentence_says_everything_that_happened_and_nothing_else() -> None:
    assert sentence(Tally(looked=3, chosen=2, replayed=2), "messages") == "2 of 2 chosen messages sent (3 looked at)"
    tally = Tally(looked=9, chosen=7, replayed=1, finished=1, refused=1, failed=1, undeleted=1, interrupted=True)
    said = sentence(tally, "messages")
    for words in ("1 of 7", "only deleted", "1 refused", "1 failed", "sent but not deleted", "interrupted"):
        assert words in said
    assert sentence(Tally(looked=9, chosen=7), "tickets", dry_run=True) == "7 tickets would be sent (9 looked at)"


def test_a_move_that_did_not_end_well_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"CANCELLED": 1, "FAILED": 1, "COMPLETED": 0}
    for status in ("CANCELLED", "FAILED", "COMPLETED"):
        monkeypatch.setattr(replay, "move", lambda order, status=status: Move(status, 3, 9, "why" * answers[status]))
        plain, whole = run("--native", "--yes"), run("--native", "--yes", "--json")
        assert plain.exit_code == whole.exit_code == answers[status]
        assert plain.stdout.startswith(f"3 of about 9 messages moved; {status}")
        assert ("why" in plain.stdout) == (status != "COMPLETED")
        assert json.loads(whole.stdout)["status"] == status


def test_of_many_failures_the_first_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    for number in range(23):
        tally.fail(f"m-{number}", "busy")
    replay._report(tally, "messages", Order(), as_json=False)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "dlq-replay: m-0 failed: busy"
    assert len(said) == 21
    assert said[-1] == "dlq-replay: and 3 more"
