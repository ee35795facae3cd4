"""Builds the function as a zip file for Lambda's own Python, and the template that deploys it: `make zip`.

For machines without a container engine or a registry. The zip contains the function's dependencies as wheels for
Lambda's processor and Python (whatever this machine's are), the function's folders of this repository, and a model
bundle. The template is template.yaml with another package type and nothing else; deploy/observability.yaml fits both.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

import yaml
from samtranslator.yaml_helper import yaml_parse

from deploy.function_packages import REQUIREMENTS, PackagingError, copy_modules, install_wheels, require_bundle

REPOSITORY: Final = Path(__file__).resolve().parents[2]
# Lambda's limit for the unpacked zip: 250 MB, by which it means this number of bytes.
LIMIT: Final = 250 * 1024 * 1024
GLIBC: Final = 34  # Lambda's Python runs on Amazon Linux 2023, with 2.34
MACHINES: Final = {"x86_64": "x86_64", "arm64": "aarch64"}
BUNDLE: Final = "bundle"  # its directory in the zip


class ZipError(Exception):
    """The zip cannot be built. One line that says how to fix it."""


def compile_modules(folder: Path, python: str) -> bool:
    """Compile every module, because Lambda's file system is read-only; False if this machine lacks that Python."""
    own = python == "{}.{}".format(*sys.version_info)
    program = sys.executable if own else shutil.which(f"python{python}")
    if program is None:
        return False
    # unchecked-hash instead of times: Lambda unpacks files with other times.
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
    """Write the zip, reproducibly, and return its unpacked size in bytes. Raises ZipError."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    if size > LIMIT:
        raise ZipError(f"the function has {size:,} bytes unpacked, and Lambda's limit is {LIMIT:,}: use the image")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_suffix(".part")
    with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path in files:
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            entry.external_attr = 0o644 << 16  # readable by the user that Lambda runs it as
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    scratch.replace(out)
    return size


def template(text: str, code: str, python: str, architecture: str) -> str:
    """Return template.yaml for the zip at `code` (relative to it), with intrinsic functions in long form."""
    found = yaml_parse(text)
    found["Description"] = found["Description"].replace("container function", "function")
    parameters = found["Parameters"]
    del parameters["ImageUri"]
    parameters["Architecture"] |= {
        "Default": architecture,
        "AllowedValues": [architecture],
        "Description": "The processor architecture that the zip was built for.",
    }
    parameters["ModelBundle"] |= {
        "Default": f"file:///var/task/{BUNDLE}",
        "Description": "Directory of the model bundle in the zip.",
    }
    for group in found["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]:
        group["Parameters"] = [name for name in group["Parameters"] if name in parameters]
    function = found["Resources"]["EnrichmentFunction"]["Properties"]
    (handler,) = function.pop("ImageConfig")["Command"]
    del function["ImageUri"]
    function |= {"PackageType": "Zip", "CodeUri": code, "Runtime": f"python{python}", "Handler": handler}
    return str(yaml.safe_dump(found, sort_keys=False, width=120, allow_unicode=True))


def main() -> None:
    """Build both and print the path of the zip, or exit with 1 and one line."""
    parser = argparse.ArgumentParser(description="Build the function as a zip file, and its template.")
    parser.add_argument("--python", default="3.13", help="the Python of the Lambda runtime (3.13)")
    parser.add_argument("--architecture", default="x86_64", choices=MACHINES, help="its processor (x86_64)")
    parser.add_argument("--bundle", type=Path, default=REPOSITORY / ".bundles" / "compact", help="the model bundle")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "dist", help="the directory for both files (dist)")
    given = parser.parse_args()
    out = given.out / f"function-{given.python}-{given.architecture}.zip"
    sys.stderr.write(f"Collecting wheels for Python {given.python} on {given.architecture} ...\n")
    try:
        with tempfile.TemporaryDirectory(prefix="function-zip-") as scratch:
            folder = Path(scratch)
            require_bundle(given.bundle)
            machine = MACHINES[given.architecture]
            install_wheels(folder, REQUIREMENTS, python=given.python, machine=machine, glibc=GLIBC)
            copy_modules(folder)
            shutil.copytree(given.bundle, folder / BUNDLE)
            if not compile_modules(folder, given.python):
                sys.stderr.write(f"there is no python{given.python}: modules will be compiled at each cold start\n")
            size = pack(folder, out)
        text = (REPOSITORY / "template.yaml").read_text(encoding="utf-8")
        (given.out / "template-zip.yaml").write_text(
            template(text, out.name, given.python, given.architecture), encoding="utf-8"
        )
    except (ZipError, PackagingError, OSError) as error:
        sys.exit(f"error: {error}")
    sys.stderr.write(
        f"{out.stat().st_size / 1e6:.0f} MB, {size / 1e6:.0f} MB unpacked (Lambda's limit is {LIMIT / 1e6:.0f})\n"
    )
    sys.stdout.write(f"{out}\n")


if __name__ == "__main__":
    main()
