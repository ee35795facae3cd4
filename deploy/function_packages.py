"""What the function consists of besides its model bundle, gathered in a folder: for the stand-in image and the zip."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["PackagingError", "copy_modules", "dependencies", "install_wheels", "require_bundle"]

REPOSITORY: Final = Path(__file__).resolve().parents[1]
# Programs beside the function, and building bundles; tests/runtime holds this against what the function imports.
LEFT_OUT: Final = {
    "enrichment": {"export", "__main__.py"},
    "handler": {
        *("dlq", "tickets", "worker"),
        *("accounts.py", "command_line.py", "demo.py", "display.py", "shutdown.py", "emulator.py", "local.py"),
    },
}


class PackagingError(Exception):
    """Something cannot be gathered: one line that names the remedy."""


def dependencies(*extras: str) -> list[str]:
    """The function's requirements, as pyproject.toml has them, with those of some extras."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]


def install_wheels(folder: Path, wanted: Sequence[str], *, python: str, machine: str, glibc: int) -> None:
    """Install wheels at their tested versions for that Python ("3.13") and processor ("x86_64"), wherever this runs.

    `glibc` is the minor version that the system has there: pip wants each older wheel tag by its own name. Raises
    PackagingError.
    """
    tags = [*(f"manylinux_2_{minor}_{machine}" for minor in range(17, glibc + 1)), f"manylinux2014_{machine}"]
    options = ["--quiet", "--no-compile", "--target", str(folder), "--only-binary", ":all:", "--implementation", "cp"]
    options += ["--python-version", python, "--constraint", str(REPOSITORY / "deploy" / "constraints.txt")]
    options += [option for tag in tags for option in ("--platform", tag)]
    ran = subprocess.run(  # noqa: S603 - the interpreter that runs this
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options, *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        errors = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
        cause = errors[-1][:300] if errors else "see `pip install` for the reason"
        raise PackagingError(f"pip has no wheels for Python {python} on {machine}: {cause}")


def copy_modules(folder: Path) -> None:
    """Copy what the function imports of this repository."""
    for package, left_out in LEFT_OUT.items():
        home = REPOSITORY / package
        shutil.copytree(
            home,
            folder / package,
            ignore=lambda place, _, home=home, left_out=left_out: {
                "__pycache__",
                *(left_out if Path(place) == home else ()),
            },
        )


def require_bundle(bundle: Path) -> None:
    """Raise PackagingError where there is no model bundle."""
    if not (bundle / "bundle.json").is_file():
        raise PackagingError(f"there is no model bundle in {bundle}; build it with `make bundle`")
