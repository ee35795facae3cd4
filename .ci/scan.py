"""Scans with checkov, offline: no template or manifest breaks a rule that it does not skip, and no file holds a secret.

Each rule that is skipped must have a reason, and must fail if it is not skipped. The Kubernetes objects are scanned as
kustomize builds them, for the base and each overlay. Runs in checkov's own virtual environment, because its pinned
dependencies conflict with ours.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # this runs as a script, in an environment without the packages of the repository

from tests.infrastructure.kustomization import build  # noqa: E402 - needs the path above

# checkov 3.3 has no rules for the contents of the second one, alarms and a dashboard.
TEMPLATES = [REPOSITORY / "template.yaml", REPOSITORY / "deploy" / "observability.yaml"]
# Files that are deployed or that deploy.
FOLDERS = [".ci", "deploy", "handler"]
FILES = ["Makefile", "pyproject.toml", "samconfig.toml", "template.yaml"]
SUFFIXES = {"", ".json", ".nix", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}
NOTHING: dict[str, Any] = {"failed_checks": [], "skipped_checks": [], "passed_checks": []}


def scan(framework: str, *files: Path) -> dict[str, Any]:
    """Return checkov's results: lists of failed, skipped and passed checks."""
    # --skip-download keeps it from asking its vendor.
    options = ["--framework", framework, "--skip-download", "--compact", "--output", "json"]
    done = subprocess.run(  # noqa: S603 - the interpreter that runs this, and files of this repository
        [Path(sys.executable).with_name("checkov"), *options, "--file", *map(str, files)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        sys.exit(f"error: checkov failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return {**NOTHING, **report.get("results", {})}  # no results if there was nothing to check


def write_manifests(folder: Path) -> list[Path]:
    """Build the Kubernetes objects of the base and of each overlay; a file for each in `folder`."""
    base = REPOSITORY / "deploy" / "kubernetes" / "base"
    files = []
    for source in (base, *sorted(base.parent.joinpath("overlays").iterdir())):
        files.append(folder / f"{source.name}.yaml")
        files[-1].write_text(yaml.safe_dump_all(build(source)), encoding="utf-8")
    return files


def without_skips(files: list[Path], folder: Path) -> list[Path]:
    """Copy templates and manifests without the rules that they skip."""
    folder.mkdir()
    for path in files:
        text = (
            path.read_text(encoding="utf-8").replace(" checkov:", " skipped:").replace(" checkov.io/", " skipped.io/")
        )
        folder.joinpath(path.name).write_text(text, encoding="utf-8")
    return [folder / path.name for path in files]


def merged(*results: dict[str, Any]) -> dict[str, Any]:
    """The results of several scans as those of one. Without a passed check if one of them has none."""
    found = {kind: [check for each in results for check in each[kind]] for kind in NOTHING}
    return found if all(each["passed_checks"] for each in results) else {**found, "passed_checks": []}


def deployed() -> list[Path]:
    """List the files that are searched for secrets."""
    found = [path for folder in FOLDERS for path in sorted((REPOSITORY / folder).rglob("*"))]
    return [path for path in [*map(REPOSITORY.joinpath, FILES), *found] if path.is_file() and path.suffix in SUFFIXES]


def problems(template: dict[str, Any], bare: dict[str, Any], secrets: dict[str, Any]) -> Iterator[str]:
    """Yield one line per problem, given the results for the templates, for them without skips, and for files."""
    if not template["passed_checks"]:  # checkov reports nothing, and exits with 0, if it cannot read a file
        yield "templates or manifests: nothing was checked; are they valid?"
    for check in [*template["failed_checks"], *secrets["failed_checks"]]:
        place = f"{check['file_path'].lstrip('/')}:{check['file_line_range'][0]}"
        yield f"{place}: {check['check_id']} {check['resource']}: {check['check_name']}"
    broken = {(check["check_id"], check["resource"]) for check in bare["failed_checks"]}
    for check in template["skipped_checks"]:
        rule = check["check_id"], check["resource"]
        if not str(check["check_result"].get("suppress_comment") or "").strip():
            yield f"{' '.join(rule)}: skipped without a reason"
        if rule not in broken:
            yield f"{' '.join(rule)}: skipped, but it passes; remove it from the Metadata"


def main() -> None:
    """Print what is wrong and exit with 1, or print one line."""
    files = deployed()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor() as pool:
        folder = Path(scratch)
        manifests = write_manifests(folder)
        scans = [
            ("cloudformation", *TEMPLATES),
            ("kubernetes", *manifests),
            ("cloudformation", *without_skips(TEMPLATES, folder / "templates")),
            ("kubernetes", *without_skips(manifests, folder / "manifests")),
            ("secrets", *files),
        ]
        templates, objects, *bare, secrets = pool.map(lambda arguments: scan(*arguments), scans)
    results = merged(templates, objects)
    found = list(problems(results, merged(*bare), secrets))
    if found:
        sys.exit("\n".join(found))
    passed, skipped = (len(results[kind]) for kind in ("passed_checks", "skipped_checks"))
    sys.stdout.write(f"checkov: {passed} checks passed, {skipped} skipped, no secrets in {len(files)} files\n")


if __name__ == "__main__":
    main()
