"""Rules for template.yaml whose violation would show only in production; each rule is also tested with a violation."""

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
def visibility_timeout_is_six_timeouts_plus_window(template: Template) -> None:
    parameters = template["Parameters"]
    for timeout in parameters["Timeout"]["AllowedValues"]:
        for window in parameters["BatchWindow"]["AllowedValues"]:
            assert template["Mappings"]["Visibility"][timeout][window] >= 6 * int(timeout) + int(window)
    found = {"Fn::FindInMap": ["Visibility", {"Ref": "Timeout"}, {"Ref": "BatchWindow"}]}
    assert of(template, "TicketQueue")["VisibilityTimeout"] == found
    assert of(template, "EnrichmentFunction")["Timeout"] == {"Ref": "Timeout"}
    assert source_of(template)["MaximumBatchingWindowInSeconds"] == {"Ref": "BatchWindow"}


@rule
def max_receive_count_outlasts_an_outage(template: Template) -> None:
    # An existing stack keeps its value of a parameter, and earlier ones have 5 for MaxReceiveCount.
    assert "MaxReceiveCount" not in template["Parameters"]
    parameter, reference = template["Parameters"]["MaximumReceiveCount"], {"Ref": "MaximumReceiveCount"}
    # tests/unit/test_outage.py computes how long this number of receives takes.
    assert 21 <= parameter["MinValue"] < parameter["Default"] - 5
    queue = of(template, "TicketQueue")
    assert queue["RedrivePolicy"]["maxReceiveCount"] == reference
    assert of(template, "EnrichmentFunction")["Environment"]["Variables"]["MAX_RECEIVE_COUNT"] == reference
    # The longest time that a message can be invisible per receive: after a crash, the visibility timeout.
    longest = max(seconds for row in template["Mappings"]["Visibility"].values() for seconds in row.values())
    assert parameter["MaxValue"] * longest < queue["MessageRetentionPeriod"]


@rule
def failure_count_items_expire(template: Template) -> None:
    time_to_live = of(template, "TicketTable")["TimeToLiveSpecification"]
    assert time_to_live == {"AttributeName": "expires_at", "Enabled": True}
    (counting,) = [s for s in statements(of(template, "EnrichmentRole"), "Allow") if s.get("Sid") == "CountFailures"]
    assert counting["Condition"] == {"ForAllValues:StringLike": {"dynamodb:LeadingKeys": "#failures#*"}}


@rule
def mapping_limits_concurrency_and_reports_failures(template: Template) -> None:
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
def dlq_retention_exceeds_queue_retention(template: Template) -> None:
    queue, dead = of(template, "TicketQueue"), of(template, "DeadLetterQueue")
    assert dead["MessageRetentionPeriod"] == 14 * 24 * 3600 > queue["MessageRetentionPeriod"]
    assert dead["RedriveAllowPolicy"]["redrivePermission"] == "byQueue"
    assert dead["RedriveAllowPolicy"]["sourceQueueArns"][0]["Fn::Sub"][1] == {"Name": queue["QueueName"]}
    assert queue["SqsManagedSseEnabled"] is dead["SqsManagedSseEnabled"] is True


@rule
def only_the_raw_bucket_may_send(template: Template) -> None:
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
def role_has_only_needed_permissions(template: Template) -> None:
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
def no_wildcard_permissions(template: Template) -> None:
    for statement in statements(template["Resources"], "Allow"):
        assert "*" not in json.dumps([statement["Action"], statement.get("Principal")])
        assert not statement.keys() & {"NotAction", "NotResource", "NotPrincipal"}
        for resource in listed(statement.get("Resource", [])):
            assert isinstance(resource, dict), "resources must be references, not literal ARNs"
            # A wildcard is allowed only for the objects of one named bucket or folder.
            assert re.fullmatch(r"[^*]+(\}/\*)?", next(iter(resource.values())) if "Fn::Sub" in resource else "-")


@rule
def function_image_configuration(template: Template) -> None:
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
def mapping_calls_a_published_version(template: Template) -> None:
    function, parameters = of(template, "EnrichmentFunction"), template["Parameters"]
    assert function["AutoPublishAlias"] == "live"  # SAM's mapping then calls the alias, not $LATEST
    # SAM publishes a version for a new image or a new hash, but not for another MemorySize.
    assert function["AutoPublishCodeSha256"] == {"Ref": "Release"}
    assert re.fullmatch(parameters["Release"]["AllowedPattern"], parameters["Release"]["Default"])
    assert function["SnapStart"] == {"ApplyOn": {"Fn::If": ["SnapStartOn", "PublishedVersions", "None"]}}
    assert parameters["SnapStart"]["Default"] == "false"


@rule
def snapstart_requires_default_tmp(template: Template) -> None:
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
def result_events_are_off_and_the_pipe_is_bounded(template: Template) -> None:
    assert template["Parameters"]["ResultEvents"]["Default"] == "off"
    stream = of(template, "TicketTable")["StreamSpecification"]["Fn::If"]
    assert stream == ["ResultEventsOn", {"StreamViewType": "NEW_AND_OLD_IMAGES"}, {"Ref": "AWS::NoValue"}]
    names = {name for name in template["Resources"] if name.startswith("Result")}
    assert names == {f"Result{name}" for name in ("Topic", "Bus", "EventsDlq", "EventsAlarm", "PipeRole", "Pipe")}
    assert all(template["Resources"][name]["Condition"].startswith("ResultEvents") for name in names)
    source = of(template, "ResultPipe")["SourceParameters"]["DynamoDBStreamParameters"]
    assert 0 < source["MaximumRetryAttempts"] <= 10_000
    assert 0 < source["MaximumRecordAgeInSeconds"] < 24 * 3600  # the stream forgets a record after a day
    assert source["OnPartialBatchItemFailure"] == "AUTOMATIC_BISECT"
    assert source["DeadLetterConfig"] == {"Arn": {"Fn::GetAtt": ["ResultEventsDlq", "Arn"]}}
    assert source["StartingPosition"] == "TRIM_HORIZON"
    assert "ParallelizationFactor" not in source  # the events of a ticket stay in order
    assert of(template, "ResultEventsDlq")["SqsManagedSseEnabled"] is True


@rule
def pipe_sends_to_the_topic_or_the_bus(template: Template) -> None:
    pipe = of(template, "ResultPipe")
    target = ["ResultEventsToTopic", {"Ref": "ResultTopic"}, {"Fn::GetAtt": ["ResultBus", "Arn"]}]
    assert pipe["Target"] == {"Fn::If": target}
    condition, bus, none = pipe["TargetParameters"]["EventBridgeEventBusParameters"]["Fn::If"]
    assert (condition, none) == ("ResultEventsToBus", {"Ref": "AWS::NoValue"})
    assert bus == {"Source": "ticket-enrichment", "DetailType": "Ticket enriched"}
    assert pipe["Source"] == {"Fn::GetAtt": ["TicketTable", "StreamArn"]}
    assert pipe["RoleArn"] == {"Fn::GetAtt": ["ResultPipeRole", "Arn"]}


@rule
def pipe_role_reads_the_stream_and_sends_events(template: Template) -> None:
    role, name = of(template, "ResultPipeRole"), of(template, "ResultPipe")["Name"]
    trusted, read, send, give_up = statements(role, "Allow")
    assert trusted["Principal"] == {"Service": "pipes.amazonaws.com"}
    source = trusted["Condition"]["StringEquals"]["aws:SourceArn"]["Fn::Sub"]
    assert (source[0].rpartition("/")[2], source[1]["Name"]) == ("${Name}", name)
    assert trusted["Condition"]["StringEquals"]["aws:SourceAccount"] == {"Ref": "AWS::AccountId"}
    assert read["Resource"] == {"Fn::GetAtt": ["TicketTable", "StreamArn"]}
    assert {action.partition(":")[0] for action in read["Action"]} == {"dynamodb"}
    assert not [action for action in read["Action"] if re.search("Put|Update|Delete|Query|Scan|GetItem", action)]
    topic = {"Fn::If": ["ResultEventsToTopic", {"Ref": "ResultTopic"}, {"Fn::GetAtt": ["ResultBus", "Arn"]}]}
    assert send["Action"] == {"Fn::If": ["ResultEventsToTopic", "sns:Publish", "events:PutEvents"]}
    assert send["Resource"] == topic
    assert give_up["Resource"] == {"Fn::GetAtt": ["ResultEventsDlq", "Arn"]}
    assert give_up["Action"] == "sqs:SendMessage"


@rule
def events_have_no_text(template: Template) -> None:
    text = of(template, "ResultPipe")["TargetParameters"]["InputTemplate"]
    assert set(re.findall(r"NewImage\.(\w+)", text)) == {
        *("ticket_id", "created_at", "intent", "urgency", "sentiment", "needs_review", "event", "processed_at"),
        *("intent_confidence", "urgency_confidence", "sentiment_confidence"),
        *("s3_key", "s3_version_id", "model_version"),
    }
    assert text.count("<") == text.count("<$.dynamodb.NewImage.")


@rule
def two_stacks_fit_into_one_account(template: Template) -> None:
    for name, resource in template["Resources"].items():
        for key in ("BucketName", "QueueName", "TableName", "FunctionName", "LogGroupName", "RoleName"):
            assert key not in resource["Properties"] or "NamePrefix" in json.dumps(resource["Properties"][key]), name


@pytest.mark.parametrize("check", RULES, ids=lambda check: check.__name__)
def test_rule_holds(check: Rule) -> None:
    check(TEMPLATE)


STATEMENT = "EnrichmentRole/Policies/0/PolicyDocument/Statement/0"
STREAM = "ResultPipe/SourceParameters/DynamoDBStreamParameters"
PIPE_STATEMENT = "ResultPipeRole/Policies/0/PolicyDocument/Statement"
EVENT = "EnrichmentFunction/Events/Tickets/Properties"
VIOLATIONS: list[tuple[Rule, str, object]] = [
    (visibility_timeout_is_six_timeouts_plus_window, "Mappings/Visibility/300/5", 1804),
    (visibility_timeout_is_six_timeouts_plus_window, "TicketQueue/VisibilityTimeout", 30),
    (max_receive_count_outlasts_an_outage, "Parameters/MaximumReceiveCount/MinValue", 20),
    (max_receive_count_outlasts_an_outage, "Parameters/MaximumReceiveCount/MaxValue", 1000),
    (max_receive_count_outlasts_an_outage, "TicketQueue/RedrivePolicy/maxReceiveCount", 5),
    (max_receive_count_outlasts_an_outage, "TicketQueue/MessageRetentionPeriod", 345600),
    (failure_count_items_expire, "TicketTable/TimeToLiveSpecification/Enabled", False),
    (failure_count_items_expire, "EnrichmentRole/Policies/0/PolicyDocument/Statement/4/Condition", {}),
    (mapping_limits_concurrency_and_reports_failures, f"{EVENT}/FunctionResponseTypes", []),
    (mapping_limits_concurrency_and_reports_failures, f"{EVENT}/FilterCriteria", {"Filters": []}),
    (mapping_limits_concurrency_and_reports_failures, f"{EVENT}/ScalingConfig", {}),
    (mapping_limits_concurrency_and_reports_failures, "EnrichmentFunction/ReservedConcurrentExecutions", 5),
    (batch_costs_under_half_the_timeout, "Metadata/Sizing/P99MillisecondsPerTicket", 3000),
    (batch_costs_under_half_the_timeout, "Parameters/BatchSize/MaxValue", 100),
    (dlq_retention_exceeds_queue_retention, "TicketQueue/MessageRetentionPeriod", 14 * 24 * 3600),
    (dlq_retention_exceeds_queue_retention, "DeadLetterQueue/MessageRetentionPeriod", 13 * 24 * 3600),
    (only_the_raw_bucket_may_send, "TicketQueuePolicy/PolicyDocument/Statement/0/Condition/StringEquals", {}),
    (only_the_raw_bucket_may_send, "TicketQueuePolicy/PolicyDocument/Statement/0/Principal", "*"),
    (plain_http_is_denied, "DeadLetterQueuePolicy/PolicyDocument/Statement/0/Effect", "Allow"),
    (plain_http_is_denied, "RawBucketPolicy/PolicyDocument/Statement/0/Resource", {"Fn::GetAtt": ["RawBucket", "Arn"]}),
    (role_has_only_needed_permissions, f"{STATEMENT}/Action", ["s3:GetObject", "s3:DeleteObject"]),
    (role_has_only_needed_permissions, "EnrichmentFunction/Role", None),
    (no_wildcard_permissions, f"{STATEMENT}/Resource", "*"),
    (no_wildcard_permissions, f"{STATEMENT}/Action", "s3:Get*"),
    (no_wildcard_permissions, f"{STATEMENT}/Resource", {"Fn::Sub": "arn:${AWS::Partition}:s3:::*"}),
    (no_wildcard_permissions, f"{STATEMENT}/Resource", {"Fn::Sub": "${RawBucket.Arn}*"}),
    (no_wildcard_permissions, f"{STATEMENT}/NotAction", "s3:DeleteObject"),
    (function_image_configuration, "EnrichmentFunction/PackageType", "Zip"),
    (function_image_configuration, "EnrichmentFunction/Environment/Variables/SPARE", "x"),
    (function_image_configuration, "EnrichmentFunction/Environment/Variables/AWS_ENDPOINT_URL", ""),
    (mapping_calls_a_published_version, "EnrichmentFunction/AutoPublishAlias", None),
    (mapping_calls_a_published_version, "EnrichmentFunction/AutoPublishCodeSha256", None),
    (snapstart_requires_default_tmp, "EnrichmentFunction/EphemeralStorage/Size", 1024),
    (snapstart_requires_default_tmp, "Rules/SnapshotsHoldLittle/Assertions", []),
    (buckets_are_private_and_the_enriched_one_versioned, "EnrichedBucket/VersioningConfiguration/Status", "Suspended"),
    (buckets_are_private_and_the_enriched_one_versioned, "RawBucket/PublicAccessBlockConfiguration", {}),
    (table_is_keyed_by_ticket_and_by_urgency, "TicketTable/GlobalSecondaryIndexes/0/KeySchema/0/AttributeName", "a"),
    (result_events_are_off_and_the_pipe_is_bounded, "Parameters/ResultEvents/Default", "bus"),
    (result_events_are_off_and_the_pipe_is_bounded, f"{STREAM}/MaximumRetryAttempts", -1),
    (result_events_are_off_and_the_pipe_is_bounded, f"{STREAM}/MaximumRecordAgeInSeconds", -1),
    (result_events_are_off_and_the_pipe_is_bounded, f"{STREAM}/DeadLetterConfig", None),
    (result_events_are_off_and_the_pipe_is_bounded, f"{STREAM}/StartingPosition", "LATEST"),
    (pipe_sends_to_the_topic_or_the_bus, "ResultPipe/Target", {"Ref": "ResultBus"}),
    (pipe_sends_to_the_topic_or_the_bus, "ResultPipe/Source", {"Ref": "TicketTable"}),
    (pipe_role_reads_the_stream_and_sends_events, f"{PIPE_STATEMENT}/0/Resource", {"Ref": "TicketTable"}),
    (pipe_role_reads_the_stream_and_sends_events, f"{PIPE_STATEMENT}/0/Action", ["dynamodb:GetItem"]),
    (pipe_role_reads_the_stream_and_sends_events, f"{PIPE_STATEMENT}/1/Action", ["sns:Publish", "events:PutEvents"]),
    (events_have_no_text, "ResultPipe/TargetParameters/InputTemplate", '{"s": <$.dynamodb.NewImage.subject.S>}'),
    (two_stacks_fit_into_one_account, "TicketTable/TableName", "tickets"),
]


@pytest.mark.parametrize(("check", "path", "value"), VIOLATIONS)
def test_rule_detects_a_violation(check: Rule, path: str, value: object) -> None:
    template = deepcopy(TEMPLATE)
    first, *steps, last = path.split("/")
    node = template[first] if first in template else template["Resources"][first]["Properties"]
    for step in steps:
        node = node[int(step) if isinstance(node, list) else step]
    node[last] = value
    with pytest.raises((AssertionError, ValueError)):
        check(template)


def test_every_rule_has_a_violation() -> None:
    assert {check.__name__ for check, *_ in VIOLATIONS} == {check.__name__ for check in RULES}
