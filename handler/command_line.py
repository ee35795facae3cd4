"""What the commands share: times as people give them, output that no letter breaks, errors with their remedy."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from botocore.exceptions import BotoCoreError, ClientError

__all__ = ["WHEN", "error_line", "replace_unprintable", "unix_time"]

WHEN: Final = "2h|3d|TIME"
"""How the help shows what unix_time takes."""

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_CREDENTIALS: Final = "renew the AWS credentials"
_NETWORK: Final = "check AWS_ENDPOINT_URL and the network"
# By the code of AWS's answer, or by the name of botocore's own exception; what is the same for every command.
_REMEDIES: Final = {
    "ConnectTimeoutError": _NETWORK,
    "EndpointConnectionError": _NETWORK,
    "ExpiredToken": _CREDENTIALS,
    "ExpiredTokenException": _CREDENTIALS,
    "InvalidAccessKeyId": _CREDENTIALS,
    "InvalidClientTokenId": _CREDENTIALS,
    "NoCredentialsError": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "NoRegionError": "set AWS_DEFAULT_REGION",
    "ReadTimeoutError": _NETWORK,
    "UnrecognizedClientException": _CREDENTIALS,
}


def error_line(error: ClientError | BotoCoreError, remedies: Mapping[str, str], operation: str = "") -> str:
    """An error of AWS in one line: the call, the code and the words, and the remedy where one is known.

    `remedies` are those of the command, by code. `operation` names the call where the error does not.
    """
    if isinstance(error, ClientError):
        answer = error.response.get("Error", {})
        code, operation = str(answer.get("Code", "")), operation or error.operation_name
        words = f"{code}: {answer.get('Message', '')}"
    else:
        code, words = type(error).__name__, str(error)
    remedy = remedies.get(code) or _REMEDIES.get(code)
    line = " ".join((f"{operation}: {words}" if operation else words).split())
    return f"{line.removesuffix('.')}; {remedy}" if remedy else line


def unix_time(text: str, clock: Callable[[], float] = time.time) -> float:
    """Seconds since 1970 of `90s`, `30m`, `2h`, `3d`, `1w` (ago) or of an ISO 8601 time, UTC where it names no zone.

    Raises ValueError, whose message is one line for people.
    """
    if ago := re.fullmatch(r"([0-9]{1,6})([smhdw])", text):
        return clock() - int(ago[1]) * _SECONDS[ago[2]]
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is neither like 90s, 30m, 2h, 3d or 1w nor an ISO 8601 time") from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def replace_unprintable() -> None:
    """Lets standard output and error write a question mark for what the terminal has no letter for."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
