"""template.yaml as data: the rules whose breach shows only in production, each of them seen to fail as well."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "template.yaml").read_text(encoding="utf-8")
Template = dict[str, Any]
TEMPLATE: Template = yaml_parse(TEXT)
Rule = Callable[[Template], None]
RULES: list[Rule] = []

SETTINGS = {
    *(
        "MODEL_BUNDLE",
        "MODEL_BUNDLE_DIGEST",
        "BUNDLE_CACHE_DIR",
        "RAW_BUCKET",
        "ENRICHED_BUCKET",
        "TABLE_NAME",
        "QUEUE_URL",
        "DLQ_URL",
    ),
    *("MAX_RECEIVE_COUNT", "MAX_TICKET_BYTES", "LOG_LEVEL", "SERVICE_NAME", "AWS_ENDPOINT_URL", "HOME"),
    "MALLOC_ARENA_MAX",
}
PERMISSIONS = [
    ("${RawBucket.Arn}/*", "s3:GetObject"),
    ("RawBucket.Arn", "s3:ListBucket"),
    ("${EnrichedBucket.Arn}/*", "s3:PutObject"),
    ("TicketTable.Arn", "dynamodb:GetItem dynamodb:PutItem"),
    ("TicketTable.Arn", "dynamodb:UpdateItem"),
    ("TicketQueue.Arn", "sqs:ReceiveMessage sqs:DeleteMessage sqs:GetQueueAttributes sqs:ChangeMessageVisibility"),
    ("DeadLetterQueue.Arn", "sqs:SendMessage"),
    ("EnrichmentLogs.Arn", "logs:CreateLogStream logs:PutLogEvents"),
    ("arn:${AWS::Partition}:s3:::${ModelBundleS3}/*", "s3:GetObject"),
]


def rule(check: Rule) -> Rule:
    RULES.append(check)
    return check


def of(template: Template, resource: str) -> Template:
    return dict(template["Resources"][resource]["Properties"])


def source_of(template: Template) -> Template:
    (source,) = of(template, "EnrichmentFunction")["Events"].values()
    return dict(source["Properties"])


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def statements(node: Any, effect: str) -> Iterator[Template]:
    if isinstance(node, dict) and node.get("Effect") == effect:
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from statements(child, effect)


@rule
def visibility_is_six_timeouts_and_the_window(template: Template) -> None:
    parameters = template["Parameters"]
    for timeout in parameters["Timeout"]["AllowedValues"]:
        for window in parameters["BatchWindow"]["AllowedValues"]:
            assert template["Mappings"]["Visibility"][timeout][window] >= 6 * int(timeout) + int(window)
    found = {"Fn::FindInMap": ["Visibility", {"Ref": "Timeout"}, {"Ref": "BatchWindow"}]}
    assert of(template, "TicketQueue")["VisibilityTimeout"] == found
    assert of(template, "EnrichmentFunction")["Timeout"] == {"Ref": "Timeout"}
    assert source_of(template)["MaximumBatchingWindowInSeconds"] == {"Ref": "BatchWindow"}


@rule
def receives_outlast_an_outage_and_not_the_retention(template: Template) -> None:
    # A stack of before keeps the value 5 that it has for MaxReceiveCount.
    assert "MaxReceiveCount" not in template["Parameters"]
    parameter, reference = template["Parameters"]["MaximumReceiveCount"], {"Ref": "MaximumReceiveCount"}
    # tests/unit/test_outage.py computes how long so many receives take.
    assert 21 <= parameter["MinValue"] < parameter["Default"] - 5
    queue = of(template, "TicketQueue")
    assert queue["RedrivePolicy"]["maxReceiveCount"] == reference
    assert of(template, "EnrichmentFunction")["Environment"]["Variables"]["MAX_RECEIVE_COUNT"] == reference
    # The longest that a message can be hidden each time: after a crash, until the visibility timeout is over.
    longest = max(seconds for row in template["Mappings"]["Visibility"].values() for seconds in row.values())
    assert parameter["MaxValue"] * longest < queue["MessageRetentionPeriod"]


@rule
def items_that_count_failures_end_by_themselves(template: Template) -> None:
    time_to_live = of(template, "TicketTable")["TimeToLiveSpecification"]
    assert time_to_live == {"AttributeName": "expires_at", "Enabled": True}
    (counting,) = [s for s in statements(of(template, "EnrichmentRole"), "Allow") if s.get("Sid") == "CountFailures"]
    assert counting["Condition"] == {"ForAllValues:StringLike": {"dynamodb:LeadingKeys": "#failures#*"}}


@rule
def mapping_bounds_concurrency_and_reports_items(template: Template) -> None:
    source, bounds = source_of(template), template["Parameters"]["MaximumConcurrency"]
    assert source["ScalingConfig"] == {"MaximumConcurrency": {"Ref": "MaximumConcurrency"}}
    assert 2 <= bounds["MinValue"] <= bounds["Default"] <= bounds["MaxValue"] <= 1000
    assert source["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert not source.keys() & {"FilterCriteria", "ProvisionedPollerConfig"}
    assert "ReservedConcurrentExecutions" not in of(template, "EnrichmentFunction")
    assert source["Enabled"] == {"Fn::If": ["MappingOn", True, False]}


@rule
def batch_costs_under_half_the_timeout(template: Template) -> None:
    parameters, cost = template["Parameters"], template["Metadata"]["Sizing"]["P99MillisecondsPerTicket"]
    timeout, window = (min(map(int, parameters[name]["AllowedValues"])) for name in ("Timeout", "BatchWindow"))
    assert parameters["BatchSize"]["MaxValue"] * cost / 1000 < timeout / 2
    assert parameters["BatchSize"]["MaxValue"] <= 10 or window >= 1


@rule
def dead_letters_outlive_the_queue(template: Template) -> None:
    queue, dead = of(template, "TicketQueue"), of(template, "DeadLetterQueue")
    assert dead["MessageRetentionPeriod"] == 14 * 24 * 3600 > queue["MessageRetentionPeriod"]
    assert dead["RedriveAllowPolicy"]["redrivePermission"] == "byQueue"
    assert dead["RedriveAllowPolicy"]["sourceQueueArns"][0]["Fn::Sub"][1] == {"Name": queue["QueueName"]}
    assert queue["SqsManagedSseEnabled"] is dead["SqsManagedSseEnabled"] is True


@rule
def only_the_raw_bucket_sends(template: Template) -> None:
    bucket = template["Resources"]["RawBucket"]
    (allowed,) = statements(of(template, "TicketQueuePolicy"), "Allow")
    assert (allowed["Principal"], allowed["Action"]) == ({"Service": "s3.amazonaws.com"}, "sqs:SendMessage")
    text, names = bucket["Properties"]["BucketName"]["Fn::Sub"]
    arn = {"Fn::Sub": ["arn:${AWS::Partition}:s3:::" + text, names]}
    account = {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}
    assert allowed["Condition"] == {"ArnEquals": {"aws:SourceArn": arn}, "StringEquals": account}
    assert bucket["DependsOn"] == "TicketQueuePolicy"


@rule
def plain_http_is_denied(template: Template) -> None:
    for target in ("RawBucket", "EnrichedBucket", "TicketQueue", "DeadLetterQueue"):
        policy = of(template, f"{target}Policy")
        (denied,) = statements(policy, "Deny")
        service = "s3" if "Bucket" in policy else "sqs"
        assert listed(policy.get("Bucket") or policy["Queues"])[0] == {"Ref": target}
        assert (denied["Principal"], denied["Action"]) == ("*", f"{service}:*")
        assert denied["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        objects = [{"Fn::Sub": f"${{{target}.Arn}}/*"}] if service == "s3" else []
        assert listed(denied["Resource"]) == [{"Fn::GetAtt": [target, "Arn"]}, *objects]


@rule
def role_may_only_what_it_needs(template: Template) -> None:
    role = of(template, "EnrichmentRole")
    assert "ManagedPolicyArns" not in role
    assert of(template, "EnrichmentFunction")["Role"] == {"Fn::GetAtt": ["EnrichmentRole", "Arn"]}
    granted = [
        (".".join(listed(next(iter(resource.values())))), set(listed(statement["Action"])))
        for statement in statements(role["Policies"], "Allow")
        for resource in listed(statement["Resource"])
    ]
    assert sorted(granted) == sorted((resource, set(actions.split())) for resource, actions in PERMISSIONS)
    condition, bundle, _ = role["Policies"][1]["Fn::If"]
    assert (condition, bundle["PolicyName"]) == ("BundleInS3", "model-bundle")


@rule
def nothing_is_allowed_by_a_star(template: Template) -> None:
    for statement in statements(template["Resources"], "Allow"):
        assert "*" not in json.dumps([statement["Action"], statement.get("Principal")])
        assert not statement.keys() & {"NotAction", "NotResource", "NotPrincipal"}
        for resource in listed(statement.get("Resource", [])):
            assert isinstance(resource, dict), "a resource is named by a reference, never spelled out"
            # A star stands for what lies in one named bucket or folder, and for nothing else.
            assert re.fullmatch(r"[^*]+(\}/\*)?", next(iter(resource.values())) if "Fn::Sub" in resource else "-")


@rule
def function_starts_as_lambda_starts_images(template: Template) -> None:
    function = of(template, "EnrichmentFunction")
    image = {"EntryPoint": ["/bin/ticket-lambda"], "Command": ["handler.main.lambda_handler"]}
    assert function["ImageConfig"] == {**image, "WorkingDirectory": "/tmp"}
    assert function["PackageType"] == "Image"
    assert function["Environment"]["Variables"].keys() == SETTINGS
    assert function["Environment"]["Variables"]["HOME"] == "/tmp"
    endpoint = {"Fn::If": ["HasEndpointUrl", {"Ref": "AwsEndpointUrl"}, {"Ref": "AWS::NoValue"}]}
    assert function["Environment"]["Variables"]["AWS_ENDPOINT_URL"] == endpoint
    assert template["Parameters"]["AwsEndpointUrl"]["Default"] == ""  # AWS's own
    assert function["LoggingConfig"]["LogGroup"] == {"Ref": "EnrichmentLogs"}


@rule
def only_versions_are_called(template: Template) -> None:
    function, parameters = of(template, "EnrichmentFunction"), template["Parameters"]
    assert function["AutoPublishAlias"] == "live"  # SAM's mapping calls it then, not $LATEST
    # SAM makes a new version of a new image, and of a new hash; not of another MemorySize.
    assert function["AutoPublishCodeSha256"] == {"Ref": "Release"}
    assert re.fullmatch(parameters["Release"]["AllowedPattern"], parameters["Release"]["Default"])
    assert function["SnapStart"] == {"ApplyOn": {"Fn::If": ["SnapStartOn", "PublishedVersions", "None"]}}
    assert parameters["SnapStart"]["Default"] == "false"


@rule
def snapshots_are_refused_with_a_large_tmp(template: Template) -> None:
    assert of(template, "EnrichmentFunction")["EphemeralStorage"] == {"Size": {"Ref": "EphemeralStorage"}}
    assert template["Parameters"]["EphemeralStorage"]["Default"] == 512
    (asked,) = template["Rules"].values()
    assert asked["RuleCondition"] == template["Conditions"]["SnapStartOn"]
    assert [each["Assert"] for each in asked["Assertions"]] == [{"Fn::Equals": [{"Ref": "EphemeralStorage"}, "512"]}]


@rule
def buckets_are_private_and_the_enriched_one_versioned(template: Template) -> None:
    blocks = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
    for bucket in (of(template, "RawBucket"), enriched := of(template, "EnrichedBucket")):
        assert bucket["PublicAccessBlockConfiguration"] == dict.fromkeys(blocks, True)
        (encryption,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        assert encryption["ServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    assert enriched["VersioningConfiguration"] == {"Status": "Enabled"}
    (lifecycle,) = enriched["LifecycleConfiguration"]["Rules"]
    assert lifecycle["NoncurrentVersionExpiration"]["NewerNoncurrentVersions"] >= 1  # an item may name one of them


@rule
def table_is_keyed_by_ticket_and_by_urgency(template: Template) -> None:
    table = of(template, "TicketTable")
    (index,) = table["GlobalSecondaryIndexes"]
    types = {each["AttributeName"]: each["AttributeType"] for each in table["AttributeDefinitions"]}
    assert types == {"ticket_id": "S", "created_at": "N", "urgency": "S"}
    for schema, hashed in ((table["KeySchema"], "ticket_id"), (index["KeySchema"], "urgency")):
        assert [(key["AttributeName"], key["KeyType"]) for key in schema] == [(hashed, "HASH"), ("created_at", "RANGE")]
    assert (index["IndexName"], table["BillingMode"]) == ("urgency-index", "PAY_PER_REQUEST")
    assert table["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"] is True
    assert table["SSESpecification"]["SSEEnabled"] is True


@rule
def two_stacks_fit_into_one_account(template: Template) -> None:
    for name, resource in template["Resources"].items():
        for key in ("BucketName", "QueueName", "TableName", "FunctionName", "LogGroupName", "RoleName"):
            assert key not in resource["Properties"] or "NamePrefix" in json.dumps(resource["Properties"][key]), name


@pytest.mark.parametrize("check", RULES, ids=lambda check: check.__name__)
def test_rule_holds(check: Rule) -> None:
    check(TEMPLATE)


STATEMENT = "EnrichmentRole/Policies/0/PolicyDocument/Statement/0"
EVENT = "EnrichmentFunction/Events/Tickets/Properties"
BREACHES: list[tuple[Rule, str, object]] = [
    (visibility_is_six_timeouts_and_the_window, "Mappings/Visibility/300/5", 1804),
    (visibility_is_six_timeouts_and_the_window, "TicketQueue/VisibilityTimeout", 30),
    (receives_outlast_an_outage_and_not_the_retention, "Parameters/MaximumReceiveCount/MinValue", 20),
    (receives_outlast_an_outage_and_not_the_retention, "Parameters/MaximumReceiveCount/MaxValue", 1000),
    (receives_outlast_an_outage_and_not_the_retention, "TicketQueue/RedrivePolicy/maxReceiveCount", 5),
    (receives_outlast_an_outage_and_not_the_retention, "TicketQueue/MessageRetentionPeriod", 345600),
    (items_that_count_failures_end_by_themselves, "TicketTable/TimeToLiveSpecification/Enabled", False),
    (items_that_count_failures_end_by_themselves, "EnrichmentRole/Policies/0/PolicyDocument/Statement/4/Condition", {}),
    (mapping_bounds_concurrency_and_reports_items, f"{EVENT}/FunctionResponseTypes", []),
    (mapping_bounds_concurrency_and_reports_items, f"{EVENT}/FilterCriteria", {"Filters": []}),
    (mapping_bounds_concurrency_and_reports_items, f"{EVENT}/ScalingConfig", {}),
    (mapping_bounds_concurrency_and_reports_items, "EnrichmentFunction/ReservedConcurrentExecutions", 5),
    (batch_costs_under_half_the_timeout, "Metadata/Sizing/P99MillisecondsPerTicket", 3000),
    (batch_costs_under_half_the_timeout, "Parameters/BatchSize/MaxValue", 100),
    (dead_letters_outlive_the_queue, "TicketQueue/MessageRetentionPeriod", 14 * 24 * 3600),
    (dead_letters_outlive_the_queue, "DeadLetterQueue/MessageRetentionPeriod", 13 * 24 * 3600),
    (only_the_raw_bucket_sends, "TicketQueuePolicy/PolicyDocument/Statement/0/Condition/StringEquals", {}),
    (only_the_raw_bucket_sends, "TicketQueuePolicy/PolicyDocument/Statement/0/Principal", "*"),
    (plain_http_is_denied, "DeadLetterQueuePolicy/PolicyDocument/Statement/0/Effect", "Allow"),
    (plain_http_is_denied, "RawBucketPolicy/PolicyDocument/Statement/0/Resource", {"Fn::GetAtt": ["RawBucket", "Arn"]}),
    (role_may_only_what_it_needs, f"{STATEMENT}/Action", ["s3:GetObject", "s3:DeleteObject"]),
    (role_may_only_what_it_needs, "EnrichmentFunction/Role", None),
    (nothing_is_allowed_by_a_star, f"{STATEMENT}/Resource", "*"),
    (nothing_is_allowed_by_a_star, f"{STATEMENT}/Action", "s3:Get*"),
    (nothing_is_allowed_by_a_star, f"{STATEMENT}/Resource", {"Fn::Sub": "arn:${AWS::Partition}:s3:::*"}),
    (nothing_is_allowed_by_a_star, f"{STATEMENT}/Resource", {"Fn::Sub": "${RawBucket.Arn}*"}),
    (nothing_is_allowed_by_a_star, f"{STATEMENT}/NotAction", "s3:DeleteObject"),
    (function_starts_as_lambda_starts_images, "EnrichmentFunction/PackageType", "Zip"),
    (function_starts_as_lambda_starts_images, "EnrichmentFunction/Environment/Variables/SPARE", "x"),
    (function_starts_as_lambda_starts_images, "EnrichmentFunction/Environment/Variables/AWS_ENDPOINT_URL", ""),
    (only_versions_are_called, "EnrichmentFunction/AutoPublishAlias", None),
    (only_versions_are_called, "EnrichmentFunction/AutoPublishCodeSha256", None),
    (snapshots_are_refused_with_a_large_tmp, "EnrichmentFunction/EphemeralStorage/Size", 1024),
    (snapshots_are_refused_with_a_large_tmp, "Rules/SnapshotsHoldLittle/Assertions", []),
    (buckets_are_private_and_the_enriched_one_versioned, "EnrichedBucket/VersioningConfiguration/Status", "Suspended"),
    (buckets_are_private_and_the_enriched_one_versioned, "RawBucket/PublicAccessBlockConfiguration", {}),
    (table_is_keyed_by_ticket_and_by_urgency, "TicketTable/GlobalSecondaryIndexes/0/KeySchema/0/AttributeName", "a"),
    (two_stacks_fit_into_one_account, "TicketTable/TableName", "tickets"),
]


@pytest.mark.parametrize(("check", "path", "value"), BREACHES)
def test_rule_fails_when_it_is_broken(check: Rule, path: str, value: object) -> None:
    template = deepcopy(TEMPLATE)
    first, *steps, last = path.split("/")
    node = template[first] if first in template else template["Resources"][first]["Properties"]
    for step in steps:
        node = node[int(step) if isinstance(node, list) else step]
    node[last] = value
    with pytest.raises((AssertionError, ValueError)):
        check(template)


def test_every_rule_is_seen_to_fail() -> None:
    assert {check.__name__ for check, *_ in BREACHES} == {check.__name__ for check in RULES}
