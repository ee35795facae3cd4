"""Errors of commands, each as one line that names the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import ValidationError

__all__ = ["error_line", "settings_line"]

_CREDENTIALS: Final = "renew the AWS credentials"
_NETWORK: Final = "check AWS_ENDPOINT_URL and the network"
# By AWS error code or botocore exception name; the same for every command.
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
    """An AWS error in one line: the call, the code, the message, and the remedy if one is known.

    `remedies` are the command's own, by code. `operation` names the call if the error does not.
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


def settings_line(error: ValidationError) -> str:
    """Names every environment variable that is missing and every one that is invalid, in one line."""
    found = error.errors(include_url=False, include_input=False)
    missing = [str(item["loc"][0]).upper() for item in found if item["type"] == "missing"]
    invalid = [f"{str(item['loc'][0]).upper()}: {item['msg']}" for item in found if item["type"] != "missing"]
    return "; ".join([*([f"set {' and '.join(missing)} in the environment"] if missing else []), *invalid])
