"""Rules for template.yaml whose violation would show only in production; each rule is also tested with a violation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from handler.aws.forgetting import tombstone_key

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
        "SHADOW_BUNDLE",
        "BUNDLE_CACHE_DIR",
        "RAW_BUCKET",
        "ENRICHED_BUCKET",
        "TABLE_NAME",
        "QUEUE_URL",
        "DLQ_URL",
    ),
    *(
        "MAX_RECEIVE_COUNT",
        "MAX_TICKET_BYTES",
        "ITEM_RETENTION_DAYS",
        "REDACT",
        "ENRICHED_OBJECTS",
        "LOG_LEVEL",
        "SERVICE_NAME",
        "AWS_ENDPOINT_URL",
        "HOME",
    ),
    "MALLOC_ARENA_MAX",
}
PERMISSIONS = [
    ("${RawBucket.Arn}/*", "s3:GetObject"),
    ("RawBucket.Arn", "s3:ListBucket"),
    ("${EnrichedBucket.Arn}/*", "s3:PutObject"),
    ("TicketTable.Arn", "dynamodb:BatchGetItem dynamodb:GetItem dynamodb:PutItem"),
    ("TicketTable.Arn", "dynamodb:DeleteItem"),
    ("TicketTable.Arn", "dynamodb:UpdateItem"),
    ("${EnrichedBucket.Arn}/*", "s3:GetObjectVersion s3:DeleteObjectVersion"),
    ("EnrichedBucket.Arn", "s3:ListBucketVersions"),
    ("TicketTable.Arn", "dynamodb:UpdateItem"),
    ("TicketQueue.Arn", "sqs:ReceiveMessage sqs:DeleteMessage sqs:GetQueueAttributes sqs:ChangeMessageVisibility"),
    ("DeadLetterQueue.Arn", "sqs:SendMessage"),
    ("EnrichmentLogs.Arn", "logs:CreateLogStream logs:PutLogEvents"),
    ("arn:${AWS::Partition}:s3:::${ModelBundleS3}/*", "s3:GetObject"),
    ("arn:${AWS::Partition}:s3:::${ShadowBundleS3}/*", "s3:GetObject"),
    ("KmsKeyArn", "kms:Decrypt kms:GenerateDataKey"),
    ("${EnrichedBucket.Arn}/batches/*", "s3:GetObject"),
]
# Those of the queue for bulk are the same as those of the live one, with its own resources.
BULK = {"RawBucket": "BulkBucket", "TicketQueue": "BulkQueue", "DeadLetterQueue": "BulkDeadLetterQueue"}
# Off by default: each policy of the role that depends on a parameter.
OPTIONAL_POLICIES = {
    "BundleInS3": "model-bundle",
    "ShadowInS3": "shadow-bundle",
    "HasKmsKey": "customer-key",
    "TracingOn": "tracing",
    "BulkOn": "bulk",
    "ObjectsOfBatches": "objects-of-batches",
}
# X-Ray has no resources: a statement cannot name any but all of them.
TRACING = {"xray:PutTraceSegments", "xray:PutTelemetryRecords"}
NONE = {"Ref": "AWS::NoValue"}


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
    assert [of(template, queue)["VisibilityTimeout"] for queue in ("TicketQueue", "BulkQueue")] == [found, found]
    assert of(template, "EnrichmentFunction")["Timeout"] == {"Ref": "Timeout"}
    for source in (source_of(template), of(template, "BulkMapping")):
        assert source["MaximumBatchingWindowInSeconds"] == {"Ref": "BatchWindow"}


@rule
def max_receive_count_outlasts_an_outage(template: Template) -> None:
    # An existing stack keeps its value of a parameter, and earlier ones have 5 for MaxReceiveCount.
    assert "MaxReceiveCount" not in template["Parameters"]
    parameter, reference = template["Parameters"]["MaximumReceiveCount"], {"Ref": "MaximumReceiveCount"}
    # tests/regressions/test_outage_simulated.py computes how long this number of receives takes.
    assert 21 <= parameter["MinValue"] < parameter["Default"] - 5
    assert of(template, "EnrichmentFunction")["Environment"]["Variables"]["MAX_RECEIVE_COUNT"] == reference
    # The longest time that a message can be invisible per receive: after a crash, the visibility timeout.
    longest = max(seconds for row in template["Mappings"]["Visibility"].values() for seconds in row.values())
    for queue in (of(template, "TicketQueue"), of(template, "BulkQueue")):
        assert queue["RedrivePolicy"]["maxReceiveCount"] == reference
        assert parameter["MaxValue"] * longest < queue["MessageRetentionPeriod"]


@rule
def failure_count_items_expire(template: Template) -> None:
    time_to_live = of(template, "TicketTable")["TimeToLiveSpecification"]
    assert time_to_live == {"AttributeName": "expires_at", "Enabled": True}
    (counting,) = [s for s in statements(of(template, "EnrichmentRole"), "Allow") if s.get("Sid") == "CountFailures"]
    assert counting["Condition"] == {"ForAllValues:StringLike": {"dynamodb:LeadingKeys": "#failures#*"}}


@rule
def function_cannot_delete_tombstones(template: Template) -> None:
    deleting = [s for s in statements(of(template, "EnrichmentRole"), "Allow") if "dynamodb:DeleteItem" in s["Action"]]
    tombstones = tombstone_key("ticket", "T-1")["ticket_id"]["S"]
    (pattern,) = [s["Condition"]["ForAllValues:StringNotLike"]["dynamodb:LeadingKeys"] for s in deleting]
    assert fnmatchcase(tombstones, pattern)
    (adding,) = [s for s in statements(of(template, "EnrichmentRole"), "Allow") if s.get("Sid") == "RememberRawObjects"]
    assert adding["Condition"] == {"ForAllValues:StringLike": {"dynamodb:LeadingKeys": pattern}}


@rule
def tickets_are_kept_for_good_unless_a_parameter_says_otherwise(template: Template) -> None:
    parameters, conditions = template["Parameters"], template["Conditions"]
    expiries = {
        "RawBucket": ("RawExpires", "RawRetentionDays"),
        "BulkBucket": ("RawExpires", "RawRetentionDays"),
        "EnrichedBucket": ("EnrichedExpires", "EnrichedRetentionDays"),
    }
    for bucket, (condition, parameter) in expiries.items():
        assert conditions[condition] == {"Fn::Not": [{"Fn::Equals": [{"Ref": parameter}, 0]}]}
        assert parameters[parameter]["Default"] == 0
        first, second = of(template, bucket)["LifecycleConfiguration"]["Rules"]
        assert not first.keys() & {"ExpirationInDays", "ExpirationDate"}
        expiry = {"Id": "end-of-retention", "Status": "Enabled", "ExpirationInDays": {"Ref": parameter}}
        assert second == {"Fn::If": [condition, expiry, {"Ref": "AWS::NoValue"}]}
    superseded = of(template, "EnrichedBucket")["LifecycleConfiguration"]["Rules"][0]["NoncurrentVersionExpiration"]
    # An item may name a superseded version. But an expired ticket is one too, and must not be kept.
    assert superseded == {
        "NoncurrentDays": {"Ref": "NoncurrentVersionDays"},
        "NewerNoncurrentVersions": {"Fn::If": ["EnrichedExpires", {"Ref": "AWS::NoValue"}, 100]},
    }
    assert parameters["NoncurrentVersionDays"]["Default"] == 30
    assert parameters["ItemRetentionDays"]["Default"] == 0


@rule
def mapping_limits_concurrency_and_reports_failures(template: Template) -> None:
    bounds = template["Parameters"]["MaximumConcurrency"]
    assert 2 <= bounds["MinValue"] <= bounds["Default"] <= bounds["MaxValue"] <= 1000
    sources = {"MaximumConcurrency": source_of(template), "BulkConcurrency": of(template, "BulkMapping")}
    for parameter, source in sources.items():
        assert source["ScalingConfig"] == {"MaximumConcurrency": {"Ref": parameter}}
        assert source["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        assert not source.keys() & {"FilterCriteria", "ProvisionedPollerConfig"}
        assert source["Enabled"] == {"Fn::If": ["MappingOn", True, False]}
    assert "ReservedConcurrentExecutions" not in of(template, "EnrichmentFunction")


@rule
def bulk_is_off_by_default_and_everything_else_like_the_live_queue(template: Template) -> None:
    parameter = template["Parameters"]["BulkConcurrency"]
    assert parameter["Default"] == "0"
    assert template["Conditions"]["BulkOn"] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "BulkConcurrency"}, "0"]}]}
    accepted = [number for number in range(1100) if re.fullmatch(parameter["AllowedPattern"], str(number))]
    assert accepted == [0, *range(2, 1001)]  # what a mapping accepts
    names = {name for name in template["Resources"] if name.startswith("Bulk")}
    kinds = ("Bucket", "BucketPolicy", "Queue", "QueuePolicy", "DeadLetterQueue", "DeadLetterQueuePolicy", "Mapping")
    assert names == {f"Bulk{kind}" for kind in kinds}
    assert {template["Resources"][name]["Condition"] for name in names} == {"BulkOn"}
    mapping, live = of(template, "BulkMapping"), source_of(template)
    assert mapping["FunctionName"] == {"Ref": "EnrichmentFunction.Alias"}
    assert mapping["EventSourceArn"] == {"Fn::GetAtt": ["BulkQueue", "Arn"]}
    assert mapping["BatchSize"] == live["BatchSize"]
    variables = of(template, "EnrichmentFunction")["Environment"]["Variables"]
    for setting, first in {"RAW_BUCKET": "RawBucket", "QUEUE_URL": "TicketQueue", "DLQ_URL": "DeadLetterQueue"}.items():
        both = {"Fn::Sub": f"${{{first}}},${{{BULK[first]}}}"}
        assert variables[setting] == {"Fn::If": ["BulkOn", both, {"Ref": first}]}


@rule
def batch_costs_under_half_the_timeout(template: Template) -> None:
    parameters, cost = template["Parameters"], template["Metadata"]["Sizing"]["P99MillisecondsPerTicket"]
    timeout, window = (min(map(int, parameters[name]["AllowedValues"])) for name in ("Timeout", "BatchWindow"))
    assert parameters["BatchSize"]["MaxValue"] * cost / 1000 < timeout / 2
    assert parameters["BatchSize"]["MaxValue"] <= 10 or window >= 1


@rule
def dlq_retention_exceeds_queue_retention(template: Template) -> None:
    for source, name in (("TicketQueue", "DeadLetterQueue"), ("BulkQueue", "BulkDeadLetterQueue")):
        queue, dead = of(template, source), of(template, name)
        assert queue["RedrivePolicy"]["deadLetterTargetArn"] == {"Fn::GetAtt": [name, "Arn"]}
        assert dead["MessageRetentionPeriod"] == 14 * 24 * 3600 > queue["MessageRetentionPeriod"]
        assert dead["RedriveAllowPolicy"]["redrivePermission"] == "byQueue"
        assert dead["RedriveAllowPolicy"]["sourceQueueArns"][0]["Fn::Sub"][1] == {"Name": queue["QueueName"]}
        # Its messages may be the only copy of inline tickets.
        assert template["Resources"][name]["DeletionPolicy"] == "RetainExceptOnCreate"
        assert template["Resources"][name]["UpdateReplacePolicy"] == "Retain"


@rule
def only_the_raw_bucket_may_send_by_default(template: Template) -> None:
    for name, queue in (("RawBucket", "TicketQueue"), ("BulkBucket", "BulkQueue")):
        bucket = template["Resources"][name]
        (notified,) = bucket["Properties"]["NotificationConfiguration"]["QueueConfigurations"]
        assert notified == {"Event": "s3:ObjectCreated:*", "Queue": {"Fn::GetAtt": [queue, "Arn"]}}
        first, *others = of(template, f"{queue}Policy")["PolicyDocument"]["Statement"]
        (allowed,) = statements(first, "Allow")
        assert (allowed["Principal"], allowed["Action"]) == ({"Service": "s3.amazonaws.com"}, "sqs:SendMessage")
        assert allowed["Resource"] == {"Fn::GetAtt": [queue, "Arn"]}
        text, names = bucket["Properties"]["BucketName"]["Fn::Sub"]
        arn = {"Fn::Sub": ["arn:${AWS::Partition}:s3:::" + text, names]}
        account = {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}
        assert allowed["Condition"] == {"ArnEquals": {"aws:SourceArn": arn}, "StringEquals": account}
        assert bucket["DependsOn"] == f"{queue}Policy"
    assert list(statements(others, "Allow")) == []  # to the queue for bulk
    bucket, (_, *others) = (
        template["Resources"]["RawBucket"],
        of(template, "TicketQueuePolicy")["PolicyDocument"]["Statement"],
    )
    senders = {"HasSenderTopic": ("sns", "SenderTopicArn"), "HasSenderRule": ("events", "SenderRuleArn")}
    for condition, statement, otherwise in (other["Fn::If"] for other in others if "Fn::If" in other):
        service, parameter = senders.pop(condition)
        assert otherwise == NONE
        assert template["Parameters"][parameter]["Default"] == ""
        assert statement["Principal"] == {"Service": f"{service}.amazonaws.com"}
        assert (statement["Effect"], statement["Action"]) == ("Allow", "sqs:SendMessage")
        assert statement["Condition"] == {"ArnEquals": {"aws:SourceArn": {"Ref": parameter}}}
        assert statement["Resource"] == {"Fn::GetAtt": ["TicketQueue", "Arn"]}
    assert senders == {}
    assert list(statements([other for other in others if "Fn::If" not in other], "Allow")) == []
    # A rule for the raw bucket's events needs them on EventBridge.
    notifications = bucket["Properties"]["NotificationConfiguration"]
    assert notifications["EventBridgeConfiguration"] == {
        "Fn::If": ["HasSenderRule", {"EventBridgeEnabled": True}, NONE]
    }


@rule
def customer_key_encrypts_everything(template: Template) -> None:
    key = {"Fn::If": ["HasKmsKey", {"Ref": "KmsKeyArn"}, NONE]}
    assert template["Parameters"]["KmsKeyArn"]["Default"] == ""
    for name in ("TicketQueue", "DeadLetterQueue", "BulkQueue", "BulkDeadLetterQueue"):
        queue = of(template, name)
        assert (queue["SqsManagedSseEnabled"], queue["KmsMasterKeyId"]) == ({"Fn::If": ["HasKmsKey", False, True]}, key)
    for bucket in (of(template, "RawBucket"), of(template, "EnrichedBucket"), of(template, "BulkBucket")):
        (encryption,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        by_default = {"SSEAlgorithm": {"Fn::If": ["HasKmsKey", "aws:kms", "AES256"]}, "KMSMasterKeyID": key}
        assert encryption["ServerSideEncryptionByDefault"] == by_default
    kind = {"Fn::If": ["HasKmsKey", "KMS", NONE]}
    assert of(template, "TicketTable")["SSESpecification"] == {
        "SSEEnabled": True,
        "SSEType": kind,
        "KMSMasterKeyId": key,
    }
    assert of(template, "EnrichmentLogs")["KmsKeyId"] == key


@rule
def every_role_has_the_permissions_boundary(template: Template) -> None:
    roles = {name: each for name, each in template["Resources"].items() if each["Type"] == "AWS::IAM::Role"}
    assert {"EnrichmentRole", "CodeDeployServiceRole"} <= roles.keys()
    for role in roles.values():
        boundary = {"Fn::If": ["HasPermissionsBoundary", {"Ref": "PermissionsBoundaryArn"}, NONE]}
        assert role["Properties"]["PermissionsBoundary"] == boundary
    # SAM creates a role without one for each of these that names none.
    own = {"Fn::If": ["InSteps", {"Fn::GetAtt": ["CodeDeployServiceRole", "Arn"]}, NONE]}
    assert of(template, "EnrichmentFunction")["DeploymentPreference"]["Role"] == own
    assert template["Parameters"]["PermissionsBoundaryArn"]["Default"] == ""


@rule
def protection_and_tracing_are_off_by_default(template: Template) -> None:
    parameters = template["Parameters"]
    assert (parameters["DeletionProtection"]["Default"], parameters["Tracing"]["Default"]) == ("false", "false")
    assert of(template, "TicketTable")["DeletionProtectionEnabled"] == {"Fn::If": ["DeletionProtectionOn", True, NONE]}
    assert of(template, "EnrichmentFunction")["Tracing"] == {"Fn::If": ["TracingOn", "Active", "PassThrough"]}


@rule
def plain_http_is_denied(template: Template) -> None:
    for target in ("RawBucket", "EnrichedBucket", "TicketQueue", "DeadLetterQueue", *BULK.values()):
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
        if set(statement["Action"]) != TRACING
        for resource in listed(statement["Resource"])
    ]
    own = [(resource.replace(live, bulk), actions) for resource, actions in PERMISSIONS for live, bulk in BULK.items()]
    needed = [*PERMISSIONS, *(each for each in own if each not in PERMISSIONS)]
    assert sorted(granted) == sorted((resource, set(actions.split())) for resource, actions in needed)
    always, *optional = role["Policies"]
    assert always["PolicyName"] == "tickets"
    found = {condition: policy["PolicyName"] for condition, policy, _ in (each["Fn::If"] for each in optional)}
    assert found.items() >= OPTIONAL_POLICIES.items()
    assert [each["Fn::If"][2] for each in optional] == [NONE] * len(optional)


@rule
def no_wildcard_permissions(template: Template) -> None:
    for statement in statements(template["Resources"], "Allow"):
        assert "*" not in json.dumps([statement["Action"], statement.get("Principal")])
        assert not statement.keys() & {"NotAction", "NotResource", "NotPrincipal"}
        if statement.get("Sid") == "WriteTraces":
            assert set(statement["Action"]) == TRACING
            continue
        for resource in listed(statement.get("Resource", [])):
            assert isinstance(resource, dict), "resources must be references, not literal ARNs"
            # A wildcard is allowed only for the objects of one named bucket or folder.
            name = next(iter(resource.values())) if "Fn::Sub" in resource else "-"
            assert re.fullmatch(r"[^*]+(\}(/[a-z]+)?/\*)?", name)


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
    for bucket in (of(template, "RawBucket"), of(template, "BulkBucket"), enriched := of(template, "EnrichedBucket")):
        assert bucket["PublicAccessBlockConfiguration"] == dict.fromkeys(blocks, True)
    assert enriched["VersioningConfiguration"] == {"Status": "Enabled"}


@rule
def table_is_keyed_by_ticket_and_its_indexes_by_urgency_and_day(template: Template) -> None:
    table = of(template, "TicketTable")
    types = {each["AttributeName"]: each["AttributeType"] for each in table["AttributeDefinitions"]}
    assert types == {"ticket_id": "S", "created_at": "N", "urgency": "S", "day": "S"}
    schemas = {each["IndexName"]: each["KeySchema"] for each in table["GlobalSecondaryIndexes"]}
    assert schemas.keys() == {"urgency-index", "day-index"}
    for schema, hashed in (
        (table["KeySchema"], "ticket_id"),
        *((schemas[f"{n}-index"], n) for n in ("urgency", "day")),
    ):
        assert [(key["AttributeName"], key["KeyType"]) for key in schema] == [(hashed, "HASH"), ("created_at", "RANGE")]
    assert table["BillingMode"] == "PAY_PER_REQUEST"
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
    trusted, read, send, give_up, decrypt = statements(role, "Allow")
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
    assert (decrypt["Action"], decrypt["Resource"]) == ("kms:Decrypt", {"Ref": "KmsKeyArn"})


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
        if resource["Type"] == "AWS::Lambda::EventSourceMapping":  # its FunctionName is a reference
            continue
        for key in ("BucketName", "QueueName", "TableName", "FunctionName", "LogGroupName", "RoleName"):
            assert key not in resource["Properties"] or "NamePrefix" in json.dumps(resource["Properties"][key]), name


@pytest.mark.parametrize("check", RULES, ids=lambda check: check.__name__)
def test_rule_holds(check: Rule) -> None:
    check(TEMPLATE)


STATEMENT = "EnrichmentRole/Policies/0/PolicyDocument/Statement/0"
DELETING = "EnrichmentRole/Policies/0/PolicyDocument/Statement/4"
LIFECYCLE = "RawBucket/LifecycleConfiguration/Rules"
SUPERSEDED = "EnrichedBucket/LifecycleConfiguration/Rules/0/NoncurrentVersionExpiration"
TOPIC = "TicketQueuePolicy/PolicyDocument/Statement/1/Fn::If/1"
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
    (failure_count_items_expire, "EnrichmentRole/Policies/0/PolicyDocument/Statement/8/Condition", {}),
    (function_cannot_delete_tombstones, f"{DELETING}/Condition/ForAllValues:StringNotLike/dynamodb:LeadingKeys", "#x*"),
    (function_cannot_delete_tombstones, f"{DELETING}/Action", ["dynamodb:PutItem"]),
    (tickets_are_kept_for_good_unless_a_parameter_says_otherwise, f"{LIFECYCLE}/0/ExpirationInDays", 30),
    (tickets_are_kept_for_good_unless_a_parameter_says_otherwise, f"{SUPERSEDED}/NewerNoncurrentVersions", 100),
    (tickets_are_kept_for_good_unless_a_parameter_says_otherwise, "Parameters/RawRetentionDays/Default", 365),
    (tickets_are_kept_for_good_unless_a_parameter_says_otherwise, "Conditions/EnrichedExpires", {}),
    (mapping_limits_concurrency_and_reports_failures, f"{EVENT}/FunctionResponseTypes", []),
    (mapping_limits_concurrency_and_reports_failures, f"{EVENT}/FilterCriteria", {"Filters": []}),
    (mapping_limits_concurrency_and_reports_failures, f"{EVENT}/ScalingConfig", {}),
    (mapping_limits_concurrency_and_reports_failures, "EnrichmentFunction/ReservedConcurrentExecutions", 5),
    (mapping_limits_concurrency_and_reports_failures, "BulkMapping/ScalingConfig/MaximumConcurrency", 10),
    (mapping_limits_concurrency_and_reports_failures, "BulkMapping/FilterCriteria", {"Filters": []}),
    (bulk_is_off_by_default_and_everything_else_like_the_live_queue, "Parameters/BulkConcurrency/Default", "10"),
    (bulk_is_off_by_default_and_everything_else_like_the_live_queue, "Parameters/BulkConcurrency/AllowedPattern", ".*"),
    (bulk_is_off_by_default_and_everything_else_like_the_live_queue, "Resources/BulkQueue/Condition", "MappingOn"),
    (bulk_is_off_by_default_and_everything_else_like_the_live_queue, "BulkMapping/FunctionName", "ticket-enrichment"),
    (
        bulk_is_off_by_default_and_everything_else_like_the_live_queue,
        "EnrichmentFunction/Environment/Variables/QUEUE_URL/Fn::If/1/Fn::Sub",
        "${BulkQueue},${TicketQueue}",
    ),
    (visibility_timeout_is_six_timeouts_plus_window, "BulkQueue/VisibilityTimeout", 30),
    (max_receive_count_outlasts_an_outage, "BulkQueue/RedrivePolicy/maxReceiveCount", 5),
    (dlq_retention_exceeds_queue_retention, "BulkDeadLetterQueue/MessageRetentionPeriod", 604800),
    (only_the_raw_bucket_may_send_by_default, "BulkQueuePolicy/PolicyDocument/Statement/0/Condition/StringEquals", {}),
    (plain_http_is_denied, "BulkBucketPolicy/PolicyDocument/Statement/0/Effect", "Allow"),
    (customer_key_encrypts_everything, "BulkQueue/KmsMasterKeyId", NONE),
    (batch_costs_under_half_the_timeout, "Metadata/Sizing/P99MillisecondsPerTicket", 3000),
    (batch_costs_under_half_the_timeout, "Parameters/BatchSize/MaxValue", 100),
    (dlq_retention_exceeds_queue_retention, "TicketQueue/MessageRetentionPeriod", 14 * 24 * 3600),
    (dlq_retention_exceeds_queue_retention, "DeadLetterQueue/MessageRetentionPeriod", 13 * 24 * 3600),
    (dlq_retention_exceeds_queue_retention, "Resources/DeadLetterQueue/DeletionPolicy", "Delete"),
    (
        only_the_raw_bucket_may_send_by_default,
        "TicketQueuePolicy/PolicyDocument/Statement/0/Condition/StringEquals",
        {},
    ),
    (only_the_raw_bucket_may_send_by_default, "TicketQueuePolicy/PolicyDocument/Statement/0/Principal", "*"),
    (only_the_raw_bucket_may_send_by_default, f"{TOPIC}/Condition", {}),
    (only_the_raw_bucket_may_send_by_default, f"{TOPIC}/Principal", "*"),
    (only_the_raw_bucket_may_send_by_default, "Parameters/SenderRuleArn/Default", "arn"),
    (customer_key_encrypts_everything, "DeadLetterQueue/KmsMasterKeyId", NONE),
    (customer_key_encrypts_everything, "EnrichmentLogs/KmsKeyId", NONE),
    (every_role_has_the_permissions_boundary, "CodeDeployServiceRole/PermissionsBoundary", NONE),
    (every_role_has_the_permissions_boundary, "EnrichmentFunction/DeploymentPreference/Role", None),
    (protection_and_tracing_are_off_by_default, "Parameters/Tracing/Default", "true"),
    (protection_and_tracing_are_off_by_default, "TicketTable/DeletionProtectionEnabled", False),
    (role_has_only_needed_permissions, "EnrichmentRole/Policies/2/Fn::If/0", "HasEndpointUrl"),
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
    (
        table_is_keyed_by_ticket_and_its_indexes_by_urgency_and_day,
        "TicketTable/GlobalSecondaryIndexes/0/KeySchema/0/AttributeName",
        "a",
    ),
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
    node[int(last) if isinstance(node, list) else last] = value
    with pytest.raises((AssertionError, ValueError)):
        check(template)


def test_every_rule_has_a_violation() -> None:
    assert {check.__name__ for check, *_ in VIOLATIONS} == {check.__name__ for check in RULES}


def test_documented_key_policy_admits_the_services_of_the_template() -> None:
    page = (REPO / "docs" / "operations.md").read_text(encoding="utf-8")
    (policy,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    senders, logs = json.loads(policy)
    allowed = statements(of(TEMPLATE, "TicketQueuePolicy"), "Allow")
    assert set(senders["Principal"]["Service"]) == {statement["Principal"]["Service"] for statement in allowed}
    assert logs["Principal"]["Service"].startswith("logs.")
    assert {action.rstrip("*") for action in senders["Action"]} == {"kms:GenerateDataKey", "kms:Decrypt"}
