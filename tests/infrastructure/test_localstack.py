"""How `make test-localstack` finds its Python, and that its pins are exact."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ENDTOEND = Path(__file__).resolve().parents[1] / "endtoend"


def search(home: Path) -> subprocess.CompletedProcess[str]:
    """The result of the search if PATH is empty and this is pyenv's folder."""
    return subprocess.run(
        [sys.executable, ENDTOEND / "interpreter.py"],
        env={"PATH": str(home / "nowhere"), "PYENV_ROOT": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def fake_python(home: Path, version: str, answer: str) -> Path:
    """Create a program in pyenv's folder that prints a version."""
    python = home / "versions" / version / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{answer}\n")
    python.chmod(0o755)
    return python


def test_missing_python_exits_1_with_one_line(tmp_path: Path) -> None:
    ran = search(tmp_path)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.fullmatch(r"test-localstack: nothing was tested, .*\n", ran.stderr)


def test_newest_pyenv_version_is_used(tmp_path: Path) -> None:
    fake_python(tmp_path, "3.12.9", "echo 3 12")
    newest = fake_python(tmp_path, "3.13.0", "echo 3 13")
    fake_python(tmp_path, "3.11.7", "echo 3 11")
    assert search(tmp_path).stdout == f"{newest}\n"


@pytest.mark.parametrize("answer", ["exit 127", "echo 3 11", "echo no module named ensurepip >&2; exit 1"])
def test_broken_or_old_python_is_skipped(answer: str, tmp_path: Path) -> None:
    fake_python(tmp_path, "3.13.0", answer)
    good = fake_python(tmp_path, "3.12.1", "echo 3 12")
    assert search(tmp_path).stdout == f"{good}\n"


def test_every_pin_is_exact() -> None:
    lines = (ENDTOEND / "localstack-constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert "localstack-core==4.14.0" in pins
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin) for pin in pins)


def test_plugin_entry_points_exist() -> None:
    project = tomllib.loads((ENDTOEND / "plugin" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    source = (ENDTOEND / "plugin" / "ticket_localstack.py").read_text(encoding="utf-8")
    for points in project["entry-points"].values():
        for place in points.values():
            module, _, name = place.partition(":")
            assert module == "ticket_localstack"
            assert re.search(rf"^(class|def) {name}\b", source, re.MULTILINE)
