"""The ports of a batch: the models, the stores, the DLQ and the metrics, each as a Protocol with adapters elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from enrichment.errors import EnrichmentError
from enrichment.ticket import EnrichmentData, RawTicket
from handler.messages import StoredTicket
from handler.metrics import Logger, Metrics

__all__ = [
    "Commit",
    "DeadLetters",
    "FailureCounts",
    "Known",
    "Models",
    "Ports",
    "RawObject",
    "TicketSink",
    "TicketSource",
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
    """The table's data about a ticket that was enriched before."""

    content_sha256: str
    model_version: str
    s3_key: str
    source_modified: int


@dataclass(frozen=True, slots=True)
class Write:
    """An enriched ticket to store: `body` in S3 under `key`, an extract in the table.

    `known` is the committed state as it was read before; if another writer changes it, the store reads it again.
    """

    ticket: RawTicket
    enrichment: EnrichmentData
    body: bytes
    key: str
    content_sha256: str
    source_modified: int
    known: Known | None = None


Commit: TypeAlias = Literal["clear", "tie"]
"""How an item was committed. "tie": it replaced other content with the same modification time."""


class TicketSource(Protocol):
    """Reads raw tickets."""

    def fetch(self, reference: StoredTicket) -> RawObject:
        """Reads an object. Raises ObjectGone, ObjectTooLarge, BucketUnexpected, Throttled or ServiceFailed."""
        ...


class TicketSink(Protocol):
    """Stores enriched tickets."""

    def known(self, ticket_id: str, created_at: int) -> Known | None:
        """The committed state of a ticket, None if there is none. Raises Throttled or ServiceFailed."""
        ...

    def store(self, write: Write) -> Commit | None:
        """Stores a ticket: the object first, then the item, which commits it.

        Returns None if a newer version is already committed. Raises StoreRefused, Throttled or ServiceFailed.
        """
        ...


class DeadLetters(Protocol):
    """Sends rejected messages to the DLQ and defers failed ones."""

    def reject(self, record: Mapping[str, Any], reasons: Sequence[Mapping[str, Any]], code: str) -> None:
        """Sends a record of an SQS event to the DLQ with its reason. Raises Throttled or ServiceFailed."""
        ...

    def defer(self, record: Mapping[str, Any], seconds: int) -> None:
        """Makes a failed message visible again after `seconds`. Errors are ignored: SQS retries the message anyway."""
        ...


class FailureCounts(Protocol):
    """Counts the failures that each message caused itself."""

    def add(self, message_id: str, receive_count: int) -> int:
        """Records that a message failed at this receive; returns the number of receives at which it has failed.

        Adding the same receive again has no effect. Raises Throttled or ServiceFailed.
        """
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
    ) -> list[EnrichmentData | EnrichmentError]:
        """As enrichment.Enricher.enrich."""
        ...


@dataclass(frozen=True)
class Ports:
    """The external dependencies of a batch."""

    source: TicketSource
    sink: TicketSink
    dead_letters: DeadLetters
    failure_counts: FailureCounts
    models: Models
    metrics: Metrics
    logger: Logger
    pool: ThreadPoolExecutor
    max_receive_count: int
    max_ticket_bytes: int
