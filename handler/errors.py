"""Errors of a message, in addition to those of the library (enrichment.errors).

    EnrichmentError                      (enrichment.errors)
    └── MessageError                     base class
        ├── MessageInvalid               permanent: the message is neither a notification nor a ticket
        ├── ObjectGone                   permanent: the object does not exist
        ├── ObjectTooLarge               permanent: the object is larger than MAX_TICKET_BYTES
        ├── KeyTooLong                   permanent: S3 has no room for the key of an inline ticket
        ├── KeyReserved                  permanent: the system's own objects have keys like that of the raw ticket
        ├── BucketUnexpected             permanent: the notification names another bucket
        ├── StoreRefused                 permanent: DynamoDB or S3 will never accept this item
        ├── Crashed                      permanent: the message killed its process, twice while it ran alone
        ├── ObjectReplaced               transient: the object was overwritten during processing
        ├── Throttled                    transient: a service throttles requests
        ├── ServiceFailed                transient: a service answered 5xx, timed out, or denied access
        └── Unexpected                   transient: a bug in this code, caught at an isolation boundary

Messages with permanent errors are rejected immediately; messages with transient errors are retried. Error texts contain
ids and codes, never customer text. handler.aws.errors maps botocore's errors to these.
"""

from __future__ import annotations

import traceback

from enrichment.errors import EnrichmentError

__all__ = [
    "BucketUnexpected",
    "Crashed",
    "KeyReserved",
    "KeyTooLong",
    "MessageError",
    "MessageInvalid",
    "ObjectGone",
    "ObjectReplaced",
    "ObjectTooLarge",
    "ServiceFailed",
    "StoreRefused",
    "Throttled",
    "Unexpected",
    "error_codes",
    "trace",
]


class MessageError(EnrichmentError):
    """Base class of errors of a message."""

    code = "message_error"


class MessageInvalid(MessageError):
    """The message is neither a known notification nor a ticket."""

    code = "message_invalid"


class ObjectGone(MessageError):
    """The object that the notification names does not exist."""

    code = "object_gone"


class ObjectTooLarge(MessageError):
    """The object has more than MAX_TICKET_BYTES."""

    code = "object_too_large"


class KeyTooLong(MessageError):
    """The id of an inline ticket makes a key that is longer than S3 accepts."""

    code = "key_too_long"


class KeyReserved(MessageError):
    """The enriched ticket would have a key of the log of corrections, or of an object of several tickets."""

    code = "key_reserved"


class BucketUnexpected(MessageError):
    """The notification names a bucket that this function does not read."""

    code = "bucket_unexpected"


class StoreRefused(MessageError):
    """S3 or DynamoDB will never accept the ticket."""

    code = "store_refused"


class Crashed(MessageError):
    """The process died, or was killed because it hung, while it processed nothing but this message."""

    code = "crashed"


class ObjectReplaced(MessageError):
    """The object was overwritten during processing, within the one-second resolution of LastModified."""

    code = "object_replaced"
    transient = True


class Throttled(MessageError):
    """A service throttles requests."""

    code = "throttled"
    transient = True


class ServiceFailed(MessageError):
    """A service failed, timed out or denied access. This can be fixed, so the ticket is retried."""

    code = "service_failed"
    transient = True


class Unexpected(MessageError):
    """A bug in this code, caught at an isolation boundary; retried."""

    code = "unexpected"
    transient = True


def error_codes(error: type[EnrichmentError] = EnrichmentError) -> frozenset[str]:
    """The code of a class of errors and those of its subclasses; by default all codes."""
    return frozenset({error.code}).union(*(error_codes(kind) for kind in error.__subclasses__()))


def trace(error: BaseException) -> str:
    """The traceback of an error and its causes, without their messages, which may quote customer text."""
    parts: list[str] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        parts.append("".join(traceback.format_tb(link.__traceback__)) + type(link).__qualname__)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return "\nfrom\n".join(parts)
