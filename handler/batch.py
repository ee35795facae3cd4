"""A batch in three steps: fetch all, enrich together, settle each record.

Every record ends as done, skipped, rejected or failed. A message with several tickets fails when one of them failed
(nothing of it is rejected yet), else is rejected when one of them was, else is done when one of them was.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from enrichment.errors import EnrichmentError, OutOfTime
from enrichment.ticket import EnrichmentData, enriched_json, parse_ticket
from handler.errors import ObjectGone, ObjectReplaced, ObjectTooLarge, Unexpected, trace
from handler.messages import Ignored, StoredTicket, inline_key, number_attribute, references
from handler.outcome import MessageState, Outcome, TicketState
from handler.ports import Ports, TicketSource, Write

__all__ = ["Batch", "MessageFailed"]

_T = TypeVar("_T", TicketState, MessageState)
_R = TypeVar("_R")

# Of the function's time so much is kept for what comes after the models, at most these seconds.
_RESERVE_SHARE: Final = 0.15
_RESERVE_MOST: Final = 5.0
# Of that reserve each further step leaves so much to those behind it.
_KEEP_STORING: Final = 0.4
_KEEP_REJECTING: Final = 0.2
_KEEP_DEFERRING: Final = 0.05
_LEAST_WAIT: Final = 0.05


class MessageFailed(Exception):
    """Tells Powertools that a record is to be retried."""


class Batch:
    """The records of one event. `run` processes them all, `settled` then says how one ended."""

    def __init__(self, records: Sequence[Mapping[str, Any]], ports: Ports, time_left: Callable[[], float]) -> None:
        self._ports = ports
        self._time_left = time_left
        self._reserve = min(_RESERVE_MOST, _RESERVE_SHARE * time_left())
        self._tickets: dict[object, TicketState] = {}
        self._messages = [self._message(record) for record in records]
        self._to_retry: set[int] = set()

    def run(self) -> None:
        """Fetches, enriches, stores and settles; raises nothing for whatever the records hold."""
        tickets = list(self._tickets.values())
        self._ports.metrics.batch(len(tickets))
        self._each("fetch", self._fetch, [t for t in tickets if t.outcome is None], keep=1)
        enriched = self._enrich([t for t in tickets if t.outcome is None])
        self._each("store", partial(self._store, enriched), list(enriched), keep=_KEEP_STORING, success="done")
        self._settle()
        for message in self._messages:
            self._report(message)
        self._ports.metrics.flush()

    def settled(self, record: Mapping[str, Any]) -> None:
        """Raises MessageFailed for a record that is to be retried."""
        if id(record) in self._to_retry:
            raise MessageFailed

    # -- parse

    def _message(self, record: Mapping[str, Any]) -> MessageState:
        sent = number_attribute(record, "SentTimestamp")
        modified = int(time.time() * 1000) if sent is None else sent
        body = record.get("body")
        try:
            found = references(body if isinstance(body, str) else "")
        except EnrichmentError as error:
            hopeless = TicketState(Ignored("unreadable"), modified, stage="parse")
            hopeless.fail(error)
            self._tickets[hopeless] = hopeless
            return MessageState(record, [hopeless], [True])
        owned = [reference not in self._tickets for reference in found]
        # A duplicate delivery within one batch is enriched once.
        tickets = [self._tickets.setdefault(reference, TicketState(reference, modified)) for reference in found]
        for ticket in tickets:
            ticket.modified = max(ticket.modified, modified)
            if isinstance(ticket.reference, Ignored):
                ticket.end("skipped", ticket.reference.what)
        return MessageState(record, tickets, owned)

    # -- fetch, enrich, store

    def _fetch(self, ticket: TicketState) -> str | None:
        """Why there is nothing to do, else None."""
        ports, reference = self._ports, ticket.reference
        if isinstance(reference, StoredTicket):
            stored = ports.source.fetch(reference)
            raw, ticket.modified = stored.raw, stored.modified
        else:
            assert not isinstance(reference, Ignored)
            raw = reference.raw
            if len(raw) > ports.max_ticket_bytes:
                raise ObjectTooLarge(
                    f"the ticket has {len(raw)} bytes, MAX_TICKET_BYTES allows {ports.max_ticket_bytes}"
                )
        ticket.stage = "validate"
        parsed = parse_ticket(raw)
        ticket.ticket, ticket.stage = parsed, "fetch"
        ticket.raw_sha256 = hashlib.sha256(raw).hexdigest()
        stored_key = reference.key if isinstance(reference, StoredTicket) else None
        ticket.key = stored_key or inline_key(parsed.ticket_id, parsed.created_at)
        known = ports.sink.known(parsed.ticket_id, parsed.created_at)
        if known is None:
            return None
        same = (ticket.raw_sha256, ports.models.version, ticket.key)
        if (known.content_sha256, known.model_version, known.s3_key) == same:
            return "already enriched"
        return "stale" if known.source_modified > ticket.modified else None

    def _enrich(self, tickets: Sequence[TicketState]) -> dict[TicketState, EnrichmentData]:
        if not tickets:
            return {}
        ports = self._ports
        begin = time.perf_counter()
        results: Sequence[EnrichmentData | EnrichmentError]
        try:
            results = ports.models.enrich(
                [t.ticket for t in tickets if t.ticket is not None],
                time_left=lambda: self._time_left() - self._reserve,
                observe=lambda stage, seconds, _count: ports.metrics.stage(stage, seconds),
            )
            pairs = list(zip(tickets, results, strict=True))
        except Exception as error:  # an isolation boundary: what is not for the models is still settled
            failure = self._unexpected(error, "enrich", {})
            pairs = [(ticket, failure) for ticket in tickets]
        share = round((time.perf_counter() - begin) * 1000 / len(tickets), 1)
        for ticket, result in pairs:
            ticket.stage, ticket.milliseconds["enrich"] = "enrich", share
            if isinstance(result, EnrichmentError):
                ticket.fail(result)
        return {ticket: result for ticket, result in pairs if not isinstance(result, EnrichmentError)}

    def _store(self, enriched: Mapping[TicketState, EnrichmentData], ticket: TicketState) -> str | None:
        """Why it was not stored, else None."""
        raw, enrichment = ticket.ticket, enriched[ticket]
        assert raw is not None
        ticket.stage = "store"
        body = enriched_json(raw, enrichment)
        write = Write(raw, enrichment, body, ticket.key, ticket.raw_sha256, ticket.modified)
        commit = self._ports.sink.store(write)
        if commit == "tie" and isinstance(ticket.reference, StoredTicket):
            _refuse_replaced(self._ports.source, ticket.reference, ticket.raw_sha256)
        return None if commit else "stale"

    def _each(
        self,
        stage: str,
        work: Callable[[TicketState], str | None],
        tickets: Sequence[TicketState],
        *,
        keep: float,
        success: Outcome | None = None,
    ) -> None:
        """Runs one step for all tickets at once: a note ends a ticket as skipped, an error ends it badly."""
        if not tickets:
            return
        begin = time.perf_counter()

        def clocked(ticket: TicketState) -> str | None:
            begin = time.perf_counter()
            try:
                return work(ticket)
            finally:
                ticket.milliseconds[stage] = round((time.perf_counter() - begin) * 1000, 1)

        for ticket, result in zip(tickets, self._at_once(clocked, tickets, stage, keep), strict=True):
            if isinstance(result, EnrichmentError):
                ticket.fail(result)
            elif result is not None:
                ticket.end("skipped", result)
            elif success is not None:
                ticket.end(success)
        self._ports.metrics.stage(stage, time.perf_counter() - begin)

    # -- settle

    def _settle(self) -> None:
        for message in self._messages:
            message.conclude(self._ports.max_receive_count)
        rejected = [message for message in self._messages if message.outcome == "rejected"]
        for message, error in zip(
            rejected, self._at_once(self._reject, rejected, "reject", _KEEP_REJECTING), strict=True
        ):
            if error is not None:
                message.outcome = "failed"
                self._ports.logger.warning(
                    "a message could not be sent to the dead-letter queue",
                    extra={**message.names(), "error_type": error.code, "detail": str(error)},
                )
        failed = [message for message in self._messages if message.outcome == "failed"]
        self._to_retry = {id(message.record) for message in failed}
        self._at_once(self._defer, failed, "defer", _KEEP_DEFERRING)

    def _reject(self, message: MessageState) -> None:
        self._ports.dead_letters.reject(message.record, message.errors(), message.code)

    def _defer(self, message: MessageState) -> None:
        self._ports.dead_letters.defer(message.record, message.delay())

    def _report(self, message: MessageState) -> None:
        for outcome, code, extra in message.lines():
            self._ports.metrics.outcome(outcome, code)
            log = self._ports.logger.warning if code is not None else self._ports.logger.info
            log("ticket", extra=extra)

    # -- machinery

    def _at_once(
        self, work: Callable[[_T], _R], items: Sequence[_T], stage: str, keep: float
    ) -> list[_R | EnrichmentError]:
        """What `work` returned or raised for each item, on the pool; OutOfTime where it has not ended in time.

        Waits until only the share `keep` of the reserve is left. Calls that come back later change nothing.
        """
        futures = [(item, self._ports.pool.submit(work, item)) for item in items]
        wait([future for _, future in futures], timeout=max(_LEAST_WAIT, self._time_left() - keep * self._reserve))
        results: list[_R | EnrichmentError] = []
        for item, future in futures:
            result = self._result(future, stage, item.names())
            results.append(result)
        return results

    def _result(self, future: Future[_R], stage: str, names: Mapping[str, Any]) -> _R | EnrichmentError:
        if not future.done():
            future.cancel()
            return OutOfTime("no answer in the time that was left")
        error = future.exception()
        if error is None:
            return future.result()
        # An isolation boundary: no ticket takes its neighbours along.
        return error if isinstance(error, EnrichmentError) else self._unexpected(error, stage, names)

    def _unexpected(self, error: BaseException, stage: str, names: Mapping[str, Any]) -> Unexpected:
        self._ports.logger.error("unexpected", extra={"stage": stage, "traceback": trace(error), **names})
        return Unexpected(f"{stage} raised {type(error).__name__}")


def _refuse_replaced(source: TicketSource, reference: StoredTicket, sha256: str) -> None:
    """Raises ObjectReplaced where an object holds other content by now than that with this hash.

    S3 tells times in seconds: of two versions within one the older may be stored last, in the newer one's place.
    """
    with suppress(ObjectGone):
        if hashlib.sha256(source.fetch(reference).raw).hexdigest() != sha256:
            raise ObjectReplaced("the object was overwritten while this version of it was enriched")
