"""Tombstones of forgotten tickets, and the removal of the versions of an object.

`tickets forget` writes a tombstone before it removes anything; the function skips a ticket that has one, and removes
what it has stored of it. A tombstone is an item of the tickets' table without an index entry. Its key is a hash: of the
ticket's id, or of the key of its raw object, because a notification of an object that is gone says no more than that.

    forgotten_at    of both: when
    raw_keys        of a ticket: raw objects that are yet to be removed, also those that the function came across later
    owner           of an object: the hash of the id of its ticket
    customer        of both: the hash of the customer's id, if all tickets of a customer were forgotten
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import pydantic_core
from botocore.exceptions import ClientError

from enrichment.errors import EnrichmentError
from handler.aws.errors import from_aws
from handler.compression import decompress
from handler.errors import ObjectGone

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = [
    "NO_TICKET",
    "Holder",
    "Version",
    "holder_of",
    "holder_of_object",
    "item_key",
    "name_hash",
    "tombstone_key",
    "versions_to_erase",
]

NO_TICKET: Final = -1
"""created_at of items that are not tickets: no ticket has this value."""

_PREFIX: Final = "#forgotten#"  # the permissions in template.yaml contain it too
_MAX_BYTES: Final = 32 * 1024 * 1024  # of an object whose ticket is looked at; what is larger never was a ticket

_ID: Final = re.compile(rb'"(ticket_id|customer_id)\\*"\s*+:\s*+\\*"([^"\\]{1,1024})')

Kind = Literal["ticket", "object", "customer"]


def name_hash(kind: Kind, name: str) -> str:
    """The hash under which a ticket id, the key of a raw object or a customer id is remembered.

    Without a secret key, so that it is the same in all processes: a pseudonym, which can be tested for a known id.
    """
    return hashlib.sha256(f"{kind}:{name}".encode(errors="surrogatepass")).hexdigest()


def item_key(ticket_id: str, created_at: int) -> dict[str, Any]:
    """The key of a ticket's item."""
    return {"ticket_id": {"S": ticket_id}, "created_at": {"N": str(created_at)}}


def tombstone_key(kind: Kind, name: str) -> dict[str, Any]:
    """The key of the tombstone of a ticket, or of a raw object."""
    return item_key(_PREFIX + name_hash(kind, name), NO_TICKET)


@dataclass(frozen=True, slots=True)
class Holder:
    """The ids in a raw or enriched ticket, valid or not; None for what is absent or cannot be read."""

    ticket_id: str | None = None
    customer_id: str | None = None
    created_at: int | None = None


def holder_of(raw: bytes) -> Holder:
    """Whose ticket this is, as far as it can be read: also of a ticket that was cut off or is otherwise not JSON."""
    try:
        content = decompress(raw, _MAX_BYTES).removeprefix(b"\xef\xbb\xbf")
    except EnrichmentError:
        return Holder()
    try:
        found = pydantic_core.from_json(content)
    except ValueError:
        # The first field of each name, also in a message that quotes the ticket as a string.
        fields = {str(n, "ascii"): str(value, "utf-8", "replace") for n, value in reversed(_ID.findall(content))}
        return Holder(fields.get("ticket_id"), fields.get("customer_id"))
    if not isinstance(found, dict):
        return Holder()
    created_at = found.get("created_at")
    # A ticket can be in the DLQ because its id is a number.
    names = {n: str(found[n]) for n in ("ticket_id", "customer_id") if isinstance(found.get(n), str | int)}
    return Holder(**names, created_at=created_at if isinstance(created_at, int) else None)


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an object, and the ticket in it; a delete marker holds none."""

    version_id: str
    holder: Holder


def versions_to_erase(s3: S3Client, bucket: str, key: str, owner: str) -> tuple[list[Version], int]:
    """The versions of an object that belong to a ticket, given by the hash of its id, and the number of the others.

    A version belongs to the ticket unless it clearly holds another one: keys may be used again. Delete markers belong
    to it if no version is left that they could hide. Raises botocore's errors.
    """
    erased, markers, others = [], [], 0
    for entry, is_marker in _entries(s3, bucket, key):
        if is_marker:
            markers.append(Version(entry, Holder()))
            continue
        holder = holder_of_object(s3, bucket, key, VersionId=entry)
        if holder is None:
            continue  # removed in the meantime
        if holder.ticket_id is None or name_hash("ticket", holder.ticket_id) == owner:
            erased.append(Version(entry, holder))
        else:
            others += 1
    return erased + ([] if others else markers), others


def _entries(s3: S3Client, bucket: str, key: str) -> Iterator[tuple[str, bool]]:
    """The version ids of an object, each with whether it is a delete marker."""
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=key):
        # moto answers None instead of an empty list if another thread removes versions at the same time.
        versions: Any = [(entry, False) for entry in page.get("Versions") or ()]
        versions += [(entry, True) for entry in page.get("DeleteMarkers") or ()]
        yield from ((entry["VersionId"], is_marker) for entry, is_marker in versions if entry["Key"] == key)
        if any(entry["Key"] != key for entry, _ in versions):
            return  # keys are sorted: those that only begin with the key come after it


def holder_of_object(s3: S3Client, bucket: str, key: str, **version: str) -> Holder | None:
    """Whose ticket an object, or a version of it (`VersionId`), holds; None if it does not exist.

    Raises botocore's errors.
    """
    try:
        answer = s3.get_object(Bucket=bucket, Key=key, **version)  # type: ignore[arg-type] # of optional parameters
        with closing(answer["Body"]) as stream:
            return holder_of(stream.read() if answer["ContentLength"] <= _MAX_BYTES else b"")
    except ClientError as error:
        if isinstance(from_aws(error, "GetObject"), ObjectGone):
            return None
        raise
