"""The result of an invocation as Lambda returns it, from the response and log of the runtime interface emulator."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_INIT = re.compile(r"INIT REPORT\(durationMs: ([\d.]+)\)")
_DURATION = re.compile(r"^REPORT RequestId: \S+\t.*?(?<!Init )(?<!Billed )Duration: ([\d.]+) ms", re.MULTILINE)
# The last lines of RIE on standard error and on standard output. Both must be read, or the later one would be taken
# for part of the next invocation.
_ENDED = re.compile(r"INVOKE RTDONE\(|Reset initiated: Timeout.*Waiting for runtime domain processes", re.DOTALL)
_REPORTED = re.compile(r"^REPORT RequestId: ", re.MULTILINE)
_CRASHED = re.compile(r"Invoke DONE failed: .*Waiting for runtime domain processes", re.DOTALL)
_TIMED_OUT = b"Task timed out after "


@dataclass(frozen=True)
class Invocation:
    """The result of one invocation.

    `payload` is the response of Lambda's Invoke, `failed` whether it has `X-Amz-Function-Error: Unhandled`; `log` is
    the container's output during the invocation, including RIE's lines.
    """

    payload: bytes
    failed: bool
    log: str

    @property
    def response(self) -> Any:
        """The payload, parsed as JSON."""
        return json.loads(self.payload)

    @property
    def error_type(self) -> str | None:
        """The `errorType` of a failed invocation: the exception's name, Sandbox.Timedout or Runtime.ExitError."""
        return str(self.response["errorType"]) if self.failed else None

    @property
    def crashed(self) -> bool:
        """Whether the process ended without a response."""
        return self.failed and self.error_type == "Runtime.ExitError"

    @property
    def init_ms(self) -> float | None:
        """Duration of init in milliseconds, from RIE's INIT REPORT; None if the environment was warm.

        The Init Duration in RIE's REPORT line is wrong.
        """
        found = [float(value) for value in _INIT.findall(self.log)]
        return max(found) if found else None

    @property
    def duration_ms(self) -> float | None:
        """Duration by RIE, which includes the init of a cold start; None after a crash."""
        found = _DURATION.findall(self.log)
        return float(found[-1]) if found else None


def is_complete(log: str, status: int) -> bool:
    """Whether the log of an invocation with this HTTP status is complete."""
    if status != 200:
        return bool(_CRASHED.search(log))
    return bool(_ENDED.search(log) and _REPORTED.search(log))


def answered(status: int, body: bytes, log: str) -> Invocation:
    """Lambda's result for a response of RIE, which returns exceptions and timeouts as 200 and a crash as 502."""
    if body.startswith(_TIMED_OUT):
        return failure("Sandbox.Timedout", body.decode(errors="replace").strip(), log)
    try:
        read = json.loads(body)
    except ValueError:
        return failure("Runtime.InvalidResponse", body.decode(errors="replace")[:300], log)
    raised = isinstance(read, dict) and {"errorType", "errorMessage"} <= read.keys()
    return Invocation(body, raised or status != 200, log)


def failure(error_type: str, message: str, log: str) -> Invocation:
    """A failed invocation with this error type."""
    return Invocation(json.dumps({"errorType": error_type, "errorMessage": message}).encode(), failed=True, log=log)
