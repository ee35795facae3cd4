"""ONNX Runtime, as the library starts it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENRICH = """
import sys
from enrichment import Enricher, RawTicket
ticket = RawTicket(ticket_id="T", customer_id="C", created_at=1, subject="Login", body="My password is refused.")
[result] = Enricher.open(sys.argv[1]).enrich([ticket])
assert result.intent == "login_issue"
"""
BARE = """
import onnxruntime as ort, sys
ort.InferenceSession(sys.argv[1] + "/encoder.onnx", providers=["CPUExecutionProvider"])
"""


def _left_behind(program: str, bundle: Path, home: Path) -> list[str]:
    # Nothing of this environment: on CI machines ONNX Runtime is quiet by itself.
    environment = {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", program, str(bundle)]
    subprocess.run(command, cwd=home, env=environment, capture_output=True, check=True)
    return sorted(path.name for path in home.rglob("*"))


def test_the_models_leave_no_trace_and_report_to_nobody(bundle: Path, tmp_path: Path) -> None:
    assert _left_behind(ENRICH, bundle, tmp_path) == []


def test_a_bare_session_does_leave_traces(bundle: Path, tmp_path: Path) -> None:
    assert "onnxruntime.db" in _left_behind(BARE, bundle, tmp_path)
