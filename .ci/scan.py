"""Scans with checkov, offline: template.yaml breaks no rule but those that it overrules, and no file holds a secret.

Each rule that the template overrules must have its reason, and must still be broken without that. Runs in checkov's
own virtual environment, whose many pinned dependencies do not fit beside ours.
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

REPOSITORY = Path(__file__).resolve().parents[1]
TEMPLATE = REPOSITORY / "template.yaml"
# What is deployed, and what deploys it.
FOLDERS = [".ci", "deploy", "handler"]
FILES = ["Makefile", "pyproject.toml", "samconfig.toml", "template.yaml"]
SUFFIXES = {"", ".json", ".nix", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}
NOTHING: dict[str, Any] = {"failed_checks": [], "skipped_checks": [], "passed_checks": []}


def scan(framework: str, *files: Path) -> dict[str, Any]:
    """Give checkov's results: lists of failed, skipped and passed checks."""
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
    return {**NOTHING, **report.get("results", {})}  # there are none where it found nothing to check


def deployed() -> list[Path]:
    """List the files that are searched for secrets."""
    found = [path for folder in FOLDERS for path in sorted((REPOSITORY / folder).rglob("*"))]
    return [path for path in [*map(REPOSITORY.joinpath, FILES), *found] if path.is_file() and path.suffix in SUFFIXES]


def problems(template: dict[str, Any], bare: dict[str, Any], secrets: dict[str, Any]) -> Iterator[str]:
    """Say in a line each what is wrong, given the results for the template, for it without Metadata, and for files."""
    if not template["passed_checks"]:  # it answers so, and exits with 0, when it cannot read a file
        yield f"{TEMPLATE.name}: nothing was checked; can it be read?"
    for check in [*template["failed_checks"], *secrets["failed_checks"]]:
        place = f"{check['file_path'].lstrip('/')}:{check['file_line_range'][0]}"
        yield f"{place}: {check['check_id']} {check['resource']}: {check['check_name']}"
    broken = {(check["check_id"], check["resource"]) for check in bare["failed_checks"]}
    for check in template["skipped_checks"]:
        rule = check["check_id"], check["resource"]
        if not str(check["check_result"].get("suppress_comment") or "").strip():
            yield f"{TEMPLATE.name}: {' '.join(rule)}: overruled without a reason"
        if rule not in broken:
            yield f"{TEMPLATE.name}: {' '.join(rule)}: overruled, but it is kept; take that out of its Metadata"


def main() -> None:
    """Print what is wrong and exit with 1, or print one line."""
    files = deployed()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        bare = Path(folder) / TEMPLATE.name
        bare.write_text(TEMPLATE.read_text(encoding="utf-8").replace(" checkov:", " overruled:"), encoding="utf-8")
        scans = [("cloudformation", TEMPLATE), ("cloudformation", bare), ("secrets", *files)]
        results = list(pool.map(lambda arguments: scan(*arguments), scans))
    found = list(problems(*results))
    if found:
        sys.exit("\n".join(found))
    kept, overruled = (len(results[0][kind]) for kind in ("passed_checks", "skipped_checks"))
    sys.stdout.write(f"checkov: {kept} rules kept, {overruled} overruled, no secrets in {len(files)} files\n")


if __name__ == "__main__":
    main()
