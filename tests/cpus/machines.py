"""CPUs emulated by QEMU's user mode, and the commands that run Python on them.

The x86 ones run the current interpreter. The Arm one runs Debian's Python in a folder that is created once: packages
unpacked by debootstrap (none of them is executed), and wheels of the library's dependencies.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ARM64 = REPOSITORY / ".cpus" / "arm64"
_LIBRARY = ("numpy", "onnxruntime", "pydantic", "tokenizers")
_DEBIAN, _PYTHON = "bookworm", "3.11"  # the release's Python

# QEMU's user mode shows the host's /proc/cpuinfo; on Arm, ONNX Runtime crashes when it reads an x86 one.
_CPUINFO = """\
processor\t: {number}
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""


@dataclass(frozen=True)
class Machine:
    """An emulated CPU by its QEMU name."""

    cpu: str
    has: str
    arm: bool = False

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command that runs Python with these arguments on this CPU, with this repository on its path."""
        if self.arm:
            root = arm64_root()
            path = os.pathsep.join((str(root / "site"), str(REPOSITORY)))
            emulator = [_program("qemu-aarch64", "qemu-user"), "-cpu", self.cpu, "-L", str(root)]
            return [*emulator, "-E", f"PYTHONPATH={path}", str(root / "usr/bin" / f"python{_PYTHON}"), *arguments]
        if platform.machine() != "x86_64":
            pytest.fail("QEMU's x86 CPUs need an x86-64 interpreter, which this one is not")
        return [_program("qemu-x86_64", "qemu-user"), "-cpu", self.cpu, sys.executable, *arguments]


def arm64_root() -> Path:
    """Folder of an arm64 Python with the library's dependencies in `site`; it is created if missing."""
    if ARM64.exists():
        return ARM64
    making = ARM64.with_name("arm64.part")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    sys.stderr.write(f"making {ARM64}: Debian's arm64 Python, and wheels ...\n")
    packages = "--include=python3,libstdc++6"
    strap = [_program("debootstrap", "debootstrap"), "--foreign", "--arch=arm64", "--variant=minbase", packages]
    _run([*strap, _DEBIAN, str(making)])
    for package in sorted((making / "var/cache/apt/archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(making)])
    platforms = [f"--platform=manylinux{tag}_aarch64" for tag in ("_2_28", "_2_17", "2014")]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--only-binary=:all:", *platforms]
    constraints = REPOSITORY / "deploy" / "constraints.txt"
    _run([*pip, f"--python-version={_PYTHON}", f"--target={making / 'site'}", "-c", str(constraints), *_LIBRARY])
    # QEMU looks up absolute paths in this folder first (-L).
    places = {"proc/cpuinfo": "".join(_CPUINFO.format(number=number) for number in range(2))}
    places |= {f"sys/devices/system/cpu/{name}": "0-1\n" for name in ("possible", "present", "online")}
    for place, text in places.items():
        (making / place).parent.mkdir(parents=True, exist_ok=True)
        (making / place).write_text(text, encoding="ascii")
    return making.rename(ARM64)


def _program(name: str, package: str) -> str:
    return shutil.which(name) or pytest.fail(f"{name} is missing; on Debian: apt-get install {package}")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(
            f"{' '.join(command[:4])} ... ended with code {done.returncode}: {(done.stderr or done.stdout)[-600:]}"
        )
