"""From botocore's errors to those of handler.errors: which may succeed later, and which never will."""

from __future__ import annotations

from typing import Final

from botocore.exceptions import BotoCoreError, ClientError

from handler.errors import MessageError, ObjectGone, ServiceFailed, StoreRefused, Throttled

__all__ = ["from_aws"]

_THROTTLES: Final = frozenset(
    {
        "BandwidthLimitExceeded",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionInProgressException",
    }
)


def from_aws(error: ClientError | BotoCoreError, operation: str) -> MessageError:
    """The error of a call to AWS as one of ours, permanent or transient; `operation` names the call."""
    if not isinstance(error, ClientError):
        return ServiceFailed(f"{operation}: {type(error).__name__}")
    code = error.response.get("Error", {}).get("Code", "Unknown")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _THROTTLES or status == 429:
        return Throttled(f"{operation}: {code}")
    if operation == "GetObject" and code in {"NoSuchKey", "NoSuchVersion", "404", "KeyTooLongError"}:
        return ObjectGone(f"{operation}: the object does not exist (any more)")
    if operation in {"PutItem", "PutObject"} and code in {"ValidationException", "EntityTooLarge", "KeyTooLongError"}:
        return StoreRefused(f"{operation}: {code}")
    return ServiceFailed(f"{operation}: {code}")
