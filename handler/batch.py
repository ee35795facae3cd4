"""One SQS batch: fetch all tickets, enrich them together, store them, then settle each record.

Every record has one outcome: done, skipped, rejected or failed. A message with several tickets is failed if any of them
failed (then none is rejected yet), otherwise rejected if any was rejected, otherwise done if any is done.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import Any, Final, TypeAlias, TypeVar

from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord

from enrichment.errors import EnrichmentError, OutOfTime
from enrichment.ticket import EnrichmentData, RawTicket, enriched_json, parse_ticket
from handler.compression import decompress
from handler.errors import KeyReserved, KeyTooLong, ObjectGone, ObjectReplaced, ObjectTooLarge, Unexpected, trace
from handler.messages import (
    MAX_KEY_BYTES,
    Ignored,
    StoredTicket,
    first_sent,
    inline_key,
    is_reserved,
    number_attribute,
    references,
)
from handler.metrics import report_labels
from handler.outcome import MessageState, Outcome, TicketState
from handler.ports import Committed, Placed, Ports, TicketName, Write

__all__ = ["Batch", "MessageFailed"]

_R = TypeVar("_R")

# Part of the function's time that is reserved for the steps after the models.
_RESERVE_SHARE: Final = 0.15
_MAX_RESERVE: Final = 5.0  # seconds
# Shares of the reserve that each stage leaves to the stages after it.
_KEEP_FETCHING: Final = 1.0
_KEEP_STORING: Final = 0.6
_KEEP_CHECKING: Final = 0.4
_KEEP_SETTLING: Final = 0.05
_MIN_WAIT: Final = 0.05  # seconds
# Part of the time before the reserve that the reads may take: then the models start with what has arrived.
_READING_SHARE: Final = 1 / 3
# Limits of an object with several tickets. More tickets would save little (from 10 to 20, 0.25 USD per million), and
# the key grows by four characters for each. More bytes would need more memory, also for `tickets forget`.
_MAX_TOGETHER: Final = 20
_MAX_BYTES_TOGETHER: Final = 4 * 1024 * 1024  # of raw tickets

_Together: TypeAlias = "Future[Mapping[TicketState, tuple[Write, Placed] | EnrichmentError]]"


class MessageFailed(Exception):
    """Tells Powertools that a record must be retried."""


class Batch:
    """The records of one event.

    `process` fetches, enriches and stores them together; `settle` is the record handler that Powertools calls for each.
    Neither raises for what a record contains, except MessageFailed in `settle`.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        ports: Ports,
        time_left: Callable[[], float],
        *,
        error: EnrichmentError | None = None,
        noted: Collection[str] = (),
        with_shadow: bool = True,
    ) -> None:
        """With an `error`, nothing is processed: that is the outcome of every record.

        `noted` are the ids of messages whose notes (FailureCounts.begin) are cleared. `with_shadow=False` is for a
        suspect: if it was the shadow that killed the process, the ticket is stored all the same.
        """
        self._ports = ports
        self._time_left = time_left
        self._error = error
        self._noted = noted
        self._with_shadow = with_shadow
        self._reserve = min(_MAX_RESERVE, _RESERVE_SHARE * time_left())
        self._tickets: dict[object, TicketState] = {}
        self._messages = [self._message(record) for record in records]
        # SQS can deliver a message twice in one batch, with the same id.
        self._unsettled: dict[str, deque[tuple[MessageState, Future[Outcome]]]] = defaultdict(deque)

    def process(self) -> None:
        """Fetches, enriches and stores all tickets, and starts rejecting or deferring messages."""
        tickets = list(self._tickets.values())
        self._ports.metrics.batch(len(tickets))
        self._fetch([t for t in self._in_turns() if t.outcome is None])
        enriched = self._enrich([t for t in tickets if t.outcome is None])
        notes = self._end_notes()
        self._store(enriched)
        wait(notes, timeout=self._seconds_to_store() if notes else 0)
        for ticket, enrichment in enriched.items():
            if ticket.outcome == "done":
                report_labels(self._ports.metrics, enrichment)
        for message in self._messages:
            settling = self._ports.pool.submit(self._reject_or_defer, message)
            self._unsettled[str(message.record.get("messageId"))].append((message, settling))

    def settle(self, record: SQSRecord) -> None:
        """Waits until a record is settled and reports its outcome. Raises MessageFailed if it must be retried."""
        self._settle(*self._unsettled[record.message_id].popleft())

    def close(self) -> None:
        """Settles records without an id, which Powertools cannot process or report, and ends the batch."""
        for rest in self._unsettled.values():
            for message, settling in rest:
                with suppress(MessageFailed):
                    self._settle(message, settling)
        self._ports.metrics.flush()

    @property
    def kept(self) -> list[Mapping[str, Any]]:
        """The records whose messages stay in the queue, once they are settled."""
        return [message.record for message in self._messages if message.outcome == "failed"]

    def _in_turns(self) -> list[TicketState]:
        """All tickets, the first of each message before the second of any: a message with many holds up no other."""
        rounds = zip_longest(*(message.tickets for message in self._messages))
        return list(dict.fromkeys(ticket for each in rounds for ticket in each if ticket is not None))

    def _end_notes(self) -> list[Future[None]]:
        """Clears the notes of all messages, as soon as the models have survived them."""
        noted = [message for message in self._messages if str(message.record.get("messageId")) in self._noted]
        return [self._ports.pool.submit(self._end_note, message) for message in noted]

    def _end_note(self, message: MessageState) -> None:
        try:
            self._ports.failure_counts.end(str(message.record.get("messageId")))
        except Exception as error:  # isolation boundary: if the message comes back, it runs alone
            self._ports.metrics.note_failed()
            self._warn("the note of a message could not be cleared", error, message)

    # -- parse

    def _message(self, record: Mapping[str, Any]) -> MessageState:
        sent, now = first_sent(record), int(time.time() * 1000)
        modified = now if sent is None else sent
        received = min(now, number_attribute(record, "ApproximateFirstReceiveTimestamp") or modified)
        body = record.get("body")
        try:
            if self._error is not None:
                raise self._error
            found = references(body if isinstance(body, str) else "")
        except EnrichmentError as error:
            invalid = TicketState(Ignored("unreadable"), modified, stage="parse" if self._error is None else "process")
            invalid.fail(error)
            self._tickets[invalid] = invalid
            return MessageState(record, [invalid], [True])
        owned = [reference not in self._tickets for reference in found]
        # A duplicate delivery within one batch is enriched once.
        tickets = [self._tickets.setdefault(reference, TicketState(reference, modified)) for reference in found]
        for ticket, reference in zip(tickets, found, strict=True):
            if isinstance(reference, StoredTicket) and isinstance(ticket.reference, StoredTicket):
                # Of several notifications about one object, the latest is most likely about the version that is read.
                ticket.reference = max(ticket.reference, reference, key=lambda one: one.event_time)
            ticket.modified = max(ticket.modified, modified)
            ticket.received = min(ticket.received or received, received)
            if isinstance(ticket.reference, Ignored):
                ticket.end("skipped", ticket.reference.what)
        return MessageState(record, tickets, owned)

    # -- fetch, enrich, store

    def _fetch(self, tickets: Sequence[TicketState]) -> None:
        """Reads and parses tickets, and compares them with what is stored."""
        if not tickets:
            return
        begin = time.perf_counter()
        reads = self._start(self._ports.readers, "fetch", self._read, tickets)
        wait(reads.values(), timeout=self._seconds_to_read())
        self._end(reads, "fetch")
        self._compare([t for t in tickets if t.outcome is None])
        self._ports.metrics.stage("fetch", time.perf_counter() - begin)

    def _read(self, ticket: TicketState) -> str | None:
        """Reads and parses a ticket. Returns the reason if there is nothing to do, otherwise None.

        `tickets forget` removes raw objects whose notifications may still be in a queue.
        """
        try:
            raw = self._raw(ticket)
        except ObjectGone:
            if isinstance(ticket.reference, StoredTicket) and self._ports.sink.erase_object(
                ticket.reference.key, since=self._since(ticket)
            ):
                return "forgotten"
            raise
        ticket.stage = "validate"
        parsed = parse_ticket(raw)
        ticket.ticket, ticket.stage = parsed, "fetch"
        ticket.raw_sha256, ticket.raw_bytes = hashlib.sha256(raw).hexdigest(), len(raw)
        stored_key = ticket.reference.key if isinstance(ticket.reference, StoredTicket) else None
        ticket.key = stored_key or inline_key(parsed.ticket_id, parsed.created_at)
        if stored_key is None and len(ticket.key) > MAX_KEY_BYTES:  # the key is ASCII
            raise KeyTooLong(
                f"the id needs an S3 key of {len(ticket.key)} bytes, S3 allows {MAX_KEY_BYTES}; use a shorter id, or "
                "store the ticket in the raw bucket"
            )
        return None

    def _raw(self, ticket: TicketState) -> bytes:
        """The ticket's JSON. Notes when it was last modified."""
        ports, reference = self._ports, ticket.reference
        if isinstance(reference, StoredTicket):
            if is_reserved(reference.key):
                raise KeyReserved("the system's own objects have keys like this; store the ticket under another key")
            stored = ports.source.fetch(reference)
            raw, ticket.modified = decompress(stored.raw, ports.max_ticket_bytes), stored.modified
            if reference.etag and reference.etag == stored.etag:
                ticket.modified = max(stored.modified, reference.event_time)
            ticket.is_exact = ticket.modified > stored.modified
            return raw
        assert not isinstance(reference, Ignored)
        if len(reference.raw) > ports.max_ticket_bytes:
            raise ObjectTooLarge(
                f"the ticket has {len(reference.raw)} bytes, MAX_TICKET_BYTES allows {ports.max_ticket_bytes}"
            )
        return reference.raw

    def _compare(self, tickets: Sequence[TicketState]) -> None:
        """Ends the tickets that are stored already, or were forgotten: one read for all of them."""
        if not tickets:
            return
        forgotten = []
        for ticket, known in zip(tickets, self._known(tickets), strict=True):
            if isinstance(known, EnrichmentError):
                ticket.fail(known)
            elif known == "forgotten":
                forgotten.append(ticket)
            else:
                ticket.known = known
                if (reason := self._nothing_to_do(ticket)) is not None:
                    ticket.end("skipped", reason)
        if forgotten:
            self._erase(forgotten, self._seconds_to_read())

    def _known(self, tickets: Sequence[TicketState]) -> Sequence[Committed]:
        """What the table has of each ticket.

        If the read for all of them fails, each is read alone: a ticket that cannot be read fails no other.
        """
        sink, names = self._ports.sink, [(t.ticket.ticket_id, t.ticket.created_at) for t in tickets if t.ticket]

        def read(*parts: Sequence[TicketName]) -> list[Committed]:
            reads = [self._ports.pool.submit(sink.known, part) for part in parts]
            wait(reads, timeout=self._seconds_to_read())
            states: list[Committed] = []
            for part, reading in zip(parts, reads, strict=True):
                result = self._result(reading, "fetch", {})
                states += [result] * len(part) if isinstance(result, EnrichmentError) else result
            return states

        states = read(names)
        if len(names) > 1 and all(
            isinstance(each, EnrichmentError) and not isinstance(each, OutOfTime) for each in states
        ):
            states = read(*([name] for name in names))
        return states

    def _nothing_to_do(self, ticket: TicketState) -> str | None:
        """Why a ticket need not be enriched, or None."""
        ports, known = self._ports, ticket.known
        if known is None:
            return None
        same = (ticket.raw_sha256, ports.models.version, ticket.key, ports.redact)
        if (known.content_sha256, known.model_version, known.s3_key, known.redacted) == same:
            return "already enriched"
        # The same content under another bundle is not stale, whichever of its notifications came. If only the second is
        # known, the object as it is now is at least as new as what was stored of it; the store checks a tie again.
        same_second = known.s3_key == ticket.key and known.source_modified // 1000 == ticket.modified // 1000
        if known.content_sha256 == ticket.raw_sha256 or (not ticket.is_exact and same_second):
            ticket.modified = max(ticket.modified, known.source_modified)
        return "stale" if known.source_modified > ticket.modified else None

    def _erase(self, forgotten: Sequence[TicketState], seconds: float) -> None:
        """Removes what is stored of forgotten tickets, which are then skipped."""
        erasing = self._start(self._ports.pool, "erase", self._erase_one, forgotten)
        wait(erasing.values(), timeout=seconds)
        self._end(erasing, "erase")

    def _erase_one(self, ticket: TicketState) -> str:
        assert ticket.ticket is not None
        name = (ticket.ticket.ticket_id, ticket.ticket.created_at)
        self._ports.sink.erase(*name, ticket.key, since=self._since(ticket))
        return "forgotten"

    def _since(self, ticket: TicketState) -> int | None:
        """From when on there may be objects of several tickets with this one that no item names."""
        return ticket.received if self._ports.enriched_objects == "batch" else None

    def _enrich(self, tickets: Sequence[TicketState]) -> dict[TicketState, EnrichmentData]:
        if not tickets:
            return {}
        ports = self._ports
        results: Sequence[EnrichmentData | EnrichmentError]
        turn = ports.models_turn
        if not (
            turn.acquire(blocking=False) or turn.acquire(timeout=max(_MIN_WAIT, self._time_left() - self._reserve))
        ):
            for ticket in tickets:
                ticket.stage = "enrich"
                ticket.fail(OutOfTime("not started: another batch is still in the models"))
            return {}
        begin = time.perf_counter()
        try:
            results = ports.models.enrich(
                [t.ticket for t in tickets if t.ticket is not None],
                time_left=lambda: self._time_left() - self._reserve,
                observe=lambda stage, seconds, _count: ports.metrics.stage(stage, seconds),
                with_shadow=self._with_shadow,
                shadow_failed=self._shadow_failed,
            )
            pairs = list(zip(tickets, results, strict=True))
        except Exception as error:  # isolation boundary: the other records are still settled
            failure = self._as_failure(error, "enrich", {})
            pairs = [(ticket, failure) for ticket in tickets]
        finally:
            turn.release()
        share = round((time.perf_counter() - begin) * 1000 / len(tickets), 1)
        for ticket, result in pairs:
            ticket.stage, ticket.milliseconds["enrich"] = "enrich", share
            if isinstance(result, EnrichmentError):
                ticket.fail(result)
                if result.__cause__ is not None:
                    # One line, without the exception's message: that may quote the ticket.
                    extra = {"stage": "enrich", "traceback": trace(result.__cause__), **ticket.names()}
                    ports.logger.error("a model failed", extra=extra)
        enriched = {ticket: result for ticket, result in pairs if not isinstance(result, EnrichmentError)}
        if ports.shadow_error is not None:
            for _ in enriched:
                ports.metrics.shadow_failed(ports.shadow_error.code)
        return enriched

    def _shadow_failed(self, error: EnrichmentError) -> None:
        """Counts and logs that a ticket has no shadow. Without the cause's message, which may quote the ticket."""
        self._ports.metrics.shadow_failed(error.code)
        extra = {"ticket_id": error.ticket_id, "error_type": error.code, "detail": str(error)}
        if error.__cause__ is not None:
            extra["traceback"] = trace(error.__cause__)
        self._ports.logger.warning("the shadow bundle did not label a ticket", extra=extra)

    def _store(self, enriched: Mapping[TicketState, EnrichmentData]) -> None:
        """Stores tickets, and erases those that were forgotten meanwhile."""
        if not enriched:
            return
        begin = time.perf_counter()
        together = self._start_together(enriched) if self._ports.enriched_objects == "batch" else {}
        store = partial(self._store_one, enriched, together)
        stores = self._start(self._ports.pool, "store", store, list(enriched))
        wait(stores.values(), timeout=self._seconds_to_store(_KEEP_STORING))
        self._end(stores, "store", success="done")
        # After the results were read: a store that returns in between is one of those that are asked about now.
        late = {
            ticket: future
            for ticket, future in stores.items()
            if not future.done() or (ticket in together and not together[ticket].done())
        }
        self._erase_if_forgotten([ticket for ticket in stores if ticket not in late])
        for ticket, future in late.items():  # they are retried, but what they still store must not remain
            future.add_done_callback(partial(self._check_late, ticket))
            if ticket in together and not together[ticket].cancel():
                together[ticket].add_done_callback(partial(self._check_late, ticket))
        self._ports.metrics.stage("store", time.perf_counter() - begin)

    def _start_together(self, enriched: Mapping[TicketState, EnrichmentData]) -> dict[TicketState, _Together]:
        """Starts to write the objects that hold several tickets; returns them by ticket.

        The pool begins these calls before those that wait for them, so that its threads cannot all be waiting.
        """
        found: dict[TicketState, _Together] = {}
        for group in _groups(enriched):
            writing = self._ports.pool.submit(self._put_together, enriched, group)
            found |= dict.fromkeys(group, writing)
        return found

    def _put_together(
        self, enriched: Mapping[TicketState, EnrichmentData], tickets: Sequence[TicketState]
    ) -> Mapping[TicketState, tuple[Write, Placed] | EnrichmentError]:
        """Writes one object with these tickets. What commits each of them, or why it is not in the object."""
        writes: dict[TicketState, Write] = {}
        failures: dict[TicketState, EnrichmentError] = {}

        def bodies() -> Iterator[tuple[str, bytes]]:
            for ticket in tickets:
                try:
                    write = self._write(ticket, enriched[ticket])
                except Exception as error:  # isolation boundary: the other tickets are still stored
                    failures[ticket] = self._as_failure(error, "store", ticket.names())
                else:
                    writes[ticket] = replace(write, body=b"")
                    yield write.ticket.ticket_id, write.body

        placed = self._ports.sink.put_together(bodies())
        return {**failures, **dict(zip(writes, zip(writes.values(), placed, strict=True), strict=True))}

    def _store_one(
        self,
        enriched: Mapping[TicketState, EnrichmentData],
        together: Mapping[TicketState, _Together],
        ticket: TicketState,
    ) -> str | None:
        """Stores a ticket. Returns the reason if it was not stored, otherwise None."""
        ticket.stage = "store"
        if ticket in together:
            result = together[ticket].result()[ticket]
            if isinstance(result, EnrichmentError):
                raise result
            write, placed = result
            commit = self._ports.sink.commit(write, placed)
        else:
            commit = self._ports.sink.store(self._write(ticket, enriched[ticket]))
        if commit == "tie" and isinstance(ticket.reference, StoredTicket):
            _refuse_replaced(self._ports, ticket.reference, ticket.raw_sha256)
        return None if commit else "stale"

    def _write(self, ticket: TicketState, enrichment: EnrichmentData) -> Write:
        """What is stored of a ticket."""
        raw = ticket.ticket
        assert raw is not None
        shown = (raw, enrichment) if self._ports.redact == "off" else _redacted(raw, enrichment)
        body = enriched_json(*(shown if self._ports.redact == "all" else (raw, enrichment)))
        return Write(
            *shown, body, ticket.key, ticket.raw_sha256, ticket.modified, self._ports.redact, known=ticket.known
        )

    def _erase_if_forgotten(self, tickets: Sequence[TicketState]) -> None:
        """Asks once for all tickets whose store has ended, whatever came of it: part of it may have been written."""
        ids = {ticket.ticket.ticket_id for ticket in tickets if ticket.ticket is not None}
        if not ids:
            return
        asking = self._ports.pool.submit(self._ports.sink.forgotten, ids)
        wait([asking], timeout=self._seconds_to_store())
        result = self._result(asking, "store", {})
        if isinstance(result, EnrichmentError):
            for ticket in tickets:
                ticket.fail(result)
            return
        forgotten = [t for t in tickets if t.ticket is not None and t.ticket.ticket_id in result]
        if forgotten:
            self._erase(forgotten, self._seconds_to_store())

    def _check_late(self, ticket: TicketState, storing: Future[Any]) -> None:
        if not storing.cancelled():
            self._ports.pool.submit(self._erase_late, ticket)

    def _erase_late(self, ticket: TicketState) -> None:
        assert ticket.ticket is not None
        if self._ports.sink.forgotten([ticket.ticket.ticket_id]):
            self._erase_one(ticket)

    # -- concurrent calls

    def _seconds_to_read(self) -> float:
        """Reading ends before all time is used, so that the models have time for what was read."""
        return max(_MIN_WAIT, _READING_SHARE * (self._time_left() - _KEEP_FETCHING * self._reserve))

    def _seconds_to_store(self, keep: float = _KEEP_CHECKING) -> float:
        """A store that hangs leaves time to ask whether the other tickets were forgotten, which ends them."""
        return max(_MIN_WAIT, self._time_left() - keep * self._reserve)

    def _start(
        self,
        pool: ThreadPoolExecutor,
        stage: str,
        work: Callable[[TicketState], str | None],
        tickets: Sequence[TicketState],
    ) -> dict[TicketState, Future[str | None]]:
        """Calls `work` for all tickets concurrently. It returns a reason to skip the ticket, or None."""

        def clocked(ticket: TicketState) -> str | None:
            begin = time.perf_counter()
            try:
                return work(ticket)
            finally:
                ticket.milliseconds[stage] = round((time.perf_counter() - begin) * 1000, 1)

        return {ticket: pool.submit(clocked, ticket) for ticket in tickets}

    def _end(
        self, calls: Mapping[TicketState, Future[str | None]], stage: str, *, success: Outcome | None = None
    ) -> None:
        """Gives each ticket the result of its call: a reason makes it skipped, an error failed or rejected.

        A ticket whose call has not returned in time is OutOfTime; a later result is ignored.
        """
        for ticket, future in calls.items():
            result = self._result(future, stage, ticket.names())
            if isinstance(result, EnrichmentError):
                ticket.fail(result)
            elif result is not None:
                ticket.end("skipped", result)
            elif success is not None:
                ticket.end(success)

    # -- settle

    def _reject_or_defer(self, message: MessageState) -> Outcome:
        """Sends a message to the DLQ or defers its retry, if that is its outcome; returns the final outcome."""
        ports, message_id = self._ports, str(message.record.get("messageId"))
        if message.is_own_fault:
            try:
                message.own_failures = ports.failure_counts.add(message_id, message.receive_count)
            except Exception as error:  # isolation boundary: the message is retried as if a service had failed
                self._warn("a failure could not be counted", error, message)
        outcome = message.conclude(ports.max_receive_count)
        if outcome == "rejected":
            try:
                ports.dead_letters.reject(message.record, message.errors(), message.code)
            except Exception as error:  # isolation boundary: the message is still deferred
                outcome = "failed"
                self._warn("a message could not be sent to the DLQ", error, message)
        if outcome == "failed":
            ports.dead_letters.defer(message.record, message.delay())
        return outcome

    def _warn(self, text: str, error: Exception, message: MessageState) -> None:
        failure = self._as_failure(error, "settle", message.names())
        extra = {**message.names(), "error_type": failure.code, "detail": str(failure)}
        self._ports.logger.warning(text, extra=extra)

    def _settle(self, message: MessageState, settling: Future[Outcome]) -> None:
        wait([settling], timeout=max(_MIN_WAIT, self._time_left() - _KEEP_SETTLING * self._reserve))
        result = self._result(settling, "settle", message.names())
        # Without an answer from SQS the message may still be in the queue: it is retried.
        message.outcome = "failed" if isinstance(result, EnrichmentError) else result
        for outcome, code, extra in message.lines():
            self._ports.metrics.outcome(outcome, code)
            log = self._ports.logger.warning if code is not None else self._ports.logger.info
            log("ticket", extra=extra)
        if message.outcome == "failed":
            raise MessageFailed

    def _result(self, future: Future[_R], stage: str, names: Mapping[str, Any]) -> _R | EnrichmentError:
        if not future.done():
            future.cancel()
            return OutOfTime("no answer in the time that was left")
        error = future.exception()
        return future.result() if error is None else self._as_failure(error, stage, names)

    def _as_failure(self, error: BaseException, stage: str, names: Mapping[str, Any]) -> EnrichmentError:
        """The error itself if it is an EnrichmentError, otherwise Unexpected, with its traceback logged."""
        if isinstance(error, EnrichmentError):
            return error
        self._ports.logger.error("unexpected", extra={"stage": stage, "traceback": trace(error), **names})
        return Unexpected(f"{stage} raised {type(error).__name__}")


def _groups(tickets: Iterable[TicketState]) -> list[list[TicketState]]:
    """The tickets that share an object, in at least twos: a single one is stored under its own key.

    So it costs the same, its readers can name its version, and to forget it needs no rewriting. Two versions of one
    ticket never share an object, because its version distinguishes their commits.
    """
    groups: list[list[TicketState]] = [[]]
    names: set[TicketName] = set()
    size = 0
    for ticket in tickets:
        assert ticket.ticket is not None
        name = (ticket.ticket.ticket_id, ticket.ticket.created_at)
        is_full = len(names) == _MAX_TOGETHER or size + ticket.raw_bytes > _MAX_BYTES_TOGETHER
        if is_full or name in names:
            groups.append([])
            names, size = set(), 0
        groups[-1].append(ticket)
        names.add(name)
        size += ticket.raw_bytes
    return [group for group in groups if len(group) > 1]


def _redacted(ticket: RawTicket, enrichment: EnrichmentData) -> tuple[RawTicket, EnrichmentData]:
    from enrichment.redaction import redact_ticket  # not part of a cold start without redaction

    return redact_ticket(ticket, enrichment)


def _refuse_replaced(ports: Ports, reference: StoredTicket, sha256: str) -> None:
    """Raises ObjectReplaced if the object's content no longer has this hash.

    LastModified has a resolution of one second, so of two versions within a second the older one might be stored last.
    """
    with suppress(ObjectGone):
        raw = decompress(ports.source.fetch(reference).raw, ports.max_ticket_bytes)
        if hashlib.sha256(raw).hexdigest() != sha256:
            raise ObjectReplaced("the object was overwritten while this version was enriched")
