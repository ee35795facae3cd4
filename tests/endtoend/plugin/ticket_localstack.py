"""A plug-in that adds to localstack-core 4.14 what the system needs on a bare machine.

LocalStack's own executor refuses container images and needs its init program: the executor `rie`, selected by
LAMBDA_RUNTIME_EXECUTOR, runs them as tests/runtime does. LocalStack would download DynamoDBLocal.jar: with
DYNAMODB_LOCAL_PORT, it uses another emulator's DynamoDB on that port. PYTHONPATH must contain the repository.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from localstack.runtime import hooks
from localstack.services.dynamodb.server import DynamodbServer
from localstack.services.lambda_.invocation.executor_endpoint import StatusErrorException
from localstack.services.lambda_.invocation.lambda_models import FunctionVersion, InvocationResult
from localstack.services.lambda_.invocation.plugins import RuntimeExecutorPlugin
from localstack.services.lambda_.invocation.runtime_executor import RuntimeExecutor
from localstack.utils.threads import FuncThread

from tests.runtime.container import HOST, LambdaContainer, find_rie
from tests.runtime.function import Function


class RieExecutor(RuntimeExecutor):
    """One execution environment: the function's image in a container, under AWS's runtime interface emulator."""

    def start(self, env_vars: dict[str, str]) -> None:
        """Start the container with the environment from LocalStack."""
        ours = {name: str(value) for name, value in env_vars.items() if not name.startswith("LOCALSTACK_RUNTIME")}
        self._container = LambdaContainer(_function(self.function_version), rie=find_rie(), environment=ours)
        self._logs = ""
        self._container.start()

    def stop(self) -> None:
        """Remove the container."""
        self._container.stop()

    def invoke(self, payload: dict[str, str]) -> InvocationResult:
        """Invoke the function. Raises StatusErrorException if it crashed: LocalStack then starts a new environment."""
        if not self._container.is_running:  # killed while idle, which callers of Lambda do not notice
            self._container.stop()
            self._container.start()
        invocation = self._container.invoke(payload["payload"].encode())
        self._logs += invocation.log
        if invocation.crashed:
            raise StatusErrorException("the environment crashed", payload=invocation.payload)
        return InvocationResult(
            payload["invoke-id"], invocation.payload, is_error=invocation.failed, logs=invocation.log
        )

    def get_logs(self) -> str:
        """The log of all invocations."""
        return self._logs

    def get_address(self) -> str:
        """The environment's address."""
        return HOST

    def get_endpoint_from_executor(self) -> str:
        """LocalStack's address for the environment: they share the network."""
        return HOST

    def get_runtime_endpoint(self) -> str:
        """The address to which LocalStack's init program would report; it is not used."""
        return f"http://{HOST}"

    @classmethod
    def prepare_version(cls, function_version: FunctionVersion) -> None:
        """Do nothing: the image exists."""

    @classmethod
    def cleanup_version(cls, function_version: FunctionVersion) -> None:
        """Do nothing: the image is kept."""


class RiePlugin(RuntimeExecutorPlugin):
    """Registers the executor."""

    name = "rie"

    def load(self, *_args: object, **_kwargs: object) -> type[RuntimeExecutor]:
        """Return the executor."""
        return RieExecutor


def _function(version: FunctionVersion) -> Function:
    config, image = version.config, version.config.image
    if image is None or config.image_config is None:
        raise ValueError(f"{version.id.function_name} is not an image function: use LocalStack's own executor for it")
    return Function(
        image.image_uri,
        tuple(config.image_config.entrypoint or ()),
        tuple(config.image_config.command or ()),
        config.image_config.working_directory,
        name=version.id.function_name,
        version=version.id.qualifier,
        memory_mb=config.memory_size,
        timeout_seconds=config.timeout,
        tmp_mb=config.ephemeral_storage.size,
        environment=config.environment or {},
    )


@hooks.on_infra_start(should_load=lambda: "END_WITH_PARENT" in os.environ)
def end_with_parent() -> None:
    """Stop LocalStack and its containers when the process that started it has ended."""
    parent = int(os.environ["END_WITH_PARENT"])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.25)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@hooks.on_infra_start(should_load=lambda: "DYNAMODB_LOCAL_PORT" in os.environ)
def dynamodb_elsewhere() -> None:
    """Use the server on DYNAMODB_LOCAL_PORT instead of starting DynamoDB Local."""

    def do_start_thread(_server: DynamodbServer) -> FuncThread:
        thread = FuncThread(lambda *_: threading.Event().wait(), name="dynamodb-elsewhere")
        thread.daemon = True
        thread.start()
        return thread

    DynamodbServer.do_start_thread = do_start_thread


@hooks.on_infra_start(should_load=lambda: "S3_STORAGE" in os.environ)
def objects_elsewhere() -> None:
    """Store S3 objects in the folder S3_STORAGE, not in one that all LocalStacks of the machine share."""
    from localstack.services.s3 import provider  # imported after the start, because it takes time

    provider.DEFAULT_S3_TMP_DIR = os.environ["S3_STORAGE"]
