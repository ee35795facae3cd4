"""One execution environment of Lambda: the image in a container under the runtime interface emulator (RIE).

    with LambdaContainer(function, rie=find_rie(), environment={"AWS_ENDPOINT_URL": ..., **credentials}) as container:
        invocation = container.invoke({"Records": [...]})
        invocation.response, invocation.failed, invocation.log, invocation.init_ms, container.memory_peak()

As on Lambda, the root file system is read-only, /tmp has the function's size, the user does not exist in the image,
there are no capabilities, and memory is limited to the function's. The network is the host's, so that everything stays
on 127.0.0.1. RIE starts the process at the first invocation, and again after a timeout or a crash; /tmp is kept.

Only the standard library is needed, so that LocalStack's Python can import it as well.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tests.runtime.function import Function
from tests.runtime.invocation import Invocation, answered, failure, is_complete

HOST = "127.0.0.1"
LABEL = "ticket-enrichment.test"  # its value is the id of the process that started the container
REPOSITORY = Path(__file__).resolve().parents[2]
_USER = "993:990"  # neither id has a name in any image
_SECONDS_TO_START = 120.0
_SECONDS_BESIDE_TIMEOUT = 60.0  # for init on a busy machine, which does not count towards the timeout
_SECONDS_FOR_THE_LOG = 30.0
_PATH = "/2015-03-31/functions/function/invocations"
_PEAKS = "/sys/fs/cgroup/memory.peak", "/sys/fs/cgroup/memory/memory.max_usage_in_bytes"  # cgroup v2, v1
_CPU = (
    "/sys/fs/cgroup/cpu.stat",
    "/sys/fs/cgroup/cpuacct/cpuacct.usage",
)  # the first in microseconds, the second in nanoseconds
_KILLS = "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"


class ContainerError(Exception):
    """A container did not start; the message contains its output."""


def find_rie() -> Path:
    """The RIE binary for this machine's architecture, from the package aws-sam-cli, or AWS_LAMBDA_RIE.

    Raises ContainerError.
    """
    if named := os.environ.get("AWS_LAMBDA_RIE"):
        return Path(named)
    name = {"x86_64": "aws-lambda-rie-x86_64", "aarch64": "aws-lambda-rie-arm64"}[platform.machine()]
    for found in REPOSITORY.glob(f".venv-sam/lib/python3*/site-packages/samcli/local/rapid/{name}"):
        return found
    raise ContainerError(
        f"there is no {name} in .venv-sam; run `make test-lambda`, which installs it, or set AWS_LAMBDA_RIE"
    )


class LambdaContainer:
    """An execution environment: a context manager, or `start` and `stop`.

    `environment` is added to the function's own: credentials, AWS_ENDPOINT_URL. `cpus` limits the cores (None: no
    limit). `wrapper` is put before the function's entry point, for example ("/usr/bin/env", "-u", "HOME"). `volumes`
    are folders of this machine and where the container sees them, read-only.
    """

    def __init__(
        self,
        function: Function,
        *,
        rie: Path,
        environment: Mapping[str, str] | None = None,
        cpus: float | None = None,
        wrapper: Sequence[str] = (),
        volumes: Mapping[Path, str] | None = None,
    ) -> None:
        self.function = function
        self.name = f"{function.name}-{uuid.uuid4().hex[:12]}"
        self._rie = rie
        self._environment = {**function.variables(), **(environment or {})}
        self._cpus = cpus
        self._wrapper = tuple(wrapper)
        self._volumes = {str(folder): place for folder, place in (volumes or {}).items()}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        """Whether the container runs; a crash of the process inside does not end it."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the container; its process starts with the first invocation. Raises ContainerError."""
        self._scratch = tempfile.TemporaryDirectory(prefix="lambda-container-")
        self._port, runtime_port = _free_ports(2)
        output, errors = self._log_paths
        with output.open("wb") as out, errors.open("wb") as err:
            # In the foreground, so that it ends with the container and its output goes to files directly. Two files,
            # because RIE's lines would interrupt the function's.
            self._process = subprocess.Popen(
                self._command(runtime_port), stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
        deadline = time.monotonic() + _SECONDS_TO_START
        while not _answers(self._port):
            if not self.is_running or time.monotonic() > deadline:
                tail = self.log().strip()[-500:]
                self.stop()
                raise ContainerError(f"{self.function.image} did not start: {tail or 'no output'}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Remove the container; may be called twice."""
        if self._process is not None:
            docker("rm", "--force", self.name)
            self._process.wait()
            self._process = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def invoke(self, event: Any) -> Invocation:
        """Invoke the function with an event (bytes, or an object that becomes JSON); one at a time, as on Lambda.

        Errors of the function do not raise: they are failed invocations, as on Lambda.
        """
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        with self._lock:
            begin = self._lengths()
            connection = http.client.HTTPConnection(
                HOST, self._port, timeout=self.function.timeout_seconds + _SECONDS_BESIDE_TIMEOUT
            )
            try:
                connection.request("POST", _PATH, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                status, answer = response.status, response.read()
            except (OSError, http.client.HTTPException) as error:
                return failure("Runtime.ExitError", f"the environment is gone: {error!r}", self.log(begin))
            finally:
                connection.close()
            deadline = time.monotonic() + _SECONDS_FOR_THE_LOG
            while not is_complete(self.log(begin), status) and time.monotonic() < deadline:
                time.sleep(0.005)
            return answered(status, answer, self.log(begin))

    def log(self, since: tuple[int, int] = (0, 0)) -> str:
        """The container's output including RIE's lines: standard output, then standard error.

        `since` is the number of bytes of each to skip.
        """
        if self._scratch is None:
            return ""
        parts = (path.read_bytes()[begin:] for path, begin in zip(self._log_paths, since, strict=True))
        return b"".join(parts).decode("utf-8", errors="replace")

    def run(self, *command: str) -> str:
        """Run a command in the container as the function's user and return its standard output."""
        return docker("exec", self.name, *command).stdout

    def memory_peak(self) -> int:
        """Peak memory of the container in bytes, from its cgroup: RIE's own number is wrong.

        It includes /tmp and the page cache, so it is more than the peak of the process.
        """
        return int(self.run("cat", *_PEAKS).split()[0])

    def cpu_seconds(self) -> float:
        """The container's CPU time, from its cgroup; unlike wall time it hardly depends on other load."""
        output = self.run("cat", *_CPU).split()
        if "usage_usec" in output:
            return int(output[output.index("usage_usec") + 1]) / 1e6
        return int(output[-1]) / 1e9

    def memory_kills(self) -> int:
        """How many processes of the container the kernel has killed because it ran out of memory."""
        output = self.run("cat", *_KILLS).split()
        return int(output[output.index("oom_kill") + 1])

    def kill(self, signal: str = "KILL") -> None:
        """Send the function's process a signal, by default SIGKILL, as a crash in native code would; RIE keeps running.

        Raises ContainerError unless exactly one process got it: otherwise the test would wait in vain.
        """
        # The brackets prevent the pattern from matching the shell that runs this.
        signalled = self.run(
            "/bin/sh",
            "-c",
            'for f in /proc/[0-9]*; do case "$(cat $f/cmdline 2>/dev/null)" in '
            '*-m[a]wslambdaric*) kill -"$0" "${f#/proc/}" && echo "${f#/proc/}" ;; esac; done',
            signal,
        ).split()
        if len(signalled) != 1:
            raise ContainerError(f"SIG{signal} reached {len(signalled)} processes of {self.name}, not one")

    def _lengths(self) -> tuple[int, int]:
        if self._scratch is None:
            return 0, 0
        output, errors = self._log_paths
        return output.stat().st_size, errors.stat().st_size

    @property
    def _log_paths(self) -> tuple[Path, Path]:
        assert self._scratch is not None
        return Path(self._scratch.name) / "output", Path(self._scratch.name) / "errors"

    def _command(self, runtime_port: int) -> list[str]:
        function = self.function
        options = ["--name", self.name, "--label", f"{LABEL}={os.getpid()}", "--network", "host", "--read-only"]
        options += ["--tmpfs", f"/tmp:size={function.tmp_mb}m,mode=1777", "--user", _USER, "--cap-drop", "ALL"]
        # No swap, as on Lambda.
        options += ["--memory", f"{function.memory_mb}m", "--memory-swap", f"{function.memory_mb}m"]
        options += ["--cpus", f"{self._cpus:.3f}"] if self._cpus else []
        options += ["--workdir", function.working_directory] if function.working_directory else []
        options += [part for name, value in self._environment.items() for part in ("--env", f"{name}={value}")]
        for folder, place in {str(self._rie): "/aws-lambda-rie", **self._volumes}.items():
            options += ["--volume", f"{folder}:{place}:ro"]
        options += ["--entrypoint", "/aws-lambda-rie"]
        addresses = ["--runtime-interface-emulator-address", f"{HOST}:{self._port}"]
        addresses += ["--runtime-api-address", f"{HOST}:{runtime_port}"]
        program = [*self._wrapper, *function.entry_point, *function.command]
        return ["docker", "run", "--rm", "--init=false", *options, function.image, *addresses, *program]


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the docker command and capture its output."""
    return subprocess.run(("docker", *arguments), capture_output=True, text=True, check=False)


def remove_leftovers() -> None:
    """Remove containers of test runs that were killed."""
    listed = docker("ps", "--all", "--filter", f"label={LABEL}", "--format", f'{{{{.ID}}}} {{{{.Label "{LABEL}"}}}}')
    for line in listed.stdout.splitlines():
        container, _, owner = line.partition(" ")
        try:
            os.kill(int(owner), 0)
        except ProcessLookupError:
            docker("rm", "--force", container)
        except (PermissionError, ValueError):  # of another user's process, which still runs
            continue


def _free_ports(count: int) -> list[int]:
    """Free ports; all are held until the last is found, so that they differ."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False
