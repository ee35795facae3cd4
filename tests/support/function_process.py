"""The Lambda function in a process of this machine, as an execution environment for tests.runtime.proxy.LambdaProxy.

It needs no Docker. The process is the function's own code with its environment; a crash is a real one, and a timeout
kills it, as on Lambda.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.runtime.invocation import Invocation, failure
from tests.support.fakes import context

_SECONDS_TO_START = 120.0


class FunctionProcess:
    """An execution environment; `log` is the file that the function's output is appended to."""

    def __init__(self, environment: Mapping[str, str], log: Path, timeout: float) -> None:
        self._environment = environment
        self._log = log
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = -1

    @property
    def is_running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; it imports the function before its first invocation."""
        self._answers, writing = os.pipe()
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.function_process", str(writing)],
                env={**os.environ, **self._environment},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
            )
        os.close(writing)
        assert self._answer(_SECONDS_TO_START) == b'"ready"', self._log.read_text()[-2000:]

    def stop(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            os.close(self._answers)
            self._process = None

    def invoke(self, event: bytes) -> Invocation:
        """Invoke the function with a JSON event."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"event": json.loads(event), "seconds": self._timeout}).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._answer(self._timeout)
        if answer is None:
            self._process.kill()
            return failure("Sandbox.Timedout", f"Task timed out after {self._timeout:.2f} seconds", "")
        if not answer:
            return failure("Runtime.ExitError", f"exit code {self._process.wait()}", "")
        return Invocation(answer, failed=False, log="")

    def _answer(self, seconds: float) -> bytes | None:
        """A line from the process, b"" if it has ended, None without a line in time."""
        answer, deadline = b"", time.monotonic() + seconds
        while not answer.endswith(b"\n"):
            if not select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            part = os.read(self._answers, 65536)
            if not part:
                return b""
            answer += part
        return answer.rstrip(b"\n")


def main(descriptor: int) -> None:
    """Import the function, then answer invocations until standard input ends."""
    from handler.main import lambda_handler

    def answer(value: Any) -> None:
        os.write(descriptor, json.dumps(value).encode() + b"\n")

    answer("ready")
    for line in sys.stdin:
        invocation = json.loads(line)
        end = time.monotonic() + invocation["seconds"]
        answer(lambda_handler(invocation["event"], context(lambda end=end: end - time.monotonic())))  # type: ignore[misc]


if __name__ == "__main__":
    main(int(sys.argv[1]))
