"""The unpacked zip under RIE, run with only its contents and the runtime client, as by Lambda's Python runtime."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from tests.runtime.container import find_rie
from tests.runtime.invocation import Invocation, answered, is_complete
from tests.support.cases import Answer

REPOSITORY = Path(__file__).resolve().parents[2]
LAMBDA_PYTHON = "3.13"  # what `make zip` builds for
_HOST = "127.0.0.1"


def find_python() -> tuple[str, Path]:
    """Version and path of Lambda's Python if this machine has it, otherwise of the one that runs the tests."""
    # Ask the program for its version: it may be a shim.
    ask = ["-c", "import sys; print('{}.{}'.format(*sys.version_info), sys.executable)"]
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{LAMBDA_PYTHON}*/bin/python"))
    for program in [shutil.which(f"python{LAMBDA_PYTHON}"), *pyenv]:
        if program is not None:
            version, _, path = subprocess.run(
                [program, *ask], capture_output=True, text=True, check=False
            ).stdout.partition(" ")
            if version == LAMBDA_PYTHON:
                return version, Path(path.strip())
    return "{}.{}".format(*sys.version_info), Path(sys.executable)


def install_client(folder: Path, python: str) -> None:
    """Install the runtime client, which is part of Lambda's Python runtime, into a separate folder."""
    options = ["--quiet", "--no-compile", "--target", str(folder), "--only-binary", ":all:", "--python-version", python]
    constraints = str(REPOSITORY / "deploy" / "constraints.txt")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options, "-c", constraints]
    subprocess.run([*command, "awslambdaric"], check=True, capture_output=True)


class Unpacked:
    """An execution environment (context manager): the files in `folder`, run by `program` with these variables."""

    def __init__(self, folder: Path, client: Path, program: Path, environment: Mapping[str, str], log: Path) -> None:
        self._folder, self._client, self._program, self._log_path = folder, client, program, log
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self._port, runtime_port = _free_ports()
        addresses = ["--runtime-interface-emulator-address", f"{_HOST}:{self._port}"]
        addresses += ["--runtime-api-address", f"{_HOST}:{runtime_port}"]
        # -S: without the packages of this machine's Python. Lambda puts the function before its own packages.
        program = [str(self._program), "-S", "-m", "awslambdaric", "handler.main.lambda_handler"]
        environment = {
            "PATH": os.defpath,
            "PYTHONPATH": f"{self._folder}{os.pathsep}{self._client}",
            "PYTHONDONTWRITEBYTECODE": "1",  # on Lambda, the file system is read-only
            "HOME": "/nonexistent",
            "AWS_LAMBDA_FUNCTION_TIMEOUT": "60",
            "AWS_LAMBDA_FUNCTION_VERSION": "1",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "2048",
            **self._environment,
        }
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [find_rie(), *addresses, *program],
                env=environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()

    def log(self) -> str:
        """The complete output, including RIE's lines."""
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    def invoke(self, event: Any) -> Invocation:
        """Invoke it with an event."""
        begin = len(self.log())
        connection = http.client.HTTPConnection(_HOST, self._port, timeout=120)
        try:
            connection.request("POST", "/2015-03-31/functions/function/invocations", json.dumps(event).encode())
            response = connection.getresponse()
            status, body = response.status, response.read()
        finally:
            connection.close()
        deadline = time.monotonic() + 60
        while not is_complete(self.log()[begin:], status) and time.monotonic() < deadline:
            time.sleep(0.005)
        return answered(status, body, self.log()[begin:])

    def answer(self, event: Any) -> Answer:
        """Invoke it for `run_case`. Raises AssertionError if the function fails."""
        invocation = self.invoke(event)
        assert not invocation.failed, invocation.log
        return Answer(invocation.response, invocation.log)

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((_HOST, self._port), timeout=1):
            return True
        return False


def _free_ports() -> list[int]:
    with ExitStack() as probes:  # both are held open, so that they differ
        return [probes.enter_context(socket.create_server((_HOST, 0))).getsockname()[1] for _ in range(2)]
