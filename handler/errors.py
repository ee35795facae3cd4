"""What can go wrong with a message, beyond what the models say of its ticket.

    EnrichmentError                      (enrichment.errors)
    └── MessageError                     the base here
        ├── MessageInvalid               permanent: the message is no notification and no ticket
        ├── ObjectGone                   permanent: the object was deleted, or never was
        ├── ObjectTooLarge               permanent: the object is beyond MAX_TICKET_BYTES
        ├── BucketUnexpected             permanent: the notification speaks of another bucket
        ├── StoreRefused                 permanent: DynamoDB or S3 will never take this item
        ├── ObjectReplaced               transient: the object was overwritten while it was in work
        ├── Throttled                    transient: a service asks to slow down
        ├── ServiceFailed                transient: a service answered 5xx, timed out, or denied access
        └── Unexpected                   transient: a fault of our own, caught where it can harm no neighbour

Permanent ones are rejected at once, transient ones are tried again by SQS. Messages of errors carry ids and codes,
never what a customer wrote; object keys are shortened and quoted. handler.aws.errors makes them of botocore's.
"""

from __future__ import annotations

import traceback

from enrichment.errors import EnrichmentError

__all__ = [
    "BucketUnexpected",
    "MessageError",
    "MessageInvalid",
    "ObjectGone",
    "ObjectReplaced",
    "ObjectTooLarge",
    "ServiceFailed",
    "StoreRefused",
    "Throttled",
    "Unexpected",
    "trace",
]


class MessageError(EnrichmentError):
    """Base of what goes wrong with a message."""

    code = "message_error"


class MessageInvalid(MessageError):
    """The message holds neither a notification that is understood nor a ticket."""

    code = "message_invalid"


class ObjectGone(MessageError):
    """The object that the notification names does not exist."""

    code = "object_gone"


class ObjectTooLarge(MessageError):
    """The object has more than MAX_TICKET_BYTES."""

    code = "object_too_large"


class BucketUnexpected(MessageError):
    """The notification names a bucket that this function does not read."""

    code = "bucket_unexpected"


class StoreRefused(MessageError):
    """A store refuses the ticket for good."""

    code = "store_refused"


class ObjectReplaced(MessageError):
    """The object was overwritten while it was in work, within the second that its time has for a unit."""

    code = "object_replaced"
    transient = True


class Throttled(MessageError):
    """A service asks to slow down."""

    code = "throttled"
    transient = True


class ServiceFailed(MessageError):
    """A service failed, timed out, or denied access: it may be mended, so the ticket waits."""

    code = "service_failed"
    transient = True


class Unexpected(MessageError):
    """A fault of our own, caught at an isolation boundary; worth another try."""

    code = "unexpected"
    transient = True


def trace(error: BaseException) -> str:
    """The traceback of an error and of its causes, without their messages: those may quote what a customer wrote."""
    parts: list[str] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        parts.append("".join(traceback.format_tb(link.__traceback__)) + type(link).__qualname__)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return "\nfrom\n".join(parts)
