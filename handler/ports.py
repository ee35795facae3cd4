"""The ports of a batch: the models, the stores, the DLQ and the metrics, each as a Protocol with adapters elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal, Protocol, TypeAlias

from enrichment.errors import BundleError, EnrichmentError
from enrichment.ticket import EnrichmentData, RawTicket
from handler.messages import StoredTicket
from handler.metrics import Logger, Metrics
from handler.settings import EnrichedObjects, Redact

__all__ = [
    "Commit",
    "Committed",
    "DeadLetters",
    "FailureCounts",
    "Forgotten",
    "Known",
    "Models",
    "Placed",
    "Ports",
    "RawObject",
    "TicketName",
    "TicketSink",
    "TicketSource",
    "Unfinished",
    "Write",
]


@dataclass(frozen=True, slots=True)
class RawObject:
    """A raw ticket as read, when it was last modified (whole seconds, in milliseconds of Unix time), and its eTag."""

    raw: bytes
    modified: int
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """The table's data about a ticket that was enriched before.

    `corrections` are the labels that people decided, as the table has them: the new labels do not replace them.
    """

    content_sha256: str
    model_version: str
    s3_key: str
    source_modified: int
    redacted: Redact = "off"
    corrections: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Write:
    """An enriched ticket to store: `body` in S3 under `key`, an extract of the other fields in the table.

    `redacted` says which of the two have been redacted already; the hash is always that of the raw ticket.
    `known` is the committed state as it was read before; if another writer changes it, the store reads it again.
    """

    ticket: RawTicket
    enrichment: EnrichmentData
    body: bytes
    key: str
    content_sha256: str
    source_modified: int
    redacted: Redact = "off"
    known: Known | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """The bytes of an enriched ticket in an object that holds several, and the version in which they were written.

    The version only identifies the write: `tickets forget` may have to write the object again, with the other tickets
    at the same offsets, so readers take the object's current version.
    """

    key: str
    offset: int
    length: int
    version_id: str


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Numbers of earlier receives of a message whose processing began and never ended: the process died.

    `together`: while the message was processed with others; `alone`: while it was processed alone.
    """

    together: int = 0
    alone: int = 0


TicketName: TypeAlias = tuple[str, int]
"""A ticket's `ticket_id` and `created_at`, the key of its item."""

Commit: TypeAlias = Literal["clear", "tie"]
"""How an item was committed. "tie": it replaced other content with the same modification time."""

Forgotten: TypeAlias = Literal["forgotten"]
"""`tickets forget` removed the ticket: nothing of it may be stored again."""

Committed: TypeAlias = Known | Forgotten | EnrichmentError | None
"""What the table has of a ticket: None if it is new, an error if it could not be read."""


class TicketSource(Protocol):
    """Reads raw tickets."""

    def fetch(self, reference: StoredTicket) -> RawObject:
        """Reads an object. Raises ObjectGone, ObjectTooLarge, BucketUnexpected, Throttled or ServiceFailed."""
        ...


class TicketSink(Protocol):
    """Stores enriched tickets."""

    def known(self, names: Sequence[TicketName]) -> list[Committed]:
        """What the table has of each ticket. Raises Throttled or ServiceFailed if none could be read."""
        ...

    def store(self, write: Write) -> Commit | None:
        """Stores a ticket: the object first, then the item, which commits it.

        Returns None if a newer version is already committed. Raises StoreRefused, Throttled or ServiceFailed.
        """
        ...

    def put_together(self, bodies: Iterable[tuple[str, bytes]]) -> list[Placed]:
        """Stores enriched tickets, each with its id, in one object, which no item names yet; none for no tickets.

        Reads `bodies` once and keeps one at a time. Raises StoreRefused, Throttled or ServiceFailed.
        """
        ...

    def commit(self, write: Write, placed: Placed) -> Commit | None:
        """As store, for a ticket that `put_together` has written: `write` needs no body."""
        ...

    def forgotten(self, ticket_ids: Collection[str]) -> set[str]:
        """Which of these tickets `tickets forget` has removed.

        Asked again after a ticket is stored, because `tickets forget` may have looked for it just before. What was
        stored is then erased. Raises Throttled or ServiceFailed.
        """
        ...

    def erase(self, ticket_id: str, created_at: int, key: str, *, since: int | None = None) -> None:
        """Removes a forgotten ticket's item and object, should a process that was killed have stored them.

        `since` (Unix milliseconds): also from the objects of several tickets that were written from then on.
        """
        ...

    def erase_object(self, key: str, *, since: int | None = None) -> bool:
        """As erase, for the forgotten ticket whose raw object had this key. False: it was no forgotten ticket's."""
        ...


class DeadLetters(Protocol):
    """Sends rejected messages to the DLQ and defers failed ones."""

    def reject(self, record: Mapping[str, Any], reasons: Sequence[Mapping[str, Any]], code: str) -> None:
        """Sends a record of an SQS event to the DLQ with its reason. Raises Throttled or ServiceFailed."""
        ...

    def defer(self, record: Mapping[str, Any], seconds: int) -> None:
        """Makes a failed message visible again after `seconds`. Errors are ignored: SQS retries the message anyway."""
        ...

    def delete(self, records: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Deletes records of an SQS event from the queue; True for each that SQS confirms."""
        ...


class FailureCounts(Protocol):
    """Counts the failures that each message caused itself, and notes which messages are being processed."""

    def add(self, message_id: str, receive_count: int) -> int:
        """Records that a message failed at this receive; returns the number of receives at which it has failed.

        Adding the same receive again has no effect. Raises Throttled or ServiceFailed.
        """
        ...

    def begin(self, message_id: str, receive_count: int, *, alone: bool) -> Unfinished:
        """Notes durably that the processing of a message begins; returns its earlier receives that never ended.

        Noting the same receive again has no effect. Raises Throttled or ServiceFailed.
        """
        ...

    def end(self, message_id: str) -> None:
        """Clears the note of a message: its process has survived it. Raises Throttled or ServiceFailed."""
        ...


class Models(Protocol):
    """Enriches tickets: enrichment.Enricher, or a fake in tests."""

    version: str
    """The model version stored with each result."""

    def enrich(
        self,
        tickets: Sequence[RawTicket],
        *,
        time_left: Callable[[], float] | None = None,
        observe: Callable[[str, float, int], None] | None = None,
        with_shadow: bool = True,
        shadow_failed: Callable[[EnrichmentError], None] | None = None,
    ) -> list[EnrichmentData | EnrichmentError]:
        """As enrichment.Enricher.enrich."""
        ...


@dataclass(frozen=True)
class Ports:
    """The external dependencies of a batch.

    `readers` read tickets, `pool` does everything else: reads that hang must not hold up the stores. `on_settled` is
    told the receipt handles of messages that are deleted or deferred before the end of an invocation. `shadow_error` is
    why SHADOW_BUNDLE could not be opened. The worker processes several batches at once: a batch holds `models_turn`
    while the models run.
    """

    source: TicketSource
    sink: TicketSink
    dead_letters: DeadLetters
    failure_counts: FailureCounts
    models: Models
    metrics: Metrics
    logger: Logger
    readers: ThreadPoolExecutor
    pool: ThreadPoolExecutor
    on_settled: Callable[[Sequence[str]], None]
    max_receive_count: int
    max_ticket_bytes: int
    redact: Redact = "off"
    enriched_objects: EnrichedObjects = "ticket"
    shadow_error: BundleError | None = None
    models_turn: Lock = field(default_factory=Lock)
