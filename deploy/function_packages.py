"""What the function consists of besides its model bundle: for the zip and for the image that is built without Flox.

.flox/pkgs/ticket-lambda.nix packages the same folders.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

__all__ = [
    "IMAGE_REQUIREMENTS",
    "REQUIREMENTS",
    "SERVICES",
    "PackagingError",
    "copy_modules",
    "dependencies",
    "install_wheels",
    "require_bundle",
    "trim_botocore",
    "wheel_options",
]

REPOSITORY: Final = Path(__file__).resolve().parents[1]
# The function is these folders, and never a list of files: whatever is put into one of them is deployed.
FOLDERS: Final = ("enrichment", "handler/aws")  # with their subfolders
FLAT_FOLDERS: Final = ("handler",)  # without
LEFT_OUT: Final = "enrichment/export"  # builds bundles; the wheel contains it, with its training data


# What is installed into zip and image, with hashes: `make lock`.
REQUIREMENTS: Final = REPOSITORY / "deploy" / "requirements.txt"
IMAGE_REQUIREMENTS: Final = REPOSITORY / "deploy" / "requirements-image.txt"  # in addition
# What function and worker call, and what botocore calls for credentials: those of a Kubernetes service account, of
# single sign-on and of `aws login`.
SERVICES: Final = ("dynamodb", "s3", "sqs", "sts", "sso", "sso-oidc", "signin")


class PackagingError(Exception):
    """Something cannot be collected. One line that says how to fix it."""


def dependencies(*extras: str) -> list[str]:
    """The function's requirements from pyproject.toml, with those of some extras."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]


def wheel_options(*, python: str, machine: str, glibc: int) -> list[str]:
    """Options of pip for wheels of that Python ("3.13") and processor ("x86_64"), whatever this machine's are.

    `glibc` is the minor version of the target system: pip needs every older wheel tag by name.
    """
    tags = [*(f"manylinux_2_{minor}_{machine}" for minor in range(17, glibc + 1)), f"manylinux2014_{machine}"]
    options = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    return [*options, *(option for tag in tags for option in ("--platform", tag))]


def install_wheels(folder: Path, *files: Path, python: str, machine: str, glibc: int) -> None:
    """Install exactly the wheels whose hashes are in these requirements files, with a trimmed botocore.

    Raises PackagingError.
    """
    # The files are complete, and pip would look for dependencies of this machine's Python.
    options = ["--quiet", "--no-compile", "--no-deps", "--require-hashes", "--target", str(folder)]
    options += wheel_options(python=python, machine=machine, glibc=glibc)
    options += [option for file in files for option in ("--requirement", str(file))]
    ran = subprocess.run(  # noqa: S603 - the interpreter that runs this
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        errors = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
        cause = errors[-1][:300] if errors else "see `pip install` for the reason"
        raise PackagingError(f"pip has no wheels for Python {python} on {machine}: {cause}")
    trim_botocore(folder)


def trim_botocore(folder: Path) -> None:
    """Leave only the descriptions of SERVICES in the botocore that is installed in `folder`, uncompressed and short.

    It has those of 400 services, 27 of its 30 MB, most of it documentation. Every cold start downloads them, and
    decompresses and parses those of its services.
    """
    data = folder / "botocore" / "data"
    for path in data.iterdir():
        if path.is_dir() and path.name not in SERVICES:
            shutil.rmtree(path)
    for path in sorted(data.rglob("*.json.gz")):
        _write_json(path.with_suffix(""), json.loads(gzip.decompress(path.read_bytes())))
        path.unlink()
    endpoints = json.loads((data / "endpoints.json").read_bytes())
    for partition in endpoints["partitions"]:
        partition["services"] = {name: each for name, each in partition["services"].items() if name in SERVICES}
    _write_json(data / "endpoints.json", endpoints)


def _write_json(path: Path, value: Any) -> None:
    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(each) for each in value]
        if not isinstance(value, dict):
            return value
        # Empty instead of absent, because botocore reads some. A text, because a shape could have such a member.
        return {k: "" if k == "documentation" and isinstance(v, str) else short(v) for k, v in value.items()}

    path.write_text(json.dumps(short(value), separators=(",", ":")), encoding="utf-8")


def copy_modules(folder: Path) -> None:
    """Copy the function's folders of this repository into `folder`."""
    found = [path for each in FOLDERS for path in (REPOSITORY / each).rglob("*")]
    found += [path for each in FLAT_FOLDERS for path in (REPOSITORY / each).glob("*")]
    for path in found:
        if path.is_file() and "__pycache__" not in path.parts and not path.is_relative_to(REPOSITORY / LEFT_OUT):
            copy = folder / path.relative_to(REPOSITORY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def require_bundle(bundle: Path) -> None:
    """Raise PackagingError if there is no model bundle."""
    if not (bundle / "bundle.json").is_file():
        raise PackagingError(f"there is no model bundle in {bundle}; build it with `make bundle`")
