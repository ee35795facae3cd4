"""Builds the function as a zip file for Lambda's own Python, and the template that deploys it: `make zip`.

For machines without a container engine or a registry. The zip holds the function's packages as wheels for Lambda's
processor and Python, whatever this machine's are, the two packages of this repository without the programs beside the
function, and a model bundle. The template is template.yaml with another package type, and nothing else.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from deploy.function_packages import PackagingError, copy_modules, dependencies, install_wheels, require_bundle

REPOSITORY: Final = Path(__file__).resolve().parents[2]
# What Lambda unpacks, at most: 250 MB, by which it means these bytes.
LIMIT: Final = 250 * 1024 * 1024
GLIBC: Final = 34  # Lambda's Python runs on Amazon Linux 2023, with 2.34
MACHINES: Final = {"x86_64": "x86_64", "arm64": "aarch64"}
BUNDLE: Final = "bundle"  # its folder in the zip


class ZipError(Exception):
    """The zip cannot be built: one line that names the remedy."""


def compile_modules(folder: Path, python: str) -> bool:
    """Compile every module, if a Python of that version is here: a function cannot keep what it compiles itself."""
    own = python == "{}.{}".format(*sys.version_info)
    program = sys.executable if own else shutil.which(f"python{python}")
    if program is None:
        return False
    # By their content, not their time: Lambda unpacks files with times of its own.
    command = [
        program,
        "-m",
        "compileall",
        "-qq",
        "-j0",
        "--invalidation-mode",
        "unchecked-hash",
        "-s",
        str(folder),
        str(folder),
    ]
    return subprocess.run(command, check=False).returncode == 0  # noqa: S603 - a Python of this machine


def pack(folder: Path, out: Path) -> int:
    """Write the zip, the same bytes for the same files, and return its size unpacked. Raises ZipError."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    if size > LIMIT:
        raise ZipError(f"the function would have {size:,} bytes unpacked, and Lambda takes {LIMIT:,}: use the image")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_suffix(".part")
    with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path in files:
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            entry.external_attr = 0o644 << 16  # Lambda runs it as a user of its own
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    scratch.replace(out)
    return size


def template(text: str, code: str, python: str, architecture: str) -> str:
    """template.yaml's text for the zip at `code`, seen from the template. Raises ZipError where it has changed."""
    function = f"""\
      PackageType: Zip
      CodeUri: {code}
      Runtime: python{python}
      Handler: handler.main.lambda_handler
"""
    changes: Iterable[tuple[str, str]] = [
        (r"SQS-triggered container function", "SQS-triggered function"),
        (r"  ImageUri:\n(?:    .*\n)+", ""),
        (r"(  Architecture:\n    Type: String\n    Default:).*\n    AllowedValues:.*\n    Description:.*\n",
         rf"\1 {architecture}\n    AllowedValues: [{architecture}]\n    Description: What the zip was built for.\n"),
        (r"(  ModelBundle:\n    Type: String\n    Default:).*\n", rf"\1 file:///var/task/{BUNDLE}\n"),
        (r"The folder of the model bundle in the image\.", "The folder of the model bundle in the zip."),
        (r"      PackageType: Image\n(?:      (?:ImageUri|ImageConfig|#).*\n|        .*\n)+", function),
    ]  # fmt: skip
    for old, new in changes:
        text, count = re.subn(old, new, text)
        if count != 1:
            raise ZipError(f"template.yaml has {count} places like {old!r}, not one; mend {Path(__file__).name}")
    return text


def main() -> None:
    """Build both, say what came out, and exit with 1 and a line where that fails."""
    parser = argparse.ArgumentParser(description="Build the function as a zip file, and its template.")
    parser.add_argument("--python", default="3.13", help="the Python of the Lambda runtime (3.13)")
    parser.add_argument("--architecture", default="x86_64", choices=MACHINES, help="its processor (x86_64)")
    parser.add_argument("--bundle", type=Path, default=REPOSITORY / ".bundles" / "compact", help="the model bundle")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "dist", help="the folder of the two files (dist)")
    given = parser.parse_args()
    out = given.out / f"function-{given.python}-{given.architecture}.zip"
    sys.stderr.write(f"Collecting wheels for Python {given.python} on {given.architecture} ...\n")
    try:
        with tempfile.TemporaryDirectory(prefix="function-zip-") as scratch:
            folder = Path(scratch)
            require_bundle(given.bundle)
            machine = MACHINES[given.architecture]
            install_wheels(folder, dependencies(), python=given.python, machine=machine, glibc=GLIBC)
            copy_modules(folder)
            shutil.copytree(given.bundle, folder / BUNDLE)
            if not compile_modules(folder, given.python):
                sys.stderr.write(f"no python{given.python} here: modules are compiled at each cold start instead\n")
            size = pack(folder, out)
        text = (REPOSITORY / "template.yaml").read_text(encoding="utf-8")
        (given.out / "template-zip.yaml").write_text(
            template(text, out.name, given.python, given.architecture), encoding="utf-8"
        )
    except (ZipError, PackagingError, OSError) as error:
        sys.exit(f"error: {error}")
    sys.stderr.write(
        f"{out.stat().st_size / 1e6:.0f} MB, {size / 1e6:.0f} MB unpacked (Lambda takes {LIMIT / 1e6:.0f})\n"
    )
    sys.stdout.write(f"{out}\n")


if __name__ == "__main__":
    main()
