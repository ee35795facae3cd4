"""What surrounds a replay: asking, being asked to end, and errors in one line; and how dead letters are shown."""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from handler.replay import command as replay
from handler.replay.choice import ExpressionInvalid
from handler.replay.display import Groups, letter_row, progress
from handler.replay.queue import QueueFacts, ReplayError, ReplayRefused
from handler.replay.session import check_pair, complain, confirm, ending, reported
from tests.replay_fakes import ARN, letter, text

NOTIFICATION = json.dumps(
    {"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}, "object": {"key": "a+b"}}}]}
)
LIVE = QueueFacts(arn=ARN + "live", dead_letter_arn=ARN + "dead")
DEAD = QueueFacts(arn=ARN + "dead")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A terminal as standard input: what is written into it was typed."""
    outer, inner = pty.openpty()
    with os.fdopen(inner, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield outer
    os.close(outer)


@pytest.mark.parametrize("answer", ["y", "Yes", " YES "])
def test_a_yes_is_a_yes(terminal: int, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.write(terminal, f"{answer}\n".encode())
    confirm("Send?", yes=False)
    assert capsys.readouterr() == ("", "Send? [y/N] ")


@pytest.mark.parametrize("answer", ["n\n", "\n", "yes please\n", "\x04"])
def test_anything_else_is_a_no(terminal: int, answer: str) -> None:
    os.write(terminal, answer.encode())
    with pytest.raises(ReplayError, match="nothing was sent") as caught:
        confirm("Send?", yes=False)
    assert caught.value.exit_code == 1


def test_an_interrupt_at_the_question_is_a_no(terminal: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.stdin, "readline", interrupted)
    with pytest.raises(ReplayError, match="nothing was sent"):
        confirm("Send?", yes=False)


def test_with_yes_nobody_is_requested(terminal: int, capsys: pytest.CaptureFixture[str]) -> None:
    confirm("Send?", yes=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with ending() as halt:
        assert [halt.is_requested] == [False]  # as a list: the type checker believes that it stays so
        os.kill(os.getpid(), number)
        assert halt.is_requested
        halt.pause(3600)  # is over at once
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err.count("finishing the batch in hand") == 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ReplayError("SQS is gone"), 1, "dlq-replay: SQS is gone\n"),
        (ReplayRefused("not like this"), 2, "dlq-replay: not like this\n"),
        (ExpressionInvalid("Unknown function: x()"), 2, "dlq-replay: --match: Unknown function: x()\n"),
        (KeyboardInterrupt(), 1, "dlq-replay: ended at once; messages that were in hand come back by themselves\n"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, reported():
        raise error
    assert caught.value.exit_code == code
    assert capsys.readouterr() == ("", said)


def test_faults_of_our_own_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), reported():
        raise ZeroDivisionError


def test_what_an_error_quotes_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    complain("key \x1b[2J\u202e failed\n")
    assert capsys.readouterr().err == "dlq-replay: key [2J failed\n"


def test_only_a_queue_and_its_own_dead_letters_belong_together() -> None:
    check_pair(DEAD, LIVE, force=False)
    for source, destination in ((LIVE, DEAD), (DEAD, DEAD), (QueueFacts(arn=ARN + "other"), LIVE)):
        with pytest.raises(ReplayRefused, match="--force"):
            check_pair(source, destination, force=False)
        check_pair(source, destination, force=True)


def test_a_dead_letter_queue_with_dead_letters_of_its_own_is_odd(capsys: pytest.CaptureFixture[str]) -> None:
    source = QueueFacts(arn=ARN + "dead", dead_letter_arn=ARN + "deader")
    check_pair(source, LIVE, force=False)
    assert "counts as a receive" in capsys.readouterr().err


def test_letters_are_grouped_by_reason_the_most_frequent_first() -> None:
    groups = Groups()
    for found in (letter(sent_at=5000), letter(reason="b", sent_at=9000), letter(reason="b", sent_at=3000)):
        groups.add(found)
    assert [row.data for row in groups.rows()] == [
        {"reason": "b", "messages": 2, "oldest": "1970-01-01T00:00:03Z", "newest": "1970-01-01T00:00:09Z"},
        {"reason": "redriven", "messages": 1, "oldest": "1970-01-01T00:00:05Z", "newest": "1970-01-01T00:00:05Z"},
    ]


@pytest.mark.parametrize(
    ("body", "subject"),
    [
        ('{"Event": "s3:TestEvent"}', "s3:TestEvent"),
        (NOTIFICATION, "s3://b/a b"),
        ('{"ticket_id": "secret"}', "a ticket of 23 bytes"),
        ("secret", "message_invalid"),
    ],
)
def test_a_letter_is_shown_without_its_body(body: str, subject: str) -> None:
    errors = [{"detail": "it is gone", "error": "object_gone"}, {"error": "throttled"}, "nonsense"]
    found = letter("m-1", body, reason="object_gone", rejection={"errors": errors}, sent_at=0)
    row = letter_row(found)
    assert list(row.cells) == ["1970-01-01T00:00:00Z", "object_gone", "0", "m-1", subject, "it is gone; throttled"]
    assert "secret" not in str(row.cells) + str(row.shown)
    assert row.data["body"] == body


@pytest.mark.parametrize("rejection", [None, {"errors": 3}, {"errors": [3]}, "nonsense"])
def test_a_letter_without_an_explanation_is_shown_too(rejection: object) -> None:
    assert letter_row(letter(rejection=rejection)).cells[-1] == ""


def test_a_whole_letter_is_json() -> None:
    attributes: dict[str, Any] = {"raw": {"DataType": "Binary", "BinaryValue": b"\x00"}, "source": text("mail")}
    data = letter_row(letter(attributes={**attributes, "ReplayCount": text("3", "Number")})).data
    assert data["attributes"] == {"raw": {"binary": "AA=="}, "source": "mail"}
    assert data["replay_count"] == 3
    assert json.dumps(data)


def test_the_bar_shows_rate_and_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("replaying", 20) as advance:
        for done in (0, 10, 25):  # SQS's number was an estimate
            advance(done)
    shown = capsys.readouterr().err
    assert "replaying" in shown
    assert "25/25" in shown
    assert "/s" in shown


def test_the_bar_shows_nothing_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sending", None) as advance:
        advance(7)
    assert capsys.readouterr() == ("", "")


def test_the_command_is_what_the_script_calls(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dlq-replay", "--help"])
    with pytest.raises(SystemExit) as caught:
        replay.main()
    assert caught.value.code == 0
    assert "Without a command: replay." in capsys.readouterr().out
