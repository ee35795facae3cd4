"""Finds and removes everything that is stored of a ticket or of a customer, so that later deliveries skip it.

The order makes a run that was killed repeatable, and leaves no gap to a batch that is being processed:

1. the tombstone of each ticket (handler.aws.forgetting): from then on, the function skips it, and removes what it has
   stored of it, also its items. So the tombstone remembers the keys of raw objects until they are removed;
2. the tombstones of its raw objects, for notifications that are still in a queue;
3. its bytes in the objects that hold several tickets (handler.aws.batch_objects), the versions of the raw and the
   enriched objects, and the log of its corrections (handler.tickets.corrections);
4. the DLQ messages that contain the ticket or point at it;
5. its entries in the vector index and its items, last, because they name the objects: a repeated run finds what is
   left. Entries are removed once more after the items, in case `tickets index` was reading the ticket meanwhile.

Objects of several tickets are found by a list of their keys, not through the items: so are earlier versions of a
ticket, and what a process wrote that was killed before it could commit.

A ticket's raw object is found through its item, through a DLQ message or by --key: S3 has no index of contents. The
tickets of a customer are found by a scan of the table, which has no index by customer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self, TypeAlias, TypeVar
from urllib.parse import quote

from enrichment.errors import EnrichmentError
from handler.aws.batch_objects import blank_tickets, day_prefixes, keys_with
from handler.aws.forgetting import (
    NO_TICKET,
    Holder,
    Version,
    holder_of,
    holder_of_object,
    item_key,
    name_hash,
    tombstone_key,
    versions_to_erase,
)
from handler.aws.sqs import Queue, tens
from handler.cli.shutdown import Shutdown
from handler.dlq.message import DlqMessage
from handler.dlq.options import Options
from handler.dlq.output import progress
from handler.dlq.scan import Scan
from handler.messages import InlineTicket, StoredTicket, references
from handler.tickets.corrections import log_prefix
from handler.tickets.search.index import Key, VectorIndex

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

__all__ = ["CONNECTIONS", "Erased", "Forgetting", "Found", "Kind", "Place", "Stores", "Target"]

CONNECTIONS: Final = 16
"""The number of concurrent calls."""

_T = TypeVar("_T")
_R = TypeVar("_R")
Kind: TypeAlias = Literal["raw", "enriched", "correction", "dlq", "vector", "item"]


@dataclass(frozen=True, slots=True)
class Target:
    """What to forget: one ticket, or all tickets of a customer."""

    kind: Literal["ticket", "customer"]
    name: str

    @property
    def hash(self) -> str:
        """The hash that stands for the id in tombstones and audit lines."""
        return name_hash(self.kind, self.name)

    def matches(self, holder: Holder, tickets: Container[str] = ()) -> bool:
        """Whether a ticket is meant. `tickets` are ids of the customer's tickets, for one that does not say whose."""
        if self.kind == "ticket":
            return holder.ticket_id == self.name
        return holder.customer_id == self.name or (holder.customer_id is None and holder.ticket_id in tickets)


@dataclass(frozen=True, slots=True)
class Place:
    """Something that is stored of a ticket: what and where, and in how many versions."""

    kind: Kind
    name: str
    count: int = 1


@dataclass
class Found:
    """The tickets to forget, as far as they are known, with the keys of their objects, and their DLQ messages."""

    keys: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # by ticket_id
    orphans: dict[str, str] = field(default_factory=dict)  # keys of unreadable tickets, with the hashes of their ids
    remembered: dict[str, set[str]] = field(default_factory=dict)  # keys of orphans, by the ids of their tombstones
    messages: dict[str, tuple[Scan, DlqMessage]] = field(default_factory=dict)  # to delete, by message id
    shared_messages: int = 0  # messages that also point at other tickets: they stay, and contain only keys
    other_customers: set[str] = field(default_factory=set)  # ids that another customer's tickets have too: they stay


class _Ticket(NamedTuple):
    """A ticket of a DLQ message: its id, the key of its raw object, and the hash of its id; each can be ""."""

    ticket_id: str
    key: str = ""
    owner: str = ""

    @classmethod
    def held(cls, holder: Holder, key: str = "") -> Self:
        """The ticket that was read from a message or an object."""
        return cls(holder.ticket_id or "", key, name_hash("ticket", holder.ticket_id or ""))


@dataclass
class Erased:
    """What was removed, or would be."""

    places: list[Place] = field(default_factory=list)
    kept_versions: int = 0  # that other tickets have under the same keys
    failed_messages: int = 0  # that SQS did not delete

    def count(self, kind: Kind) -> int:
        """The number of versions, items or messages."""
        return sum(place.count for place in self.places if place.kind == kind)


@dataclass(frozen=True)
class Stores:
    """Where tickets are stored."""

    dynamodb: DynamoDBClient
    s3: S3Client
    dlqs: Sequence[Queue]
    table: str
    raw_buckets: Sequence[str]
    enriched_bucket: str
    vectors: VectorIndex


class Forgetting:
    """Forgets one target. Methods raise botocore's errors, and Throttled or ServiceFailed for SQS.

    A shutdown request ends it early; what was done until then needs no repair.
    """

    def __init__(self, target: Target, stores: Stores, polls: Options, shutdown: Shutdown) -> None:
        self._target = target
        self._stores = stores
        self._shutdown = shutdown
        self._scans = [Scan(dlq, polls, shutdown) for dlq in stores.dlqs]
        self._marked: dict[str, set[str]] = {}  # the keys of the tickets whose tombstones are written

    def run(self, keys: Iterable[str], *, dry_run: bool) -> tuple[Found, Erased]:
        """Finds everything, removes it, and looks a second time. A dry run only finds it. Shows its progress.

        `keys` are those of raw objects that neither the table nor the DLQ may name.
        """
        with progress("scanning the table", None) as advance:
            found = self._find_tickets(keys, advance)
        if not dry_run:
            self._mark(found)
        with ExitStack() as in_flight:
            for scan in self._scans:
                in_flight.enter_context(scan.in_flight)
            with progress("reading the DLQ", None) as advance:
                self._find_messages(found, advance)
            if not dry_run:
                self._mark(found)  # the tickets that only the DLQ knew
            erased = self._erase(found, dry_run=dry_run)
            if not dry_run:
                # A batch that had read the table before the tombstone was there may have stored a ticket behind us and
                # been killed before it read the tombstone.
                late = self._erase(found, dry_run=False)
                erased.places += late.places
                if not self._shutdown.is_requested:
                    self._unmark(found)
        return found, erased

    # -- find

    def _find_tickets(self, keys: Iterable[str], on_progress: Callable[[int], object]) -> Found:
        """Finds tickets in the table, and those of the raw objects with the given keys.

        `on_progress` gets the number of items read, if the table is scanned.
        """
        found = Found()
        if self._target.kind == "ticket":
            found.keys[self._target.name] = set(keys) | self._keys(self._target.name)
            return found
        self._find_tickets_of_customer(found, on_progress)
        buckets = self._stores.raw_buckets
        holders = [(key, holder_of_object(self._stores.s3, bucket, key)) for key in keys for bucket in buckets]
        self._add(found, [_Ticket.held(h, key) for key, h in holders if h and self._target.matches(h)])
        return found

    def _find_messages(self, found: Found, on_progress: Callable[[int], object]) -> None:
        """Adds the DLQ's messages, and the tickets that only they know; `on_progress` gets the number of messages read.

        Reads the raw object that a message points at, because keys may be used again.
        """
        tickets = list(found.keys)
        known = dict(zip(tickets, self._map(self._keys, tickets), strict=False))
        for scan in self._scans:
            for selection in scan:
                messages = [message for message, _ in selection.send]
                held = self._map(lambda message: self._tickets_in(message, known), messages)
                for message, its_tickets in zip(messages, held, strict=False):
                    self._add_message(found, scan, message, its_tickets)
                self._extend()
                on_progress(sum(each.stats.scanned for each in self._scans))

    def _add_message(self, found: Found, scan: Scan, message: DlqMessage, tickets: Sequence[_Ticket | None]) -> None:
        """Adds the tickets of a message that are to be forgotten, and the message if it is about no other ticket."""
        mine = [ticket for ticket in tickets if ticket is not None]
        if not mine or not self._add(found, mine):
            return
        if len(mine) == len(tickets):
            found.messages[message.message_id] = scan, message
        else:
            found.shared_messages += 1

    def _add(self, found: Found, tickets: Sequence[_Ticket]) -> bool:
        """Adds tickets. False if one was not added.

        That is one whose id another customer uses as well: the tombstone would apply to both.
        """
        if self._target.kind == "customer":
            new = sorted({ticket.ticket_id for ticket in tickets} - {""} - found.keys.keys() - found.other_customers)
            for ticket_id, items in zip(new, self._map(self._items, new), strict=False):
                if {item.get("customer_id", {}).get("S") for item in items} - {self._target.name}:
                    found.other_customers.add(ticket_id)
        mine = [ticket for ticket in tickets if ticket.ticket_id not in found.other_customers]
        for ticket in mine:
            if ticket.ticket_id:
                found.keys[ticket.ticket_id] |= {ticket.key} - {""}
            elif ticket.key:
                found.orphans[ticket.key] = ticket.owner
        return len(mine) == len(tickets)

    def _tickets_in(self, message: DlqMessage, known: Mapping[str, set[str]]) -> list[_Ticket | None]:
        """For each ticket of a message: its id and its object's key if it is to be forgotten, otherwise None.

        `known` has the tickets of the table with the keys of their objects.
        The key of an inline ticket is "", and so is an id that cannot be read.
        """
        try:
            found = references(message.body)
        except EnrichmentError:
            found = [InlineTicket(message.body.encode())]
        tickets: list[_Ticket | None] = []
        for reference in found:
            if isinstance(reference, InlineTicket):
                holder = holder_of(reference.raw)
                tickets.append(_Ticket.held(holder) if self._target.matches(holder, known) else None)
            elif isinstance(reference, StoredTicket) and reference.bucket in self._stores.raw_buckets:
                tickets.append(self._ticket_of_object(reference, known))
            else:
                tickets.append(None)
        return tickets

    def _ticket_of_object(self, reference: StoredTicket, known: Mapping[str, set[str]]) -> _Ticket | None:
        key = reference.key
        holder = holder_of_object(self._stores.s3, reference.bucket, key)
        if holder is not None:
            return _Ticket.held(holder, key) if self._target.matches(holder, known) else None
        if named := next((ticket_id for ticket_id, keys in known.items() if key in keys), None):
            return _Ticket(named, key)
        # The object is gone, perhaps because an earlier run was killed before it deleted this message.
        answer = self._stores.dynamodb.get_item(
            TableName=self._stores.table, Key=tombstone_key("object", key), ConsistentRead=True
        )
        hashes = {name: answer.get("Item", {}).get(name, {}).get("S", "") for name in ("owner", "customer")}
        return _Ticket("", key, hashes["owner"]) if self._target.hash in hashes.values() else None

    def _find_tickets_of_customer(self, found: Found, on_progress: Callable[[int], object]) -> None:
        pages = self._stores.dynamodb.get_paginator("scan").paginate(
            TableName=self._stores.table,
            # The second are tombstones of an earlier run that was killed.
            FilterExpression="customer_id = :id AND created_at >= :first"
            " OR customer = :hash AND attribute_exists(raw_keys)",
            ExpressionAttributeValues={
                ":id": {"S": self._target.name},
                ":first": {"N": "0"},
                ":hash": {"S": self._target.hash},
            },
            ProjectionExpression="ticket_id, s3_key, raw_keys",
            ConsistentRead=True,
        )
        scanned = 0
        for page in pages:
            tickets = []
            for item in page["Items"]:
                name = item["ticket_id"]["S"]
                if "raw_keys" in item:
                    found.remembered[name] = set(item["raw_keys"]["SS"])
                    found.orphans |= dict.fromkeys(found.remembered[name], name.rpartition("#")[2])
                else:
                    tickets.append(_Ticket(name, item.get("s3_key", {}).get("S", "")))
            self._add(found, tickets)
            scanned += page["ScannedCount"]
            on_progress(scanned)
            if self._shutdown.is_requested:
                break

    def _items(self, ticket_id: str) -> list[Mapping[str, Any]]:
        pages = self._stores.dynamodb.get_paginator("query").paginate(
            TableName=self._stores.table,
            KeyConditionExpression="ticket_id = :id AND created_at >= :first",
            ExpressionAttributeValues={":id": {"S": ticket_id}, ":first": {"N": "0"}},
            ProjectionExpression="created_at, customer_id, s3_key",
            ConsistentRead=True,
        )
        return [item for page in pages for item in page["Items"]]

    def _keys(self, ticket_id: str) -> set[str]:
        """The keys that the items and the tombstone of a ticket name, and those of its inline tickets."""
        keys = {item["s3_key"]["S"] for item in self._items(ticket_id) if "s3_key" in item}
        answer = self._stores.dynamodb.get_item(
            TableName=self._stores.table, Key=tombstone_key("ticket", ticket_id), ConsistentRead=True
        )
        keys |= set(answer.get("Item", {}).get("raw_keys", {}).get("SS", []))
        pages = self._stores.s3.get_paginator("list_object_versions").paginate(
            Bucket=self._stores.enriched_bucket, Prefix=f"inline/{quote(ticket_id, safe='')}/"
        )
        for page in pages:
            entries: list[Any] = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            keys |= {entry["Key"] for entry in entries}
        return keys

    # -- remove

    def _mark(self, found: Found) -> None:
        """Writes the tombstones of the tickets, with the keys of their objects."""
        new = [(name, set(keys)) for name, keys in sorted(found.keys.items()) if keys != self._marked.get(name)]
        self._marked |= dict(new)
        for _ in self._map(self._mark_ticket, new):
            pass

    def _mark_ticket(self, ticket: tuple[str, set[str]]) -> None:
        ticket_id, keys = ticket
        change, values = "SET forgotten_at = if_not_exists(forgotten_at, :now)", {":now": {"S": _now()}}
        if self._target.kind == "customer":
            change += ", customer = :customer"
            values[":customer"] = {"S": self._target.hash}
        self._update(tombstone_key("ticket", ticket_id), change, values)
        self._change_keys("ADD", tombstone_key("ticket", ticket_id), keys)

    def _unmark(self, found: Found) -> None:
        """Removes the keys from the tombstones: their objects are gone."""
        entries = [(tombstone_key("ticket", name), keys) for name, keys in found.keys.items()]
        entries += [(item_key(name, NO_TICKET), keys) for name, keys in found.remembered.items()]
        for _ in self._map(lambda entry: self._change_keys("DELETE", *entry), entries):
            pass

    def _change_keys(self, change: Literal["ADD", "DELETE"], tombstone: Mapping[str, Any], keys: set[str]) -> None:
        if keys:
            self._update(tombstone, f"{change} raw_keys :keys", {":keys": {"SS": sorted(keys)}})

    def _update(self, key: Mapping[str, Any], change: str, values: Mapping[str, Any]) -> None:
        self._stores.dynamodb.update_item(
            TableName=self._stores.table, Key=key, UpdateExpression=change, ExpressionAttributeValues=values
        )

    def _erase(self, found: Found, *, dry_run: bool) -> Erased:
        """Removes what was found and what the table and S3 have of it now. A dry run only returns it."""
        batches = self._erase_from_batches(found, dry_run=dry_run)
        with progress("listing" if dry_run else "removing", len(found.keys)) as advance:
            erased = self._erase_rest(found, advance, dry_run=dry_run)
        return replace(erased, places=[*batches, *erased.places])

    def _erase_rest(self, found: Found, on_progress: Callable[[int], object], *, dry_run: bool) -> Erased:
        """As _erase, except for the objects that hold several tickets.

        `on_progress` gets the number of tickets whose objects are removed.
        """
        erased = Erased()
        tickets = sorted(found.keys.items())

        def erase_objects(ticket: tuple[str, set[str]]) -> list[tuple[list[Place], int]]:
            ticket_id, keys = ticket
            owner = name_hash("ticket", ticket_id)
            keys |= self._keys(ticket_id)
            objects = [self._erase_object(key, owner, dry_run=dry_run) for key in sorted(keys)]
            return [*objects, (self._erase_corrections(ticket_id, dry_run=dry_run), 0)]

        orphans = [self._erase_object(key, owner, dry_run=dry_run) for key, owner in sorted(found.orphans.items())]
        for number, objects in enumerate(chain([orphans], self._map(erase_objects, tickets))):
            for places, kept in objects:
                erased.places += places
                erased.kept_versions += kept
            self._extend()
            on_progress(number)
        if not self._shutdown.is_requested:
            self._erase_messages(found, erased, dry_run=dry_run)
            for places in self._map(lambda ticket: self._erase_items(ticket[0], dry_run=dry_run), tickets):
                erased.places += places
        return erased

    def _erase_from_batches(self, found: Found, *, dry_run: bool) -> list[Place]:
        """Removes the tickets from the objects that hold several. Shows its progress by days."""
        owners = {name_hash("ticket", ticket_id) for ticket_id in found.keys} | set(found.orphans.values())
        owners -= {""}
        s3, bucket, places = self._stores.s3, self._stores.enriched_bucket, []
        days = day_prefixes(s3, bucket) if owners else []

        def listed(day: str) -> list[str]:
            return list(keys_with(s3, bucket, day, owners))

        def blanked(key: str) -> Place:
            return Place("enriched", f"s3://{bucket}/{key}", blank_tickets(s3, bucket, key, owners, dry_run=dry_run))

        with progress("searching objects of batches", len(days)) as advance:
            for number, keys in enumerate(self._map(listed, days), 1):
                places += [place for place in self._map(blanked, keys) if place.count]
                self._extend()
                advance(number)
        return places

    def _erase_object(self, key: str, owner: str, *, dry_run: bool) -> tuple[list[Place], int]:
        """Removes the versions of a ticket's raw and enriched objects; also returns how many other tickets have."""
        s3 = self._stores.s3
        raw = [(bucket, *versions_to_erase(s3, bucket, key, owner)) for bucket in self._stores.raw_buckets]
        kept = sum(others for _, _, others in raw)
        if not kept and not dry_run:
            customer = {"customer": {"S": self._target.hash}} if self._target.kind == "customer" else {}
            tombstone = {**tombstone_key("object", key), "forgotten_at": {"S": _now()}, "owner": {"S": owner}}
            self._stores.dynamodb.put_item(TableName=self._stores.table, Item={**tombstone, **customer})
        places = [self._erase_versions("raw", bucket, key, found, dry_run=dry_run) for bucket, found, _ in raw]
        enriched, others = versions_to_erase(s3, self._stores.enriched_bucket, key, owner)
        places.append(self._erase_versions("enriched", self._stores.enriched_bucket, key, enriched, dry_run=dry_run))
        return [place for place in places if place.count], kept + others

    def _erase_versions(
        self, kind: Kind, bucket: str, key: str, versions: Sequence[Version], *, dry_run: bool
    ) -> Place:
        for version in versions if not dry_run else ():
            self._stores.s3.delete_object(Bucket=bucket, Key=key, VersionId=version.version_id)
        return Place(kind, f"s3://{bucket}/{key}", len(versions))

    def _erase_corrections(self, ticket_id: str, *, dry_run: bool) -> list[Place]:
        """Removes the log of a ticket's corrections: nothing else ever removes an entry."""
        bucket, found = self._stores.enriched_bucket, Counter[str]()
        pages = self._stores.s3.get_paginator("list_object_versions").paginate(
            Bucket=bucket, Prefix=log_prefix(ticket_id)
        )
        for page in pages:
            entries: list[Any] = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            for entry in entries:
                found[entry["Key"]] += 1
                if not dry_run:
                    self._stores.s3.delete_object(Bucket=bucket, Key=entry["Key"], VersionId=entry["VersionId"])
        return [Place("correction", f"s3://{bucket}/{key}", count) for key, count in found.items()]

    def _erase_messages(self, found: Found, erased: Erased, *, dry_run: bool) -> None:
        for scan in self._scans:
            for part in tens([message for its_scan, message in found.messages.values() if its_scan is scan]):
                results = [True] * len(part) if dry_run else scan.queue.delete([message.receipt for message in part])
                for message, is_deleted in zip(part, results, strict=True):
                    if not is_deleted:
                        erased.failed_messages += 1
                        continue
                    erased.places.append(Place("dlq", message.message_id))
                    if not dry_run:
                        scan.in_flight.remove(message.message_id)
        found.messages.clear()

    def _erase_items(self, ticket_id: str, *, dry_run: bool) -> list[Place]:
        """Removes a ticket's entries in the vector index and its items."""
        keys = [Key(ticket_id, int(item["created_at"]["N"])) for item in self._items(ticket_id)]
        places = self._erase_vectors(keys, dry_run=dry_run)
        for key in keys:
            if not dry_run:
                self._stores.dynamodb.delete_item(TableName=self._stores.table, Key=item_key(*key))
            places.append(Place("item", f"{self._stores.table}/{ticket_id}/{key.created_at}"))
        return places if dry_run else [*places, *self._erase_vectors(keys, dry_run=False)]

    def _erase_vectors(self, keys: Sequence[Key], *, dry_run: bool) -> list[Place]:
        stored = list(self._stores.vectors.stored(keys)) if keys else []
        if stored and not dry_run:
            self._stores.vectors.remove(stored)
        return [Place("vector", f"{self._stores.vectors.place}/{'/'.join(map(str, key))}") for key in stored]

    def _extend(self) -> None:
        for scan in self._scans:
            scan.in_flight.extend()

    def _map(self, work: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
        """The results of `work`, some at a time; stops early if a shutdown is requested."""
        left = list(items)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            for start in range(0, len(left), CONNECTIONS):
                if self._shutdown.is_requested:
                    return
                yield from pool.map(work, left[start : start + CONNECTIONS])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
