"""`make deploy` and `make destroy` against the embedded stack; docker and sam only record their arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

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

    def run(self, action: str, *options: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, str(REPO / "deploy" / "lambda" / "release.py"), action, "--sam", str(self._sam)]
        return subprocess.run(
            [*program, "--config", self.config, *options],
            env=self.environment,
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
    ran = machine.run("deploy")
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


def test_destroy_lists_retained_resources(machine: Machine, stack: EmbeddedStack) -> None:
    ran = machine.run("destroy")
    assert ran.returncode == 0
    alarms, function = machine.lines()
    assert alarms[1:4] == function[1:4] == ["delete", "--config-env", "prod"]
    assert (alarms[-1], function[-1]) == ("ticket-enrichment-observability", "ticket-enrichment")
    for output in ("RawBucket", "EnrichedBucket", "TableName"):
        assert stack.outputs[output] in ran.stderr


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
