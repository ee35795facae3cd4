"""`make lock`: writes the function's dependencies with the hashes of their wheels, for each Python and processor.

deploy/requirements.txt is what the function needs, deploy/requirements-image.txt what its container image needs in
addition. The zip and the image without Flox are built from exactly these files (deploy/function_packages.py). The
versions are those of deploy/constraints.txt. Needs pip's index; run it after a change of the constraints.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from deploy.function_packages import IMAGE_REQUIREMENTS, REQUIREMENTS, dependencies, wheel_options

CONSTRAINTS: Final = REQUIREMENTS.with_name("constraints.txt")
PYTHONS: Final = ("3.11", "3.12", "3.13")
MACHINES: Final = ("x86_64", "aarch64")
GLIBC: Final = 34  # the older of the two systems: Lambda's own, and that of the image
HEADER: Final = "# Written by `make lock`: versions of deploy/constraints.txt, hashes for each Python and processor.\n"

Locked = dict[tuple[str, str], set[str]]
"""The hashes by name and version."""


def resolve(wanted: Sequence[str], python: str, machine: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, version and sha256 of the wheels that pip would install. Raises CalledProcessError."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--dry-run"]
    command += ["--ignore-installed", "--report", "-", "--target", "unused", "--constraint", str(CONSTRAINTS)]
    ran = subprocess.run(  # noqa: S603 - the interpreter that runs this
        [*command, *wheel_options(python=python, machine=machine, glibc=GLIBC), *wanted],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for each in json.loads(ran.stdout)["install"]:
        name = each["metadata"]["name"].lower().replace("_", "-")
        yield name, each["metadata"]["version"], each["download_info"]["archive_info"]["hashes"]["sha256"]


def lock(wanted: Sequence[str], pythons: Sequence[str]) -> Locked:
    """The wheels of all targets."""
    found: Locked = {}
    for python in pythons:
        for machine in MACHINES:
            sys.stderr.write(f"Python {python} on {machine} ...\n")
            for name, version, digest in resolve(wanted, python, machine):
                found.setdefault((name, version), set()).add(digest)
    return found


def write(path: Path, locked: Locked) -> None:
    """Write a requirements file in pip's hash-checking form."""
    lines = [
        " \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{digest}" for digest in sorted(digests))])
        for (name, version), digests in sorted(locked.items())
    ]
    path.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Write both files."""
    function = lock(dependencies(), PYTHONS)
    image = lock(dependencies("lambda"), PYTHONS)
    write(REQUIREMENTS, function)
    write(IMAGE_REQUIREMENTS, {key: digests for key, digests in image.items() if key not in function})


if __name__ == "__main__":
    main()
