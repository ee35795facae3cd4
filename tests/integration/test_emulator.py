"""The embedded stack's process: errors are one line that names the fix, and it cleans up however it ends."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from handler.local import EmbeddedStack, StackError, emulator
from handler.local.__main__ import app
from tests.support.waiting import eventually, killed_at_end

REPO = Path(__file__).resolve().parents[2]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_port_in_use_is_a_one_line_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=rf"^port {port}: .*choose another port$"):
            EmbeddedStack(port=port).start()


def test_missing_package_error_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "_NEEDED", {"no_such_module": "ministack"})
    with pytest.raises(StackError, match=r"^ministack is not installed: pip install '\.\[local\]'$"):
        EmbeddedStack().start()


def test_missing_template_error_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"there is no .*nothing\.yaml"):
        EmbeddedStack(template=tmp_path / "nothing.yaml").start()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Transform: AWS::Serverless-2016-10-31", "Transform: [", "template.yaml could not be created"),
        ("maxReceiveCount: !Ref MaximumReceiveCount", "maxReceiveCount: 0", "TicketQueue"),
    ],
)
def test_broken_template_is_a_one_line_error(tmp_path: Path, old: str, new: str, message: str) -> None:
    broken = tmp_path / "template.yaml"
    broken.write_text((REPO / "template.yaml").read_text().replace(old, new))
    stack = EmbeddedStack(template=broken)
    with pytest.raises(StackError) as caught:
        stack.start()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert stack.pid is not None
    assert not is_alive(stack.pid)


def test_error_quotes_the_failed_child_process() -> None:
    with pytest.raises(StackError, match=r"did not start: .*ModuleNotFoundError"):
        EmbeddedStack(emulator={"PYTHONHOME": "/nonexistent"}).start()


def test_wait_ends_when_the_child_process_ends() -> None:
    with EmbeddedStack() as stack:
        assert stack.pid is not None
        os.kill(stack.pid, signal.SIGKILL)
        with pytest.raises(StackError, match="the embedded stack ended: start it again"):
            stack.wait()
    stack.stop()


def test_command_prints_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def interrupted(_: EmbeddedStack) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(EmbeddedStack, "wait", interrupted)
    result = CliRunner().invoke(app, ["up", "--port", "0", "--parameter", "BulkConcurrency=2"])
    signal.signal(signal.SIGTERM, before)
    assert result.exit_code == 0
    assert "export TABLE_NAME=tickets\n" in result.stdout
    assert re.search(
        r"^export QUEUE_URL=\S+/ticket-processing,\S+/ticket-processing-bulk$", result.stdout, re.MULTILINE
    )
    assert CliRunner().invoke(app, ["up", "--parameter", "BulkConcurrency"]).exit_code == 2


def test_command_with_invalid_port_exits_1() -> None:
    before = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(app, ["up", "--port", "70000"])
    signal.signal(signal.SIGTERM, before)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("port 70000: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_command_cleans_up_after_a_signal(stop_signal: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "handler.local", "up", "--port", "0"],
        cwd=REPO,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with killed_at_end(process) as command:
        assert command.stdout is not None
        lines = iter(command.stdout.readline, "")
        url = next(shlex.split(line)[1] for line in lines if "AWS_ENDPOINT_URL" in line).partition("=")[2]
        port = int(url.rpartition(":")[2])
        children = psutil.Process(command.pid).children()
        command.send_signal(stop_signal)
        assert command.wait(60) == (-stop_signal if stop_signal is signal.SIGKILL else 0)
    assert len(children) == 1
    eventually(lambda: not is_alive(children[0].pid))
    eventually(lambda: not list(tmp_path.iterdir()))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)
