"""deploy/requirements*.txt have every dependency of the function, at the tested version, with hashes per target."""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.function_packages import IMAGE_REQUIREMENTS, REQUIREMENTS, PackagingError, dependencies, install_wheels
from deploy.lock import MACHINES, PYTHONS, write

ENTRY = re.compile(r"([a-z0-9-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")
# Compiled for one Python; others are for every Python (abi3) or for every machine.
PER_PYTHON = ["numpy", "onnxruntime", "pydantic-core", "pyyaml"]


def entries(path: Path) -> dict[str, tuple[str, int]]:
    """Version and number of hashes by name."""
    _, _, rest = path.read_text(encoding="utf-8").partition("\n")
    assert ENTRY.sub("", rest) == ""
    return {name: (version, hashes.count("--hash")) for name, version, hashes in ENTRY.findall(rest)}


FUNCTION, IMAGE = entries(REQUIREMENTS), entries(IMAGE_REQUIREMENTS)


def test_versions_are_the_tested_ones() -> None:
    lines = REQUIREMENTS.with_name("constraints.txt").read_text(encoding="utf-8").split()
    tested = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    locked = {canonicalize_name(name): version for name, (version, _) in {**FUNCTION, **IMAGE}.items()}
    assert locked == {name: tested[name] for name in locked}, "run: make lock"


def closure(wanted: list[str]) -> set[str]:
    """The names of requirements and of what they require, after the packages that are installed here."""
    found: set[str] = set()
    open_ends = [Requirement(each) for each in wanted]
    while open_ends:
        each = open_ends.pop()
        name = canonicalize_name(each.name)
        if name in found:
            continue
        found.add(name)
        for text in requires(name) or ():
            further = Requirement(text)
            if further.marker is None or further.marker.evaluate({"extra": "", "sys_platform": "linux"}):
                open_ends.append(further)
    return found


def test_every_dependency_is_locked() -> None:
    # awslambdaric, which only the image has, need not be installed here; its own dependencies are in the file.
    assert closure(dependencies()) == FUNCTION.keys(), "run: make lock"
    assert IMAGE.keys() == {"awslambdaric", "simplejson", "snapshot-restore-py"}
    assert not FUNCTION.keys() & IMAGE.keys()


def test_each_target_has_a_wheel() -> None:
    targets = len(PYTHONS) * len(MACHINES)
    assert {name: FUNCTION[name][1] for name in PER_PYTHON} == dict.fromkeys(PER_PYTHON, targets)
    assert IMAGE["awslambdaric"][1] == targets
    assert FUNCTION["tokenizers"][1] == len(MACHINES)


def test_file_names_no_place() -> None:
    for path in (REQUIREMENTS, IMAGE_REQUIREMENTS):
        assert not re.search(r"://|--(index|find)", path.read_text(encoding="utf-8"))


def test_wheel_with_another_hash_is_refused(tmp_path: Path) -> None:
    # A package that is small and has no dependencies, with a digest that it does not have.
    write(tmp_path / "requirements.txt", {("six", FUNCTION["six"][0]): {"0" * 64}})
    with pytest.raises(PackagingError):
        install_wheels(tmp_path, tmp_path / "requirements.txt", python="3.13", machine="x86_64", glibc=34)
    assert not (tmp_path / "six.py").exists()
