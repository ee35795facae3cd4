"""`make deploy` and `make destroy`: push the image to ECR, then create or update two stacks with `sam deploy`.

The first stack is template.yaml. The second has the same name plus "-observability" and is deploy/observability.yaml:
the alarms and the dashboard. It is updated after the first, with the first one's outputs and parameters.

The parameters of both stacks come from samconfig.toml, where sam saves the answers of the first deployment, and from
the command line. The image, its architecture and a hash of the function's parameters are added, so that every change
publishes a version. Tags of samconfig.toml apply to both stacks and, through them, to their resources.

`make destroy` refuses while the queues hold messages, and keeps what holds tickets; a later `make deploy` takes it over
(deploy/kept_resources.py).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from samtranslator.yaml_helper import yaml_parse

from deploy.kept_resources import AdoptionError, KeptResource, adopt, find_kept, parsed, retained
from enrichment.errors import EnrichmentError
from handler.aws.sqs import Queue

REPOSITORY: Final = Path(__file__).resolve().parents[2]
TEMPLATE: Final = REPOSITORY / "template.yaml"
OBSERVABILITY: Final = REPOSITORY / "deploy" / "observability.yaml"
IMAGE: Final = "ticket-lambda:latest"  # the name that `make image` gives it
ECR_NAME: Final = "ticket-enrichment"
ARCHITECTURES: Final = {"amd64": "x86_64", "arm64": "arm64"}  # Docker's names: Lambda's names
QUEUES: Final = ("DlqUrl", "QueueUrl", "BulkDlqUrl", "BulkQueueUrl")  # outputs


class ReleaseError(Exception):
    """The release failed. One line that says how to fix it."""


@dataclass(frozen=True)
class Configuration:
    """An environment of samconfig.toml, read again for each use, because sam writes answers to the file."""

    file: Path
    environment: str
    tags: Sequence[str] = ()
    """NAME=VALUE, instead of the file's."""

    def read(self) -> dict[str, Any]:
        """The options of `sam deploy`, with those of every command. Raises ReleaseError."""
        found = tomllib.loads(self.file.read_text(encoding="utf-8")).get(self.environment)
        if found is None:
            raise ReleaseError(f"{self.file} has no environment {self.environment}; add one, or name another")
        return {**found["global"]["parameters"], **found["deploy"]["parameters"]}

    def stack_name(self) -> str:
        """The name of the function's stack."""
        return str(self.read()["stack_name"])

    def parameters(self) -> dict[str, str]:
        """The saved parameters of both templates."""
        return overrides(self.read().get("parameter_overrides", []))

    def client(self, service: str) -> Any:
        """A client of the region to which sam deploys."""
        make: Any = boto3.session.Session(region_name=self.read().get("region")).client
        return make(service)


@dataclass(frozen=True)
class Stack:
    """A stack that exists."""

    outputs: Mapping[str, str]
    parameters: Mapping[str, str]


def deploy(sam: Path, image: str, config: Configuration, more: Mapping[str, str]) -> None:
    """Push the image and deploy both stacks. The first time, sam asks for parameters. Raises ReleaseError."""
    found = inspected(image)
    uri = pushed(config.client("ecr"), image, found["Id"].removeprefix("sha256:")[:12])
    before = stack_named(config, config.stack_name())
    names = parameter_names(TEMPLATE)
    parameters = {name: value for name, value in {**config.parameters(), **more}.items() if name in names}
    parameters |= {"ImageUri": uri, "Architecture": ARCHITECTURES[found["Architecture"]]}
    if before is None and (kept := find_kept(config.client, parameters)):
        take_over(config, parameters, kept)
        before = existing(config, config.stack_name())
    elif before is not None and "BulkBucket" not in before.outputs:
        refuse_what_was_kept_of_bulk(find_kept(config.client, parameters))
    parameters["Release"] = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:16]
    options = ["--image-repository", uri.partition("@")[0], *([] if before else ["--guided"])]
    sam_deploy(sam, config, TEMPLATE, parameters, options)
    # A stack of an earlier release has the alarms' parameters itself.
    deploy_observability(sam, config, {**(before.parameters if before else {}), **config.parameters()}, more)


def take_over(config: Configuration, parameters: Mapping[str, str], kept: Sequence[KeptResource]) -> None:
    """Create the stack from what an earlier one kept. Raises ReleaseError."""
    names = ", ".join(each.name for each in kept)
    if config.read().get("confirm_changeset") and not confirmed(f"{names} exist. Continue with the tickets in them?"):
        raise ReleaseError("nothing was deployed; answer y, or choose another NamePrefix to begin without tickets")
    sys.stderr.write(f"Importing what an earlier stack kept: {names}\n")
    template = parsed(TEMPLATE.read_text(encoding="utf-8"))
    try:
        adopt(config.client("cloudformation"), config.stack_name(), template, parameters, list(kept))
    except AdoptionError as error:
        raise ReleaseError(str(error)) from error


def refuse_what_was_kept_of_bulk(kept: Sequence[KeptResource]) -> None:
    """CloudFormation cannot create what a stack kept when BulkConcurrency was set to 0. Raises ReleaseError."""
    if names := ", ".join(each.name for each in kept if each.logical_id.startswith("Bulk")):
        raise ReleaseError(
            f"{names} exist since BulkConcurrency was last on; delete what is empty, or import it into the stack first"
        )


def confirmed(question: str) -> bool:
    """Ask the user. Without a terminal, the answer is no."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def deploy_observability(sam: Path, config: Configuration, saved: Mapping[str, str], more: Mapping[str, str]) -> None:
    """Deploy the alarms and the dashboard of a stack that exists. Raises ReleaseError."""
    name = config.stack_name()  # as it is after the first deployment, when sam asked for it
    stack = existing(config, name)
    known = {**saved, **stack.parameters, **stack.outputs, **more}
    parameters = {name: known[name] for name in sorted(parameter_names(OBSERVABILITY)) if name in known}
    sam_deploy(sam, config, OBSERVABILITY, parameters, ["--stack-name", f"{name}-observability"])


def destroy(sam: Path, config: Configuration, *, discard_messages: bool) -> None:
    """Delete both stacks unless the queues hold messages, and print what is kept. Raises ReleaseError."""
    name = config.stack_name()
    stack = existing(config, name)
    if not discard_messages and (waiting := messages(config, stack)):
        raise ReleaseError(
            f"{waiting}; process or replay them first (dlq-replay count), or delete the stacks nevertheless: "
            "make destroy DISCARD_MESSAGES=yes"
        )
    kept = ", ".join(kept_names(config, name))
    region = config.read().get("region")  # which `sam delete` does not read
    # The alarms first: they make no sense without the function.
    for each in (f"{name}-observability", name):
        if stack_named(config, each):
            command = [str(sam), "delete", "--config-env", config.environment, "--config-file", str(config.file)]
            run([*command, "--stack-name", each, *(["--region", region] if region else [])], "sam delete")
    sys.stderr.write(f"Kept, because they contain tickets: {kept}. The images in ECR's {ECR_NAME} are kept as well.\n")


def messages(config: Configuration, stack: Stack) -> str:
    """Which queues hold how many messages, by SQS's estimates; empty if none does."""
    sqs = config.client("sqs")
    found = [Queue(sqs, stack.outputs[output]).attributes() for output in QUEUES if output in stack.outputs]
    counts = {each.name: each.visible + each.in_flight + each.delayed for each in found}
    return ", ".join(f"{name} holds {count} messages" for name, count in counts.items() if count)


def kept_names(config: Configuration, name: str) -> list[str]:
    """The resources that stay when the stack is deleted, after the template with which it was deployed."""
    cloudformation = config.client("cloudformation")
    logical_ids = retained(parsed(cloudformation.get_template(StackName=name)["TemplateBody"]))
    resources = cloudformation.describe_stack_resources(StackName=name)["StackResources"]
    physical_ids = [each["PhysicalResourceId"] for each in resources if each["LogicalResourceId"] in logical_ids]
    return sorted(each.rpartition("/")[2] for each in physical_ids)  # that of a queue is its URL


def sam_deploy(
    sam: Path, config: Configuration, template: Path, parameters: Mapping[str, str], options: Sequence[str]
) -> None:
    """Run `sam deploy` for one of the templates. Raises ReleaseError."""
    command = [str(sam), "deploy", "--config-env", config.environment, "--config-file", str(config.file)]
    command += ["--template", str(template), *options, *(["--tags", *config.tags] if config.tags else [])]
    command += ["--parameter-overrides"]
    # sam refuses NAME= but takes NAME="".
    command += [f"{name}={value}" if value else f'{name}=""' for name, value in parameters.items()]
    run(command, "sam deploy")


def inspected(image: str) -> dict[str, Any]:
    """Docker's description of an image. Raises ReleaseError."""
    if shutil.which("docker") is None:
        raise ReleaseError(
            "docker is not installed and is needed to push the image; install it, or deploy the zip (make zip)"
        )
    asked = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True, check=False)  # noqa: S603, S607 - the user's docker
    if asked.returncode:
        raise ReleaseError(
            f"Docker has no image {image}: build it with `make image`, or name another: make deploy IMAGE=..."
        )
    return dict(json.loads(asked.stdout)[0])


def pushed(ecr: Any, image: str, tag: str) -> str:
    """Push the image unless ECR has it, and return REPOSITORY@DIGEST. Raises ReleaseError."""
    try:
        address = ecr.describe_repositories(repositoryNames=[ECR_NAME])["repositories"][0]["repositoryUri"]
    except ecr.exceptions.RepositoryNotFoundException:
        made = ecr.create_repository(
            repositoryName=ECR_NAME,
            imageTagMutability="IMMUTABLE",
            imageScanningConfiguration={"scanOnPush": True},
        )
        address = made["repository"]["repositoryUri"]
    if (digest := digest_of(ecr, tag)) is None:
        given = ecr.get_authorization_token()["authorizationData"][0]
        user, _, password = base64.b64decode(given["authorizationToken"]).decode().partition(":")
        run(["docker", "login", "--username", user, "--password-stdin", address], "docker login", password)
        run(["docker", "tag", image, f"{address}:{tag}"], "docker tag")
        run(["docker", "push", f"{address}:{tag}"], "docker push")
        digest = digest_of(ecr, tag)
    if digest is None:
        raise ReleaseError(f"ECR does not have {ECR_NAME}:{tag} after the push; try again")
    return f"{address}@{digest}"


def digest_of(ecr: Any, tag: str) -> str | None:
    """The digest of an image in ECR."""
    try:
        found = ecr.describe_images(repositoryName=ECR_NAME, imageIds=[{"imageTag": tag}])["imageDetails"]
    except ecr.exceptions.ImageNotFoundException:
        return None
    return str(found[0]["imageDigest"]) if found else None


def stack_named(config: Configuration, name: str) -> Stack | None:
    """The stack of that name, or None if it does not exist."""
    try:
        found = config.client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]
    except ClientError as error:
        if error.response["Error"]["Code"] == "ValidationError":
            return None
        raise
    return Stack(
        {output["OutputKey"]: output["OutputValue"] for output in found.get("Outputs", [])},
        {parameter["ParameterKey"]: parameter["ParameterValue"] for parameter in found.get("Parameters", [])},
    )


def existing(config: Configuration, name: str) -> Stack:
    """The stack of that name. Raises ReleaseError if it does not exist."""
    stack = stack_named(config, name)
    if stack is None:
        raise ReleaseError(f"there is no stack {name} in this account and region; check AWS_PROFILE and AWS_REGION")
    return stack


def parameter_names(template: Path) -> set[str]:
    """The parameters that a template declares."""
    return set(yaml_parse(template.read_text(encoding="utf-8"))["Parameters"])


def declared(parameters: Mapping[str, str]) -> Mapping[str, str]:
    """Returns the parameters. Raises ReleaseError for one that no template declares, which sam would ignore."""
    if unknown := parameters.keys() - parameter_names(TEMPLATE) - parameter_names(OBSERVABILITY):
        raise ReleaseError(f"neither template has a parameter {', '.join(sorted(unknown))}; check its spelling")
    return parameters


def overrides(value: str | list[str]) -> dict[str, str]:
    """Parameters as in samconfig.toml: a list of NAME=VALUE, or one string of them, which is how sam saves them."""
    parts = shlex.split(value) if isinstance(value, str) else value
    return {name: value.strip('"') for name, _, value in (part.partition("=") for part in parts)}


def run(command: list[str], name: str, given: str | None = None) -> None:
    """Run a command that writes to the user's terminal. Raises ReleaseError."""
    ran = subprocess.run(command, input=given, text=True, check=False)  # noqa: S603 - commands of this module
    if ran.returncode:
        raise ReleaseError(f"{name} failed with exit code {ran.returncode}; see its output above")


def main() -> None:
    """Run one action, or exit with 1 and one line."""
    parser = argparse.ArgumentParser(description="Deploy the stacks to AWS, or delete them.")
    parser.add_argument("action", choices=["deploy", "observability", "destroy"], help="observability: only that stack")
    parser.add_argument("--sam", type=Path, required=True, help="the sam program")
    parser.add_argument("--image", default=IMAGE, help="name of the local Docker image")
    parser.add_argument("--config", type=Path, default=REPOSITORY / "samconfig.toml", help="samconfig.toml")
    parser.add_argument("--environment", default="prod", help="its environment (prod)")
    parser.add_argument(
        "--tag", action="append", default=[], metavar="NAME=VALUE", help="of both stacks and all their resources"
    )
    parser.add_argument(
        "--discard-messages", action="store_true", help="destroy, even if messages are in the queues (no)"
    )
    parser.add_argument("parameters", nargs="*", metavar="NAME=VALUE", help="parameters; they override the file's")
    given = parser.parse_intermixed_args()
    config = Configuration(given.config, given.environment, given.tag)
    try:
        more = declared(overrides(given.parameters))
        if given.action == "deploy":
            deploy(given.sam, given.image, config, more)
        elif given.action == "observability":
            deploy_observability(given.sam, config, config.parameters(), more)
        else:
            destroy(given.sam, config, discard_messages=given.discard_messages)
    except (ReleaseError, EnrichmentError, BotoCoreError, ClientError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
