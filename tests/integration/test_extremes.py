"""The worst texts end in a result or a clear rejection, within the budget of memory, and no batch outruns its time."""

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
    """What the process printed; memory is its own, not that of the tests."""
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
    hurried = found["hurried"]
    assert 0 < len(hurried["failed"]) <= 10
    assert hurried["spare_share"] > 0  # it came back while there was time
    assert all(15 <= seconds <= 30 for seconds in hurried["waits"])  # deferred: soon there may be more time
    assert hurried["failed_again"] == []
    assert len(hurried["stored"]) == 10
