"""Extreme texts are enriched or clearly rejected, within the memory budget, and no batch exceeds its time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.extremes import BODIES

BUDGET = 400  # MB, of the whole process with the compact bundle
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found(bundle: Path) -> dict[str, Any]:
    """The output of a separate process, so that its memory does not include that of the tests."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.support.extremes", str(bundle)],
        cwd=REPOSITORY,
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},  # as template.yaml has it
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout.splitlines()[-1]))


@pytest.mark.parametrize("kind", BODIES)
def test_any_text_is_enriched(found: dict[str, Any], kind: str) -> None:
    assert found["outcomes"][kind] == ["done"]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("a lone surrogate", "schema_violation"),
        ("a lone surrogate in a name", "schema_violation"),
        ("beyond 1 MiB", "object_too_large"),
    ],
)
def test_unstorable_ticket_is_rejected(found: dict[str, Any], kind: str, code: str) -> None:
    assert found["outcomes"][kind] == [code]


def test_peak_memory_is_within_budget(found: dict[str, Any]) -> None:
    assert found["peak_mb"] < BUDGET


def test_tickets_out_of_time_fail_before_the_deadline_and_succeed_later(found: dict[str, Any]) -> None:
    out_of_time = found["out_of_time"]
    assert 0 < len(out_of_time["failed"]) <= 10
    assert out_of_time["spare_share"] > 0  # it returned before the deadline
    assert all(15 <= seconds <= 30 for seconds in out_of_time["waits"])  # deferred for a short time
    assert out_of_time["failed_again"] == []
    assert len(out_of_time["stored"]) == 10
