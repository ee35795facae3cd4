"""`python -m enrichment`: JSON lines in, JSON lines out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from enrichment.__main__ import main

TICKET = {"ticket_id": "T-1", "subject": "Refund", "body": "Where is my refund?", "created_at": 1, "customer_id": "C-1"}


def test_valid_lines_are_enriched_and_invalid_lines_reported(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tickets.jsonl"
    file.write_text("\n".join([json.dumps(TICKET), "", "not json", json.dumps(TICKET | {"ticket_id": "T-2"})]))
    code = main(["--bundle", str(bundle), str(file)])
    captured = capfd.readouterr()
    assert code == 1
    assert [json.loads(line)["ticket_id"] for line in captured.out.splitlines()] == ["T-1", "T-2"]
    assert json.loads(captured.out.splitlines()[0])["enrichment"]["intent"] == "payment_issue"
    assert f"{file}:3: schema_violation: the ticket is not valid JSON" in captured.err
    assert "2 enriched, 1 failed" in captured.err


def test_stdin_is_enriched(bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "enrichment", "--bundle", bundle, "-"],
        input=json.dumps(TICKET).encode(),
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["enrichment"]["embedding"]


@pytest.mark.parametrize("missing", ["bundle", "file"])
def test_missing_path_is_a_one_line_error(
    bundle: Path, tmp_path: Path, missing: str, capfd: pytest.CaptureFixture[str]
) -> None:
    nothing = tmp_path / "nothing"
    code = main(["--bundle", str(nothing if missing == "bundle" else bundle), str(nothing)])
    error = capfd.readouterr().err
    assert code == 2
    assert str(nothing) in error
    assert error.count("\n") == 1
