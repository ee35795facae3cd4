"""The rules of docs/events.md: CloudFormation accepts them, and their patterns select the events that they should."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from cfnlint.api import lint
from samtranslator.yaml_helper import yaml_parse

from tests.support.result_events import SCHEMA, check_event, matches

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "events.md").read_text(encoding="utf-8")
BLOCKS = [
    block for block in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if "Type: AWS" in block
]
RESOURCES: dict[str, Any] = {name: each for block in BLOCKS for name, each in yaml_parse(block).items()}
EXAMPLE: dict[str, Any] = json.loads(re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0])


def findings(blocks: list[str]) -> set[str]:
    body = "".join("  " + line + "\n" for block in blocks for line in block.splitlines())
    parameters = "Parameters:\n" + "".join(
        f"  {name}: {{Type: String}}\n" for name in ("ResultBusName", "ResultTopicArn") if f"!Ref {name}" in body
    )
    return {f"{each.rule.id} {each.message}" for each in lint(f"{parameters}Resources:\n{body}", regions=["us-east-1"])}


def test_cloudformation_accepts_the_rules() -> None:
    assert len(BLOCKS) == 4
    assert findings(BLOCKS) == set()
    assert any(found.startswith("E3") for found in findings([BLOCKS[0].replace("EventBusName", "Bus"), *BLOCKS[1:]]))


@pytest.mark.parametrize(
    ("rule", "fields", "selected"),
    [
        ("UrgentRule", {"urgency": "critical"}, True),
        ("UrgentRule", {"urgency": "critical", "change": "updated"}, True),
        ("UrgentRule", {"urgency": "critical", "change": "enriched_again"}, False),
        ("UrgentRule", {"urgency": "high"}, False),
        ("SecurityRule", {"intent": "security_concern"}, True),
        ("SecurityRule", {"intent": "security_concern", "change": "corrected"}, True),
        ("SecurityRule", {"intent": "security_concern", "change": "enriched_again"}, False),
        ("SecurityRule", {"intent": "bug_report"}, False),
        ("ReviewRule", {"needs_review": True}, True),
        ("ReviewRule", {"needs_review": True, "change": "enriched_again"}, False),
        ("ReviewRule", {"needs_review": False}, False),
    ],
)
def test_rule_selects_events(rule: str, fields: dict[str, Any], selected: bool) -> None:
    check_event(EXAMPLE | fields)
    envelope = {"source": "ticket-enrichment", "detail-type": "Ticket enriched", "detail": EXAMPLE | fields}
    assert matches(RESOURCES[rule]["Properties"]["EventPattern"], envelope) is selected
    assert not matches(RESOURCES[rule]["Properties"]["EventPattern"], {**envelope, "source": "another"})


def test_filter_policy_selects_what_the_rule_selects() -> None:
    policy = RESOURCES["UrgentSubscription"]["Properties"]["FilterPolicy"]
    assert policy == RESOURCES["UrgentRule"]["Properties"]["EventPattern"]["detail"]


def test_page_explains_every_field_and_change() -> None:
    assert set(SCHEMA["required"]) <= EXAMPLE.keys() <= SCHEMA["properties"].keys()
    for optional in SCHEMA["properties"].keys() - EXAMPLE.keys():
        assert f'"{optional}": ' in PAGE, optional
    changes = re.findall(r"^\| `(\w+)` \| (?:the|a) ", PAGE, re.MULTILINE)
    assert changes == SCHEMA["properties"]["change"]["enum"]


def test_rules_page_nobody_for_a_backfill() -> None:
    rules = [each for each in RESOURCES.values() if each["Type"] == "AWS::Events::Rule"]
    assert len(rules) == 3
    backfill = EXAMPLE | {"change": "enriched_again", "urgency": "critical", "intent": "security_concern"}
    for each in rules:
        assert not matches(each["Properties"]["EventPattern"]["detail"], backfill | {"needs_review": True})


def test_kubernetes_example_is_yaml() -> None:
    (text,) = (b for b in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if b.startswith("env:"))
    assert {each["name"] for each in yaml.safe_load(text)["env"]} == {"RESULT_WEBHOOK", "RESULT_WEBHOOK_SECRET"}
