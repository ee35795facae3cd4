"""MiniStack as the cloud: roles are enforced, and the event source mapping calls the image through a proxy."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from handler.local.emulator import Emulator
from tests.endtoend.cloud import DOCKER_IMAGE, SAM, containers_of
from tests.endtoend.deployment import REGION, ROOT, Deployment, make_client, run
from tests.runtime.container import LambdaContainer, docker, find_rie, remove_leftovers
from tests.runtime.function import Function
from tests.runtime.proxy import LambdaProxy

ROOT_FOLDER = Path(__file__).resolve().parents[2]
_STACK = "ticket-enrichment-sam"
_PREFIX = "sam"
_BUCKET = "sam-artifacts"  # as in samconfig.toml
# A name as in ECR, like in production; nothing is pushed, because Docker has the image under this name.
_IMAGE = f"000000000000.dkr.ecr.{REGION}.amazonaws.com/ticket-enrichment:endtoend"
_ENVIRONMENTS = 2  # concurrent containers; CI machines have few cores


class MiniStack:
    """A `Cloud` on MiniStack; the function runs with its role's credentials."""

    tickets = 300

    def __init__(self) -> None:
        self.deployment: Deployment
        self._proxy = LambdaProxy(self._environment, _ENVIRONMENTS)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            remove_leftovers()
            stack.enter_context(self._proxy)
            emulator = Emulator(0, {f"MINISTACK_LAMBDA_PROXY_{_PREFIX}-ticket-enrichment": self._proxy.url})
            stack.callback(emulator.stop)
            emulator.start()
            assert docker("tag", DOCKER_IMAGE, _IMAGE).returncode == 0, f"there is no {DOCKER_IMAGE}: make image-docker"
            stack.callback(docker, "rmi", "--no-prune", _IMAGE)
            url = f"http://127.0.0.1:{emulator.port}"
            make_client("s3", url, ROOT).create_bucket(Bucket=_BUCKET)
            parameters = [f"NamePrefix={_PREFIX}", f"ImageUri={_IMAGE}", "MappingEnabled=true"]
            run([str(SAM), "deploy", "--config-env", "local", "--parameter-overrides", *parameters], url)
            release = [sys.executable, "-m", "deploy.lambda.release", "observability", "--environment", "local"]
            run([*release, "--sam", str(SAM)], url)
            self.deployment = Deployment(url, _STACK)
            stack.callback(self.deployment.close)
            self._enable_mapping()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def log(self) -> str:
        """As Cloud.log."""
        return "".join(invocation.log for invocation in list(self._proxy.invocations))

    def crashes(self) -> int:
        """As Cloud.crashes."""
        return sum(invocation.crashed for invocation in list(self._proxy.invocations))

    def environments(self) -> list[str]:
        """As Cloud.environments."""
        return containers_of(os.getpid())

    def _environment(self) -> LambdaContainer:
        """Start a container as Lambda does: the deployed function with new credentials of its role."""
        found = self.deployment.function()
        function = Function.from_configuration(found["Configuration"], found["Code"]["ImageUri"])
        given = {"AWS_ENDPOINT_URL": self.deployment.endpoint_url, "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION}
        # With this folder, tickets of certain subjects kill the function's process.
        given["PYTHONPATH"] = "/deadly"
        return LambdaContainer(
            function,
            rie=find_rie(),
            environment={**given, **self.deployment.role_credentials()},
            volumes={ROOT_FOLDER / "tests" / "support" / "deadly": "/deadly"},
        )

    def _enable_mapping(self) -> None:
        # MiniStack 1.5.33 keeps a template's MaximumConcurrency as a string, which its poller cannot compare.
        client = self.deployment.client("lambda")
        (mapping,) = client.list_event_source_mappings()["EventSourceMappings"]
        client.update_event_source_mapping(UUID=mapping["UUID"], Enabled=True, ScalingConfig=mapping["ScalingConfig"])
