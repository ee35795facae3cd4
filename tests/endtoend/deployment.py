"""A stack that `sam deploy` created: its outputs, its function, and clients."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

REPOSITORY = Path(__file__).resolve().parents[2]
REGION = "us-east-1"
ROOT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}  # accepted by every emulator
_SECONDS_TO_RUN = 300.0  # sam would wait forever for a stack whose creation the emulator has abandoned
_POLICY = "tickets"  # the inline policy of the function's role


class Deployment:
    """A stack at `endpoint_url`; `outputs` are the template's."""

    def __init__(self, endpoint_url: str, stack_name: str) -> None:
        self.endpoint_url, self.stack_name = endpoint_url, stack_name
        self._clients: dict[str, Any] = {}
        (stack,) = self.client("cloudformation").describe_stacks(StackName=stack_name)["Stacks"]
        self.outputs: dict[str, str] = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}

    def client(self, service: str) -> Any:
        """A client of a service with the account's root credentials."""
        if service not in self._clients:
            self._clients[service] = make_client(service, self.endpoint_url, ROOT)
        return self._clients[service]

    def close(self) -> None:
        """Close the clients."""
        while self._clients:
            self._clients.popitem()[1].close()

    def function(self) -> dict[str, Any]:
        """The response of GetFunction: `Configuration` and `Code` with the image."""
        return dict(self.client("lambda").get_function(FunctionName=self.outputs["FunctionName"]))

    def role_arn(self) -> str:
        """The function's role."""
        return str(self.function()["Configuration"]["Role"])

    def role_credentials(self) -> dict[str, str]:
        """Environment variables with credentials of the role, as Lambda sets them."""
        given = self.client("sts").assume_role(RoleArn=self.role_arn(), RoleSessionName="function")["Credentials"]
        return {
            "AWS_ACCESS_KEY_ID": given["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": given["SecretAccessKey"],
            "AWS_SESSION_TOKEN": given["SessionToken"],
        }

    def policy(self) -> dict[str, Any]:
        """The role's policy."""
        return dict(self.client("iam").get_role_policy(**self._policy_names())["PolicyDocument"])

    def set_policy(self, policy: Mapping[str, Any]) -> None:
        """Replace the role's policy."""
        self.client("iam").put_role_policy(**self._policy_names(), PolicyDocument=json.dumps(policy))

    def _policy_names(self) -> dict[str, str]:
        return {"RoleName": self.role_arn().rpartition("/")[2], "PolicyName": _POLICY}


def make_client(service: str, endpoint_url: str, credentials: Mapping[str, str]) -> Any:
    """A boto3 client with the credentials in these environment variables."""
    make: Any = boto3.session.Session().client
    return make(
        service,
        endpoint_url=endpoint_url,
        region_name=REGION,
        aws_access_key_id=credentials["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=credentials["AWS_SECRET_ACCESS_KEY"],
        aws_session_token=credentials.get("AWS_SESSION_TOKEN"),
        # No proxies: a configured proxy cannot reach this machine's loopback address.
        config=Config(read_timeout=60, retries={"mode": "standard"}, max_pool_connections=16, proxies={}),
    )


def run(command: Sequence[str], endpoint_url: str) -> str:
    """Run a command of the repository against an emulator at this address and return its output.

    Raises AssertionError if it fails.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MAKE", "MFLAGS"))}
    environment |= {**ROOT, "AWS_DEFAULT_REGION": REGION, "AWS_ENDPOINT_URL": endpoint_url, "SAM_CLI_TELEMETRY": "0"}
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=_SECONDS_TO_RUN,
    )
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout
