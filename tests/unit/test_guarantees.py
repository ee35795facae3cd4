"""docs/guarantees.md: every row names tests, and every named test exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TABLE = (REPOSITORY / "docs" / "guarantees.md").read_text(encoding="utf-8")
ROWS = [row for row in TABLE.splitlines() if row.startswith("|") and not row.startswith(("|---", "| Guarantee"))]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py::[\w:]+)`", TABLE)))


@cache
def _names_in(path: Path) -> frozenset[str]:
    """The tests of a file; those in a class as Class::test."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return frozenset(name for name in found if name.rpartition("::")[2].startswith("test_"))


@pytest.mark.parametrize("named", NAMED)
def test_named_test_exists(named: str) -> None:
    path, _, test = named.partition("::")
    assert (REPOSITORY / path).is_file()
    assert test in _names_in(REPOSITORY / path)


def test_every_guarantee_names_a_test() -> None:
    assert len(ROWS) > 40
    for row in ROWS:
        _, guarantee, tests, _ = row.split("|")
        assert guarantee.strip()
        assert re.fullmatch(r"( ?`tests/[\w/]+\.py::[\w:]+`,?)+ ", tests), row


def test_missing_test_is_detected() -> None:
    assert "test_named_test_exists" in _names_in(Path(__file__))
    assert "test_that_nobody_wrote" not in _names_in(Path(__file__))
