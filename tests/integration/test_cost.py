"""`make cost`: the price of a measured ticket."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from samtranslator.yaml_helper import yaml_parse

REPO = Path(__file__).resolve().parents[2]
PROGRAM = REPO / "deploy" / "cost.py"


@pytest.fixture(scope="module")
def cost() -> ModuleType:
    """The program as a module; it belongs to no package."""
    spec = spec_from_file_location("cost", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["cost"] = module  # its dataclass resolves annotations there
    spec.loader.exec_module(module)
    return module


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPO)}
    program = [sys.executable, str(PROGRAM), *options]
    return subprocess.run(program, env=environment, capture_output=True, text=True, check=False)


def test_cost_of_a_million_tickets(cost: ModuleType) -> None:
    found = cost.Measured(milliseconds=20, model_milliseconds=10, log_bytes=500, item_bytes=1500)
    bill = cost.priced(found, 2048, 10, cost.PRICES | {"gb-second": 0.00001})
    assert bill["Lambda, time"] == pytest.approx(20_000 * 2 * 0.00001)  # 20,000 seconds with 2 GB
    assert bill["Lambda, requests"] == pytest.approx(0.02)
    assert bill["SQS (send, receive, delete)"] == pytest.approx(0.48)
    assert bill["DynamoDB, writes"] == pytest.approx(2 * 2 * 0.625)  # two units each, for the item and for the index
    assert bill["CloudWatch, logs"] == pytest.approx(0.25)


def test_default_price_matches_the_dashboard(cost: ModuleType) -> None:
    template = yaml_parse((REPO / "deploy" / "observability.yaml").read_text(encoding="utf-8"))
    default = template["Parameters"]["PricePerMillionGbSeconds"]["Default"]
    assert cost.PRICES["gb-second"] * 1e6 == pytest.approx(float(default))


def test_bill_adds_up_and_names_assumptions(bundle: Path) -> None:
    ran = run("--bundle", str(bundle), "--batches", "1", "--batch", "2", "--memory", "1024", "--price", "s3-puts=7")
    assert ran.returncode == 0, ran.stderr
    first, second, _, *lines = ran.stdout.splitlines()
    (models,) = map(float, re.findall(r"^Of it the models take (\d+\.\d) ms; ", second))
    assert re.fullmatch(r"1024 MB, batches of 2: \d+\.\d ms a ticket, measured here on 1 of \d+ cores", first)
    assert 0 < models < float(first.split()[5])
    *parts, total = [line.rsplit(None, 1) for line in lines[: lines.index("")]]
    assert sum(float(usd) for _, usd in parts) == pytest.approx(float(total[1]), abs=0.05)
    assert ["S3, enriched (put)", "7.00"] in [[name.strip(), usd] for name, usd in parts]
    assert "us-east-1" in lines[-1]
    assert lines[-1].endswith("check them.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--price", "gas=1"], "error: there is no price gas; there are gb-second, "),
        (["--price", "s3-puts"], "error: a price is NAME=USD"),
        (["--bundle", "/nonexistent"], "error: there is no model bundle in /nonexistent; build it"),
    ],
)
def test_invalid_option_is_a_one_line_error(options: list[str], message: str) -> None:
    ran = run(*options)
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert ran.stderr.startswith(message)
