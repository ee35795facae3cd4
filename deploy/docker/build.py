"""`make image-docker`: builds the function's image without Flox, with the same interface as the image built by Flox.

The base is a minimal Debian with its Python, built once and kept as a separate image. The image adds the function's
dependencies as wheels at their tested versions, the function's packages, the model bundle at
/share/ticket-enrichment/bundle, and /bin/ticket-lambda.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from deploy.function_packages import (
    IMAGE_REQUIREMENTS,
    REQUIREMENTS,
    PackagingError,
    copy_modules,
    install_wheels,
    require_bundle,
)

REPOSITORY: Final = Path(__file__).resolve().parents[2]
IMAGE: Final = "ticket-enrichment:docker"
SUITE: Final = "bookworm"
PYTHON: Final = "3.11"  # the suite's Python; the Dockerfile contains its folder name
GLIBC: Final = 36  # the suite has 2.36
ROOT: Final = f"ticket-enrichment-root:{SUITE}-1"  # increase the number when its contents change
# Debian's files that the function never reads.
UNUSED: Final = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "var/log")


class BuildError(Exception):
    """The image cannot be built; the message is one line with the remedy."""


def main() -> None:
    """Build the image and print its name, or exit with 1 and one line."""
    parser = argparse.ArgumentParser(prog="make image-docker", description="Build the function's image without Flox.")
    parser.add_argument("--bundle", type=Path, required=True, help="the model bundle to include")
    parser.add_argument("--tag", default=IMAGE, help=f"its name ({IMAGE})")
    given = parser.parse_args()
    context = REPOSITORY / "build" / "docker"
    try:
        check_engine()
        make_root()
        gather_site(context)
        gather_rest(context, given.bundle)
        build(context, given.tag)
    except (BuildError, PackagingError, OSError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{given.tag}\n")


def check_engine() -> None:
    """Raise BuildError if no Docker engine responds."""
    fix = "on Debian, as root: .ci/docker.sh start"
    if shutil.which("docker") is None:
        raise BuildError(f"there is no docker; {fix}")
    if run("docker", "version", "--format", "{{.Server.Version}}").returncode:
        raise BuildError(f"no Docker engine responds; start one ({fix})")


def make_root() -> None:
    """Build the base image, unless it exists. Raises BuildError."""
    if run("docker", "image", "inspect", ROOT).returncode == 0:
        return
    if shutil.which("debootstrap") is None:
        raise BuildError("there is no debootstrap, which builds the base image; on Debian: apt-get install debootstrap")
    if os.geteuid() != 0:
        raise BuildError("debootstrap needs root to build the base image; run this as root once")
    report_progress(f"Building the base image of Debian {SUITE}, once; this takes minutes ...")
    with tempfile.TemporaryDirectory(prefix="docker-root-") as scratch:
        root = Path(scratch) / "root"
        made = run("debootstrap", "--variant=minbase", "--include=python3,ca-certificates", SUITE, str(root))
        if made.returncode:
            raise BuildError(f"debootstrap ended with: {last_line(made.stdout + made.stderr)}")
        for folder in UNUSED:
            shutil.rmtree(root / folder, ignore_errors=True)
        packed = Path(scratch) / "root.tar"
        for command in (("tar", "-C", str(root), "-cf", str(packed), "."), ("docker", "import", str(packed), ROOT)):
            done = run(*command)
            if done.returncode:
                raise BuildError(f"{command[0]} ended with: {last_line(done.stderr)}")


def gather_site(context: Path) -> None:
    """Install the function's dependencies into `context/site` unless they are up to date. Raises PackagingError."""
    machine, files = platform.machine(), (REQUIREMENTS, IMAGE_REQUIREMENTS)
    contents = b"".join(path.read_bytes() for path in (*files, REPOSITORY / "deploy" / "function_packages.py"))
    state = hashlib.sha256(repr((machine, PYTHON, GLIBC)).encode() + contents).hexdigest()
    stamp, site = context / "site.state", context / "site"
    if stamp.is_file() and stamp.read_text() == state:
        return
    report_progress("Collecting the function's dependencies ...")
    stamp.unlink(missing_ok=True)
    shutil.rmtree(site, ignore_errors=True)
    context.mkdir(parents=True, exist_ok=True)
    install_wheels(site, *files, python=PYTHON, machine=machine, glibc=GLIBC)
    stamp.write_text(state)


def gather_rest(context: Path, bundle: Path) -> None:
    """Copy the function's folders, the bundle and the entry point into the context. Raises PackagingError."""
    require_bundle(bundle)
    for name in ("packages", "bundle"):
        shutil.rmtree(context / name, ignore_errors=True)
    copy_modules(context / "packages")
    shutil.copytree(bundle, context / "bundle")
    for name in ("Dockerfile", "ticket-lambda"):
        shutil.copy(Path(__file__).parent / name, context / name)
    # Lambda runs it as another user, so its permissions must not depend on this user's umask.
    for name in ("packages", "bundle", "ticket-lambda"):
        for path in [context / name, *(context / name).rglob("*")]:
            path.chmod(0o755 if path.is_dir() or name == "ticket-lambda" else 0o644)


def build(context: Path, tag: str) -> None:
    """Build the image and remove the previous one of the same name. Raises BuildError."""
    report_progress(f"Building {tag} ...")
    before = image_id(tag)
    command = ("docker", "build", "--network", "none", "--build-arg", f"ROOT={ROOT}", "--tag", tag, str(context))
    built = run(*command)
    if built.returncode:
        sys.stderr.write(built.stdout[-3000:])
        raise BuildError(f"docker build ended with: {last_line(built.stderr)}")
    if before and before != image_id(tag):
        run("docker", "rmi", before)  # Docker refuses if a container or another tag still uses it


def image_id(tag: str) -> str:
    """The id of the image with this name; empty if there is none."""
    return run("docker", "image", "inspect", "--format", "{{.Id}}", tag).stdout.strip()


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command and capture its output."""
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - commands of this module


def last_line(text: str) -> str:
    """The last line of a program's output, which usually has the error."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "nothing").strip()[:300]


def report_progress(line: str) -> None:
    """Print progress."""
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    main()
