"""Maps botocore's errors to the handler's errors, which are permanent or transient."""

from __future__ import annotations

from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from handler.errors import MessageError, ObjectGone, ServiceFailed, StoreRefused, Throttled

__all__ = ["from_aws"]

_THROTTLES: Final = frozenset(
    {
        "BandwidthLimitExceeded",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceeded",  # of one part of a transaction
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingError",  # of one part of a transaction
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionConflict",  # of one part of a transaction
        "TransactionInProgressException",
    }
)
# "ValidationError" is a ValidationException of one part of a transaction.
_REFUSED: Final = frozenset({"ValidationException", "ValidationError", "EntityTooLarge", "KeyTooLongError"})


def from_aws(error: ClientError | BotoCoreError, operation: str) -> MessageError:
    """Map the error of an AWS call; `operation` is the name of the API operation, and the result's text starts with it.

    Raise the result `from error`: the commands read AWS's message from there.
    """
    if not isinstance(error, ClientError):
        return ServiceFailed(f"{operation}: {type(error).__name__}")
    code = error.response.get("Error", {}).get("Code", "Unknown")
    if code == "TransactionCanceledException":
        reasons: Any = error.response.get("CancellationReasons", ())
        code = next((each["Code"] for each in reasons if each.get("Code", "None") != "None"), code)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _THROTTLES or status == 429:
        return Throttled(f"{operation}: {code}")
    if operation == "GetObject" and code in {"NoSuchKey", "NoSuchVersion", "404", "KeyTooLongError"}:
        return ObjectGone(f"{operation}: the object does not exist (any more)")
    if operation in {"PutItem", "PutObject"} and code in _REFUSED:
        return StoreRefused(f"{operation}: {code}")
    return ServiceFailed(f"{operation}: {code}")
