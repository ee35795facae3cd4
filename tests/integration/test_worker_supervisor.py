"""The parent keeps its processes alive, and ends them in time; the processes here are real ones, only small."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from handler.metrics import Logger
from handler.worker import supervisor as module
from handler.worker.prometheus import PrometheusMetrics
from handler.worker.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

# Appends its pid to a file, reports as a process of the worker does, and lives as long as its standard input is open.
CHILD = """
import json, os, signal, sys
descriptor, kind, pids = int(sys.argv[1]), sys.argv[2], sys.argv[3]
signal.signal(signal.SIGTERM, signal.SIG_IGN if kind == "stubborn" else lambda *_: sys.exit(5 if kind == "sore" else 0))
number = len(open(pids).readlines())
with open(pids, "a") as file:
    file.write(f"{os.getpid()}\\n")
def report(**what):
    os.write(descriptor, json.dumps(what).encode() + b"\\n")
if kind == "fatal":
    report(fatal="there is no bundle at /nowhere; build one")
    sys.exit(1)
if kind == "false start" or (kind == "late" and number < 2):
    sys.exit(3)
report(metrics=[["started", 1.5], ["outcome", "done", None]])
report(ready=True)
if kind == "torn" and number < 2:
    os.write(descriptor, b'{"metrics": [["outco')
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


class Crew:
    """A supervisor of small processes, and what can be seen of it."""

    def __init__(self, folder: Path, kind: str = "good", wanted: int = 1, grace: float = 10.0) -> None:
        self._pids = folder / "pids"
        self._pids.touch()
        self._log = io.StringIO()
        self.metrics = PrometheusMetrics()
        self.supervisor = Supervisor(
            lambda descriptor: [sys.executable, "-S", "-c", CHILD, str(descriptor), kind, str(self._pids)],
            wanted,
            grace,
            metrics=self.metrics,
            # A name given twice would be the same logger, which writes to where it first wrote.
            logger=Logger(service=str(uuid4()), level="INFO", logger_handler=logging.StreamHandler(self._log)),
        )

    def run(self, meanwhile: Callable[[], object]) -> int:
        """Run it, and end it by SIGTERM once `meanwhile` has returned in another thread."""

        def act() -> None:
            try:
                meanwhile()
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=act)
        thread.start()
        code = self.supervisor.run()
        thread.join()
        return code

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in self._pids.read_text().splitlines()]

    @property
    def log(self) -> str:
        return self._log.getvalue()

    def ready(self) -> None:
        eventually(lambda: self.supervisor.not_ready() is None)

    def value(self, series: str) -> float:
        lines = self.metrics.text().decode().splitlines()
        return float(next(line for line in lines if line.startswith(series)).rpartition(" ")[2])


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_PAUSE", 0.01)


@pytest.mark.parametrize("wanted", [1, 3])
def test_all_start_and_all_end(tmp_path: Path, wanted: int) -> None:
    crew = Crew(tmp_path, wanted=wanted)
    assert crew.supervisor.not_ready() == f"0 of {wanted} processes have loaded the bundle"
    assert crew.run(crew.ready) == 0
    assert len(crew.pids) == wanted
    assert not any(map(is_alive, crew.pids))
    assert crew.supervisor.not_ready() == "shutting down"
    assert crew.supervisor.failure is None
    assert crew.value('tickets_total{error_type="",outcome="done"}') == wanted
    assert crew.value("ticket_bundle_load_seconds_sum") == 1.5 * wanted
    assert crew.value("ticket_process_restarts_total") == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_process_that_was_killed_is_replaced(tmp_path: Path, number: signal.Signals) -> None:
    crew = Crew(tmp_path, wanted=2)

    def kill_one() -> None:
        crew.ready()
        os.kill(crew.pids[0], number)
        eventually(lambda: len(crew.pids) == 3)
        crew.ready()
        assert crew.value("ticket_processes_ready") == 2

    assert crew.run(kill_one) == 0
    assert crew.value("ticket_process_restarts_total") == 1
    assert crew.log.count("exited unexpectedly") == 1
    # What the first one had told is not forgotten with it.
    assert crew.value('tickets_total{error_type="",outcome="done"}') == 3


def test_half_a_report_is_passed_over(tmp_path: Path) -> None:
    crew = Crew(tmp_path, kind="torn")

    def once_replaced() -> None:
        eventually(lambda: len(crew.pids) == 3)
        crew.ready()

    assert crew.run(once_replaced) == 0
    assert crew.value('tickets_total{error_type="",outcome="done"}') == 3


def test_reason_why_none_can_start_is_kept_and_the_others_are_not_tried(tmp_path: Path) -> None:
    crew = Crew(tmp_path, kind="fatal", wanted=3)
    assert crew.supervisor.run() == 1
    assert crew.supervisor.failure == "there is no bundle at /nowhere; build one"
    assert len(crew.pids) == 1


def test_false_starts_come_to_an_end(tmp_path: Path) -> None:
    crew = Crew(tmp_path, kind="false start", wanted=2)
    assert crew.supervisor.run() == 1
    assert crew.supervisor.failure == "5 processes in a row exited before they were ready (code 3)"
    assert len(crew.pids) == 5


def test_false_starts_are_forgotten_with_success(tmp_path: Path) -> None:
    crew = Crew(tmp_path, kind="late", wanted=2)
    assert crew.run(crew.ready) == 0
    assert len(crew.pids) == 4
    assert crew.value("ticket_process_restarts_total") == 2


def test_process_that_does_not_end_in_time_is_killed(tmp_path: Path) -> None:
    crew = Crew(tmp_path, kind="stubborn", grace=0.3)
    assert crew.run(crew.ready) == 1
    assert not any(map(is_alive, crew.pids))
    assert (
        crew.supervisor.failure == "a process did not shut down cleanly (code -9); its messages will be delivered again"
    )


def test_second_signal_kills(tmp_path: Path) -> None:
    crew = Crew(tmp_path, kind="stubborn", grace=1000)

    def ask_once() -> None:
        crew.ready()
        os.kill(os.getpid(), signal.SIGINT)
        eventually(lambda: crew.supervisor.not_ready() == "shutting down")

    assert crew.run(ask_once) == 1
    assert not any(map(is_alive, crew.pids))


def test_process_that_ends_badly_is_said(tmp_path: Path) -> None:
    crew = Crew(tmp_path, kind="sore")
    assert crew.run(crew.ready) == 1
    assert (
        crew.supervisor.failure == "a process did not shut down cleanly (code 5); its messages will be delivered again"
    )


def test_signal_before_a_process_has_its_handlers_is_no_failure(tmp_path: Path) -> None:
    slow = [sys.executable, "-S", "-c", "import time; open({!r}, 'w').close(); time.sleep(60)"]
    mark = tmp_path / "mark"
    crew = Crew(tmp_path)
    crew.supervisor._command = lambda _: [*slow[:-1], slow[-1].format(str(mark))]
    assert crew.run(lambda: eventually(mark.exists)) == 0
    assert crew.supervisor.failure is None


def test_processes_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    parent = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).resolve().parents[2])!r}, {str(Path(__file__).parent)!r}]
from test_worker_supervisor import Crew
Crew(Path({str(tmp_path)!r}), wanted=2).supervisor.run()
"""
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        pids = tmp_path / "pids"
        eventually(lambda: pids.exists() and len(pids.read_text().splitlines()) == 2)
        process.kill()
    children = [int(line) for line in pids.read_text().splitlines()]
    eventually(lambda: not any(map(is_alive, children)))
