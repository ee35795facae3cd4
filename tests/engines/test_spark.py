"""deploy/engines/spark.py in Spark's local mode with two cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.engines.conftest import Tickets, check_lines, check_parquet, processes
from tests.support.waiting import eventually, killed_at_end

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "deploy" / "engines" / "spark.py"
DAEMON = "pyspark.daemon"
# Two cores; a task may fail three times, as on a cluster. Local mode alone allows no failure.
OPTIONS = (
    "--master local[2,4] --driver-memory 1g --conf spark.ui.enabled=false --conf spark.driver.bindAddress=127.0.0.1"
)


def start(source: Path, out: Path, bundle: Path, *more: str) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_SUBMIT_ARGS": f"{OPTIONS} pyspark-shell",
        "PYTHONPATH": str(REPOSITORY),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    command = [sys.executable, str(SCRIPT), str(source), str(out), "--bundle", str(bundle), *more]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def workers(pid: int) -> list[psutil.Process]:
    """The busy workers of a driver; the daemon that forks them has the same command line, and may be busy too."""
    found = []
    for each in processes(pid, DAEMON):
        with suppress(psutil.Error):  # it may have ended
            parent = each.parent()
            if parent is not None and DAEMON in " ".join(parent.cmdline()):
                found.append(each)
    return found


def test_lines_to_lines_with_a_killed_worker(
    tickets: Tickets, expected: Callable[[bytes], dict[str, Any]], bundle: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", ""
    with killed_at_end(start(tickets.lines, out, bundle, "--output", "jsonl")) as process:
        eventually(lambda: workers(process.pid) or process.poll() is not None, seconds=600)
        workers(process.pid)[-1].kill()
        _, log = process.communicate()
    assert process.returncode == 0, log
    assert "Python worker exited unexpectedly" in log  # and its task was done again
    (out / "_SUCCESS").unlink()
    check_lines(out, tickets, expected)


def test_parquet_to_parquet(
    tickets: Tickets, expected: Callable[[bytes], dict[str, Any]], bundle: Path, tmp_path: Path
) -> None:
    with killed_at_end(
        start(tickets.parquet, tmp_path / "out", bundle, "--input", "parquet", "--raw", "raw")
    ) as process:
        _, log = process.communicate()
    assert process.returncode == 0, log
    check_parquet(tmp_path / "out", tickets, expected)
