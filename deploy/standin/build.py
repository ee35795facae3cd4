"""`make image-standin`: builds the function's image without Flox, with the same interface as the image built by Flox.

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

from deploy.function_packages import PackagingError, copy_modules, dependencies, install_wheels, require_bundle

REPOSITORY: Final = Path(__file__).resolve().parents[2]
CONSTRAINTS: Final = REPOSITORY / "deploy" / "constraints.txt"
IMAGE: Final = "ticket-enrichment:standin"
SUITE: Final = "bookworm"
PYTHON: Final = "3.11"  # that suite's; the Dockerfile names its folder
GLIBC: Final = 36  # its 2.36
ROOT: Final = f"ticket-enrichment-root:{SUITE}-1"  # the number counts changes of what goes into it
# Debian's own files that a function never reads.
UNUSED: Final = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "var/log")


class BuildError(Exception):
    """The image cannot be built; the message is one line with the remedy."""


def main() -> None:
    """Build it, say what came out, and exit with 1 and a line where that fails."""
    parser = argparse.ArgumentParser(prog="make image-standin", description="Build the stand-in image.")
    parser.add_argument("--bundle", type=Path, required=True, help="the model bundle that it holds")
    parser.add_argument("--tag", default=IMAGE, help=f"its name ({IMAGE})")
    given = parser.parse_args()
    context = REPOSITORY / "build" / "standin"
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
    """Raise BuildError where no Docker engine answers."""
    remedy = "on Debian, as root: .ci/docker.sh start"
    if shutil.which("docker") is None:
        raise BuildError(f"there is no docker; {remedy}")
    if run("docker", "version", "--format", "{{.Server.Version}}").returncode:
        raise BuildError(f"no Docker engine answers; start one ({remedy})")


def make_root() -> None:
    """Build the base image, unless it exists. Raises BuildError."""
    if run("docker", "image", "inspect", ROOT).returncode == 0:
        return
    if shutil.which("debootstrap") is None:
        raise BuildError(
            "there is no debootstrap, which makes the image's root; on Debian: apt-get install debootstrap"
        )
    if os.geteuid() != 0:
        raise BuildError("debootstrap makes the image's root as root; run this once as root, later not any more")
    say(f"Making the image's root of Debian {SUITE}, once; it takes minutes ...")
    with tempfile.TemporaryDirectory(prefix="standin-root-") as scratch:
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
    """Install the function's dependencies into `context/site`, unless they are there. Raises PackagingError."""
    wanted, machine = dependencies("lambda"), platform.machine()
    state = hashlib.sha256(repr((wanted, machine, PYTHON, GLIBC)).encode() + CONSTRAINTS.read_bytes()).hexdigest()
    stamp, site = context / "site.state", context / "site"
    if stamp.is_file() and stamp.read_text() == state:
        return
    say("Gathering the function's dependencies ...")
    stamp.unlink(missing_ok=True)
    shutil.rmtree(site, ignore_errors=True)
    context.mkdir(parents=True, exist_ok=True)
    install_wheels(site, wanted, python=PYTHON, machine=machine, glibc=GLIBC)
    stamp.write_text(state)


def gather_rest(context: Path, bundle: Path) -> None:
    """Copy our packages, the bundle and the wrapper into the context. Raises PackagingError."""
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
    """Build the image, and remove the one that had its name before. Raises BuildError."""
    say(f"Building {tag} ...")
    before = image_id(tag)
    command = ("docker", "build", "--network", "none", "--build-arg", f"ROOT={ROOT}", "--tag", tag, str(context))
    built = run(*command)
    if built.returncode:
        sys.stderr.write(built.stdout[-3000:])
        raise BuildError(f"docker build ended with: {last_line(built.stderr)}")
    if before and before != image_id(tag):
        run("docker", "rmi", before)  # refused where a container or another name still needs it, which is right


def image_id(tag: str) -> str:
    """The image of that name; empty where there is none."""
    return run("docker", "image", "inspect", "--format", "{{.Id}}", tag).stdout.strip()


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it says."""
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - commands of this module


def last_line(text: str) -> str:
    """The line that says what went wrong."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "nothing").strip()[:300]


def say(line: str) -> None:
    """Tell people what takes time."""
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    main()
