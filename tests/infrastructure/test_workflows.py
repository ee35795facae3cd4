"""The workflows of .github, pre-commit's hooks and CONTRIBUTING.md name what exists; see also `make workflows`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

REPO = Path(__file__).resolve().parents[2]
WORKFLOWS = {path.stem: path for path in sorted((REPO / ".github" / "workflows").glob("*.yml"))}
MAKEFILE = (REPO / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))


def load(path: Path) -> dict[Any, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def steps(workflow: str) -> list[dict[str, Any]]:
    return [step for job in load(WORKFLOWS[workflow])["jobs"].values() for step in job["steps"]]


def make_targets(text: str) -> set[str]:
    """The targets of every `make ...` in a text, up to the end of its line or what follows the command."""
    found = re.findall(
        r"\bmake ((?:--[a-z-]+ )*)([a-z0-9-]+(?: [a-z0-9-]+)*)(?=\s*(?:$|#|[;&|`(]))", text, re.MULTILINE
    )
    return {target for _, targets in found for target in targets.split()}


def test_workflows_have_the_expected_triggers() -> None:
    triggers = {name: set(load(path)[True]) for name, path in WORKFLOWS.items()}  # YAML 1.1 reads `on` as true
    assert triggers == {
        "ci": {"push", "pull_request"},
        "nightly": {"schedule", "workflow_dispatch"},
        "release": {"push"},
    }


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_workflow_is_read_only_and_has_timeouts(workflow: str) -> None:
    loaded = load(WORKFLOWS[workflow])
    assert loaded["permissions"] == {"contents": "read"}
    assert all(0 < job["timeout-minutes"] <= 90 for job in loaded["jobs"].values())


def test_make_commands_are_targets() -> None:
    texts = [*WORKFLOWS.values(), REPO / ".pre-commit-config.yaml", REPO / "CONTRIBUTING.md"]
    named = {path.name: make_targets(path.read_text(encoding="utf-8")) for path in texts}
    assert named["ci.yml"] == {"format", "lint", "types", "template", "workflows", "unit", "test"}
    assert {"wheel", "zip", "sbom", "image"} <= named["release.yml"]
    assert {"unit", "check"} <= named["CONTRIBUTING.md"]
    assert {"template", "workflows"} <= named[".pre-commit-config.yaml"]
    assert set().union(*named.values()) <= TARGETS


def test_nightly_runs_every_slow_suite() -> None:
    (suite,) = load(WORKFLOWS["nightly"])["jobs"].values()
    targets = set(suite["strategy"]["matrix"]["target"])
    assert targets <= TARGETS
    assert {name for name in TARGETS if name.startswith("test-")} | {"soak", "scan", "sbom", "audit"} <= targets


def test_unit_tests_run_on_each_supported_python() -> None:
    versions = load(WORKFLOWS["ci"])["jobs"]["unit"]["strategy"]["matrix"]["python-version"]
    supported = SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert versions == [f"3.{minor}" for minor in range(30) if supported.contains(f"3.{minor}")]


def test_tag_check_matches_the_version() -> None:
    (command,) = [step["run"] for step in steps("release") if "pyproject.toml" in step.get("run", "")]
    pattern = re.search(r'grep -qx "(.*)" pyproject', command)
    assert pattern is not None
    line = pattern[1].replace('\\"', '"').replace("${GITHUB_REF_NAME#v}", PYPROJECT["project"]["version"])
    assert line in (REPO / "pyproject.toml").read_text(encoding="utf-8").splitlines()


def test_hooks_are_local_and_installed() -> None:
    config = load(REPO / ".pre-commit-config.yaml")
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    group = " ".join(PYPROJECT["dependency-groups"]["dev"])
    for hook in config["repos"][0]["hooks"]:
        program = hook["entry"].split()[0]
        assert (
            program == "make" or {"lint-imports": "import-linter"}.get(Path(program).name, Path(program).name) in group
        )
