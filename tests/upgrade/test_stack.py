"""A stack of commit be79fe2 is updated in place, forwards and back: no bucket, table or queue is replaced."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from handler.local import EmbeddedStack
from handler.local.stack import TEMPLATE as TEMPLATE_FILE
from tests.infrastructure.transformed import transform
from tests.infrastructure.watched import OBSERVABILITY, TEMPLATE, TEXT
from tests.upgrade.changes import STATEFUL, change_set, create_only, indexes, names

OLD_TEXT = (Path(__file__).parent / "be79fe2" / "template.yaml").read_text(encoding="utf-8")
OLD: dict[str, Any] = yaml_parse(OLD_TEXT)
# Replaced by MaximumReceiveCount, because `sam deploy` would keep a stack's old value of 5.
RENAMED = {"MaxReceiveCount"}
DEPLOYMENTS = ["AllAtOnce", "Canary10Percent10Minutes"]
UPGRADE, ROLLBACK = (OLD_TEXT, TEXT), (TEXT, OLD_TEXT)


def resources(text: str, deployment: str) -> dict[str, Any]:
    """What CloudFormation creates for a way of deploying."""
    transformed = transform(text, Deployment=deployment)["Resources"]
    # Result events and the queue for bulk are off by default.
    unused = {"ResultEventsOn", "ResultEventsToTopic", "ResultEventsToBus", "BulkOn"}
    unused |= {"InSteps"} if deployment == "AllAtOnce" else set()
    return {name: each for name, each in transformed.items() if each.get("Condition") not in unused}


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
@pytest.mark.parametrize(("before", "after"), [UPGRADE, ROLLBACK], ids=["upgrade", "rollback"])
def test_nothing_that_holds_data_is_replaced_or_removed(before: str, after: str, deployment: str) -> None:
    old, new = resources(before, deployment), resources(after, deployment)
    changes = change_set(old, new)
    assert len([each for each in old.values() if each["Type"] in STATEFUL]) == 5
    lost = [change for change in changes if change.action in {"remove", "replace"}]
    # A published version is never changed: a release has another one, and SAM retains the previous.
    assert [change for change in lost if change.action == "replace"] == []
    assert {change.kind for change in lost} <= {
        "AWS::CloudWatch::Alarm",
        "AWS::CloudWatch::Dashboard",
        "AWS::Lambda::Version",
    }
    before_indexes, after_indexes = indexes(old, "TicketTable"), indexes(new, "TicketTable")
    assert len(before_indexes.keys() ^ after_indexes.keys()) <= 1
    assert all(before_indexes[name] == after_indexes[name] for name in before_indexes.keys() & after_indexes.keys())


@pytest.mark.parametrize(("before", "after"), [UPGRADE, ROLLBACK], ids=["upgrade", "rollback"])
def test_no_new_resource_takes_the_name_of_one_that_exists(before: str, after: str) -> None:
    # CloudFormation creates what is new before it deletes what is gone.
    old, new = names(resources(before, DEPLOYMENTS[1])), names(resources(after, DEPLOYMENTS[1]))
    assert len(old) > 5
    assert {name: logical for name, logical in new.items() if old.get(name, logical) != logical} == {}


def test_observability_stack_takes_no_name_of_the_function_stack() -> None:
    # Whichever of the two stacks is updated or created first: the names are those of two different stacks.
    alarms = names(OBSERVABILITY["Resources"])
    assert len(alarms) == len(OBSERVABILITY["Resources"])
    for text in (OLD_TEXT, TEXT):
        assert alarms.keys() & names(resources(text, DEPLOYMENTS[1])).keys() == set()
    # The names begin with the stack's name, which ends in "-observability", or with that of the function.
    old = [name for name in names(OLD["Resources"]) if "CloudWatch" in name]
    assert [name for name in alarms if "${AWS::StackName}-" not in name] == []
    assert [name for name in old if "${EnrichmentFunction}-" not in name or "-observability" in name] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("TicketTable/Properties/TableName", "other"),
        ("TicketTable/Properties/KeySchema/1/AttributeName", "processed_at"),
        ("TicketTable/Type", "AWS::DynamoDB::GlobalTable"),
        ("RawBucket/Properties/BucketName", "other"),
        ("TicketQueue/Properties/FifoQueue", True),
        ("DeadLetterQueue/Properties/QueueName", "other"),
    ],
)
def test_a_replacement_is_noticed(path: str, value: object) -> None:
    old = resources(OLD_TEXT, DEPLOYMENTS[0])
    new = deepcopy(old)
    *steps, last = path.split("/")
    node: Any = new
    for step in steps:
        node = node[int(step) if isinstance(node, list) else step]
    node[last] = value
    (change,) = change_set(old, new)
    assert (change.action, change.logical_id) == ("replace", steps[0] if steps else last)


def test_schemas_know_what_replaces_a_resource() -> None:
    assert create_only("AWS::SQS::Queue") == {"QueueName", "FifoQueue"}
    assert {"TableName", "KeySchema"} <= create_only("AWS::DynamoDB::Table")


# -- parameters: `sam deploy` keeps the values that a stack has


@pytest.mark.parametrize("name", OLD["Parameters"])
def test_value_of_a_stack_is_still_accepted(name: str) -> None:
    old = OLD["Parameters"][name]
    new = TEMPLATE["Parameters"].get(name) or OBSERVABILITY["Parameters"].get(name)
    assert (new is None) == (name in RENAMED)
    if new is None:
        return
    assert new["Type"] == old["Type"]
    assert set(old.get("AllowedValues", ())) <= set(new.get("AllowedValues", old.get("AllowedValues", ())))
    assert new.get("MinValue", 0) <= old.get("MinValue", 0)
    assert new.get("MaxValue", float("inf")) >= old.get("MaxValue", 0)
    assert new.get("AllowedPattern") == old.get("AllowedPattern")
    if "Default" in old and "AllowedPattern" in new:
        assert re.fullmatch(new["AllowedPattern"], str(old["Default"]))


def test_new_parameters_have_defaults() -> None:
    # An update in a pipeline asks nobody.
    new = TEMPLATE["Parameters"].keys() - OLD["Parameters"].keys()
    assert {"MaximumReceiveCount", "KmsKeyArn", "Tracing"} <= new
    assert [name for name in sorted(new) if "Default" not in TEMPLATE["Parameters"][name]] == []


# -- in the emulator


@pytest.fixture
def stack() -> Iterator[EmbeddedStack]:
    """A separate stack, because the alarms of the rolled back one would be seen by other tests."""
    with EmbeddedStack() as embedded:
        yield embedded


def settled(cloudformation: Any, name: str) -> dict[str, Any]:
    """The stack once its operation has ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        (found,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
        if not found["StackStatus"].endswith("_IN_PROGRESS"):
            return dict(found)
        time.sleep(0.05)
    raise TimeoutError(name)


def test_a_stack_with_tickets_is_updated_and_rolled_back(stack: EmbeddedStack) -> None:
    cloudformation, s3, sqs, dynamodb = (stack.client(name) for name in ("cloudformation", "s3", "sqs", "dynamodb"))
    given = {"NamePrefix": "upgrade", "ImageUri": "image", "MappingEnabled": "false"}
    request = {
        "StackName": "upgrade",
        "Capabilities": ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
        "Parameters": [{"ParameterKey": name, "ParameterValue": value} for name, value in given.items()],
    }
    alarms = [{"ParameterKey": "MetricMathAlarms", "ParameterValue": "false"}]  # of be79fe2's own template
    old_request = {**request, "TemplateBody": OLD_TEXT, "Parameters": [*request["Parameters"], *alarms]}
    cloudformation.create_stack(**old_request)
    created = settled(cloudformation, "upgrade")
    assert created["StackStatus"] == "CREATE_COMPLETE"
    outputs = {output["OutputKey"]: output["OutputValue"] for output in created["Outputs"]}
    queue, dlq = outputs["QueueUrl"], outputs["DlqUrl"]
    version = s3.put_object(Bucket=outputs["EnrichedBucket"], Key="T-1.json", Body=b"enriched")["VersionId"]
    item = {"ticket_id": {"S": "T-1"}, "created_at": {"N": "1"}, "urgency": {"S": "low"}}
    dynamodb.put_item(TableName=outputs["TableName"], Item=item)
    sqs.send_message(QueueUrl=queue, MessageBody="waiting")
    sqs.send_message(QueueUrl=dlq, MessageBody="rejected")

    def held() -> dict[str, str]:
        found = cloudformation.describe_stack_resources(StackName="upgrade")["StackResources"]
        return {
            each["LogicalResourceId"]: each["PhysicalResourceId"] for each in found if each["ResourceType"] in STATEFUL
        }

    before = held()
    assert len(before) == 5
    for update, receives in (({**request, "TemplateURL": stack.upload(TEMPLATE_FILE)}, 30), (old_request, 5)):
        cloudformation.update_stack(**update)
        updated = settled(cloudformation, "upgrade")
        assert updated["StackStatus"] == "UPDATE_COMPLETE", updated.get("StackStatusReason")
        assert held() == before
        stored = s3.get_object(Bucket=outputs["EnrichedBucket"], Key="T-1.json", VersionId=version)
        assert stored["Body"].read() == b"enriched"
        assert dynamodb.scan(TableName=outputs["TableName"])["Items"] == [item]
        for url, body in ((queue, "waiting"), (dlq, "rejected")):  # S3's test events are in the queue as well
            received = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=0)["Messages"]
            assert body in [message["Body"] for message in received]
        policy = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["RedrivePolicy"])["Attributes"][
            "RedrivePolicy"
        ]
        assert int(json.loads(policy)["maxReceiveCount"]) == receives
