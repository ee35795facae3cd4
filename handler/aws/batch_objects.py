"""Batch objects: with ENRICHED_OBJECTS=batch, one S3 object holds the enriched tickets of a batch, for one put.

An object is JSON Lines: each line is what the ticket's own object would contain. The ticket's item says where the line
is (attribute `s3_batch`: KEY:OFFSET+LENGTH, in bytes), and readers get that range only. Its `s3_key` stays the key of
the raw ticket, so that whoever does not know `s3_batch` finds no object, or what was stored of this ticket before the
setting was on, but never the text of another customer.

    batches/2026-11-26/134512123-9f86d0-1a2b3c4d.jsonl

A key consists of the day, the time of day in milliseconds (UTC), six random hex digits, and for each line the first
four hex digits of the hash of its ticket's id (handler.aws.forgetting.name_hash). So a list of keys, 1,000 per request,
shows which objects may hold a ticket: also earlier versions of it, and what was written but never committed. Four
digits are enough, because what remains is read: of a million tickets, 15 objects in vain. A longer key would cost more:
it is in every item, whose writes are paid by the kilobyte.

Keys are unique, and only `blank_tickets` writes an object again: with spaces in the place of forgotten tickets, so that
all other ranges stay valid. Then it removes the version before. Readers therefore do not name a version: the current
one always holds every ticket that was not forgotten.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from handler.aws.errors import from_aws
from handler.aws.forgetting import holder_of, name_hash
from handler.errors import ObjectGone, ServiceFailed
from handler.result_event import batch_place

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = [
    "BATCHES",
    "BatchRange",
    "batch_key",
    "blank_tickets",
    "day_prefixes",
    "hour_prefixes_since",
    "keys_with",
    "line_of",
    "read_enriched",
]

BATCHES: Final = "batches/"
"""The prefix of all batch objects."""

_KEY: Final = re.compile(BATCHES + r"[0-9]{4}-[0-9]{2}-[0-9]{2}/[0-9]{9}-[0-9a-f]{6}-((?:[0-9a-f]{4})+)\.jsonl")
_HASH: Final = 4  # hex digits of the hash of a ticket's id in a key
_CLOCKS: Final = timedelta(minutes=15)  # by which the clocks of two machines may differ
_MAX_RACES: Final = 50  # others that blank tickets of one object at the same time
_PAUSE: Final = 0.02  # seconds, times the number of lost races
_LOST_RACE: Final = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"}


@dataclass(frozen=True, slots=True)
class BatchRange:
    """Where a ticket is in a batch object: `length` bytes at `offset`."""

    key: str
    offset: int
    length: int

    @classmethod
    def in_item(cls, item: Mapping[str, Any]) -> BatchRange | None:
        """From an item in DynamoDB's JSON; None if the ticket has an object of its own."""
        place = batch_place(item.get("s3_batch", {}).get("S"))
        return None if place is None else cls(*place)


def batch_key(ticket_ids: Sequence[str], now: datetime) -> str:
    """A unique key for the object whose lines are these tickets."""
    hashes = "".join(name_hash("ticket", ticket_id)[:_HASH] for ticket_id in ticket_ids)
    moment = f"{now:%Y-%m-%d/%H%M%S}{now.microsecond // 1000:03}"
    return f"{BATCHES}{moment}-{secrets.token_hex(3)}-{hashes}.jsonl"


def line_of(body: bytes) -> bytes:
    """An enriched ticket as a line, without its end.

    Unknown fields are kept as they were written, so they may contain line breaks: outside of strings, where JSON allows
    any white space.
    """
    return body.replace(b"\n", b" ").replace(b"\r", b" ")


def read_enriched(s3: S3Client, bucket: str, key: str, version_id: str, batch: BatchRange | None) -> bytes:
    """The enriched ticket that an item names: `s3_key` in `s3_version_id`, or the range of a batch object.

    Empty if the range was forgotten. Raises botocore's errors.
    """
    if batch is None:
        answer = s3.get_object(Bucket=bucket, Key=key, VersionId=version_id)
    else:
        last = batch.offset + batch.length - 1
        answer = s3.get_object(Bucket=bucket, Key=batch.key, Range=f"bytes={batch.offset}-{last}")
    with closing(answer["Body"]) as stream:
        body = stream.read()
    return body if batch is None else body.strip()


# -- find and blank


def day_prefixes(s3: S3Client, bucket: str) -> list[str]:
    """The prefixes of all days on which batch objects were written; also of hidden ones. Raises botocore's errors."""
    return [day for page in _pages(s3, bucket, BATCHES, delimiter="/") for day in page["CommonPrefixes"]]


def hour_prefixes_since(since: int) -> list[str]:
    """The prefixes of the objects that were written in each hour from `since` (Unix milliseconds) to now."""
    begin, end = datetime.fromtimestamp(since / 1000, UTC) - _CLOCKS, datetime.now(UTC) + _CLOCKS
    begin = begin.replace(minute=0, second=0, microsecond=0)
    hours = [begin + timedelta(hours=number) for number in range(int((end - begin) / timedelta(hours=1)) + 1)]
    return [f"{BATCHES}{hour:%Y-%m-%d/%H}" for hour in hours]


def keys_with(s3: S3Client, bucket: str, prefix: str, owners: Collection[str]) -> Iterator[str]:
    """The keys of batch objects under a prefix that may hold one of the tickets; hashes of their ids are given.

    Lists versions, because those of an object that is hidden by a delete marker still hold its tickets. Raises
    botocore's errors.
    """
    wanted = {owner[:_HASH] for owner in owners}
    last = None
    for page in _pages(s3, bucket, prefix):
        for entry in page["Entries"]:
            key = entry["Key"]
            if key != last and any(name in wanted for name in _hashes(key)):
                yield key
            last = key


def blank_tickets(s3: S3Client, bucket: str, key: str, owners: Collection[str], *, dry_run: bool = False) -> int:
    """Removes tickets, given by the hashes of their ids, from a batch object, with every version that still has them.

    Returns how many lines and superseded versions were removed, or would be. Two calls for one object at the same time
    both succeed, and a call that was killed can be repeated. Raises botocore's errors, and ServiceFailed if others keep
    changing the object.
    """
    removed = 0
    for race in range(_MAX_RACES):
        entries = [entry for page in _pages(s3, bucket, key) for entry in page["Entries"] if entry["Key"] == key]
        current = next((entry for entry in entries if entry["IsLatest"] and not entry["IsMarker"]), None)
        others = [entry for entry in entries if entry is not current]
        superseded = [entry for entry in others if not entry["IsMarker"] and _holds(s3, bucket, entry, owners)]
        if current is None:  # gone, or hidden at the end of its retention: nobody reads the other tickets any more
            return removed + (_remove(s3, bucket, entries, dry_run=dry_run) if superseded else 0)
        content, etag = _content(s3, bucket, current)
        if content is None:
            continue
        blanked, lines = _blanked(content, owners)
        if dry_run:
            return lines + len(superseded)
        if not lines:
            return removed + _remove(s3, bucket, superseded)
        if not blanked.strip():
            _remove(s3, bucket, entries)
            return removed + lines + len(superseded)
        try:
            s3.put_object(Bucket=bucket, Key=key, Body=blanked, ContentType="application/x-ndjson", IfMatch=etag)
        except ClientError as error:
            if error.response["Error"]["Code"] not in _LOST_RACE:
                raise
            time.sleep(_PAUSE * race)
        else:
            removed += lines - 1  # the version before is counted when it is removed
    raise ServiceFailed("PutObject: others keep changing the object")


def _holds(s3: S3Client, bucket: str, version: Mapping[str, Any], owners: Collection[str]) -> bool:
    """Whether a version has one of the tickets."""
    content, _ = _content(s3, bucket, version)
    return content is not None and _blanked(content, owners)[1] > 0


def _blanked(content: bytes, owners: Collection[str]) -> tuple[bytes, int]:
    """The lines with spaces in the place of these tickets, and the number of lines that were replaced."""
    lines, found = content.split(b"\n"), 0
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        ticket_id = holder_of(line).ticket_id
        if ticket_id is not None and name_hash("ticket", ticket_id) in owners:
            lines[number] = b" " * len(line)
            found += 1
    return b"\n".join(lines), found


def _content(s3: S3Client, bucket: str, version: Mapping[str, Any]) -> tuple[bytes | None, str]:
    """The content and the ETag of a version; None if it was removed in the meantime."""
    try:
        answer = s3.get_object(Bucket=bucket, Key=version["Key"], VersionId=version["VersionId"])
        with closing(answer["Body"]) as stream:
            return stream.read(), answer["ETag"]
    except ClientError as error:
        if isinstance(from_aws(error, "GetObject"), ObjectGone):
            return None, ""
        raise


def _remove(s3: S3Client, bucket: str, entries: Sequence[Mapping[str, Any]], *, dry_run: bool = False) -> int:
    for entry in entries if not dry_run else ():
        s3.delete_object(Bucket=bucket, Key=entry["Key"], VersionId=entry["VersionId"])
    return len(entries)


def _hashes(key: str) -> list[str]:
    """The beginnings of the hashes in a key; none if it is no batch object's."""
    found = _KEY.fullmatch(key)
    return [] if found is None else re.findall(f".{{{_HASH}}}", found[1])


def _pages(s3: S3Client, bucket: str, prefix: str, *, delimiter: str = "") -> Iterator[dict[str, Any]]:
    """The pages of a list of versions: `Entries`, sorted by key, delete markers among them, and `CommonPrefixes`."""
    request: Any = {"Bucket": bucket, "Prefix": prefix, **({"Delimiter": delimiter} if delimiter else {})}
    for answer in s3.get_paginator("list_object_versions").paginate(**request):
        # moto answers None instead of an empty list if another thread removes versions at the same time.
        entries = [{**entry, "IsMarker": False} for entry in answer.get("Versions") or ()]
        entries += [{**entry, "IsMarker": True} for entry in answer.get("DeleteMarkers") or ()]
        prefixes = [each["Prefix"] for each in answer.get("CommonPrefixes") or ()]
        yield {"Entries": sorted(entries, key=lambda entry: str(entry["Key"])), "CommonPrefixes": prefixes}
