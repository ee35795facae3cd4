"""What an invocation gave, as Lambda answers it, from what the runtime interface emulator (RIE) answers and logs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_INIT = re.compile(r"INIT REPORT\(durationMs: ([\d.]+)\)")
_DURATION = re.compile(r"^REPORT RequestId: \S+\t.*?(?<!Init )(?<!Billed )Duration: ([\d.]+) ms", re.MULTILINE)
# What RIE writes last, on standard error and on standard output: whichever comes later, the other must not be taken
# for a part of the next invocation.
_ENDED = re.compile(r"INVOKE RTDONE\(|Reset initiated: Timeout.*Waiting for runtime domain processes", re.DOTALL)
_REPORTED = re.compile(r"^REPORT RequestId: ", re.MULTILINE)
_CRASHED = re.compile(r"Invoke DONE failed: .*Waiting for runtime domain processes", re.DOTALL)
_TIMED_OUT = b"Task timed out after "


@dataclass(frozen=True)
class Invocation:
    """The answer to one invocation.

    `payload` is what Lambda's Invoke would give, `failed` whether with `X-Amz-Function-Error: Unhandled`; `log` is all
    that the container wrote meanwhile, RIE's own lines too.
    """

    payload: bytes
    failed: bool
    log: str

    @property
    def response(self) -> Any:
        """The payload, read as JSON."""
        return json.loads(self.payload)

    @property
    def error_type(self) -> str | None:
        """The `errorType` of a failed invocation: the exception's name, Sandbox.Timedout or Runtime.ExitError."""
        return str(self.response["errorType"]) if self.failed else None

    @property
    def crashed(self) -> bool:
        """Whether the process ended instead of answering."""
        return self.failed and self.error_type == "Runtime.ExitError"

    @property
    def init_ms(self) -> float | None:
        """The init that this invocation waited for, in milliseconds; None where the environment was warm.

        From RIE's INIT REPORT: the Init Duration of its REPORT line is wrong.
        """
        found = [float(value) for value in _INIT.findall(self.log)]
        return max(found) if found else None

    @property
    def duration_ms(self) -> float | None:
        """RIE's own measure, which holds the init of a cold start too; None after a crash."""
        found = _DURATION.findall(self.log)
        return float(found[-1]) if found else None


def is_complete(log: str, status: int) -> bool:
    """Whether RIE has written all of an invocation that it answered with this status."""
    if status != 200:
        return bool(_CRASHED.search(log))
    return bool(_ENDED.search(log) and _REPORTED.search(log))


def answered(status: int, body: bytes, log: str) -> Invocation:
    """What Lambda would answer where RIE answers so: exceptions and timeouts come back as 200, a crash as 502."""
    if body.startswith(_TIMED_OUT):
        return failure("Sandbox.Timedout", body.decode(errors="replace").strip(), log)
    try:
        read = json.loads(body)
    except ValueError:
        return failure("Runtime.InvalidResponse", body.decode(errors="replace")[:300], log)
    raised = isinstance(read, dict) and {"errorType", "errorMessage"} <= read.keys()
    return Invocation(body, raised or status != 200, log)


def failure(error_type: str, message: str, log: str) -> Invocation:
    """A failed invocation of that type."""
    return Invocation(json.dumps({"errorType": error_type, "errorMessage": message}).encode(), failed=True, log=log)
