"""What a stack leaves behind when it is deleted, and how a new stack takes it over.

The buckets, the table and the dead-letter queue hold tickets, so template.yaml retains them. Their names are fixed, and
CloudFormation refuses to create what exists. A stack that is deployed after `make destroy` therefore begins with a
resource import: a change set that contains only the resources that exist, without references to others. The deployment
that follows is an update, which adds the rest. Automatic import (ImportExistingResources) is no alternative: it wants
literal names in the template, and it cannot import queues.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from botocore.exceptions import ClientError, WaiterError
from samtranslator.yaml_helper import yaml_parse

__all__ = ["AdoptionError", "KeptResource", "adopt", "find_kept", "import_template", "parsed", "retained"]

Template = Mapping[str, Any]
Client = Callable[[str], Any]

CHANGE_SET: Final = "adopt-kept-resources"
KINDS: Final = {"AWS::S3::Bucket", "AWS::DynamoDB::Table", "AWS::SQS::Queue"}
WAITING: Final = {"Delay": 2, "MaxAttempts": 300}  # an import takes about a minute
MISSING: Final = {"404", "NoSuchBucket", "ResourceNotFoundException", "AWS.SimpleQueueService.NonExistentQueue"}


class AdoptionError(Exception):
    """The resources cannot be imported. One line that says why."""


@dataclass(frozen=True)
class KeptResource:
    """A resource that exists, as a resource import names it."""

    logical_id: str
    kind: str
    name: str
    identifier: Mapping[str, str]


def retained(template: Template) -> list[str]:
    """The logical ids of the resources with tickets that are kept when the stack is deleted."""
    return [
        name
        for name, each in template["Resources"].items()
        if each["Type"] in KINDS and str(each.get("DeletionPolicy", "")).startswith("Retain")
    ]


def find_kept(client: Client, parameters: Mapping[str, str]) -> list[KeptResource]:
    """The resources that a stack with these parameters would create and that exist already."""
    place = prefix = parameters.get("NamePrefix", "")
    is_bulk_on = parameters.get("BulkConcurrency", "0") != "0"
    if not prefix:
        account, region = client("sts").get_caller_identity()["Account"], client("s3").meta.region_name
        place = f"{account}-{region}"
    begin = f"{prefix}-" if prefix else ""
    found = []
    buckets = {"RawBucket": f"{place}-tickets-raw", "EnrichedBucket": f"{place}-tickets-enriched"}
    queues = {"DeadLetterQueue": f"{begin}ticket-processing-dlq"}
    if is_bulk_on:
        buckets["BulkBucket"] = f"{place}-tickets-bulk"
        queues["BulkDeadLetterQueue"] = f"{begin}ticket-processing-bulk-dlq"
    for logical_id, name in buckets.items():
        if _exists(client("s3").head_bucket, Bucket=name):
            found.append(KeptResource(logical_id, "AWS::S3::Bucket", name, {"BucketName": name}))
    table = f"{begin}tickets"
    if _exists(client("dynamodb").describe_table, TableName=table):
        found.append(KeptResource("TicketTable", "AWS::DynamoDB::Table", table, {"TableName": table}))
    for logical_id, name in queues.items():
        if answer := _exists(client("sqs").get_queue_url, QueueName=name):
            found.append(KeptResource(logical_id, "AWS::SQS::Queue", name, {"QueueUrl": answer["QueueUrl"]}))
    return found


def adopt(
    cloudformation: Any, stack: str, template: Template, parameters: Mapping[str, str], kept: list[KeptResource]
) -> None:
    """Create a stack of the resources that exist. Raises AdoptionError, after which there is no stack."""
    cloudformation.create_change_set(
        StackName=stack,
        ChangeSetName=CHANGE_SET,
        ChangeSetType="IMPORT",
        TemplateBody=json.dumps(import_template(template, kept)),
        Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()],
        ResourcesToImport=[
            {"ResourceType": each.kind, "LogicalResourceId": each.logical_id, "ResourceIdentifier": each.identifier}
            for each in kept
        ],
    )
    names = {"StackName": stack, "ChangeSetName": CHANGE_SET}
    try:
        cloudformation.get_waiter("change_set_create_complete").wait(**names, WaiterConfig=WAITING)
        cloudformation.execute_change_set(**names)
        cloudformation.get_waiter("stack_import_complete").wait(StackName=stack, WaiterConfig=WAITING)
    except WaiterError as error:
        last: Any = error.last_response
        reason = last.get("StatusReason") or last.get("Stacks", [{}])[0].get("StackStatusReason") or str(error)
        # A stack that imported nothing has no resources, and every resource of it is retained anyway.
        cloudformation.delete_stack(StackName=stack)
        raise AdoptionError(
            f"CloudFormation cannot import {', '.join(each.name for each in kept)}: {reason}"
        ) from error


def import_template(template: Template, kept: list[KeptResource]) -> dict[str, Any]:
    """The template of a resource import: only what exists, without outputs and without references to what does not."""
    resources = {each.logical_id: template["Resources"][each.logical_id] for each in kept}
    missing = template["Resources"].keys() - resources.keys()
    return {
        "AWSTemplateFormatVersion": template["AWSTemplateFormatVersion"],
        **{part: template[part] for part in ("Parameters", "Mappings", "Conditions")},
        "Resources": {
            name: {
                **{key: each[key] for key in ("Type", "DeletionPolicy", "UpdateReplacePolicy")},
                "Properties": {key: value for key, value in each["Properties"].items() if not _names(value) & missing},
            }
            for name, each in resources.items()
        },
    }


def _names(value: Any) -> set[str]:
    """The resources and parameters that a property refers to."""
    if isinstance(value, list):
        return set().union(*map(_names, value))
    if not isinstance(value, dict):
        return set()
    found = set().union(*map(_names, value.values()))
    if "Ref" in value:
        found.add(value["Ref"])
    if "Fn::GetAtt" in value:
        found.add(value["Fn::GetAtt"][0])
    if "Fn::Sub" in value:
        text = value["Fn::Sub"] if isinstance(value["Fn::Sub"], str) else value["Fn::Sub"][0]
        found |= {part.partition("}")[0].partition(".")[0] for part in text.split("${")[1:]}
    return found


def _exists(describe: Callable[..., Any], **names: str) -> Any:
    """What AWS says about a resource; None if it does not exist. Raises ClientError."""
    try:
        return describe(**names)
    except ClientError as error:
        if error.response["Error"]["Code"] in MISSING:
            return None
        raise


def parsed(body: Any) -> Template:
    """A template as CloudFormation returns it: the text that was deployed, or an object if that was JSON."""
    return dict(body) if isinstance(body, Mapping) else dict(yaml_parse(body))
