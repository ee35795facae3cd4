"""ONNX Runtime as configured by the library: it writes no files, and sessions share memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import onnx.parser

ROOT = Path(__file__).parents[2]
ENRICH = """
import sys
from enrichment import Enricher, RawTicket
ticket = RawTicket(ticket_id="T", customer_id="C", created_at=1, subject="Login", body="My password is refused.")
[result] = Enricher.open(sys.argv[1]).enrich([ticket])
assert result.intent == "login_issue"
"""
PLAIN_SESSION = """
import onnxruntime as ort, sys
ort.InferenceSession(sys.argv[1] + "/encoder.onnx", providers=["CPUExecutionProvider"])
"""


def _files_written(program: str, bundle: Path, home: Path) -> list[str]:
    # A clean environment: on CI machines ONNX Runtime disables telemetry by itself.
    environment = {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", program, str(bundle)]
    subprocess.run(command, cwd=home, env=environment, capture_output=True, check=True)
    return sorted(path.name for path in home.rglob("*"))


def test_enricher_writes_no_files_and_sends_no_telemetry(bundle: Path, tmp_path: Path) -> None:
    assert _files_written(ENRICH, bundle, tmp_path) == []


def test_plain_session_writes_telemetry_files(bundle: Path, tmp_path: Path) -> None:
    assert "onnxruntime.db" in _files_written(PLAIN_SESSION, bundle, tmp_path)


GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
exponentials (float[n] x) => (float[one] sum) {
    powers = Exp (x)
    sum = ReduceSum <keepdims = 1> (powers)
}
"""
MEMORY_OF_SESSIONS = """
import json, sys
from pathlib import Path
import numpy as np, psutil
from enrichment.session import make_session, tidy_run
one, other = (make_session(Path(sys.argv[1]), threads=1) for _ in range(2))
megabytes = []
for session, options, size in ((one, None, 1), (one, None, 64), (other, None, 64), (other, tidy_run(), 1)):
    session.run(None, {"x": np.ones(size << 18, np.float32)}, options)
    megabytes.append(psutil.Process().memory_info().rss / 1e6)
print(json.dumps(megabytes))
"""


def test_sessions_share_and_release_memory(tmp_path: Path) -> None:
    graph = tmp_path / "exponentials.onnx"
    onnx.save(onnx.parser.parse_model(GRAPH), graph)
    done = subprocess.run([sys.executable, "-c", MEMORY_OF_SESSIONS, graph], cwd=ROOT, capture_output=True, check=True)
    before, one, both, tidied = json.loads(done.stdout)
    assert one - before > 50, "the arena keeps 64 MB"
    assert both - one < 10, "the other session reuses it"
    assert tidied - before < 10, "and releases it"
