"""Every package of the function consists of the same folders; the wheel contains everything."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deploy.function_packages import FLAT_FOLDERS, FOLDERS, LEFT_OUT, copy_modules

REPO = Path(__file__).resolve().parents[2]
TRAINING_DATA = {path.name for path in (REPO / LEFT_OUT).iterdir() if path.suffix in {".json", ".jsonl"}}


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The function's folders, in a directory of their own."""
    folder = tmp_path_factory.mktemp("function")
    copy_modules(folder)
    return folder


def test_folders_are_packaged_completely(function: Path) -> None:
    packaged = {path.relative_to(function) for path in function.rglob("*") if path.is_file()}
    folders = {path.parent.as_posix() for path in packaged}
    assert {folder for folder in folders if folder.startswith("handler")} == {"handler", "handler/aws"}
    assert folders > {"enrichment", "enrichment/summary"}
    for folder in folders:
        there = {path.relative_to(REPO) for path in (REPO / folder).iterdir() if path.is_file()}
        assert there == {path for path in packaged if path.parent.as_posix() == folder}


def test_training_data_is_not_packaged(function: Path) -> None:
    assert len(TRAINING_DATA) >= 3
    assert not [path for path in function.rglob("*") if path.name in TRAINING_DATA or path.name == "export"]


def test_function_imports_nothing_from_outside_its_folders(function: Path) -> None:
    # -P and only these folders on the path, so that the installed repository is not used.
    program = (
        "import sys, json; sys.path.insert(0, sys.argv[1]);"
        "import handler.app, handler.settings, enrichment;"
        "ours = [m for n, m in sys.modules.items() if n.partition('.')[0] in {'handler', 'enrichment'}];"
        "print(json.dumps([module.__file__ for module in ours]))"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", program, str(function)], check=True, capture_output=True, text=True, cwd=function
    )
    files = {Path(path) for path in json.loads(ran.stdout)}
    assert len(files) > 20
    assert [path for path in files if not path.is_relative_to(function)] == []


def test_flox_image_has_the_same_folders() -> None:
    expression = (REPO / ".flox" / "pkgs" / "ticket-lambda.nix").read_text(encoding="utf-8")
    named = set(re.findall(r"\.\./\.\./([a-z/]+)", expression))
    assert named == {*FOLDERS, *FLAT_FOLDERS, LEFT_OUT, "pyproject"}
    assert f"difference ../../enrichment ../../{LEFT_OUT}" in expression
    assert "readDir ../../handler" in expression  # its subfolders are removed before handler/aws is added


def test_wheel_contains_what_the_export_extra_needs() -> None:
    hatch = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert hatch == {"targets": {"wheel": {"packages": ["enrichment", "handler", "events"]}}}  # nothing is excluded
