"""`python -m enrichment.export compact --corrections` without a base: the shipped bundle, moved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from enrichment.bundle import Bundle
from tests.support.conventions import correction, decided, write_corrections, written_by

ROOT = Path(__file__).parents[2]


def test_without_a_base_the_shipped_bundle_is_moved(bundle: Path, tmp_path: Path) -> None:
    lines = [correction(ticket, urgency=decided(ticket)) for ticket in written_by(0, 300, seed=1)]
    file = write_corrections(tmp_path / "corrections.jsonl", lines)
    out = tmp_path / "moved"
    done = subprocess.run(
        [sys.executable, "-m", "enrichment.export", "compact", "--out", str(out), "--corrections", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == out
    assert {path.name for path in tmp_path.iterdir()} == {"corrections.jsonl", "moved"}
    base, moved = Bundle.open(bundle), Bundle.open(out, verify=True)
    origin = moved.manifest.models.urgency.training["corrections"]
    assert origin["base"] == base.digest  # the bundle that is built without --corrections
    assert moved.manifest.files["encoder.onnx"] == base.manifest.files["encoder.onnx"]
    assert moved.manifest.files["tokenizer.json"] == base.manifest.files["tokenizer.json"]
