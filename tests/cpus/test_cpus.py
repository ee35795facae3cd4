"""The bundle on older CPUs and on another architecture, where ONNX Runtime uses other kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cpus.machines import REPOSITORY, Machine

MACHINES = (
    Machine("Haswell", "AVX2, neither AVX-512 nor VNNI"),
    Machine("Nehalem", "SSE4.2, no AVX"),
    Machine("neoverse-n1", "Arm's NEON, as Graviton2", arm=True),
)
TICKETS = 3
# Kernels sum in different orders, so that sums near an int8 rounding boundary are rounded differently.
COSINE, SCORE = 0.999, 0.03


@pytest.fixture(scope="module")
def tickets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("cpus") / "tickets.jsonl"
    generator = [sys.executable, "-m", "events.generator", "--seed", "5", "--rate", "0", "--count", str(TICKETS)]
    subprocess.run([*generator, "--out", str(file)], cwd=REPOSITORY, check=True, capture_output=True)
    return file


def enriched(command: list[str]) -> list[dict[str, Any]]:
    # OPENBLAS_CORETYPE names kernels that the emulated CPU may not have.
    env = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-600:]
    return [json.loads(line)["enrichment"] for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def native(bundle: Path, tickets: Path) -> list[dict[str, Any]]:
    return enriched([sys.executable, "-m", "enrichment", "--bundle", str(bundle), str(tickets)])


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.cpu)
def test_results_equal_this_cpu(
    machine: Machine, bundle: Path, tickets: Path, native: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = enriched(machine.command(["-m", "enrichment", "--bundle", str(bundle), str(tickets)]))
    assert len(theirs) == len(native) == TICKETS
    pairs = list(zip(native, theirs, strict=True))
    cosine = min(float(np.dot(ours["embedding"], other["embedding"])) for ours, other in pairs)
    apart, same = 0.0, 0
    for ours, other in pairs:
        for task, scores in ours["scores"].items():
            gap = max(abs(scores[label] - other["scores"][task][label]) for label in scores)
            apart = max(apart, gap)
            first, second = sorted(scores.values(), reverse=True)[:2]
            if first - second > 2 * SCORE:
                assert ours[task] == other[task]
        same += ours["summary"] == other["summary"]
    with capsys.disabled():
        metrics = f"cosine at worst {cosine:.6f}, scores at most {apart:.4f} apart, {same} of {TICKETS} summaries equal"
        sys.stdout.write(f"\n{machine.cpu} ({machine.has}): {metrics}\n")
    assert cosine > COSINE
    assert apart < SCORE
    assert same == TICKETS
