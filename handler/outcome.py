"""What becomes of a ticket, and of the message that brought it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from enrichment.errors import EnrichmentError, OutOfTime
from enrichment.ticket import RawTicket
from handler.messages import Reference, StoredTicket, number_attribute

__all__ = ["MessageState", "Outcome", "TicketState", "backoff_seconds", "overall"]

Outcome = Literal["done", "skipped", "rejected", "failed"]

_MAX_VISIBILITY: Final = 900
_ORDER: Final[tuple[Outcome, ...]] = ("failed", "rejected", "done", "skipped")


@dataclass(eq=False)
class TicketState:
    """One ticket on its way through the batch; several records may refer to it. Without an outcome it goes on."""

    reference: Reference
    modified: int
    stage: str = "fetch"
    outcome: Outcome | None = None
    error: EnrichmentError | None = None
    note: str | None = None
    ticket: RawTicket | None = None
    raw_sha256: str = ""
    key: str = ""
    milliseconds: dict[str, float] = field(default_factory=dict)

    def end(self, outcome: Outcome, note: str | None = None) -> None:
        """Ends it well: done, or skipped for the reason in `note`."""
        self.outcome, self.note = outcome, note

    def fail(self, error: EnrichmentError) -> None:
        """Ends it badly: failed where it may succeed later, else rejected."""
        self.error = error
        self.outcome = "failed" if error.transient else "rejected"

    def names(self) -> dict[str, Any]:
        """What names this ticket: never a field of one that broke the schema, for it may hold anything."""
        names: dict[str, Any] = {}
        if self.ticket is not None:
            names["ticket_id"] = self.ticket.ticket_id
        if isinstance(self.reference, StoredTicket):
            names["s3_key"] = self.reference.key
        return names


@dataclass(eq=False)
class MessageState:
    """A record of the event and the tickets that it refers to; `owned` says which of them it brought first."""

    record: Mapping[str, Any]
    tickets: list[TicketState]
    owned: list[bool]
    outcome: Outcome = "failed"

    def names(self) -> dict[str, Any]:
        """What names this message."""
        return {"message_id": self.record.get("messageId")}

    @property
    def receive_count(self) -> int:
        """How often SQS has handed the message out, this time included."""
        return number_attribute(self.record, "ApproximateReceiveCount") or 1

    @property
    def code(self) -> str:
        """The code of the first error: the reason for which the message as a whole is rejected."""
        return next(t.error.code for t in self.tickets if t.error is not None)

    def errors(self) -> list[dict[str, Any]]:
        """Each bad ticket with what was wrong with it, fit for an attribute that people read."""
        return [
            {"error": t.error.code, "detail": str(t.error), "stage": t.stage, **t.names()}
            for t in self.tickets
            if t.error is not None
        ]

    def conclude(self, max_receive_count: int) -> Outcome:
        """The outcome that follows from those of the tickets; at the last attempt `failed` becomes `rejected`."""
        outcome = overall(t.outcome or "failed" for t in self.tickets)
        if outcome == "failed" and self.receive_count >= max_receive_count:
            return "rejected"  # otherwise SQS would move it now, without a reason
        return outcome

    def delay(self) -> int:
        """Seconds for which a failed message stays out of sight: none where only the time was too short."""
        failures = [t.error for t in self.tickets if t.outcome == "failed"]
        if failures and all(isinstance(error, OutOfTime) for error in failures):
            return 0
        return backoff_seconds(self.receive_count)

    def lines(self) -> list[tuple[Outcome, str | None, dict[str, Any]]]:
        """Per ticket its final outcome, its error's code, and what the log says of it."""
        return [self._line(ticket, owned=owned) for ticket, owned in zip(self.tickets, self.owned, strict=True)]

    def _line(self, ticket: TicketState, *, owned: bool) -> tuple[Outcome, str | None, dict[str, Any]]:
        final, note = ticket.outcome or "failed", ticket.note
        if ticket.error is not None:
            final = self.outcome  # a bad ticket waits when its message does, and is rejected with it
        elif final == "done" and not owned:
            final, note = "skipped", "duplicate in the batch"
        extra = {"outcome": final, **self.names(), **ticket.names()}
        if note is not None:
            extra["note"] = note
        if ticket.error is not None:
            extra |= {"error_type": ticket.error.code, "stage": ticket.stage, "detail": str(ticket.error)}
            extra["receive_count"] = self.receive_count
        # A copy: a call that came back too late may still write its time.
        return final, ticket.error.code if ticket.error else None, {**extra, "milliseconds": dict(ticket.milliseconds)}


def overall(outcomes: Iterable[Outcome]) -> Outcome:
    """A message's outcome from its tickets': failed before rejected before done before skipped."""
    found = set(outcomes)
    return next(outcome for outcome in _ORDER if outcome in found)


def backoff_seconds(receive_count: int) -> int:
    """How long a failed message waits, by how often it was received: full jitter up to 2, 4, 8 ... 900 s."""
    ceiling = min(_MAX_VISIBILITY, 2 ** min(max(receive_count, 1), 10))
    # From the system: containers that Lambda restores from one snapshot would all have the same state of `random`.
    return random.SystemRandom().randint(1, ceiling)
