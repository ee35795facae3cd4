"""Memory of a backfill of a million keys."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]


def test_backfill_of_a_million_keys_uses_constant_memory(tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    command = [sys.executable, "-m", "tests.support.dlq_million", str(audit)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["sent"] == found["replayed"] == 1_000_000
    assert abs(found["blocks_grown"]) < 10_000  # one block per key would be 980,000
    assert found["bytes_peak"] < 2_000_000
    assert found["bytes_grown"] < 100_000  # over 30,000 keys
    assert audit.stat().st_size < 20_000_000
