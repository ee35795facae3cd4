"""The retention parameters of template.yaml: which lifecycle rules result from their values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

TEMPLATE: dict[str, Any] = yaml_parse(
    (Path(__file__).resolve().parents[2] / "template.yaml").read_text(encoding="utf-8")
)
ABSENT = object()  # AWS::NoValue


def resolved(node: Any, parameters: dict[str, Any]) -> Any:
    """A part of the template as CloudFormation resolves it; values are compared as text, as there."""
    found = node
    match node:
        case {"Ref": name}:
            found = ABSENT if name == "AWS::NoValue" else parameters[name]
        case {"Fn::If": [condition, yes, no]}:
            found = resolved(yes if resolved(TEMPLATE["Conditions"][condition], parameters) else no, parameters)
        case {"Fn::Not": [inner]}:
            found = not resolved(inner, parameters)
        case {"Fn::Equals": [one, other]}:
            found = str(resolved(one, parameters)) == str(resolved(other, parameters))
        case list():
            found = [item for item in (resolved(item, parameters) for item in node) if item is not ABSENT]
        case dict():
            values = {name: resolved(value, parameters) for name, value in node.items()}
            found = {name: value for name, value in values.items() if value is not ABSENT}
    return found


def rules(bucket: str, **given: int) -> dict[str, dict[str, Any]]:
    """The lifecycle rules of a bucket by their ids, with these parameters and the defaults of the others."""
    parameters = {name: parameter.get("Default") for name, parameter in TEMPLATE["Parameters"].items()} | given
    found = resolved(TEMPLATE["Resources"][bucket]["Properties"]["LifecycleConfiguration"], parameters)
    return {rule["Id"]: rule for rule in found["Rules"]}


@pytest.mark.parametrize("bucket", ["RawBucket", "BulkBucket", "EnrichedBucket"])
def test_tickets_are_kept_for_good_by_default(bucket: str) -> None:
    (rule,) = rules(bucket).values()
    assert "ExpirationInDays" not in rule
    assert rule.get("NoncurrentVersionExpiration") in (None, {"NoncurrentDays": 30, "NewerNoncurrentVersions": 100})


def test_raw_tickets_expire() -> None:
    expiry = {"Id": "end-of-retention", "Status": "Enabled", "ExpirationInDays": 40}
    assert rules("RawBucket", RawRetentionDays=40)["end-of-retention"] == expiry
    assert rules("BulkBucket", RawRetentionDays=40)["end-of-retention"] == expiry
    assert "end-of-retention" not in rules("EnrichedBucket", RawRetentionDays=40)


def test_enriched_tickets_expire_with_all_their_versions() -> None:
    found = rules("EnrichedBucket", EnrichedRetentionDays=50, NoncurrentVersionDays=60)
    assert found["end-of-retention"] == {"Id": "end-of-retention", "Status": "Enabled", "ExpirationInDays": 50}
    # An expired ticket is a superseded version: none of those may be kept for good.
    assert found["forget-superseded-versions"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 60}


def test_superseded_versions_expire_alone() -> None:
    superseded = rules("EnrichedBucket", NoncurrentVersionDays=7)["forget-superseded-versions"]
    assert superseded["NoncurrentVersionExpiration"] == {"NoncurrentDays": 7, "NewerNoncurrentVersions": 100}


def test_item_retention_reaches_the_function() -> None:
    environment = TEMPLATE["Resources"]["EnrichmentFunction"]["Properties"]["Environment"]["Variables"]
    assert resolved(environment["ITEM_RETENTION_DAYS"], {"ItemRetentionDays": 70}) == 70
