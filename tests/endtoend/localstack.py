"""LocalStack as the cloud: localstack-core 4.14 on this machine, with a plug-in that runs the image in containers.

LocalStack's free editions do not run image functions; tests/endtoend/plugin adds this. Roles are not enforced.
DynamoDB is MiniStack's, because LocalStack's own is a Java program that it would download.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Self

from handler.local.emulator import Emulator
from tests.endtoend.cloud import containers_of
from tests.endtoend.deployment import REPOSITORY, Deployment, run
from tests.runtime.container import remove_leftovers

_HOST = "127.0.0.1"
_PYTHON = REPOSITORY / ".venv-localstack" / "bin" / "python"
_STACK = "ticket-enrichment"
_SECONDS_TO_START = 120.0
_SECONDS_TO_STOP = 30.0
_INHERITED = ("PATH", "LANG", "LC_ALL", "DOCKER_HOST", "AWS_LAMBDA_RIE")


class LocalStack:
    """A `Cloud` on LocalStack, deployed by `make deploy-localstack`."""

    tickets = 100

    def __init__(self) -> None:
        self.deployment: Deployment
        self._pid = 0
        self._log = Path()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            remove_leftovers()
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="localstack-")))
            tables = Emulator(0, {"AUTH": "false"})
            stack.callback(tables.stop)
            tables.start()
            url = self._start(stack, scratch, tables.port)
            run(["make", "--no-print-directory", "deploy-localstack", f"AWS_ENDPOINT_URL={url}"], url)
            self.deployment = Deployment(url, _STACK)
            stack.callback(self.deployment.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def log(self) -> str:
        """As Cloud.log; read from CloudWatch Logs."""
        logs = self.deployment.client("logs")
        group = f"/aws/lambda/{self.deployment.outputs['FunctionName']}"
        pages = logs.get_paginator("filter_log_events").paginate(logGroupName=group)
        return "".join(f"{event['message']}\n" for page in pages for event in page["events"])

    def crashes(self) -> int:
        """As Cloud.crashes."""
        return self._log.read_text(encoding="utf-8", errors="replace").count("the environment crashed")

    def environments(self) -> list[str]:
        """As Cloud.environments."""
        return containers_of(self._pid)

    def _start(self, stack: ExitStack, scratch: Path, tables_port: int) -> str:
        """Start LocalStack and return its address once it is healthy."""
        with socket.socket() as probe:
            probe.bind((_HOST, 0))
            address = f"{_HOST}:{probe.getsockname()[1]}"
        self._log = scratch / "log"
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [_PYTHON, "-m", "localstack.runtime.main"],
                env={**_inherited(), **_settings(address, scratch, tables_port)},
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._pid = process.pid
        stack.callback(_stop, process)
        deadline = time.monotonic() + _SECONDS_TO_START
        while not _is_healthy(address):
            assert process.poll() is None, f"LocalStack did not start:\n{self._log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"LocalStack is not healthy:\n{self._log.read_text()[-3000:]}"
            time.sleep(0.1)
        return f"http://{address}"


def _inherited() -> dict[str, str]:
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


def _settings(address: str, scratch: Path, tables_port: int) -> dict[str, str]:
    return {
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "S3_STORAGE": str(scratch / "s3"),
        "FILESYSTEM_ROOT": str(scratch),
        "PYTHONPATH": str(REPOSITORY),
        "GATEWAY_LISTEN": address,
        "LOCALSTACK_HOST": address,
        "SQS_ENDPOINT_STRATEGY": "path",  # no host names, which would need a DNS server
        "DNS_ADDRESS": "0",
        "DISABLE_EVENTS": "1",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "LAMBDA_RUNTIME_EXECUTOR": "rie",
        "DYNAMODB_LOCAL_PORT": str(tables_port),
        "END_WITH_PARENT": str(os.getpid()),
    }


def _is_healthy(address: str) -> bool:
    with closing(http.client.HTTPConnection(address, timeout=5)) as connection:
        try:
            connection.request("GET", "/_localstack/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # it removes its containers
    try:
        process.wait(_SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    remove_leftovers()
