"""What dlq-replay prints: questions, errors in one line, messages without their bodies, a summary."""

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

from handler.cli.shutdown import stopping_on_signals
from handler.dlq.command import _STOPPING, _report
from handler.dlq.errors import DlqError, RequestInvalid, reported, warn
from handler.dlq.options import Options
from handler.dlq.output import confirm, message_row, progress, reason_rows, summary
from handler.dlq.scan import Stats
from handler.errors import ServiceFailed
from tests.support.dlq_queues import dlq_message, text

NOTIFICATION = json.dumps(
    {"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}, "object": {"key": "a+b"}}}]}
)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A terminal as standard input: what is written into it was typed."""
    outer, inner = pty.openpty()
    with os.fdopen(inner, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield outer
    os.close(outer)


# -- confirmation and signals


@pytest.mark.parametrize("answer", ["y", "Yes", " YES "])
def test_yes_confirms(terminal: int, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.write(terminal, f"{answer}\n".encode())
    confirm("Send?", yes=False)
    assert capsys.readouterr() == ("", "Send? [y/N] ")


@pytest.mark.parametrize("answer", ["n\n", "\n", "yes please\n", "\x04"])
def test_any_other_answer_exits_1(terminal: int, answer: str) -> None:
    os.write(terminal, answer.encode())
    with pytest.raises(DlqError, match="nothing was sent") as caught:
        confirm("Send?", yes=False)
    assert caught.value.exit_code == 1


def test_interrupt_at_the_question_is_a_no(terminal: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.stdin, "readline", interrupted)
    with pytest.raises(DlqError, match="nothing was sent"):
        confirm("Send?", yes=False)


def test_yes_option_asks_nothing(terminal: int, capsys: pytest.CaptureFixture[str]) -> None:
    confirm("Send?", yes=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_requests_shutdown_and_the_second_stops(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with stopping_on_signals(_STOPPING) as shutdown:
        requested = [shutdown.is_requested]
        os.kill(os.getpid(), number)
        assert [*requested, shutdown.is_requested] == [False, True]
        shutdown.pause(3600)  # returns at once
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err.count("finishing the current batch") == 1


# -- errors


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DlqError("SQS is gone"), 1, "dlq-replay: SQS is gone\n"),
        (ServiceFailed("ReceiveMessage: gone"), 1, "dlq-replay: ReceiveMessage: gone\n"),
        (RequestInvalid("not like this"), 2, "dlq-replay: not like this\n"),
        (KeyboardInterrupt(), 1, "dlq-replay: stopped immediately; messages in flight become visible when"),
    ],
)
def test_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, reported():
        raise error
    assert caught.value.exit_code == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(said)


def test_our_own_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), reported():
        raise ZeroDivisionError


def test_control_characters_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    warn("key \x1b[2J\u202e failed\n")
    assert capsys.readouterr().err == "dlq-replay: key failed\n"


# -- messages


def test_reasons_are_counted_most_frequent_first() -> None:
    found = [("redriven", 5000), ("b", 9000), ("b", 3000)]
    assert [row.data for row in reason_rows(found)] == [
        {"reason": "b", "messages": 2, "oldest": "1970-01-01T00:00:03Z", "newest": "1970-01-01T00:00:09Z"},
        {"reason": "redriven", "messages": 1, "oldest": "1970-01-01T00:00:05Z", "newest": "1970-01-01T00:00:05Z"},
    ]


@pytest.mark.parametrize(
    ("body", "content"),
    [
        ('{"Event": "s3:TestEvent"}', "s3:TestEvent"),
        (NOTIFICATION, "s3://b/a b"),
        ('{"ticket_id": "secret"}', "a ticket of 23 bytes"),
        ("secret", "message_invalid"),
    ],
)
def test_message_is_shown_without_its_body(body: str, content: str) -> None:
    errors = [{"detail": "it is gone", "error": "object_gone"}, {"error": "throttled"}, "nonsense"]
    row = message_row(dlq_message("m-1", body, reason="object_gone", rejection={"errors": errors}, sent_at=0))
    assert list(row.cells) == ["1970-01-01T00:00:00Z", "object_gone", "0", "m-1", content, "it is gone; throttled"]
    assert "secret" not in str(row.cells) + str(row.shown)
    assert row.data["body"] == body


@pytest.mark.parametrize("rejection", [None, {"errors": 3}, {"errors": [3]}, "nonsense"])
def test_message_without_a_usable_rejection_is_shown(rejection: object) -> None:
    assert message_row(dlq_message(rejection=rejection)).cells[-1] == ""


def test_json_of_a_message_is_complete() -> None:
    attributes: dict[str, Any] = {"raw": {"DataType": "Binary", "BinaryValue": b"\x00"}, "source": text("mail")}
    data = message_row(dlq_message(attributes={**attributes, "ReplayCount": text("3", "Number")})).data
    names = ["message_id", "reason", "sent_at", "replay_count", "rejection", "attributes", "body"]
    assert list(data) == names
    assert data["attributes"] == {"raw": {"binary": "AA=="}, "source": "mail"}
    assert data["replay_count"] == 3
    assert json.dumps(data)


# -- progress and summary


def test_progress_bar_shows_the_rate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("replaying", 20) as advance:
        for done in (0, 10, 25):  # SQS's number was an estimate
            advance(done)
    shown = capsys.readouterr().err
    assert "replaying" in shown
    assert "25/25" in shown
    assert "/s" in shown


def test_no_progress_bar_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sending", None) as advance:
        advance(7)
    assert capsys.readouterr() == ("", "")


def test_summary_mentions_only_what_happened() -> None:
    assert summary(Stats(scanned=3, selected=2, replayed=2), "messages") == "2 of 2 selected messages sent (3 scanned)"
    stats = Stats(scanned=9, selected=7, replayed=1, finished=1, refused=1, failed=1, undeleted=1, interrupted=True)
    said = summary(stats, "messages")
    for words in ("1 of 7", "only deleted", "1 refused", "1 failed", "sent but not deleted", "interrupted"):
        assert words in said
    assert summary(Stats(scanned=9, selected=7), "tickets", dry_run=True) == "7 tickets would be sent (9 scanned)"


def test_first_failures_are_listed_and_the_others_counted(capsys: pytest.CaptureFixture[str]) -> None:
    stats = Stats()
    for number in range(23):
        stats.add_failure(f"m-{number}", "busy")
    _report(stats, "messages", Options())
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "dlq-replay: m-0 failed: busy"
    assert len(said) == 21
    assert said[-1] == "dlq-replay: and 3 more"
