"""`make deploy` and `make destroy` against the embedded stack; docker and sam only record their arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cfnlint.api import lint
from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER
from samtranslator.yaml_helper import yaml_parse

from deploy.kept_resources import KeptResource, find_kept, import_template, retained
from handler.local import EmbeddedStack

REPO = Path(__file__).resolve().parents[2]
DOCKER = """\
#!{python}
import json, os, sys, boto3
with open({log!r}, "a") as log:
    log.write(json.dumps(["docker", *sys.argv[1:], *([sys.stdin.read()] if "login" in sys.argv else [])]) + "\\n")
if sys.argv[1:3] == ["image", "inspect"]:
    if sys.argv[3] == "unknown":
        sys.exit("no such image")
    print(json.dumps([{{"Id": "sha256:" + "ab" * 32, "Architecture": "arm64"}}]))
if sys.argv[1] == "push":
    repository, _, tag = sys.argv[2].rpartition("/")[2].partition(":")
    boto3.client("ecr").put_image(repositoryName=repository, imageTag=tag, imageManifest="{{}}")
"""
OBSERVABILITY = (REPO / "deploy" / "observability.yaml").read_text(encoding="utf-8")
SAM = """\
#!{python}
import json, sys
with open({log!r}, "a") as log:
    log.write(json.dumps(["sam", *sys.argv[1:]]) + "\\n")
sys.exit(3 if "NamePrefix=fail" in sys.argv else 0)
"""


IDENTIFIERS = {"AWS::S3::Bucket": "BucketName", "AWS::DynamoDB::Table": "TableName", "AWS::SQS::Queue": "QueueUrl"}
# A sam that creates, updates and deletes stacks.
WORKING_SAM = """\
#!{python}
import json, sys, tomllib, boto3
from argparse import ArgumentParser
from samtranslator.yaml_helper import yaml_parse
parser = ArgumentParser()
parser.add_argument("command")
for name in ("config-env", "config-file", "template", "stack-name", "image-repository"):
    parser.add_argument("--" + name)
parser.add_argument("--guided", action="store_true")
parser.add_argument("--parameter-overrides", nargs="*", default=[])
given = parser.parse_args()
with open({log!r}, "a") as log:
    log.write('["sam"]\\n')
cloudformation = boto3.client("cloudformation")
name = given.stack_name or tomllib.load(open(given.config_file, "rb"))["prod"]["global"]["parameters"]["stack_name"]
if given.command == "delete":
    cloudformation.delete_stack(StackName=name)
    kind = "delete"
else:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="sam-artifacts")
    s3.put_object(Bucket="sam-artifacts", Key="template", Body=json.dumps(yaml_parse(open(given.template).read())))
    pairs = [pair.partition("=") for pair in given.parameter_overrides]
    request = dict(
        StackName=name,
        TemplateURL=s3.meta.endpoint_url + "/sam-artifacts/template",
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
        Parameters=[dict(ParameterKey=key, ParameterValue=value.strip('"')) for key, _, value in pairs],
    )
    try:
        cloudformation.describe_stacks(StackName=name)
    except cloudformation.exceptions.ClientError:
        cloudformation.create_stack(**request)
        kind = "create"
    else:
        cloudformation.update_stack(**request)
        kind = "update"
waiter = cloudformation.get_waiter("stack_" + kind + "_complete")
waiter.wait(StackName=name, WaiterConfig=dict(Delay=1, MaxAttempts=60))
"""


class Machine:
    """A machine with docker and sam, whose AWS is the embedded stack."""

    def __init__(self, stack: EmbeddedStack, folder: Path) -> None:
        self.log, self.config = folder / "log", folder / "samconfig.toml"
        self.config.write_text((REPO / "samconfig.toml").read_text(encoding="utf-8"))
        for name, text in (("docker", DOCKER), ("sam", SAM)):
            (folder / name).write_text(text.format(python=sys.executable, log=str(self.log)))
            (folder / name).chmod(0o755)
        self.environment = {**stack.environment(), "PATH": f"{folder}{os.pathsep}{os.defpath}"}
        self._sam = folder / "sam"

    def install_working_sam(self) -> None:
        self._sam.write_text(WORKING_SAM.format(python=sys.executable, log=str(self.log)))

    def run(self, action: str, *options: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "deploy.lambda.release", action, "--sam", str(self._sam)]
        return subprocess.run(
            [*program, "--config", self.config, *options],
            cwd=REPO,
            env=self.environment,
            input=answer,
            capture_output=True,
            text=True,
            check=False,
        )

    def lines(self) -> list[list[str]]:
        """The log lines since the last call."""
        found = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return found


@pytest.fixture
def machine(stack: EmbeddedStack, tmp_path: Path) -> Machine:
    return Machine(stack, tmp_path)


@pytest.fixture(autouse=True)
def _no_repository(stack: EmbeddedStack) -> Any:
    yield
    ecr = stack.client("ecr")
    for repository in ecr.describe_repositories()["repositories"]:
        ecr.delete_repository(repositoryName=repository["repositoryName"], force=True)


def parameters(line: list[str]) -> dict[str, str]:
    pairs = line[line.index("--parameter-overrides") + 1 :]
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def test_image_is_pushed_once_and_deployed_by_digest(machine: Machine, stack: EmbeddedStack) -> None:
    assert machine.run("deploy", "LogLevel=DEBUG", "AlarmAgeSeconds=1200").returncode == 0
    inspect, login, tag, push, sam, observability = machine.lines()
    (repository,) = stack.client("ecr").describe_repositories()["repositories"]
    address = repository["repositoryUri"]
    assert inspect[-1] == tag[2] == "ticket-lambda:latest"
    assert (login[1:4], login[-1]) == (["login", "--username", "AWS"], "ministack-auth-token")
    assert tag[-1] == push[-1] == f"{address}:abababababab"
    assert repository["imageTagMutability"] == "IMMUTABLE"
    assert sam[1:4] == ["deploy", "--config-env", "prod"]
    given = parameters(sam)
    assert given["ImageUri"].startswith(f"{address}@sha256:")
    assert (given["Architecture"], given["LogLevel"]) == ("arm64", "DEBUG")
    assert "AlarmAgeSeconds" not in given
    assert "--guided" not in sam  # the embedded stack has the name in samconfig.toml
    assert "--guided" not in observability
    assert machine.run("deploy", "LogLevel=DEBUG").returncode == 0
    again = machine.lines()
    assert [line[1] for line in again] == ["image", "deploy", "deploy"]
    assert parameters(again[1]) == given  # including Release: a change of an alarm publishes no version


def test_alarms_are_deployed_with_the_functions_parameters(machine: Machine) -> None:
    saved = 'parameter_overrides = "MemorySize=\\"4096\\" PricePerMillionGbSeconds=\\"13.3334\\" NamePrefix=\\"\\""\n'
    lines = machine.config.read_text().splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if 'parameter_overrides = ["Deployment' in line]
    machine.config.write_text("".join(saved if number in places else line for number, line in enumerate(lines)))
    assert machine.run("deploy", "AlarmAgeSeconds=1200").returncode == 0
    *_, function, observability = machine.lines()
    assert 'NamePrefix=""' in function  # sam refuses NAME=
    assert "PricePerMillionGbSeconds" not in parameters(function)
    assert Path(observability[observability.index("--template") + 1]).name == "observability.yaml"
    assert observability[observability.index("--stack-name") + 1] == "ticket-enrichment-observability"
    assert parameters(observability) == {
        "FunctionName": "ticket-enrichment",
        "QueueName": "ticket-processing",
        "DlqName": "ticket-processing-dlq",
        "Timeout": "60",
        "MemorySize": "2048",  # from the existing stack: this sam deploys nothing
        "MaximumConcurrency": "10",
        "AlarmTopicArn": '""',
        "AlarmFailedPercent": "5",
        "AlarmAgeSeconds": "1200",
        "PricePerMillionGbSeconds": "13.3334",
    }
    required = {n for n, each in yaml_parse(OBSERVABILITY)["Parameters"].items() if "Default" not in each}
    assert required <= parameters(observability).keys()


def test_alarms_are_deployed_separately(machine: Machine) -> None:
    ran = machine.run("observability", "AlarmFailedPercent=2", "--environment", "localstack")
    assert ran.returncode == 0
    (sam,) = machine.lines()
    assert sam[1:4] == ["deploy", "--config-env", "localstack"]
    assert parameters(sam)["AlarmFailedPercent"] == "2"
    assert machine.run("observability", "--environment", "none").stderr == (
        f"error: {machine.config} has no environment none; add one, or name another\n"
    )


def test_first_deployment_is_guided_and_saved_parameters_are_used(machine: Machine) -> None:
    text = machine.config.read_text()
    begin = '[prod.global.parameters]\nstack_name = "'
    machine.config.write_text(text.replace(f"{begin}ticket", f"{begin}new"))
    ran = machine.run("deploy", "NamePrefix=new")
    assert "--guided" in machine.lines()[-1]
    # The sam of this test deploys nothing.
    assert ran.stderr.startswith("error: there is no stack new-enrichment in this account")
    saved = (
        'stack_name = "ticket-enrichment"\nparameter_overrides = "MemorySize=\\"4096\\" Deployment=\\"AllAtOnce\\""\n'
    )
    lines = text.splitlines(keepends=True)
    place = lines.index("[prod.deploy.parameters]\n") + 1
    rest = [line for line in lines[place:] if 'parameter_overrides = ["Deployment' not in line]
    machine.config.write_text("".join([*lines[:place], saved, *rest]))
    releases = set()
    for size in ("4096", "8192"):
        machine.config.write_text(machine.config.read_text().replace("4096", size))
        assert machine.run("deploy").returncode == 0
        sam = machine.lines()[-2]
        given = parameters(sam)
        assert "--guided" not in sam
        assert (given["MemorySize"], given["Deployment"]) == (size, "AllAtOnce")
        releases.add(given["Release"])
    assert len(releases) == 2
    assert all(release.isalnum() for release in releases)


def test_tags_are_those_of_both_stacks(machine: Machine) -> None:
    assert machine.run("deploy", "--tag", "Team=support", "--tag", "Stage=prod", "LogLevel=DEBUG").returncode == 0
    for sam in machine.lines()[-2:]:
        begin = sam.index("--tags")
        assert sam[begin : begin + 4] == ["--tags", "Team=support", "Stage=prod", "--parameter-overrides"]
    assert machine.run("deploy").returncode == 0
    assert not any("--tags" in line for line in machine.lines())  # those of samconfig.toml stay


def test_destroy_lists_retained_resources(machine: Machine, stack: EmbeddedStack) -> None:
    empty_queues(stack, stack.outputs)
    ran = machine.run("destroy")
    assert ran.returncode == 0, ran.stderr
    alarms, function = machine.lines()
    assert alarms[1:4] == function[1:4] == ["delete", "--config-env", "prod"]
    assert (alarms[-1], function[-1]) == ("ticket-enrichment-observability", "ticket-enrichment")
    for output in ("RawBucket", "EnrichedBucket", "TableName", "DlqName"):
        assert stack.outputs[output] in ran.stderr


def empty_queues(stack: EmbeddedStack, outputs: Mapping[str, str]) -> None:
    for output in {"QueueUrl", "DlqUrl", "BulkQueueUrl", "BulkDlqUrl"} & outputs.keys():
        stack.client("sqs").purge_queue(QueueUrl=outputs[output])


@pytest.mark.parametrize("queue", ["Queue", "Dlq"])
@pytest.mark.parametrize("state", ["visible", "in flight", "delayed"])
def test_destroy_refuses_while_a_queue_holds_messages(
    machine: Machine, stack: EmbeddedStack, queue: str, state: str
) -> None:
    empty_queues(stack, stack.outputs)
    sqs, url = stack.client("sqs"), stack.outputs[f"{queue}Url"]
    sqs.send_message(QueueUrl=url, MessageBody="{}", DelaySeconds=300 if state == "delayed" else 0)
    if state == "in flight":
        assert sqs.receive_message(QueueUrl=url, VisibilityTimeout=300)["Messages"]
    ran = machine.run("destroy")
    assert (ran.returncode, ran.stderr.count("\n"), machine.lines()) == (1, 1, [])
    assert f"{stack.outputs[f'{queue}Name']} holds 1 messages" in ran.stderr
    assert "make destroy DISCARD_MESSAGES=yes" in ran.stderr
    assert machine.run("destroy", "--discard-messages").returncode == 0
    assert [line[1] for line in machine.lines()] == ["delete", "delete"]
    empty_queues(stack, stack.outputs)


def described(stack: EmbeddedStack, name: str) -> tuple[dict[str, str], dict[str, str]]:
    """A stack's outputs, and its resources by logical id."""
    cloudformation = stack.client("cloudformation")
    (found,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
    resources = cloudformation.describe_stack_resources(StackName=name)["StackResources"]
    return (
        {output["OutputKey"]: output["OutputValue"] for output in found["Outputs"]},
        {each["LogicalResourceId"]: each["ResourceType"] for each in resources},
    )


@pytest.fixture
def own_stack() -> Iterator[EmbeddedStack]:
    """A separate stack, because alarms and dashboards that a test leaves behind would be seen by others."""
    with EmbeddedStack() as embedded:
        yield embedded


def test_deploy_after_destroy_continues_with_the_tickets(own_stack: EmbeddedStack, tmp_path: Path) -> None:
    stack, machine = own_stack, Machine(own_stack, tmp_path)
    machine.install_working_sam()
    machine.config.write_text(machine.config.read_text().replace('"ticket-enrichment"', '"cycle"'))
    options = ["NamePrefix=cycle", "MappingEnabled=false", "MetricMathAlarms=false", "Deployment=AllAtOnce"]
    options.append("BulkConcurrency=10")
    ran = machine.run("deploy", *options)
    assert ran.returncode == 0, ran.stderr
    outputs, resources = described(stack, "cycle")
    s3, sqs, dynamodb = (stack.client(name) for name in ("s3", "sqs", "dynamodb"))
    s3.put_object(Bucket=outputs["RawBucket"], Key="T-1.json", Body=b"raw")
    version = s3.put_object(Bucket=outputs["EnrichedBucket"], Key="T-1.json", Body=b"enriched")["VersionId"]
    item = {"ticket_id": {"S": "T-1"}, "created_at": {"N": "1"}, "urgency": {"S": "low"}}
    dynamodb.put_item(TableName=outputs["TableName"], Item=item)
    empty_queues(stack, outputs)
    sqs.send_message(QueueUrl=outputs["DlqUrl"], MessageBody="rejected")

    assert "cycle-ticket-processing-dlq holds 1 messages" in machine.run("destroy").stderr
    ran = machine.run("destroy", "--discard-messages")
    assert ran.returncode == 0, ran.stderr
    names = ("-processing-bulk-dlq", "-processing-dlq", "s", "s-bulk", "s-enriched", "s-raw")
    kept = [f"cycle-ticket{name}" for name in names]
    assert f"Kept, because they contain tickets: {', '.join(kept)}." in ran.stderr

    refused = machine.run("deploy", *options, answer="\n")
    assert refused.returncode == 1
    assert refused.stderr.endswith(
        "error: nothing was deployed; answer y, or choose another NamePrefix to begin without tickets\n"
    )
    ran = machine.run("deploy", *options, answer="y\n")
    assert ran.returncode == 0, ran.stderr
    assert described(stack, "cycle") == (outputs, resources)
    assert s3.get_object(Bucket=outputs["RawBucket"], Key="T-1.json")["Body"].read() == b"raw"
    stored = s3.get_object(Bucket=outputs["EnrichedBucket"], Key="T-1.json", VersionId=version)
    assert stored["Body"].read() == b"enriched"
    assert dynamodb.scan(TableName=outputs["TableName"])["Items"] == [item]
    (message,) = sqs.receive_message(QueueUrl=outputs["DlqUrl"])["Messages"]
    assert message["Body"] == "rejected"
    # The new queue is notified of the kept bucket's objects.
    empty_queues(stack, outputs)
    s3.put_object(Bucket=outputs["RawBucket"], Key="T-2.json", Body=b"raw")
    (message,) = sqs.receive_message(QueueUrl=outputs["QueueUrl"], WaitTimeSeconds=10)["Messages"]
    assert "T-2.json" in message["Body"]


def test_resources_of_another_stack_are_not_taken_over(machine: Machine, stack: EmbeddedStack) -> None:
    machine.config.write_text(machine.config.read_text().replace('"ticket-enrichment"', '"other"'))
    ran = machine.run("deploy", answer="y\n")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("error: CloudFormation cannot import ")
    assert "already exists in stack" in ran.stderr
    assert not any(line[0] == "sam" for line in machine.lines())
    states = stack.client("cloudformation").list_stacks()["StackSummaries"]
    assert {each["StackStatus"] for each in states if each["StackName"] == "other"} <= {"DELETE_COMPLETE"}


def test_kept_resources_are_those_that_the_template_retains() -> None:
    template = yaml_parse((REPO / "template.yaml").read_text(encoding="utf-8"))
    kept = {"RawBucket", "EnrichedBucket", "BulkBucket", "TicketTable", "DeadLetterQueue", "BulkDeadLetterQueue"}
    assert set(retained(template)) == kept
    for name in retained(template):
        assert template["Resources"][name]["UpdateReplacePolicy"] == "Retain"


def test_import_template_follows_cloudformations_rules(stack: EmbeddedStack) -> None:
    template = yaml_parse((REPO / "template.yaml").read_text(encoding="utf-8"))
    kept = [KeptResource(each, template["Resources"][each]["Type"], each, {}) for each in retained(template)]
    reduced = import_template(template, kept)
    # Nothing else is created, no output refers to it, and the transform, which would create more, is not run.
    assert reduced.keys() == {"AWSTemplateFormatVersion", "Parameters", "Mappings", "Conditions", "Resources"}
    assert reduced["Resources"].keys() == set(retained(template))
    assert "NotificationConfiguration" not in reduced["Resources"]["RawBucket"]["Properties"]
    assert not any("DependsOn" in each for each in reduced["Resources"].values())
    found = {each.kind: each.identifier.keys() for each in find_kept(stack.client, {})}
    for kind, identifier in IDENTIFIERS.items():
        schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", kind).schema
        assert schema["primaryIdentifier"] == [f"/properties/{identifier}"]
        assert found[kind] == {identifier}
    errors = [match for match in lint(json.dumps(reduced), regions=["us-east-1"]) if match.rule.id.startswith("E")]
    assert errors == []
    assert find_kept(stack.client, {"NamePrefix": "acme", "BulkConcurrency": "10"}) == []


def test_bulk_is_not_turned_on_again_over_what_was_kept(machine: Machine, stack: EmbeddedStack) -> None:
    s3, bucket = stack.client("s3"), stack.outputs["RawBucket"].replace("-raw", "-bulk")
    s3.create_bucket(Bucket=bucket)
    assert machine.run("deploy").returncode == 0
    ran = machine.run("deploy", "BulkConcurrency=10")
    s3.delete_bucket(Bucket=bucket)
    assert ran.returncode == 1
    assert ran.stderr == (
        f"error: {bucket} exist since BulkConcurrency was last on; delete what is empty, or import it into the stack "
        "first\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["deploy", "--image", "unknown"], "Docker has no image unknown: build it with `make image`"),
        (["deploy", "NamePrefix=fail"], "sam deploy failed with exit code 3"),
        (["deploy", "AlarmAge=1200"], "neither template has a parameter AlarmAge; check its spelling"),
    ],
)
def test_error_is_one_line(machine: Machine, options: list[str], message: str) -> None:
    ran = machine.run(*options)
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith(f"error: {message}")


def test_missing_stack_and_missing_credentials_have_different_errors(machine: Machine) -> None:
    machine.config.write_text(machine.config.read_text().replace('"ticket-enrichment"', '"other"'))
    assert "there is no stack other in this account" in machine.run("destroy").stderr
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        del machine.environment[name]
    machine.environment |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nonexistent"}
    assert machine.run("destroy").stderr == "error: Unable to locate credentials\n"
