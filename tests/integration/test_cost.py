"""`make cost`: the price of a measured ticket."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

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


def measured(cost: ModuleType, **values: float) -> Any:
    defaults = {"milliseconds": 20, "model_milliseconds": 10, "log_bytes": 500, "write_units": 1, "enriched_puts": 1}
    return cost.Measured(**{**defaults, **values})


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPO)}
    program = [sys.executable, str(PROGRAM), *options]
    return subprocess.run(program, env=environment, capture_output=True, text=True, check=False)


def test_cost_of_a_million_tickets(cost: ModuleType) -> None:
    found = measured(cost, write_units=2)
    bill = cost.priced(found, 2048, 10, cost.PRICES | {"gb-second": 0.00001})
    assert bill["Lambda, time"] == pytest.approx(20_000 * 2 * 0.00001)  # 20,000 seconds with 2 GB
    assert bill["Lambda, requests"] == pytest.approx(0.02)
    assert bill["SQS (send, receive, delete)"] == pytest.approx(0.48)
    assert bill["DynamoDB, writes"] == pytest.approx(2 * 3 * 0.625)  # two units each, for the item and two indexes
    assert bill["CloudWatch, logs"] == pytest.approx(0.25)


def test_biggest_item_is_named_whatever_it_is(cost: ModuleType) -> None:
    found = {"ticket": measured(cost), "batch": measured(cost, enriched_puts=0.1)}
    bills = {mode: cost.priced(each, 2048, 10, cost.PRICES) for mode, each in found.items()}
    total = sum(bills["ticket"].values())
    first, *lines = cost.advice(found, bills, 10)
    assert first == f"The biggest item is S3 puts: 10.00 of {total:.2f} USD ({10 / total:.0%})."
    assert "0.10 puts of enriched objects a ticket instead of 1.00," in lines[0]
    assert "4.50 USD less per million tickets" in lines[1]
    assert "100,000 of a million tickets, in 100 requests" in lines[3]
    slow = {mode: measured(cost, milliseconds=1000) for mode in found}
    bills = {mode: cost.priced(each, 2048, 10, cost.PRICES) for mode, each in slow.items()}
    assert cost.advice(slow, bills, 10)[0].startswith("The biggest item is Lambda, time: 33.33 of ")


@pytest.mark.parametrize(
    ("size", "units"),
    [(1024, 1), (1025, 2), (3000, 3)],
)
def test_write_units_of_an_item(cost: ModuleType, size: int, units: int) -> None:
    item = {
        "text": {"S": "ü" * 100},  # 4 + 200
        "number": {"N": "1795165200"},  # 6 + 6: trailing zeros count for nothing
        "map": {"M": {"a": {"BOOL": True}}},  # 3 + 3 + 1 + 1 + 1
        "list": {"L": [{"S": "x"}, {"NULL": True}]},  # 4 + 3 + 2 + 2
    }
    assert sum(len(name) + cost.attribute_bytes(value) for name, value in item.items()) == 236
    item["rest"] = {"S": "x" * (size - 236 - 4)}
    assert cost.write_units(item) == units


def test_number_of_indexes_is_the_templates(cost: ModuleType) -> None:
    template = yaml_parse((REPO / "template.yaml").read_text(encoding="utf-8"))
    indexes = template["Resources"]["TicketTable"]["Properties"]["GlobalSecondaryIndexes"]
    assert [index["Projection"]["ProjectionType"] for index in indexes] == ["ALL"] * cost.INDEXES


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
    assert lines[0].split("  ")[0] == "USD per million tickets"
    rows = [re.split(r"  +", line) for line in lines[1 : lines.index("")]]
    parts = {name: [float(one), float(other)] for name, one, other in rows}
    sums = parts.pop("sum")
    assert [sum(column) for column in zip(*parts.values(), strict=True)] == pytest.approx(sums, abs=0.05)
    assert parts["S3, puts of enriched tickets"] == [7.0, 3.5], "two tickets share a put, as it is counted"
    assert [line for line in lines if line.startswith("The biggest item is S3 puts: 14.00 of ")]
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
