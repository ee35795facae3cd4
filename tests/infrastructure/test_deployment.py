"""Both templates deploy: cfn-lint finds nothing, the SAM transform works, names are legal, samconfig fits."""

from __future__ import annotations

import re
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml
from cfnlint.api import lint
from samtranslator.yaml_helper import yaml_parse

from tests.infrastructure.kubernetes_objects import BUILT
from tests.infrastructure.transformed import transform
from tests.infrastructure.watched import OBSERVABILITY_TEXT, TEXT

REPO = Path(__file__).resolve().parents[2]
SAMCONFIG: dict[str, Any] = tomllib.loads((REPO / "samconfig.toml").read_text(encoding="utf-8"))


REGIONS = ["us-east-1", "eu-central-1", "ap-southeast-1"]


def findings(text: str) -> set[str]:
    """Lint before and after the transform: cfn-lint does not look into the properties of a serverless function."""
    transformed = lint(yaml.safe_dump(transform(text)), regions=REGIONS)
    # Parameters and mappings that only the transform uses are unused afterwards.
    matches = lint(text, regions=REGIONS) + [each for each in transformed if each.rule.id not in {"W2001", "W7001"}]
    return {f"{match.rule.id} {match.message}" for match in matches}


@pytest.mark.parametrize("text", [TEXT, OBSERVABILITY_TEXT], ids=["function", "observability"])
def test_cfn_lint_finds_nothing(text: str) -> None:
    assert findings(text) == set()


def test_cfn_lint_detects_an_invalid_template() -> None:
    faults = {
        "E3002": ("SqsManagedSseEnabled:", "SqsManagedSSE:"),
        "E3004": ("aws:SourceArn: !Sub\n", "aws:SourceArn: !GetAtt RawBucket.Arn\n                Spare: !Sub\n"),
        "E1020": ("!Ref MaxTicketBytes", "!Ref MaxBytes"),
    }
    text = TEXT
    for old, new in faults.values():
        assert old in text
        text = text.replace(old, new, 1)
    assert faults.keys() <= {found.split()[0] for found in findings(text)}


def test_transform_creates_function_and_mapping() -> None:
    transformed = transform(TEXT)
    off = {"InSteps", "BulkOn"}
    created = [resource for resource in transformed["Resources"].values() if resource.get("Condition") not in off]
    kinds = sorted(resource["Type"] for resource in created)
    assert [kind for kind in kinds if kind.startswith(("AWS::Code", "AWS::Lambda", "AWS::IAM", "AWS::Serverless"))] == [
        "AWS::IAM::Role",  # of the function, and of the pipe of result events, which is off by default
        "AWS::IAM::Role",
        "AWS::Lambda::Alias",
        "AWS::Lambda::EventSourceMapping",
        "AWS::Lambda::Function",
        "AWS::Lambda::Version",
    ]
    mapping = transformed["Resources"]["EnrichmentFunctionTickets"]["Properties"]
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert mapping["ScalingConfig"] == {"MaximumConcurrency": {"Ref": "MaximumConcurrency"}}
    assert mapping["FunctionName"] == {"Ref": "EnrichmentFunctionAliaslive"}
    assert mapping["EventSourceArn"] == {"Fn::GetAtt": ["TicketQueue", "Arn"]}
    bulk = transformed["Resources"]["BulkMapping"]["Properties"]
    assert bulk["FunctionName"] == mapping["FunctionName"]
    assert bulk.keys() == mapping.keys()
    function = transformed["Resources"]["EnrichmentFunction"]["Properties"]
    assert function["Code"] == {"ImageUri": "image"}


def versions(**parameters: Any) -> set[str]:
    resources = transform(TEXT, **parameters)["Resources"]
    return {name for name, each in resources.items() if each["Type"] == "AWS::Lambda::Version"}


def test_new_image_or_release_publishes_a_version() -> None:
    found = [versions(), versions(ImageUri="b"), versions(Release="ab12"), versions(Release="cd34")]
    assert len(set.union(*found)) == 4
    # This is why `make deploy` sets Release: SAM does not look at other parameters.
    assert versions(MemorySize="4096") == versions()


def test_gradual_deployment_uses_codedeploy_with_alarms() -> None:
    resources = transform(TEXT, Deployment="Canary10Percent10Minutes")["Resources"]
    group = resources["EnrichmentFunctionDeploymentGroup"]["Properties"]
    assert group["DeploymentConfigName"]["Fn::Sub"][1] == {"ConfigName": "Canary10Percent10Minutes"}
    alarms = group["AlarmConfiguration"]["Fn::If"][1]["Alarms"]
    assert [alarm["Name"]["Ref"] for alarm in alarms] == [
        *("NewVersionFailedShareAlarm", "NewVersionErrorsAlarm"),
        *("NewVersionReviewShareAlarm", "NewVersionLabelShiftAlarm"),
    ]
    # The same role that SAM creates if a template names none: a stack of an earlier release keeps it.
    assert group["ServiceRoleArn"]["Fn::If"][:2] == ["InSteps", {"Fn::GetAtt": ["CodeDeployServiceRole", "Arn"]}]
    assert "DEPLOYMENT_STOP_ON_ALARM" in group["AutoRollbackConfiguration"]["Events"]
    update = resources["EnrichmentFunctionAliaslive"]["UpdatePolicy"]["CodeDeployLambdaAliasUpdate"]
    assert update["DeploymentGroupName"] == {"Ref": "EnrichmentFunctionDeploymentGroup"}
    (version,) = (name for name in resources if name.startswith("EnrichmentFunctionVersion"))
    dimension = resources["NewVersionErrorsAlarm"]["Properties"]["Dimensions"][-1]
    assert dimension == {"Name": "ExecutedVersion", "Value": {"Fn::Sub": f"${{{version}.Version}}"}}


def test_outputs_are_complete() -> None:
    outputs = {name: output["Value"] for name, output in yaml_parse(TEXT)["Outputs"].items()}
    assert outputs == {
        "RawBucket": {"Ref": "RawBucket"},
        "EnrichedBucket": {"Ref": "EnrichedBucket"},
        "TableName": {"Ref": "TicketTable"},
        "QueueUrl": {"Ref": "TicketQueue"},
        "QueueName": {"Fn::GetAtt": ["TicketQueue", "QueueName"]},
        "DlqUrl": {"Ref": "DeadLetterQueue"},
        "DlqName": {"Fn::GetAtt": ["DeadLetterQueue", "QueueName"]},
        "BulkBucket": {"Ref": "BulkBucket"},
        "BulkQueueUrl": {"Ref": "BulkQueue"},
        "BulkQueueName": {"Fn::GetAtt": ["BulkQueue", "QueueName"]},
        "BulkDlqUrl": {"Ref": "BulkDeadLetterQueue"},
        "BulkDlqName": {"Fn::GetAtt": ["BulkDeadLetterQueue", "QueueName"]},
        "FunctionName": {"Ref": "EnrichmentFunction"},
        "ResultTopicArn": {"Ref": "ResultTopic"},
        "ResultBusName": {"Ref": "ResultBus"},
        "ResultEventsDlqName": {"Fn::GetAtt": ["ResultEventsDlq", "QueueName"]},
    }


@pytest.mark.parametrize("text", [TEXT, OBSERVABILITY_TEXT], ids=["function", "observability"])
def test_cloudformation_can_read_the_file(text: str) -> None:
    # CloudFormation does not support YAML aliases, which sam would hide. sam uploads the file to S3, where the limit is
    # a megabyte.
    assert not [event for event in yaml.parse(text) if isinstance(event, yaml.AliasEvent)]
    assert len(text.encode()) < 1_000_000


@pytest.mark.parametrize("text", [TEXT, OBSERVABILITY_TEXT], ids=["function", "observability"])
def test_every_parameter_is_in_one_group(text: str) -> None:
    template = yaml_parse(text)
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    # In the order of the file, which people read as well.
    assert [name for group in groups for name in group["Parameters"]] == list(template["Parameters"])


ARN, ACCOUNT, PLACE = "arn:aws", "123456789012", "eu-central-1:123456789012"


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        ("NamePrefix", ["", "acme-prod", "a" * 40], ["a", "Acme", "-acme", "acme-", "a" * 41]),
        ("ModelBundle", ["file:///share/ticket-enrichment/bundle"], ["s3://models/full", "file://share", "bundle"]),
        ("ModelBundleDigest", ["", "0a" * 32], ["0a", "0A" * 32]),
        ("ModelBundleS3", ["", "models/full", "m.x/a/b"], ["models", "models/", "models/*", "s3://models/full"]),
        ("ShadowBundleS3", ["", "models/candidate"], ["models", "models/", "models/*", "s3://models/candidate"]),
        ("SenderTopicArn", ["", f"{ARN}:sns:{PLACE}:tickets"], [f"{ARN}:sns:{PLACE}:*", f"{ARN}:sns:{PLACE}:a.fifo"]),
        ("SenderRuleArn", ["", f"{ARN}:events:{PLACE}:rule/bus/raw"], [f"{ARN}:events:{PLACE}:rule/*", "raw"]),
        ("KmsKeyArn", ["", f"{ARN}:kms:{PLACE}:key/1234abcd-12ab"], [f"{ARN}:kms:{PLACE}:alias/tickets", "1234abcd"]),
        (
            "PermissionsBoundaryArn",
            ["", f"{ARN}:iam::{ACCOUNT}:policy/team/edge"],
            ["edge", f"{ARN}:iam::{ACCOUNT}:role/x"],
        ),
    ],
)
def test_parameter_pattern_accepts_only_valid_values(parameter: str, good: list[str], bad: list[str]) -> None:
    pattern = yaml_parse(TEXT)["Parameters"][parameter]["AllowedPattern"]
    assert [value for value in good + bad if re.fullmatch(pattern, value)] == good


def test_longest_prefix_makes_valid_names() -> None:
    # The longest default consists of a 12-digit account and a region such as ap-southeast-1.
    longest = max(40, len("123456789012-us-isob-east-1"))
    assert longest + len("-tickets-enriched") <= 63  # buckets
    assert longest + len("-ticket-enrichment") <= 64  # functions
    assert longest + len("-ticket-processing-bulk-dlq") <= 80  # queues


@pytest.mark.parametrize("environment", ["default", "local", "prod", "localstack"])
def test_samconfig_uses_existing_parameters(environment: str) -> None:
    commands = SAMCONFIG[environment]
    assert commands["global"]["parameters"]["stack_name"]
    assert commands["validate"]["parameters"]["lint"] is True
    deploy = commands["deploy"]["parameters"]
    assert deploy["capabilities"] == "CAPABILITY_IAM"
    overrides = {override.partition("=")[0] for override in deploy.get("parameter_overrides", [])}
    assert overrides <= yaml_parse(TEXT)["Parameters"].keys() | yaml_parse(OBSERVABILITY_TEXT)["Parameters"].keys()


def skipped_rules(template: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The rules of checkov that resources skip: resource, rule and reason."""
    found = {name: each.get("Metadata", {}).get("checkov", {}) for name, each in template["Resources"].items()}
    return [(name, skip["id"], skip["comment"]) for name, each in found.items() for skip in each.get("skip", [])]


def skipped_in_manifests() -> list[tuple[str, str, str]]:
    """The same of the Kubernetes objects, whose annotations have the form "checkov.io/skip1: RULE=reason"."""
    return [
        (found["kind"], *value.split("=", 1))
        for found in BUILT["base"]
        for name, value in found["metadata"].get("annotations", {}).items()
        if name.startswith("checkov.io/skip")
    ]


@pytest.mark.parametrize(("resource", "rule", "reason"), skipped_rules(yaml_parse(TEXT)) + skipped_in_manifests())
def test_skipped_rule_has_a_reason(resource: str, rule: str, reason: str) -> None:
    # `make scan` checks that it would fail otherwise.
    assert re.fullmatch(r"CKV2?_(AWS|K8S)_\d+", rule)
    assert len(reason.split()) > 5


def scan_problems(**checks: list[dict[str, Any]]) -> list[str]:
    """What .ci/scan.py prints for results like checkov's. It runs in checkov's environment, so it is not a module."""
    spec = spec_from_file_location("scan", REPO / ".ci" / "scan.py")
    assert spec is not None
    assert spec.loader is not None
    scan = module_from_spec(spec)
    spec.loader.exec_module(scan)
    template = {"passed_checks": [{}], "failed_checks": [], "skipped_checks": [], **checks}
    return list(scan.problems(template, {"failed_checks": checks["bare"]}, {"failed_checks": checks["secrets"]}))


def check(number: int, reason: str = "a reason") -> dict[str, Any]:
    place = {"file_path": "/template.yaml", "file_line_range": [7, 9], "check_name": "encrypted"}
    return {"check_id": f"CKV_{number}", "resource": "Queue", "check_result": {"suppress_comment": reason}, **place}


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ({"skipped_checks": [check(1)], "bare": [check(1), check(2)]}, None),
        ({"failed_checks": [check(1)]}, "template.yaml:7: CKV_1 Queue: encrypted"),
        ({"secrets": [check(3)]}, "template.yaml:7: CKV_3 Queue: encrypted"),
        ({"passed_checks": []}, "nothing was checked"),
        ({"skipped_checks": [check(1, " ")], "bare": [check(1)]}, "CKV_1 Queue: skipped without a reason"),
        ({"skipped_checks": [check(1)], "bare": [check(2)]}, "CKV_1 Queue: skipped, but it passes"),
    ],
    ids=["good", "failed", "secret", "unreadable", "no-reason", "unneeded"],
)
def test_scan_reports_problems(checks: dict[str, Any], message: str | None) -> None:
    found = scan_problems(**{"bare": [], "secrets": [], **checks})
    assert len(found) == (message is not None)
    assert message is None or message in found[0]
