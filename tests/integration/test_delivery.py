"""Delivery of generated tickets: the rate limiter, the file, the bucket, and the command."""

import ast
import itertools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws
from typer.testing import CliRunner

from events.delivery import RateLimiter
from events.generator import TicketGenerator, app
from tests.support.waiting import killed_at_end

EVENTS = Path(__file__).parents[2] / "events"
START = 1_763_000_000


def _times(rate: float | None, count: int, cost: float = 0.0) -> list[float]:
    """The time of each of `count` tickets, on a clock that only sleeping and `cost` per ticket advance."""
    now, made = 100.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        assert 0 < seconds <= 0.2
        now += seconds

    limiter = RateLimiter(rate, seed=1, clock=lambda: now, sleep=sleep)
    for _ in range(count):
        assert limiter.wait(lambda: False)
        made.append(now)
        now += cost
    return made


def test_default_rate_is_random_and_at_most_seven_per_minute() -> None:
    made = _times(None, 400)
    pauses = [later - earlier for earlier, later in itertools.pairwise(made)]
    assert made[0] == 100
    assert min(pauses) >= 8 - 1e-6
    assert max(pauses) < 15.3
    assert max(pauses) - min(pauses) > 5
    assert all(late - early >= 60 - 1e-6 for early, late in zip(made, made[7:], strict=False))


@pytest.mark.parametrize(("rate", "cost"), [(30, 0.0), (30, 1.5), (0.5, 0.0)])
def test_rate_is_kept(rate: float, cost: float) -> None:
    made = _times(rate, 20, cost)
    assert made[-1] - made[0] == pytest.approx(19 * 60 / rate, rel=0.02)


def test_rate_zero_never_sleeps_and_slow_sinks_cause_no_burst() -> None:
    assert _times(0, 20) == [100.0] * 20
    assert _times(600, 5, cost=1.0) == [100.0, 101.0, 102.0, 103.0, 104.0]


def test_pause_ends_on_shutdown() -> None:
    limiter, answers = RateLimiter(1, clock=lambda: 0.0, sleep=lambda _: None), iter([False, False, False, True])
    assert limiter.wait(lambda: next(answers))
    assert not limiter.wait(lambda: next(answers))


def _run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def test_output_goes_to_a_file_or_stdout(tmp_path: Path) -> None:
    path = tmp_path / "tickets.jsonl"
    path.write_text("old\n")
    arguments = ["--count", "5", "--rate", "0", "--seed", "2", "--start", str(START), "--out"]
    done = _run(*arguments, str(path))
    assert (done.exit_code, done.stderr) == (0, "5 tickets made\n")
    expected = list(itertools.islice(TicketGenerator(2, start=START), 5))
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == expected
    assert _run(*arguments, "-").stdout_bytes == path.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either --bucket NAME or --out"),
        (("--bucket", "b", "--out", "-"), "either --bucket NAME or --out"),
        (("--out", "no/such/folder/x.jsonl"), "cannot write to no/such/folder/x.jsonl: No such file or directory"),
    ],
)
def test_invalid_arguments_are_a_one_line_error(arguments: tuple[str, ...], message: str) -> None:
    done = _run(*arguments)
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with mock_aws():
        yield boto3.client("s3")


def test_bucket_receives_one_object_per_ticket(s3: Any) -> None:
    s3.create_bucket(Bucket="tickets-raw")
    done = _run("--bucket", "tickets-raw", "--count", "3", "--rate", "0", "--seed", "9", "--start", str(START))
    assert (done.exit_code, done.stderr) == (0, "3 tickets made\n")
    for ticket in itertools.islice(TicketGenerator(9, start=START), 3):
        stored = s3.get_object(Bucket="tickets-raw", Key=f"{ticket['ticket_id']}.json")
        assert stored["ContentType"] == "application/json"
        assert json.loads(stored["Body"].read()) == ticket
    assert s3.list_objects_v2(Bucket="tickets-raw")["KeyCount"] == 3


@pytest.mark.usefixtures("s3")
def test_missing_bucket_is_a_one_line_error() -> None:
    done = _run("--bucket", "nowhere", "--count", "1", "--rate", "0")
    assert done.exit_code == 1
    assert "into bucket nowhere: An error occurred (NoSuchBucket)" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("rate", [[], ["--rate", "0"]], ids=["paused", "busy"])
def test_signal_exits_0(number: signal.Signals, rate: list[str]) -> None:
    command = [sys.executable, "-m", "events.generator", "--out", "-", *rate]
    with killed_at_end(
        subprocess.Popen(command, cwd=EVENTS.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ) as process:
        assert process.stdout
        assert process.stderr
        first = process.stdout.readline()
        process.send_signal(number)
        rest = process.stdout.read()  # not communicate(), which skips what readline() has buffered
        stderr = process.stderr.read()
        process.wait(60)
    lines = [first, *rest.splitlines()]
    assert process.returncode == 0
    assert all(json.loads(line)["ticket_id"] for line in lines)
    assert stderr == f"{len(lines)} ticket{'s'[: len(lines) - 1]} made\n"


def test_closed_pipe_is_not_an_error() -> None:
    command = [sys.executable, "-m", "events.generator", "--out", "-", "--rate", "0"]
    with killed_at_end(
        subprocess.Popen(command, cwd=EVENTS.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert re.fullmatch(r"\d+ tickets? made\n", process.stderr.read())
    assert process.returncode == 0


def test_generator_is_standalone_and_imports_boto3_only_for_buckets() -> None:
    for path in EVENTS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            )
            assert not {module.partition(".")[0] for module in modules} & {"handler", "enrichment"}
    code = (
        "import sys; from typer.testing import CliRunner; from events.generator import app; "
        "CliRunner().invoke(app, ['--out', '-', '--count', '1']); "
        "sys.exit(bool({'boto3', 'botocore', 'handler', 'enrichment'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=EVENTS.parent, check=False).returncode == 0
