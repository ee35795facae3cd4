"""The parent replaces its processes and ends them in time; the processes here are real but trivial."""

from __future__ import annotations

import io
import json
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
from tests.support.waiting import eventually, killed_at_end

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Appends its pid to a file, reports as a worker process does, and runs until its standard input is closed.
CHILD = """
import ctypes, json, os, signal, sys, time
descriptor, kind, pids = int(sys.argv[1]), sys.argv[2], sys.argv[3]
ignore, exit_code = kind == "ignores SIGTERM", 5 if kind == "failing" else 0
signal.signal(signal.SIGTERM, signal.SIG_IGN if ignore else lambda *_: sys.exit(exit_code))
number = len(open(pids).readlines())
with open(pids, "a") as file:
    file.write(f"{os.getpid()}\\n")
def report(**what):
    os.write(descriptor, json.dumps(what).encode() + b"\\n")
if kind == "fatal":
    report(fatal="there is no bundle at /nowhere; build one")
    sys.exit(1)
if kind == "failed start" or (kind == "slow start" and number < 2):
    sys.exit(3)
if kind == "not ready again" and number >= 2:
    sys.stdin.read()
report(metrics=[["started", 1.5], ["outcome", "done", None]])
report(ready=True)
if kind.startswith("batch"):
    if kind == "batch stuck" and number >= 1:
        sys.stdin.read()
    batch = {"number": 1, "queue_url": "q", "visibility_timeout": 1, "seconds": 1.5}
    batch |= {"message_ids": ["m1", "m2"], "receipts": ["r1", "r2"]}
    report(batch_started=batch)
    if kind == "batch done":
        report(batch_finished=1)
    # Called through PyDLL, sleep holds the interpreter lock.
    if kind == "batch settled":
        report(batch_settled=["r1"])
    ctypes.PyDLL(None).sleep(6 if kind in ("batch slow", "batch settled") else 600 if kind == "batch stuck" else 0)
    report(batch_finished=1)
if kind == "breaker" and number == 0:
    report(breaker="open", reason="no ticket can be stored")
    for state in ("half_open", "open", "half_open", "closed"):
        while not os.path.exists(pids + "-" + state):
            time.sleep(0.01)
        os.remove(pids + "-" + state)
        report(breaker=state, reason="no ticket can be stored")
if kind == "incomplete report" and number < 2:
    os.write(descriptor, b'{"metrics": [["outco')
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


class SupervisorHarness:
    """A supervisor of trivial processes, and its observable state."""

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
            # A unique name: a second logger with the same name would write to the first one's stream.
            logger=Logger(service=str(uuid4()), level="INFO", logger_handler=logging.StreamHandler(self._log)),
        )

    def change_visibility(self, queue_url: str, receipts: Sequence[str], seconds: int) -> list[bool]:
        assert queue_url == "q"
        self.changes.append((list(receipts), seconds))
        return [self.confirms] * len(receipts)

    def run(self, action: Callable[[], object]) -> int:
        """Run the supervisor, and end it with SIGTERM after `action` has returned in another thread."""

        def act() -> None:
            try:
                action()
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

    def wait_until_ready(self) -> None:
        eventually(lambda: self.supervisor.not_ready() is None)

    def value(self, series: str) -> float:
        lines = self.metrics.text().decode().splitlines()
        return float(next(line for line in lines if line.startswith(series)).rpartition(" ")[2])


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
def test_all_processes_start_and_end(tmp_path: Path, wanted: int) -> None:
    harness = SupervisorHarness(tmp_path, wanted=wanted)
    assert harness.supervisor.not_ready() == f"0 of {wanted} processes have loaded the bundle"
    assert harness.run(harness.wait_until_ready) == 0
    assert len(harness.pids) == wanted
    assert not any(map(is_alive, harness.pids))
    assert harness.supervisor.not_ready() == "shutting down"
    assert harness.supervisor.failure is None
    assert harness.value('tickets_total{error_type="",outcome="done"}') == wanted
    assert harness.value("ticket_bundle_load_seconds_sum") == 1.5 * wanted
    assert harness.value("ticket_process_restarts_total") == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_process_is_replaced(tmp_path: Path, number: signal.Signals) -> None:
    harness = SupervisorHarness(tmp_path, wanted=2)

    def kill_one() -> None:
        harness.wait_until_ready()
        os.kill(harness.pids[0], number)
        eventually(lambda: len(harness.pids) == 3)
        harness.wait_until_ready()
        eventually(lambda: harness.value("ticket_processes_ready") == 2)

    assert harness.run(kill_one) == 0
    assert harness.value("ticket_process_restarts_total") == 1
    assert harness.log.count("exited unexpectedly") == 1
    # The reports of the killed process still count.
    assert harness.value('tickets_total{error_type="",outcome="done"}') == 3


def test_incomplete_report_is_ignored(tmp_path: Path) -> None:
    harness = SupervisorHarness(tmp_path, kind="incomplete report")

    def once_replaced() -> None:
        eventually(lambda: len(harness.pids) == 3)
        harness.wait_until_ready()

    assert harness.run(once_replaced) == 0
    assert harness.value('tickets_total{error_type="",outcome="done"}') == 3


def test_fatal_error_is_kept_and_stops_further_starts(tmp_path: Path) -> None:
    harness = SupervisorHarness(tmp_path, kind="fatal", wanted=3)
    assert harness.supervisor.run() == 1
    assert harness.supervisor.failure == "there is no bundle at /nowhere; build one"
    assert len(harness.pids) == 1


def test_repeated_failed_starts_end_the_worker(tmp_path: Path) -> None:
    harness = SupervisorHarness(tmp_path, kind="failed start", wanted=2)
    assert harness.supervisor.run() == 1
    assert harness.supervisor.failure == "5 processes in a row exited before they were ready (code 3)"
    assert len(harness.pids) == 5


def test_failed_starts_are_reset_by_a_success(tmp_path: Path) -> None:
    harness = SupervisorHarness(tmp_path, kind="slow start", wanted=2)
    assert harness.run(harness.wait_until_ready) == 0
    assert len(harness.pids) == 4
    assert harness.value("ticket_process_restarts_total") == 2


def test_process_that_exceeds_the_grace_period_is_killed(tmp_path: Path) -> None:
    harness = SupervisorHarness(tmp_path, kind="ignores SIGTERM", grace=0.3)
    assert harness.run(harness.wait_until_ready) == 1
    assert not any(map(is_alive, harness.pids))
    assert (
        harness.supervisor.failure
        == "a process did not shut down cleanly (code -9); its messages will be delivered again"
    )


def test_second_signal_kills_processes(tmp_path: Path) -> None:
    harness = SupervisorHarness(tmp_path, kind="ignores SIGTERM", grace=1000)

    def ask_once() -> None:
        harness.wait_until_ready()
        os.kill(os.getpid(), signal.SIGINT)
        eventually(lambda: harness.supervisor.not_ready() == "shutting down")

    assert harness.run(ask_once) == 1
    assert not any(map(is_alive, harness.pids))


def test_failed_exit_of_a_process_is_reported(tmp_path: Path) -> None:
    harness = SupervisorHarness(tmp_path, kind="failing")
    assert harness.run(harness.wait_until_ready) == 1
    assert (
        harness.supervisor.failure
        == "a process did not shut down cleanly (code 5); its messages will be delivered again"
    )


def test_signal_before_handlers_are_installed_is_not_a_failure(tmp_path: Path) -> None:
    slow = [sys.executable, "-S", "-c", "import time; open({!r}, 'w').close(); time.sleep(60)"]
    mark = tmp_path / "mark"
    harness = SupervisorHarness(tmp_path)
    harness.supervisor._command = lambda _: [*slow[:-1], slow[-1].format(str(mark))]
    assert harness.run(lambda: eventually(mark.exists)) == 0
    assert harness.supervisor.failure is None


@pytest.mark.parametrize("confirms", [True, False])
def test_visibility_is_renewed_while_a_process_holds_the_interpreter_lock(tmp_path: Path, confirms: bool) -> None:
    harness = SupervisorHarness(tmp_path, kind="batch slow")
    harness.confirms = confirms

    def renewed() -> None:
        eventually(lambda: len(harness.changes) >= 4)

    assert harness.run(renewed) == 0
    assert harness.changes[:4] == [(["r1", "r2"], 1)] * 4
    assert ("could not be renewed" in harness.log) is not confirms


def test_visibility_of_settled_messages_is_not_renewed(tmp_path: Path) -> None:
    harness = SupervisorHarness(tmp_path, kind="batch settled")
    assert harness.run(lambda: eventually(lambda: len(harness.changes) >= 2)) == 0
    assert harness.changes[:2] == [(["r2"], 1)] * 2


def test_messages_of_a_process_that_died_are_logged(tmp_path: Path) -> None:
    harness = SupervisorHarness(tmp_path, kind="batch settled")

    def kill() -> None:
        eventually(lambda: bool(harness.changes))
        os.kill(harness.pids[0], signal.SIGKILL)
        eventually(lambda: len(harness.pids) == 2)

    assert harness.run(kill) == 0
    (line,) = [json.loads(line) for line in harness.log.splitlines() if "exited unexpectedly" in line]
    assert line["message_ids"] == ["m2"]


def test_visibility_of_a_finished_batch_is_not_renewed(tmp_path: Path) -> None:
    harness = SupervisorHarness(tmp_path, kind="batch done")

    def wait() -> None:
        harness.wait_until_ready()
        time.sleep(1)

    assert harness.run(wait) == 0
    assert harness.changes == []


def test_process_that_overruns_is_killed_and_its_messages_come_back_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "_OVERRUN", 1.0)
    harness, reasons = SupervisorHarness(tmp_path, kind="batch stuck"), set[str | None]()

    def replaced() -> None:
        def is_replaced() -> bool:
            reasons.add(harness.supervisor.not_ready())
            return len(harness.pids) == 2

        eventually(is_replaced)
        harness.wait_until_ready()

    assert harness.run(replaced) == 0
    assert "a batch overruns its time" in reasons
    assert harness.changes[-2:] == [(["r1"], 0), (["r2"], 1)]
    assert harness.log.count("a batch overruns its time; its process is killed") == 1
    assert harness.value("ticket_process_restarts_total") == 1


def test_open_breaker_turns_readiness_red_and_nothing_else(tmp_path: Path) -> None:
    harness = SupervisorHarness(tmp_path, kind="breaker", wanted=2)
    reason = "1 of 2 processes have stopped receiving for now: no ticket can be stored"

    def processes(state: str) -> float:
        return harness.value(f'ticket_breaker_processes{{state="{state}"}}')

    def change(state: str) -> None:
        (tmp_path / f"pids-{state}").touch()
        eventually(lambda: processes(state) >= 1)

    def once_closed() -> None:
        eventually(lambda: harness.supervisor.not_ready() == reason)
        eventually(lambda: (processes("open"), processes("closed")) == (1, 1))
        assert harness.supervisor.not_started() is None
        change("half_open")
        assert harness.supervisor.not_ready() is None
        change("open")
        assert harness.supervisor.not_ready() == reason
        change("half_open")
        (tmp_path / "pids-closed").touch()
        eventually(lambda: processes("closed") == 2)
        assert harness.supervisor.not_ready() is None

    assert harness.run(once_closed) == 0
    assert harness.value("ticket_breaker_openings_total") == 1  # failed attempts to close it are not counted again
    assert harness.value("ticket_process_restarts_total") == 0


def test_worker_has_started_once_all_processes_were_ready(tmp_path: Path) -> None:
    harness = SupervisorHarness(tmp_path, kind="not ready again", wanted=2)
    assert harness.supervisor.not_started() == "0 of 2 processes have loaded the bundle"

    def kill_one() -> None:
        harness.wait_until_ready()
        eventually(lambda: harness.value("ticket_processes_ready") == 2)
        os.kill(harness.pids[0], signal.SIGKILL)
        eventually(lambda: harness.value("ticket_processes_ready") == 1)
        assert harness.supervisor.not_ready() == "1 of 2 processes have loaded the bundle"
        assert harness.supervisor.not_started() is None

    assert harness.run(kill_one) == 0


def test_processes_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    parent = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).resolve().parents[2])!r}, {str(Path(__file__).parent)!r}]
from test_worker_supervisor import SupervisorHarness
SupervisorHarness(Path({str(tmp_path)!r}), wanted=2).supervisor.run()
"""
    with killed_at_end(subprocess.Popen([sys.executable, "-c", parent])) as process:
        pids = tmp_path / "pids"
        eventually(lambda: pids.exists() and len(pids.read_text().splitlines()) == 2)
        process.kill()
    children = [int(line) for line in pids.read_text().splitlines()]
    eventually(lambda: not any(map(is_alive, children)))
