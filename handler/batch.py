"""A batch in three steps: fetch all, enrich together, settle each record.

Every record ends as done, skipped, rejected or failed. A message with several tickets fails when one of them failed
(nothing of it is rejected yet), else is rejected when one of them was, else is done when one of them was.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, TypeVar

from enrichment.errors import EnrichmentError, OutOfTime
from enrichment.ticket import EnrichmentData, RawTicket, enriched_json, parse_ticket
from handler.dead_letters import DeadLetters, backoff_seconds
from handler.messages import Deleted, InlineTicket, Reference, StoredTicket, inline_key, references
from handler.observability import Figures, Logger
from handler.storage import TicketSink, TicketSource, Write

__all__ = ["Batch", "MessageFailed", "Models", "Outcome", "Ports"]

Outcome = Literal["done", "skipped", "rejected", "failed"]
_T = TypeVar("_T")

# Seconds that storing and settling get of the function's time; the models never use them.
_RESERVE_SHARE: Final = 0.15
_RESERVE_MOST: Final = 5.0


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


class MessageFailed(Exception):
    """Tells Powertools that a record is to be retried."""


@dataclass(frozen=True)
class Ports:
    """What a batch works with."""

    source: TicketSource
    sink: TicketSink
    dead_letters: DeadLetters
    models: Models
    figures: Figures
    logger: Logger
    pool: ThreadPoolExecutor
    max_receive_count: int


class _Unexpected(EnrichmentError):
    """A fault of our own, caught at an isolation boundary; worth another try."""

    code = "unexpected"
    transient = True


@dataclass(eq=False)
class _Ticket:
    """One ticket on its way through the batch; several records may refer to it."""

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

    def fail(self, error: EnrichmentError) -> None:
        self.error = error
        self.outcome = "failed" if error.transient else "rejected"

    def names(self) -> dict[str, Any]:
        """What names this ticket: never from a ticket that broke the schema, whose every field may be anything."""
        names: dict[str, Any] = {}
        if self.ticket is not None:
            names["ticket_id"] = self.ticket.ticket_id
        if isinstance(self.reference, StoredTicket):
            names["s3_key"] = self.reference.key
        return names

    def describe(self) -> dict[str, Any]:
        assert self.error is not None
        return {"error": self.error.code, "detail": str(self.error), "stage": self.stage, **self.names()}


@dataclass(eq=False)
class _Message:
    """A record of the event and the tickets that it refers to; `owned` says which of them it brought first."""

    record: Mapping[str, Any]
    tickets: list[_Ticket]
    owned: list[bool]

    @property
    def receive_count(self) -> int:
        count = (self.record.get("attributes") or {}).get("ApproximateReceiveCount", "1")
        return int(count) if str(count).isdigit() else 1


class Batch:
    """The records of one event. `run` processes them all, `settled` then says how one ended."""

    def __init__(self, records: Sequence[Mapping[str, Any]], ports: Ports, time_left: Callable[[], float]) -> None:
        self._ports = ports
        self._time_left = time_left
        self._reserve = min(_RESERVE_MOST, _RESERVE_SHARE * time_left())
        self._tickets: dict[object, _Ticket] = {}
        self._messages = [self._message(record) for record in records]
        self._failed: set[int] = set()

    def run(self) -> None:
        """Fetches, enriches, stores and settles; raises nothing for whatever the records hold."""
        figures = self._ports.figures
        tickets = list(self._tickets.values())
        figures.batch(len(tickets))
        self._timed("fetch", lambda: self._on_pool(self._fetch, [t for t in tickets if t.outcome is None]))
        self._enrich([t for t in tickets if t.outcome is None])
        self._on_pool(self._settle, self._messages, patient=True)
        figures.flush()

    def settled(self, record: Mapping[str, Any]) -> None:
        """Raises MessageFailed for a record that is to be retried."""
        if id(record) in self._failed:
            raise MessageFailed

    # -- parse

    def _message(self, record: Mapping[str, Any]) -> _Message:
        sent = (record.get("attributes") or {}).get("SentTimestamp", "")
        modified = int(sent) if str(sent).isdigit() else int(time.time() * 1000)
        try:
            body = record["body"]
            found: Sequence[Reference] = references(body if isinstance(body, str) else "")
        except EnrichmentError as error:
            return self._hopeless(record, error)
        except Exception as error:  # an isolation boundary: one record must not take the batch along
            self._ports.logger.exception("a record could not be read", extra={"message_id": record.get("messageId")})
            return self._hopeless(record, _Unexpected(f"reading the record raised {type(error).__name__}"))
        tickets, owned = [], []
        for reference in found:
            # A duplicate delivery within one batch is enriched once.
            ticket = self._tickets.get(reference)
            owned.append(ticket is None)
            if ticket is None:
                ticket = self._tickets[reference] = _Ticket(reference, modified)
                if isinstance(reference, Deleted):
                    ticket.outcome, ticket.note = "skipped", reference.what
            ticket.modified = max(ticket.modified, modified)
            tickets.append(ticket)
        return _Message(record, tickets, owned)

    def _hopeless(self, record: Mapping[str, Any], error: EnrichmentError) -> _Message:
        ticket = _Ticket(Deleted("unreadable"), 0, stage="parse")
        ticket.fail(error)
        self._tickets[ticket] = ticket
        return _Message(record, [ticket], [True])

    # -- fetch

    def _fetch(self, ticket: _Ticket) -> None:
        ports, reference = self._ports, ticket.reference
        if isinstance(reference, StoredTicket):
            stored = ports.source.fetch(reference)
            raw, ticket.modified = stored.raw, stored.modified
        else:
            assert isinstance(reference, InlineTicket)
            raw = reference.raw
        ticket.stage = "validate"
        parsed = parse_ticket(raw)
        ticket.ticket = parsed
        ticket.stage = "fetch"
        ticket.raw_sha256 = hashlib.sha256(raw).hexdigest()
        stored_key = reference.key if isinstance(reference, StoredTicket) else None
        ticket.key = stored_key or inline_key(parsed.ticket_id, parsed.created_at)
        known = ports.sink.known(parsed.ticket_id, parsed.created_at)
        if known is None:
            return
        if (known.content_sha256, known.model_version, known.s3_key) == (
            ticket.raw_sha256,
            ports.models.version,
            ticket.key,
        ):
            ticket.outcome, ticket.note = "skipped", "already enriched"
        elif known.source_modified > ticket.modified:
            ticket.outcome, ticket.note = "skipped", "stale"

    # -- enrich and store

    def _enrich(self, tickets: Sequence[_Ticket]) -> None:
        if not tickets:
            return
        ports = self._ports
        begin = time.perf_counter()
        raw = [t.ticket for t in tickets if t.ticket is not None]
        results = ports.models.enrich(
            raw,
            time_left=lambda: self._time_left() - self._reserve,
            observe=lambda stage, seconds, _count: ports.figures.stage(stage, seconds),
        )
        share = (time.perf_counter() - begin) * 1000 / len(tickets)
        writes: list[tuple[_Ticket, EnrichmentData]] = []
        for ticket, result in zip(tickets, results, strict=True):
            ticket.stage = "enrich"
            ticket.milliseconds["enrich"] = round(share, 1)
            if isinstance(result, EnrichmentError):
                ticket.fail(result)
            else:
                ticket.stage = "store"
                writes.append((ticket, result))
        self._timed("store", lambda: self._on_pool(self._store, writes, patient=True))

    def _store(self, write: tuple[_Ticket, EnrichmentData]) -> None:
        ticket, enrichment = write
        assert ticket.ticket is not None
        stored = self._ports.sink.store(
            Write(
                ticket.ticket,
                enrichment,
                enriched_json(ticket.ticket, enrichment),
                ticket.key,
                ticket.raw_sha256,
                ticket.modified,
            )
        )
        ticket.outcome, ticket.note = ("done", None) if stored else ("skipped", "stale")

    # -- settle

    def _settle(self, message: _Message) -> None:
        outcome = _outcome(t.outcome for t in message.tickets)
        if outcome == "failed" and message.receive_count >= self._ports.max_receive_count:
            outcome = "rejected"  # the last try: SQS would move it now, without a reason
        errors = [t for t in message.tickets if t.error is not None]
        if outcome == "rejected":
            try:
                code = errors[0].error.code if errors and errors[0].error else "unexpected"
                self._ports.dead_letters.reject(message.record, [t.describe() for t in errors], code)
            except EnrichmentError as error:
                outcome = "failed"
                self._ports.logger.warning(
                    "a message could not be sent to the dead-letter queue",
                    extra={"message_id": message.record.get("messageId"), "error": error.code, "detail": str(error)},
                )
        if outcome == "failed":
            self._failed.add(id(message.record))
            no_time = all(isinstance(t.error, OutOfTime) for t in errors)
            self._ports.dead_letters.put_off(message.record, 0 if no_time else backoff_seconds(message.receive_count))
        for ticket, owned in zip(message.tickets, message.owned, strict=True):
            self._report(message, ticket, outcome, owned=owned)

    def _report(self, message: _Message, ticket: _Ticket, outcome: Outcome, *, owned: bool) -> None:
        final = ticket.outcome or "failed"
        if final in {"rejected", "failed"}:
            final = outcome if outcome in {"rejected", "failed"} else final
        elif final == "done" and not owned:
            final, note = "skipped", "duplicate in the batch"
        code = ticket.error.code if ticket.error is not None and final in {"rejected", "failed"} else None
        self._ports.figures.outcome(final, code)
        extra: dict[str, Any] = {"outcome": final, "message_id": message.record.get("messageId"), **ticket.names()}
        if final == "skipped":
            extra["note"] = ticket.note if owned or ticket.outcome == "skipped" else note
        if code is not None:
            extra |= {"error_type": code, "stage": ticket.stage, "detail": str(ticket.error)}
            extra["receive_count"] = message.receive_count
        level = {"rejected": "warning", "failed": "warning"}.get(final, "info")
        getattr(self._ports.logger, level)("ticket", extra={**extra, "milliseconds": ticket.milliseconds})

    # -- machinery

    def _timed(self, stage: str, work: Callable[[], None]) -> None:
        begin = time.perf_counter()
        work()
        self._ports.figures.stage(stage, time.perf_counter() - begin)

    def _on_pool(self, work: Callable[[_T], None], items: Sequence[_T], *, patient: bool = False) -> None:
        """Runs `work` for every item at once; what has not ended in time counts as out of time."""
        if not items:
            return
        futures = {self._ports.pool.submit(self._guarded, work, item): item for item in items}
        limit = max(0.05, self._time_left() - (0.2 if patient else self._reserve))
        pending = wait(futures, timeout=limit).not_done
        for future in pending:
            future.cancel()
            if isinstance(ticket := _ticket_of(futures[future]), _Ticket):
                ticket.fail(OutOfTime("no answer in the time that was left"))

    def _guarded(self, work: Callable[[_T], None], item: _T) -> None:
        begin = time.perf_counter()
        ticket = _ticket_of(item)
        stage = ticket.stage if ticket else "settle"
        try:
            work(item)
        except EnrichmentError as error:
            if ticket is None:
                raise
            ticket.fail(error)
        except Exception as error:  # an isolation boundary: one ticket must not take its neighbours along
            self._ports.logger.exception("unexpected", extra={"stage": stage, **(ticket.names() if ticket else {})})
            if ticket is not None:
                ticket.fail(_Unexpected(f"{stage} raised {type(error).__name__}"))
            elif isinstance(item, _Message):
                self._failed.add(id(item.record))
        if ticket is not None:
            ticket.milliseconds[stage] = round((time.perf_counter() - begin) * 1000, 1)


def _ticket_of(item: object) -> _Ticket | None:
    if isinstance(item, tuple):
        item = item[0]
    return item if isinstance(item, _Ticket) else None


def _outcome(outcomes: Iterable[Outcome | None]) -> Outcome:
    found = {outcome or "failed" for outcome in outcomes}
    order: tuple[Outcome, ...] = ("failed", "rejected", "done", "skipped")
    return next(outcome for outcome in order if outcome in found)
