"""Every sample event through the image, run as on Lambda."""

from __future__ import annotations

import json

import pytest

from handler.metrics import OUTCOMES
from tests.runtime.container import LambdaContainer
from tests.runtime.deployed import Lambda
from tests.support.cases import Case, load_cases, run_case


@pytest.mark.parametrize("case", load_cases(), ids=lambda case: case.name)
def test_sample_event(case: Case, container: LambdaContainer, deployed: Lambda) -> None:
    answer = run_case(case, deployed.invoker(container), deployed.harness(container))
    logged = [line["outcome"] for line in answer.lines() if line.get("message") == "ticket"]
    (metrics,) = [line for line in answer.lines() if "TicketsPerBatch" in line]
    assert {name: metrics[name] for name in OUTCOMES.values()} == {
        name: [float(logged.count(outcome))] for outcome, name in OUTCOMES.items()
    }


def test_peak_memory_is_within_budget(container: LambdaContainer, deployed: Lambda) -> None:
    deployed.metrics.peaks[f"all sample events, of {container.function.memory_mb} MB"] = container.memory_peak()
    assert container.memory_kills() == 0


# The emulated restrictions equal Lambda's: otherwise the tests above would prove little.
ENVIRONMENT = """
import importlib.util, json, os, pathlib

def refused(path):
    try:
        pathlib.Path(path).write_text("")
    except OSError as error:
        return error.strerror

status = dict(line.split(":", 1) for line in pathlib.Path("/proc/1/status").read_text().splitlines())
modules = ["handler.main", "handler.local", "handler.worker", "handler.dlq", "handler.tickets", "enrichment.export",
           "torch", "transformers", "moto", "ministack", "typer", "rich"]
print(json.dumps({
    "user": [os.getuid(), os.getgid()],
    "folder": os.readlink("/proc/1/cwd"),
    "capabilities": int(status["CapEff"], 16),
    "root": refused("/usr/mark"),
    "share": refused("/share/ticket-enrichment/bundle/mark"),
    "tmp": refused("/tmp/mark"),
    "tmp_mb": os.statvfs("/tmp").f_blocks * os.statvfs("/tmp").f_frsize // 2**20,
    "modules": [name for name in modules if importlib.util.find_spec(name)],
}))
"""


def test_environment_equals_lambdas(container: LambdaContainer) -> None:
    assert json.loads(container.run("python3", "-P", "-c", ENVIRONMENT)) == {
        "user": [993, 990],
        "folder": "/tmp",
        "capabilities": 0,
        "root": "Read-only file system",
        "share": "Read-only file system",
        "tmp": None,
        "tmp_mb": 512,
        "modules": ["handler.main"],
    }
