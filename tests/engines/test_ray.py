"""deploy/engines/ray_data.py on a Ray cluster of one node with two cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.conftest import Tickets, check_lines, check_parquet, processes
from tests.support.waiting import eventually, killed_at_end

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "deploy" / "engines" / "ray_data.py"


class Cluster:
    """A Ray node. Its processes are the children of `pid`."""

    def __init__(self, pid: int, address: str) -> None:
        self.pid = pid
        self._env = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(REPOSITORY)}

    def start(self, source: Path, out: Path, bundle: Path, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPT), str(source), str(out), "--bundle", str(bundle), "--actors", "2", *more]
        return subprocess.Popen(command, env=self._env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    def run(self, source: Path, out: Path, bundle: Path, *more: str) -> None:
        with killed_at_end(self.start(source, out, bundle, *more)) as process:
            _, said = process.communicate()
        assert process.returncode == 0, said


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    port = "63791"
    env = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A busy machine needs more than the half minute that are the defaults.
        "RAY_raylet_start_wait_time_s": "300",
        "RAY_agent_register_timeout_ms": "300000",
    }
    ray = str(Path(sys.executable).with_name("ray"))
    options = ["--head", "--block", "--num-cpus", "2", "--node-ip-address", "127.0.0.1", "--port", port]
    small = ["--include-dashboard", "false", "--object-store-memory", "200000000"]
    log = tmp_path_factory.mktemp("ray") / "log"
    with (
        log.open("w") as file,
        killed_at_end(subprocess.Popen([ray, "start", *options, *small], env=env, stdout=file, stderr=file)) as node,
    ):
        eventually(lambda: "Ray runtime started" in log.read_text() or node.poll() is not None, seconds=600)
        assert node.poll() is None, log.read_text()
        yield Cluster(node.pid, f"127.0.0.1:{port}")
        node.terminate()
        node.wait(60)


def test_lines_to_lines_with_a_killed_actor(
    cluster: Cluster, tickets: Tickets, expected: Callable[[bytes], dict[str, Any]], bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with killed_at_end(cluster.start(tickets.lines, out, bundle, "--output", "jsonl")) as process:
        eventually(lambda: processes(cluster.pid, "Enrich") or process.poll() is not None, seconds=600)
        [actor, *_] = processes(cluster.pid, "Enrich")
        actor.kill()
        _, said = process.communicate()
    assert process.returncode == 0, said
    check_lines(out, tickets, expected)


def test_parquet_to_parquet(
    cluster: Cluster, tickets: Tickets, expected: Callable[[bytes], dict[str, Any]], bundle: Path, tmp_path: Path
) -> None:
    cluster.run(tickets.parquet, tmp_path / "out", bundle, "--input", "parquet", "--raw", "raw")
    check_parquet(tmp_path / "out", tickets, expected)
