"""The command line: what is refused before AWS is called, and the command lines of earlier versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from handler.aws.sqs import Queue
from handler.dlq import command
from handler.dlq.errors import RequestInvalid

REPO = Path(__file__).resolve().parents[3]
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
    return CliRunner().invoke(command.app, arguments, env=env, catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["redrive", "--yes", "--rate", "0.5"], "a whole number from 1 to 500"),
        (["redrive", "--yes", "--rate", "501"], "a whole number from 1 to 500"),
        (["--native", "--yes", "--rate", "501"], "a whole number from 1 to 500"),
        (["backfill", "tickets-raw/2026"], "does not look like s3://bucket/prefix"),
        (["--from-s3", "tickets-raw/2026"], "does not look like s3://bucket/prefix"),
        (["replay", "--yes", "--from-s3=tickets-raw/2026"], "does not look like s3://bucket/prefix"),
    ],
)
def test_invalid_values_exit_2_with_one_line(arguments: list[str], said: str) -> None:
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
        ["--hidden", "0"],
        ["--hidden=0"],
        ["peek", "--yes"],
        ["redrive", "--reason", "x"],
        ["--native", "--yes", "--limit", "3"],
        ["backfill", "s3://tickets-raw/", "--match", "body"],
        ["--from-s3", "s3://tickets-raw/", "--message-id", "x"],
        ["nonsense"],
        ["--no-such-option"],
    ],
)
def test_options_that_the_command_does_not_have_exit_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [["--hidden", "7"], ["replay", "--hidden=7"], ["--visibility-timeout", "7"]])
def test_hidden_is_an_alias_of_visibility_timeout(arguments: list[str]) -> None:
    assert run(*arguments, DLQ_URL="").stderr.startswith("dlq-replay: name the dead-letter queue")  # it was accepted


@pytest.mark.parametrize("arguments", [[], ["replay"], ["redrive"], ["--native"], ["count"], ["peek"]])
def test_missing_source_exits_2(arguments: list[str]) -> None:
    result = run(*arguments, DLQ_URL="")
    assert (result.exit_code, result.stderr) == (
        2,
        "dlq-replay: name the dead-letter queue: --source, or DLQ_URL in the environment\n",
    )


@pytest.mark.parametrize("arguments", [["--yes"], ["redrive"], ["backfill", "s3://tickets-raw/"]])
def test_missing_destination_exits_2_before_sqs_is_called(arguments: list[str]) -> None:
    result = run(*arguments, QUEUE_URL="")
    assert result.exit_code == 2
    assert "--destination, or QUEUE_URL" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "queue"),
    [
        (["count"], "dead"),
        (["count", "--lane", "live"], "dead"),
        (["count", "--lane", "bulk"], "bulk-dead"),
        (["replay", "--lane", "bulk"], "bulk-dead"),
        (["backfill", "s3://tickets-raw/"], "bulk"),
        (["backfill", "s3://tickets-bulk/"], "bulk"),
        (["backfill", "s3://tickets-raw/", "--lane", "live"], "live"),
    ],
)
def test_lane_chooses_one_of_several_queues(arguments: list[str], queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(_client: object, name: str) -> None:
        raise RequestInvalid(name)

    monkeypatch.setattr(Queue, "find", find)
    several = {
        "DLQ_URL": "https://sqs.invalid/1/dead, https://sqs.invalid/1/bulk-dead",
        "QUEUE_URL": "https://sqs.invalid/1/live,https://sqs.invalid/1/bulk",
        "RAW_BUCKET": "tickets-raw,tickets-bulk",
    }
    assert run(*arguments, **several).stderr == f"dlq-replay: https://sqs.invalid/1/{queue}\n"


def test_lane_for_bulk_needs_a_second_queue() -> None:
    result = run("backfill", "s3://tickets-raw/", "--lane", "bulk")
    assert (result.exit_code, result.stderr) == (
        2,
        "dlq-replay: there is no queue for bulk: only live is named\n",
    )


@pytest.mark.parametrize("queues", ["", "https://sqs.invalid/1/live,"])
def test_missing_entry_of_a_list_exits_2(queues: str) -> None:
    assert run("count", DLQ_URL=queues).stderr.startswith("dlq-replay: name the dead-letter queue")


def test_invalid_endpoint_url_exits_2() -> None:
    result = run("count", AWS_ENDPOINT_URL="nonsense")
    assert result.exit_code == 2
    assert result.stderr == "dlq-replay: AWS_ENDPOINT_URL: Invalid endpoint: nonsense\n"


def test_missing_region_exits_2(tmp_path: Path) -> None:
    result = run("count", AWS_DEFAULT_REGION=None, AWS_REGION=None, AWS_CONFIG_FILE=str(tmp_path / "none"))
    assert result.exit_code == 2
    assert "set AWS_DEFAULT_REGION" in result.stderr


def test_help_names_every_command_and_the_default() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "Without a command: replay." in result.stdout
    for name in ("count", "peek", "replay", "redrive", "backfill"):
        assert name in result.stdout


def test_help_says_how_replay_and_redrive_differ() -> None:
    assert "Unlike `redrive`, it copies the messages itself" in run("replay", "--help").stdout
    assert "StartMessageMoveTask" in run("redrive", "--help").stdout
    assert "--hidden" not in run("replay", "--help").stdout


def test_script_runs_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["dlq-replay", "--help"])
    with pytest.raises(SystemExit) as caught:
        command.main()
    assert caught.value.code == 0
    assert "Without a command: replay." in capsys.readouterr().out


def test_import_reads_no_environment_and_prints_nothing() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, "-c", "import handler.dlq.command"],
        cwd=REPO,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
