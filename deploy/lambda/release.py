"""`make deploy` and `make destroy`: the image to ECR, named by its digest, and the stack by `sam deploy`.

The stack's parameters are those that samconfig.toml holds under `prod`, where sam's questions of the first time put
them. On top come the image, its processor, and a hash of all of these, so that each change publishes a version.
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.exceptions import BotoCoreError, ClientError

REPOSITORY: Final = Path(__file__).resolve().parents[2]
ENVIRONMENT: Final = "prod"  # in samconfig.toml
IMAGE: Final = "ticket-lambda:latest"  # what `make image` makes: the environment's name
ECR_NAME: Final = "ticket-enrichment"
ARCHITECTURES: Final = {"amd64": "x86_64", "arm64": "arm64"}  # Docker's names, and Lambda's
KEPT: Final = ("RawBucket", "EnrichedBucket", "TableName")  # outputs of what holds tickets, which no stack deletes


class ReleaseError(Exception):
    """What stops it: one line that names the remedy."""


def deploy(sam: Path, image: str, config: Path, more: list[str]) -> None:
    """Push the image and deploy the stack; asks for parameters when there is no stack yet. Raises ReleaseError."""
    found = inspected(image)
    uri = pushed(image, found["Id"].removeprefix("sha256:")[:12])
    settings = section(config)
    parameters = {**overrides(settings.get("parameter_overrides", [])), **overrides(more)}
    parameters |= {"ImageUri": uri, "Architecture": ARCHITECTURES[found["Architecture"]]}
    parameters["Release"] = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:16]
    command = [str(sam), "deploy", "--config-env", ENVIRONMENT, "--config-file", str(config)]
    command += ["--template", str(REPOSITORY / "template.yaml")]
    command += ["--image-repository", uri.partition("@")[0]]
    command += [] if stack_outputs(stack_name(config)) is not None else ["--guided"]
    command += ["--parameter-overrides", *(f"{name}={value}" for name, value in parameters.items())]
    run(command, "sam deploy")


def destroy(sam: Path, config: Path) -> None:
    """Delete the stack, and say what is kept. Raises ReleaseError."""
    name = stack_name(config)
    outputs = stack_outputs(name)
    if outputs is None:
        raise ReleaseError(f"there is no stack {name} in this account and region; look at AWS_PROFILE and AWS_REGION")
    run([str(sam), "delete", "--config-env", ENVIRONMENT, "--config-file", str(config)], "sam delete")
    kept = ", ".join(outputs[output] for output in KEPT if output in outputs)
    sys.stderr.write(f"Kept, since they hold tickets: {kept}; and the images in ECR's {ECR_NAME}.\n")


def inspected(image: str) -> dict[str, Any]:
    """What Docker knows of an image. Raises ReleaseError."""
    if shutil.which("docker") is None:
        raise ReleaseError("there is no docker, which pushes the image; install it, or deploy the zip (make zip)")
    asked = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True, check=False)  # noqa: S603, S607 - the user's docker
    if asked.returncode:
        raise ReleaseError(f"Docker has no image {image}: build it by `make image`, or name it: make deploy IMAGE=...")
    return dict(json.loads(asked.stdout)[0])


def pushed(image: str, tag: str) -> str:
    """Push the image, unless it is there, and return REPOSITORY@DIGEST. Raises ReleaseError."""
    ecr: Any = boto3.session.Session().client("ecr")
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
        raise ReleaseError(f"ECR does not know {ECR_NAME}:{tag} after its push; try again")
    return f"{address}@{digest}"


def digest_of(ecr: Any, tag: str) -> str | None:
    """The digest of an image in ECR."""
    try:
        found = ecr.describe_images(repositoryName=ECR_NAME, imageIds=[{"imageTag": tag}])["imageDetails"]
    except ecr.exceptions.ImageNotFoundException:
        return None
    return str(found[0]["imageDigest"]) if found else None


def stack_outputs(name: str) -> dict[str, str] | None:
    """A stack's outputs, or None where there is no such stack."""
    try:
        client: Any = boto3.session.Session().client("cloudformation")
        stack = client.describe_stacks(StackName=name)["Stacks"][0]
    except ClientError as error:
        if error.response["Error"]["Code"] == "ValidationError":
            return None
        raise
    return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}


def section(config: Path) -> dict[str, Any]:
    """What samconfig.toml says of `sam deploy`."""
    read = tomllib.loads(config.read_text(encoding="utf-8"))
    return dict(read.get(ENVIRONMENT, {}).get("deploy", {}).get("parameters", {}))


def stack_name(config: Path) -> str:
    """The stack's name there; sam's questions put another one under `deploy`."""
    everywhere = tomllib.loads(config.read_text(encoding="utf-8"))[ENVIRONMENT]["global"]["parameters"]
    return str(section(config).get("stack_name", everywhere["stack_name"]))


def overrides(value: str | list[str]) -> Mapping[str, str]:
    """Parameters as samconfig.toml holds them: a list of NAME=VALUE, or one text of these, as sam writes it."""
    parts = shlex.split(value) if isinstance(value, str) else value
    return {name: text.strip('"') for name, _, text in (part.partition("=") for part in parts)}


def run(command: list[str], name: str, given: str | None = None) -> None:
    """Run a command whose output is for the user. Raises ReleaseError."""
    ran = subprocess.run(command, input=given, text=True, check=False)  # noqa: S603 - commands of this module
    if ran.returncode:
        raise ReleaseError(f"{name} ended with {ran.returncode}; it says above why")


def main() -> None:
    """Do what is asked, or exit with 1 and a line."""
    parser = argparse.ArgumentParser(description="Deploy to AWS, or remove what was deployed.")
    parser.add_argument("action", choices=["deploy", "destroy"])
    parser.add_argument("--sam", type=Path, required=True, help="the program sam")
    parser.add_argument("--image", default=IMAGE, help="the image, as Docker here knows it")
    parser.add_argument("--config", type=Path, default=REPOSITORY / "samconfig.toml", help="samconfig.toml")
    parser.add_argument("parameters", nargs="*", metavar="NAME=VALUE", help="the template's, over those of the file")
    given = parser.parse_intermixed_args()
    try:
        if given.action == "deploy":
            deploy(given.sam, given.image, given.config, given.parameters)
        else:
            destroy(given.sam, given.config)
    except (ReleaseError, BotoCoreError, ClientError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
