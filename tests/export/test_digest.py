"""`python -m enrichment.export compact` on two kinds of CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from enrichment.bundle import Bundle

ROOT = Path(__file__).parents[2]


def test_a_bundle_has_one_digest_on_every_cpu(tmp_path: Path) -> None:
    digests = []
    for number, kernels in enumerate((None, "Haswell")):
        environment = {**os.environ} | (
            {"OPENBLAS_CORETYPE": kernels, "ATEN_CPU_CAPABILITY": "avx2"} if kernels else {}
        )
        out = tmp_path / str(number)
        done = subprocess.run(
            [sys.executable, "-m", "enrichment.export", "compact", "--out", str(out)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert "heads: reading" not in done.stderr  # nothing was trained
        digests.append(Bundle.open(out).digest)
    assert digests[0] == digests[1]
