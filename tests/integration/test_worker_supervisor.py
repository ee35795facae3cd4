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
from handler.worker import watchdog
from handler.worker.prometheus import PrometheusMetrics
from handler.worker.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Appends its pid to a file, reports as a process of the worker does, and lives as long as its standard input is open.
CHILD = """
import ctypes, json, os, signal, sys
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
if kind.startswith("batch"):
    if kind == "batch stuck" and number >= 1:
        sys.stdin.read()
    batch = {"message_ids": ["m1", "m2"], "receipts": ["r1", "r2"], "visibility_timeout": 1, "seconds": 1.5}
    report(batch_started=batch)
    if kind == "batch done":
        report(batch_finished=True)
    # Called through PyDLL, sleep holds the interpreter lock.
    ctypes.PyDLL(None).sleep(3 if kind == "batch slow" else 600 if kind == "batch stuck" else 0)
    report(batch_finished=True)
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
        self.changes: list[tuple[list[str], int]] = []
        self.confirms = True
        self.supervisor = Supervisor(
            lambda descriptor: [sys.executable, "-S", "-c", CHILD, str(descriptor), kind, str(self._pids)],
            wanted,
            grace,
            change_visibility=self.change_visibility,
            metrics=self.metrics,
            # A name given twice would be the same logger, which writes to where it first wrote.
            logger=Logger(service=str(uuid4()), level="INFO", logger_handler=logging.StreamHandler(self._log)),
        )

    def change_visibility(self, receipts: Sequence[str], seconds: int) -> list[bool]:
        self.changes.append((list(receipts), seconds))
        return [self.confirms] * len(receipts)

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
    monkeypatch.setattr(module, "_MOST_PAUSE", 0.01)


@pytest.mark.parametrize("wanted", [1, 3])
def test_all_start_and_all_end(tmp_path: Path, wanted: int) -> None:
    crew = Crew(tmp_path, wanted=wanted)
    assert crew.supervisor.not_ready() == f"0 of {wanted} processes have loaded the bundle"
    assert crew.run(crew.ready) == 0
    assert len(crew.pids) == wanted
    assert not any(map(is_alive, crew.pids))
    assert crew.supervisor.not_ready() == "draining"
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
    assert crew.log.count("ended unasked") == 1
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
    assert crew.supervisor.failure == "5 processes in a row ended before they were ready (code 3)"
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
    assert crew.supervisor.failure == "a process did not end in good order (code -9); its messages come back"


def test_second_signal_kills(tmp_path: Path) -> None:
    crew = Crew(tmp_path, kind="stubborn", grace=1000)

    def ask_once() -> None:
        crew.ready()
        os.kill(os.getpid(), signal.SIGINT)
        eventually(lambda: crew.supervisor.not_ready() == "draining")

    assert crew.run(ask_once) == 1
    assert not any(map(is_alive, crew.pids))


def test_process_that_ends_badly_is_said(tmp_path: Path) -> None:
    crew = Crew(tmp_path, kind="sore")
    assert crew.run(crew.ready) == 1
    assert crew.supervisor.failure == "a process did not end in good order (code 5); its messages come back"


def test_signal_before_a_process_has_its_handlers_is_no_failure(tmp_path: Path) -> None:
    slow = [sys.executable, "-S", "-c", "import time; open({!r}, 'w').close(); time.sleep(60)"]
    mark = tmp_path / "mark"
    crew = Crew(tmp_path)
    crew.supervisor._command = lambda _: [*slow[:-1], slow[-1].format(str(mark))]
    assert crew.run(lambda: eventually(mark.exists)) == 0
    assert crew.supervisor.failure is None


@pytest.mark.parametrize("confirms", [True, False])
def test_visibility_is_renewed_while_a_process_holds_the_interpreter_lock(tmp_path: Path, confirms: bool) -> None:
    crew = Crew(tmp_path, kind="batch slow")
    crew.confirms = confirms

    def renewed() -> None:
        eventually(lambda: len(crew.changes) >= 4)

    assert crew.run(renewed) == 0
    assert crew.changes[:4] == [(["r1", "r2"], 1)] * 4
    assert ("could not be renewed" in crew.log) is not confirms


def test_visibility_of_a_finished_batch_is_not_renewed(tmp_path: Path) -> None:
    crew = Crew(tmp_path, kind="batch done")

    def wait() -> None:
        crew.ready()
        time.sleep(1)

    assert crew.run(wait) == 0
    assert crew.changes == []


def test_process_that_overruns_is_killed_and_its_messages_come_back_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "_OVERRUN", 1.0)
    crew, reasons = Crew(tmp_path, kind="batch stuck"), set[str | None]()

    def replaced() -> None:
        def is_replaced() -> bool:
            reasons.add(crew.supervisor.not_ready())
            return len(crew.pids) == 2

        eventually(is_replaced)
        crew.ready()

    assert crew.run(replaced) == 0
    assert "a batch overruns its time" in reasons
    assert crew.changes[-2:] == [(["r1"], 0), (["r2"], 1)]
    assert crew.log.count("a batch overruns its time; its process is killed") == 1
    assert crew.value("ticket_process_restarts_total") == 1


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
