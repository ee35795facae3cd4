"""Scans with checkov, offline: the templates break no rule except those that they skip, and no file holds a secret.

Each rule that a template skips must have a reason, and must fail if it is not skipped. Runs in checkov's own virtual
environment, because its pinned dependencies conflict with ours.
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


def deployed() -> list[Path]:
    """List the files that are searched for secrets."""
    found = [path for folder in FOLDERS for path in sorted((REPOSITORY / folder).rglob("*"))]
    return [path for path in [*map(REPOSITORY.joinpath, FILES), *found] if path.is_file() and path.suffix in SUFFIXES]


def problems(template: dict[str, Any], bare: dict[str, Any], secrets: dict[str, Any]) -> Iterator[str]:
    """Yield one line per problem, given the results for the templates, for them without skips, and for files."""
    if not template["passed_checks"]:  # checkov reports nothing, and exits with 0, if it cannot read a file
        yield "template.yaml: nothing was checked; is it valid?"
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
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        bare = [Path(folder) / path.name for path in TEMPLATES]
        for path, copy in zip(TEMPLATES, bare, strict=True):
            copy.write_text(path.read_text(encoding="utf-8").replace(" checkov:", " skipped:"), encoding="utf-8")
        scans = [("cloudformation", *TEMPLATES), ("cloudformation", *bare), ("secrets", *files)]
        results = list(pool.map(lambda arguments: scan(*arguments), scans))
    found = list(problems(*results))
    if found:
        sys.exit("\n".join(found))
    passed, skipped = (len(results[0][kind]) for kind in ("passed_checks", "skipped_checks"))
    sys.stdout.write(f"checkov: {passed} checks passed, {skipped} skipped, no secrets in {len(files)} files\n")


if __name__ == "__main__":
    main()
