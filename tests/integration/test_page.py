"""`tickets serve` and `make demo PAGE=1` as processes: the link, the end, and what stops them from starting."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from handler.local import EmbeddedStack


def start(environment: dict[str, str], *command: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**kept, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Nothing is left of the process, whatever happens, and a hang ends."""
    alarm = threading.Timer(300, process.kill)
    alarm.start()
    try:
        with process:
            yield process
    finally:
        alarm.cancel()
        process.kill()


def get(port: int, path: str, cookie: str = "") -> tuple[int, str, str]:
    """The status, the cookie that is set, and the text of an answer."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
        connection.request("GET", path, headers={"Cookie": cookie})
        answer = connection.getresponse()
        return answer.status, (answer.getheader("set-cookie") or "").partition(";")[0], answer.read().decode()


def link_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The port and the path of the next link that the process prints."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.fullmatch(r"http://127\.0\.0\.1:(\d+)(/\?token=\S+)\n", line):
            return int(found[1]), found[2]
    raise AssertionError(process.stderr.read() if process.stderr else "no link")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_server_ends_cleanly_with_an_open_live_list(stack: EmbeddedStack, number: signal.Signals) -> None:
    with ended(start(stack.environment(), "handler.tickets", "serve", "--port", "0")) as process:
        port, path = link_of(process)
        status, cookie, _ = get(port, path)
        assert status == 303
        assert link_of(process) != (port, path)
        assert get(port, "/", cookie)[0] == 200
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
            connection.request("GET", "/feed", headers={"Cookie": cookie})
            with connection.getresponse() as feed:
                assert feed.readline() == b"retry: 2000\n"
                process.send_signal(number)
                _, errors = process.communicate()
        assert (process.returncode, errors) == (0, "Open this link; Ctrl-C stops.\n")


def test_only_the_loopback_address_is_bound(stack: EmbeddedStack) -> None:
    with ended(start(stack.environment(), "handler.tickets", "serve", "--port", "0")) as process:
        port, _ = link_of(process)
        listening = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
        ports = {fields[1] for fields in listening if fields[3] == "0A" and fields[1].endswith(f":{port:04X}")}
        assert ports == {f"0100007F:{port:04X}"}
        process.terminate()  # perhaps before it serves
        process.communicate()
        assert process.returncode == 0


def test_port_in_use_is_one_line(stack: EmbeddedStack) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with ended(start(stack.environment(), "handler.tickets", "serve", "--port", str(port))) as process:
            _, errors = process.communicate()
    assert process.returncode == 1
    assert errors == f"tickets: port {port} is in use; end what uses it, or take a free one: --port 0\n"


def test_missing_settings_are_one_line() -> None:
    with ended(start({"TABLE_NAME": "", "ENRICHED_BUCKET": "x"}, "handler.tickets", "serve")) as process:
        _, errors = process.communicate()
    assert (process.returncode, errors) == (2, "tickets: set TABLE_NAME in the environment\n")


def test_demo_serves_its_tickets(bundle: Path) -> None:
    demo = start({}, "handler.local.demo", "--bundle", str(bundle), "--count", "12", "--page")
    with ended(demo) as process:
        port, path = link_of(process)
        _, cookie, _ = get(port, path)
        _, _, text = get(port, "/", cookie)
        assert len(re.findall(r"data-key=", text)) == 7  # 12, of which four are invalid and one is a duplicate
        found = re.search(r'class="subject"[^>]* href="([^"]*)"', text)
        assert found is not None
        assert '<ul class="similar">' in get(port, found[1].replace("&amp;", "&"), cookie)[2]
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode == 0
