"""What a stack update from one template to another changes and replaces, after the schemas of the resource types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER

Resources = Mapping[str, Mapping[str, Any]]

STATEFUL = {"AWS::S3::Bucket", "AWS::DynamoDB::Table", "AWS::SQS::Queue"}
NAMES = {
    "AWS::CloudWatch::Alarm": "AlarmName",
    "AWS::CloudWatch::Dashboard": "DashboardName",
    "AWS::DynamoDB::Table": "TableName",
    "AWS::IAM::Role": "RoleName",
    "AWS::Lambda::Function": "FunctionName",
    "AWS::Logs::LogGroup": "LogGroupName",
    "AWS::S3::Bucket": "BucketName",
    "AWS::SQS::Queue": "QueueName",
}


@dataclass(frozen=True)
class Change:
    """One line of a change set."""

    action: str  # add, modify, replace or remove
    logical_id: str
    kind: str
    properties: frozenset[str] = frozenset()


def change_set(old: Resources, new: Resources) -> list[Change]:
    """The changes of an update, with both templates after the SAM transform and the same parameters.

    Properties are compared as written, so an expression that is written differently counts as changed.
    """
    return [
        *(Change("add", name, each["Type"]) for name, each in new.items() if name not in old),
        *(Change("remove", name, each["Type"]) for name, each in old.items() if name not in new),
        *_changed(old, new),
    ]


def _changed(old: Resources, new: Resources) -> Iterator[Change]:
    for name in old.keys() & new.keys():
        kind, before, now = new[name]["Type"], old[name].get("Properties", {}), new[name].get("Properties", {})
        properties = frozenset(each for each in {**before, **now} if before.get(each) != now.get(each))
        if old[name]["Type"] != kind or properties & create_only(kind):
            yield Change("replace", name, old[name]["Type"], properties)
        elif properties:
            yield Change("modify", name, kind, properties)


def create_only(kind: str) -> frozenset[str]:
    """The properties whose change replaces a resource, always or under conditions."""
    schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", kind).schema
    paths = [*schema.get("createOnlyProperties", ()), *schema.get("conditionalCreateOnlyProperties", ())]
    return frozenset(path.split("/")[2] for path in paths)


def names(resources: Resources) -> dict[str, str]:
    """The explicit names of resources, as written, with their types: the logical id by both."""
    named = {logical: each for logical, each in resources.items() if NAMES.get(each["Type"], "") in each["Properties"]}
    return {f"{each['Type']} {each['Properties'][NAMES[each['Type']]]}": logical for logical, each in named.items()}


def indexes(resources: Resources, table: str) -> dict[str, Any]:
    """A table's global secondary indexes by name. DynamoDB creates or deletes one per update, and changes none."""
    return {index["IndexName"]: index for index in resources[table]["Properties"]["GlobalSecondaryIndexes"]}
