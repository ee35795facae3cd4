"""The alerts of deploy/kubernetes/monitoring, checked and tested by Prometheus' own promtool.

Needs promtool (on Debian: apt-get install prometheus). tests/infrastructure/test_monitoring.py runs the same scenarios
without it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
MONITORING = REPOSITORY / "deploy" / "kubernetes" / "monitoring"
SCENARIOS = Path(__file__).with_name("alerts.yaml")
# What Grafana replaces in the expressions of a dashboard.
VARIABLES = {"$namespace": ".*"}


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool."""
    program = shutil.which("promtool")
    if program is None:
        pytest.fail("promtool is missing; on Debian: apt-get install prometheus")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def rules() -> dict[str, Any]:
    """The content of the PrometheusRule, which is a file of rules."""
    found = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text(encoding="utf-8"))
    return dict(found["spec"])


def write(folder: Path, content: dict[str, Any]) -> Path:
    """Write rules next to a copy of the scenarios; return the scenarios' path."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return Path(shutil.copy(SCENARIOS, folder))


def test_rules_are_valid(tmp_path: Path) -> None:
    write(tmp_path, rules())
    done = promtool("check", "rules", tmp_path / "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_and_returns_to_ok(tmp_path: Path) -> None:
    done = promtool("test", "rules", write(tmp_path, rules()))
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_that_never_fire_are_detected(tmp_path: Path) -> None:
    changed = rules()
    for rule in changed["groups"][0]["rules"]:
        rule["expr"] = f"({rule['expr']}) and vector(1) == 2"
    done = promtool("test", "rules", write(tmp_path, changed))
    assert done.returncode == 1
    for rule in changed["groups"][0]["rules"]:
        assert rule["alert"] in done.stdout + done.stderr


def test_expressions_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    board = json.loads((MONITORING / "ticket-processor.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    for name, value in VARIABLES.items():
        expressions = [expression.replace(name, value) for expression in expressions]
    assert not any("$" in expression for expression in expressions)
    recorded = [{"record": f"panel_{number}", "expr": expression} for number, expression in enumerate(expressions)]
    write(tmp_path, {"groups": [{"name": "dashboard", "rules": recorded}]})
    done = promtool("check", "rules", tmp_path / "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
