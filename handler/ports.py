"""What a batch works with: the models, the stores, the dead letters, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from enrichment.errors import EnrichmentError
from enrichment.ticket import EnrichmentData, RawTicket
from handler.dead_letters import DeadLetters
from handler.failure_counts import FailureCounts
from handler.observability import Figures, Logger
from handler.storage import TicketSink, TicketSource

__all__ = ["Models", "Ports"]


class Models(Protocol):
    """What enriches: enrichment.Enricher, or a stand-in of a test."""

    version: str
    """The model version that results will carry."""

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
    """What a batch works with."""

    source: TicketSource
    sink: TicketSink
    dead_letters: DeadLetters
    failure_counts: FailureCounts
    models: Models
    figures: Figures
    logger: Logger
    pool: ThreadPoolExecutor
    max_receive_count: int
    max_ticket_bytes: int
