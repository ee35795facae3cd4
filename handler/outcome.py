"""The outcome of a ticket, and of the message that contains or refers to it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from enrichment.errors import EnrichmentError, ModelFailed, OutOfTime
from enrichment.ticket import RawTicket
from handler.errors import Unexpected
from handler.messages import Reference, StoredTicket, number_attribute
from handler.ports import Known

__all__ = ["MessageState", "Outcome", "TicketState", "backoff_seconds", "overall", "receive_count"]

Outcome = Literal["done", "skipped", "rejected", "failed"]

# Upper limits of the retry delays, in seconds. With MAX_RECEIVE_COUNT 30 a message is retried for at least 11,265 s (29
# delays, each at least half its limit), and for over two hours (7,215 s) even if nine of these receives crash.
_FIRST_DELAY: Final = 30
_LONGEST_DELAY: Final = 900
_ORDER: Final[tuple[Outcome, ...]] = ("failed", "rejected", "done", "skipped")
_OWN_FAULT: Final = (ModelFailed, Unexpected)  # other transient errors are caused by a service or a lack of time
_MAX_OWN_FAILURES: Final = 5
# A ticket that the models had no time for needs another batch, not the end of an outage: it waits at most two minutes.
_OUT_OF_TIME_ATTEMPTS: Final = 3
_MODEL_STAGES: Final = ("enrich", "process")


@dataclass(eq=False)
class TicketState:
    """The state of one ticket in the batch; several records may refer to it. None as outcome: still in progress.

    `modified` is exact if it is more precise than the second of the object's LastModified. `received` is when a process
    first got it (Unix milliseconds).
    """

    reference: Reference
    modified: int
    stage: str = "fetch"
    outcome: Outcome | None = None
    error: EnrichmentError | None = None
    note: str | None = None
    ticket: RawTicket | None = None
    raw_sha256: str = ""
    raw_bytes: int = 0
    received: int = 0
    key: str = ""
    is_exact: bool = True
    known: Known | None = None
    milliseconds: dict[str, float] = field(default_factory=dict)

    def end(self, outcome: Outcome, note: str | None = None) -> None:
        """Sets a successful outcome: done, or skipped for the reason in `note`."""
        self.outcome, self.note, self.error = outcome, note, None

    def fail(self, error: EnrichmentError) -> None:
        """Sets the outcome after an error: failed if it is transient, otherwise rejected."""
        self.error = error
        self.outcome = "failed" if error.transient else "rejected"

    def names(self) -> dict[str, Any]:
        """The ids of this ticket for logs. No field of a ticket that violates the schema: it may contain anything."""
        names: dict[str, Any] = {}
        if self.ticket is not None:
            names["ticket_id"] = self.ticket.ticket_id
        if isinstance(self.reference, StoredTicket):
            names["s3_key"] = self.reference.key
        return names


@dataclass(eq=False)
class MessageState:
    """A record of the event and the tickets it refers to; `owned[i]` is False if an earlier record has ticket i too.

    `own_failures` is the number of receives at which the message caused its own failure, including this one; None if it
    did not fail that way this time, or if the count is unavailable.
    """

    record: Mapping[str, Any]
    tickets: list[TicketState]
    owned: list[bool]
    outcome: Outcome = "failed"
    own_failures: int | None = None

    def names(self) -> dict[str, Any]:
        """The id of this message for logs."""
        return {"message_id": self.record.get("messageId")}

    @property
    def receive_count(self) -> int:
        """The number of receives of the message, including this one."""
        return receive_count(self.record)

    @property
    def code(self) -> str:
        """The code of the first error, which is the reason why the whole message is rejected."""
        return next(t.error.code for t in self.tickets if t.error is not None)

    def errors(self) -> list[dict[str, Any]]:
        """The errors of all tickets, for the attribute `Rejection`."""
        return [
            {"error": t.error.code, "detail": str(t.error), "stage": t.stage, **t.names()}
            for t in self.tickets
            if t.error is not None
        ]

    @property
    def is_own_fault(self) -> bool:
        """Whether the message failed and all of its failed tickets failed in the models or in our own code.

        A ticket that failed because of a service, or had no time, may be good, so the message keeps being retried.
        """
        failures = [t.error for t in self.tickets if (t.outcome or "failed") == "failed"]
        return bool(failures) and all(isinstance(error, _OWN_FAULT) for error in failures)

    def conclude(self, max_receive_count: int) -> Outcome:
        """The outcome that follows from those of the tickets; after the last attempt `failed` becomes `rejected`."""
        outcome = overall(t.outcome or "failed" for t in self.tickets)
        # At the last receive: otherwise SQS itself would move the message to the DLQ, without a reason.
        exhausted = (self.own_failures or 0) >= _MAX_OWN_FAILURES or self.receive_count >= max_receive_count
        return "rejected" if outcome == "failed" and exhausted else outcome

    def delay(self) -> int:
        """Seconds until a failed message becomes visible again: longer with each receive, or each own failure."""
        attempts = self.own_failures or self.receive_count
        failed = [t for t in self.tickets if (t.outcome or "failed") == "failed"]
        # A read or write without an answer is out of time too, but that may be an outage.
        if failed and all(isinstance(t.error, OutOfTime) and t.stage in _MODEL_STAGES for t in failed):
            attempts = min(attempts, _OUT_OF_TIME_ATTEMPTS)
        return backoff_seconds(attempts)

    def lines(self) -> list[tuple[Outcome, str | None, dict[str, Any]]]:
        """For each ticket its final outcome, its error code, and the fields of its log line."""
        return [self._line(ticket, owned=owned) for ticket, owned in zip(self.tickets, self.owned, strict=True)]

    def _line(self, ticket: TicketState, *, owned: bool) -> tuple[Outcome, str | None, dict[str, Any]]:
        final, note = ticket.outcome or "failed", ticket.note
        if ticket.error is not None:
            final = self.outcome  # a ticket with an error is retried or rejected together with its message
        elif final == "done" and not owned:
            final, note = "skipped", "duplicate in the batch"
        extra = {"outcome": final, **self.names(), **ticket.names()}
        if note is not None:
            extra["note"] = note
        if ticket.error is not None:
            extra |= {"error_type": ticket.error.code, "stage": ticket.stage, "detail": str(ticket.error)}
            extra["receive_count"] = self.receive_count
            if self.own_failures is not None:
                extra["own_failures"] = self.own_failures
        # A copy, because a call that returns late may still add its time.
        return final, ticket.error.code if ticket.error else None, {**extra, "milliseconds": dict(ticket.milliseconds)}


def receive_count(record: Mapping[str, Any]) -> int:
    """The number of receives of a record's message, including this one."""
    return number_attribute(record, "ApproximateReceiveCount") or 1


def overall(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome of a message from those of its tickets: failed, then rejected, then done, then skipped."""
    found = set(outcomes)
    return next(outcome for outcome in _ORDER if outcome in found)


def backoff_seconds(attempts: int) -> int:
    """Seconds to wait after this number of failed attempts: equal jitter, half to all of 30, 60, 120 ... 900 s.

    The half that is not random guarantees a minimum for the sum of all delays, which outlasts a two-hour outage.
    """
    ceiling = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** min(max(attempts, 1) - 1, 10))
    # SystemRandom, because containers restored from the same snapshot share the state of `random`.
    return random.SystemRandom().randint(ceiling // 2, ceiling)
