"""docs/privacy.md: its periods are those of the templates and the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from handler.aws import failure_counts
from handler.tickets.commands.forget import AUDIT_FILE

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs" / "privacy.md").read_text(encoding="utf-8")
TEMPLATE: dict[str, Any] = yaml_parse((REPO / "template.yaml").read_text(encoding="utf-8"))
DAY = 24 * 3600


def rows(heading: str) -> dict[str, list[str]]:
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| (?!-)(.+) \|$", section.replace("|---|", "|-|"), re.MULTILINE)
    table = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    return {row[0]: row[1:] for row in table[1:] if not row[0].startswith("-")}


def of(resource: str) -> dict[str, Any]:
    return dict(TEMPLATE["Resources"][resource]["Properties"])


@pytest.mark.parametrize(
    ("place", "days"),
    [
        ("queue", of("TicketQueue")["MessageRetentionPeriod"] / DAY),
        ("DLQ", of("DeadLetterQueue")["MessageRetentionPeriod"] / DAY),
        ("log", TEMPLATE["Parameters"]["LogRetentionDays"]["Default"]),
        ("table, failure counts", failure_counts._KEPT / DAY),
        ("enriched bucket, superseded versions", TEMPLATE["Parameters"]["NoncurrentVersionDays"]["Default"]),
    ],
)
def test_period_is_the_configured_one(place: str, days: float) -> None:
    assert f"{days:g} days" in rows("What is stored, and for how long")[place][1]


def test_every_store_of_the_template_is_listed() -> None:
    listed = rows("What is stored, and for how long")
    names = {
        "AWS::S3::Bucket": ("raw bucket", "bulk bucket", "enriched bucket"),
        "AWS::DynamoDB::Table": ("table",),
        "AWS::SQS::Queue": ("queue", "DLQ", "bulk queue", "bulk DLQ", "DLQ of result events"),
        "AWS::Logs::LogGroup": ("log",),
    }
    for kind, places in names.items():
        resources = [name for name, found in TEMPLATE["Resources"].items() if found["Type"] == kind]
        assert len(resources) == len(places), f"{resources}: add the new one to docs/privacy.md"
        assert set(places) <= listed.keys()
    assert of("TicketTable")["PointInTimeRecoverySpecification"].keys() == {"PointInTimeRecoveryEnabled"}  # 35 days


def test_retention_parameters_are_listed_with_their_defaults() -> None:
    parameters = {name: p["Default"] for name, p in TEMPLATE["Parameters"].items() if name.endswith("RetentionDays")}
    parameters["NoncurrentVersionDays"] = TEMPLATE["Parameters"]["NoncurrentVersionDays"]["Default"]
    del parameters["LogRetentionDays"]
    assert {name.strip("`"): int(row[0]) for name, row in rows("Retention").items()} == parameters


def test_audit_file_is_named() -> None:
    assert f"(`{AUDIT_FILE}`)" in PAGE
