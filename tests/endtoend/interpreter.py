"""Prints the path of a Python that can run LocalStack, for `make test-localstack`; exits with 1 if there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MINORS = (13, 12)  # localstack-core 4.14 supports no older one; the pinned packages have no wheels for newer ones


def candidates() -> Iterator[str]:
    """Pythons on PATH, then pyenv's installations: its shims fail for versions that are not activated."""
    for minor in MINORS:
        if found := shutil.which(f"python3.{minor}"):
            yield found
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for minor in MINORS:
        yield from map(str, sorted(root.glob(f"versions/3.{minor}.*/bin/python"), reverse=True))


def version(python: str) -> tuple[int, int] | None:
    """Its version, or None if it does not run or cannot create virtual environments."""
    program = "import ensurepip, sys, venv; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    major, minor = map(int, done.stdout.split())
    return major, minor


def main() -> None:
    """Print the path of the first suitable one."""
    for python in candidates():
        if version(python) in {(3, minor) for minor in MINORS}:
            sys.stdout.write(f"{python}\n")
            return
    sys.exit(
        "test-localstack: nothing was tested, since LocalStack needs Python 3.12 or 3.13, which is neither on PATH nor "
        "in pyenv; install one, or name it: make test-localstack LOCALSTACK_PYTHON=..."
    )


if __name__ == "__main__":
    main()
