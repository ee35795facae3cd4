"""deploy/engines/ray_data.py on a Ray cluster of this machine, which the program itself starts and ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.engines.conftest import Tickets, check_lines, check_parquet, processes
from tests.support.waiting import eventually, killed_at_end

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "deploy" / "engines" / "ray_data.py"
ENVIRONMENT = {
    "PYTHONPATH": str(REPOSITORY),
    "RAY_ADDRESS": "local",  # not a cluster that somebody else has started here
    "RAY_USAGE_STATS_ENABLED": "0",
    # A busy machine needs more than the half minute that are the defaults.
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_agent_register_timeout_ms": "300000",
}


def start(log: Path, source: Path, out: Path, bundle: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPT), str(source), str(out), "--bundle", str(bundle), "--actors", "2", *more]
    with log.open("w") as file:
        return subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdout=file, stderr=file)


def test_lines_to_lines_with_a_killed_actor(
    tickets: Tickets, expected: Callable[[bytes], dict[str, Any]], bundle: Path, tmp_path: Path
) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    with killed_at_end(start(log, tickets.lines, out, bundle, "--output", "jsonl")) as process:
        eventually(lambda: processes(process.pid, "Enrich") or process.poll() is not None, seconds=600)
        assert process.poll() is None, log.read_text()
        [actor, *_] = processes(process.pid, "Enrich")
        actor.kill()
        assert process.wait(600) == 0, log.read_text()
    check_lines(out, tickets, expected)


def test_parquet_to_parquet(
    tickets: Tickets, expected: Callable[[bytes], dict[str, Any]], bundle: Path, tmp_path: Path
) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    with killed_at_end(start(log, tickets.parquet, out, bundle, "--input", "parquet", "--raw", "raw")) as process:
        assert process.wait(600) == 0, log.read_text()
    check_parquet(out, tickets, expected)
