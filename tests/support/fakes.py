"""In-memory fakes of the handler's ports that fail on demand. tests/integration compares them with the adapters."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import StringIO
from typing import Any

from enrichment import EnrichmentData, EnrichmentError, RawTicket
from handler.app import Handler, build
from handler.aws.outbox import OutboxEntry, outbox_item
from handler.errors import BucketUnexpected, ObjectGone, ObjectTooLarge
from handler.messages import StoredTicket
from handler.metrics import StoredLabels, make_logger
from handler.ports import Commit, Committed, Known, Models, Placed, RawObject, TicketName, Unfinished, Write
from handler.result_event import Change, ResultEvent, change_by
from handler.settings import Settings
from handler.worker.invocation import InvocationContext
from tests.support.cases import BUCKET, Answer, RejectedMessage

SETTINGS: dict[str, Any] = {
    "model_bundle": "file:///nowhere",
    "raw_bucket": BUCKET,
    "enriched_bucket": "tickets-enriched",
    "table_name": "tickets",
    "queue_url": "https://sqs.invalid/ticket-processing",
    "dlq_url": "https://sqs.invalid/ticket-processing-dlq",
}


class Faults:
    """Errors by name (a key, ticket id or message id): `raise_for` raises the error, or blocks, if one is set."""

    def __init__(self) -> None:
        self._errors: dict[str, BaseException] = {}
        self._gates: dict[str, threading.Event] = {}

    def set(self, error: BaseException, *names: str) -> None:
        """Make these names fail from now on."""
        self._errors.update(dict.fromkeys(names, error))

    def hang(self, *names: str) -> threading.Event:
        """Make these names block until the returned event is set."""
        gate = threading.Event()
        self._gates.update(dict.fromkeys(names, gate))
        return gate

    def clear(self) -> None:
        """Remove all faults."""
        self._errors.clear()
        self._gates.clear()

    def raise_for(self, *names: str) -> None:
        """Raise the error that is set for one of the names."""
        for name in names:
            if name in self._gates:
                self._gates[name].wait(10)
            if name in self._errors:
                raise self._errors[name]


class FakeSource:
    """An in-memory TicketSource; `faults` are set by object key."""

    def __init__(self, bucket: str = BUCKET, max_bytes: int = 1024 * 1024) -> None:
        self.objects: dict[str, RawObject] = {}
        self.fetched: list[str] = []
        self.faults = Faults()
        self._bucket = bucket
        self._max_bytes = max_bytes

    def put(self, key: str, body: bytes, modified: int | None = None) -> None:
        """Put an object, modified now or at the given time (Unix milliseconds)."""
        self.objects[key] = RawObject(body, int(time.time()) * 1000 if modified is None else modified)

    def fetch(self, reference: StoredTicket) -> RawObject:
        """As TicketSource.fetch."""
        self.fetched.append(reference.key)
        self.faults.raise_for(reference.key)
        if reference.bucket != self._bucket:
            raise BucketUnexpected("another bucket")
        if reference.key not in self.objects:
            raise ObjectGone("no such object")
        found = self.objects[reference.key]
        if len(found.raw) > self._max_bytes:
            raise ObjectTooLarge(f"{len(found.raw)} bytes")
        return found


class FakeSink:
    """An in-memory TicketSink: object versions by key, and the item that commits one; faults are set by ticket_id."""

    def __init__(self) -> None:
        self.objects: dict[str, list[bytes]] = {}
        self.items: dict[tuple[str, int], tuple[Write, str]] = {}
        self.together: list[list[str]] = []  # the ids of the tickets of each object that holds several
        self.placed: dict[tuple[str, int], Placed] = {}  # of the items whose ticket is in such an object
        self.faults_together = Faults()  # of such an object, by the ids of its tickets
        self.searched: dict[str, int | None] = {}  # since when such objects were searched, by what was erased
        self.changes: list[tuple[str, Change]] = []  # what the event of each commit would say
        self.faults_known = Faults()
        self.faults = Faults()
        self.blind = False  # as if another process committed between our read of the table and our write
        self.forgotten_ids: set[str] = set()
        self.faults_forgotten = Faults()
        self.forgotten_objects: dict[str, str] = {}  # ticket ids by the keys of their raw objects
        self._lock = threading.Lock()

    def known(self, names: Sequence[TicketName]) -> list[Committed]:
        """As TicketSink.known; EnrichmentErrors that are set concern their ticket alone, other errors the call."""
        return [self._state(name) for name in names]

    def _state(self, name: TicketName) -> Committed:
        try:
            self.faults_known.raise_for(name[0])
        except EnrichmentError as error:
            return error
        if name[0] in self.forgotten_ids:
            return "forgotten"
        return None if self.blind or name not in self.items else _known(self.items[name][0])

    def forgotten(self, ticket_ids: Collection[str]) -> set[str]:
        """As TicketSink.forgotten."""
        self.faults_forgotten.raise_for(*ticket_ids)
        return self.forgotten_ids & set(ticket_ids)

    def put_together(self, bodies: Iterable[tuple[str, bytes]]) -> list[Placed]:
        """As TicketSink.put_together."""
        tickets = list(bodies)
        self.faults_together.raise_for(*(ticket_id for ticket_id, _ in tickets))
        with self._lock:
            if not tickets:
                return []
            self.together.append([ticket_id for ticket_id, _ in tickets])
            key, offset, placed = f"batches/{len(self.together)}", 0, []
            for _, body in tickets:
                placed.append(Placed(key, offset, len(body), key))
                offset += len(body) + 1
            self.objects[key] = [b"".join(body + b"\n" for _, body in tickets)]
        return placed

    def commit(self, write: Write, placed: Placed) -> Commit | None:
        """As TicketSink.commit."""
        return self._store(write, placed)

    def store(self, write: Write) -> Commit | None:
        """As TicketSink.store."""
        return self._store(write, None)

    def _store(self, write: Write, placed: Placed | None) -> Commit | None:
        self.faults.raise_for(write.ticket.ticket_id)
        with self._lock:
            versions = self.objects.setdefault(write.key, []) if placed is None else []
            if placed is None:
                versions.append(write.body)
            name = (write.ticket.ticket_id, write.ticket.created_at)
            before = self.items[name][0] if name in self.items else None
            if before is not None and before.source_modified > write.source_modified:
                return None
            known = None if before is None else _known(before)
            self.changes.append((write.ticket.ticket_id, change_by(known, write)))
            self.items[name] = (write, str(len(versions) - 1))
            self.placed.pop(name, None)
            if placed is not None:
                self.placed[name] = placed
        if before is None or before.source_modified < write.source_modified:
            return "clear"
        return "clear" if before.content_sha256 == write.content_sha256 else "tie"

    def erase(self, ticket_id: str, created_at: int, key: str, *, since: int | None = None) -> None:
        """As TicketSink.erase."""
        self.searched[ticket_id] = since
        self.items.pop((ticket_id, created_at), None)
        self.objects.pop(key, None)

    def erase_object(self, key: str, *, since: int | None = None) -> bool:
        """As TicketSink.erase_object."""
        self.searched[key] = since
        if key not in self.forgotten_objects:
            return False
        for name in [name for name in self.items if name[0] == self.forgotten_objects[key]]:
            del self.items[name]
        self.objects.pop(key, None)
        return True


def _known(write: Write) -> Known:
    version = write.enrichment.model_version
    return Known(write.content_sha256, version, write.key, write.source_modified, write.redacted)


class FakeDeadLetters:
    """In-memory DeadLetters; `faults` (of reject) and `faults_defer` are set by message id."""

    def __init__(self) -> None:
        self.rejected: list[tuple[Mapping[str, Any], list[Mapping[str, Any]], str]] = []
        self.deferred: dict[str, int] = {}
        self.faults = Faults()
        self.faults_defer = Faults()
        self.deleted: list[str] = []
        self.faults_delete = Faults()

    def reject(self, record: Mapping[str, Any], reasons: Sequence[Mapping[str, Any]], code: str) -> None:
        """As DeadLetters.reject."""
        self.faults.raise_for(str(record.get("messageId")))
        self.rejected.append((record, list(reasons), code))

    def defer(self, record: Mapping[str, Any], seconds: int) -> None:
        """As DeadLetters.defer."""
        self.faults_defer.raise_for(str(record.get("messageId")))
        self.deferred[str(record.get("messageId"))] = seconds

    def delete(self, records: Sequence[Mapping[str, Any]]) -> list[bool]:
        """As DeadLetters.delete."""
        names = [str(record.get("messageId")) for record in records]
        self.faults_delete.raise_for(*names)
        self.deleted += names
        return [True] * len(names)


class FakeFailureCounts:
    """In-memory FailureCounts; `faults` (of add) and `faults_note` are set by message id."""

    def __init__(self) -> None:
        self.receives: dict[str, set[int]] = {}
        self.faults = Faults()
        self.faults_note = Faults()
        self.notes: dict[str, dict[bool, set[int]]] = {}
        self.calls = 0  # about notes

    def add(self, message_id: str, receive_count: int) -> int:
        """As FailureCounts.add."""
        self.faults.raise_for(message_id)
        found = self.receives.setdefault(message_id, set())
        found.add(receive_count)
        return len(found)

    def begin(self, message_id: str, receive_count: int, *, alone: bool) -> Unfinished:
        """As FailureCounts.begin."""
        self.calls += 1
        self.faults_note.raise_for(message_id)
        note = self.notes.setdefault(message_id, {False: set(), True: set()})
        note[alone].add(receive_count)
        return Unfinished(len(note[False] - {receive_count}), len(note[True] - {receive_count}))

    def end(self, message_id: str) -> None:
        """As FailureCounts.end."""
        self.calls += 1
        self.faults_note.raise_for(message_id)
        self.notes.pop(message_id, None)


class FakeOutbox:
    """An in-memory outbox; `faults` are set by the name of a method."""

    def __init__(self) -> None:
        self.entries: dict[int, OutboxEntry] = {}
        self.faults = Faults()
        self._lock = threading.Lock()

    def put(self, event: ResultEvent) -> OutboxEntry:
        """Add an event, due at once."""
        item = outbox_item(event)
        now = int(item["due_at"]["N"])
        number, until = int(item["created_at"]["N"]), int(item["expires_at"]["N"])
        entry = OutboxEntry(number, event.event_id, item["body"]["S"], now, 0, until)
        self.entries[entry.number] = entry
        return entry

    def due(self, now: int) -> Iterator[OutboxEntry]:
        """As DynamoOutbox.due."""
        self.faults.raise_for("due")
        yield from [entry for number, entry in sorted(self.entries.items(), reverse=True) if entry.due_at <= now]

    def reschedule(self, entry: OutboxEntry, due_at: int, attempts: int) -> OutboxEntry | None:
        """As DynamoOutbox.reschedule."""
        with self._lock:
            found = self.entries.get(entry.number)
            if found is None or found.due_at != entry.due_at:
                return None
            self.entries[entry.number] = replace(found, due_at=due_at, attempts=attempts)
            return self.entries[entry.number]

    def delete(self, entry: OutboxEntry) -> None:
        """As DynamoOutbox.delete."""
        self.faults.raise_for("delete")
        self.entries.pop(entry.number, None)


@dataclass
class FakeMetrics:
    """In-memory Metrics."""

    outcomes: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    stages: list[str] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    labelled: list[tuple[dict[str, str], dict[str, float], bool, bool]] = field(default_factory=list)
    starts: int = 0
    flushes: int = 0
    failed_notes: int = 0
    failed_shadows: list[str] = field(default_factory=list)
    differences: list[list[str] | None] = field(default_factory=list)

    def started(self, bundle_seconds: float) -> None:
        """As Metrics.started."""
        self.starts += 1

    def batch(self, tickets: int) -> None:
        """As Metrics.batch."""
        self.batches.append(tickets)

    def stage(self, name: str, seconds: float) -> None:
        """As Metrics.stage."""
        assert seconds >= 0
        self.stages.append(name)

    def outcome(self, outcome: str, error_type: str | None) -> None:
        """As Metrics.outcome."""
        self.outcomes[outcome] += 1
        if error_type is not None:
            self.errors[outcome, error_type] += 1

    def note_failed(self) -> None:
        """As Metrics.note_failed."""
        self.failed_notes += 1

    def shadow_failed(self, error_type: str) -> None:
        """As Metrics.shadow_failed."""
        self.failed_shadows.append(error_type)

    def labels(self, found: StoredLabels) -> None:
        """As Metrics.labels."""
        self.differences.append(found.get("differs"))
        self.labelled.append((found["labels"], found["confidences"], found["needs_review"], found["is_truncated"]))

    def flush(self) -> None:
        """As Metrics.flush."""
        self.flushes += 1


class FakeModels:
    """Models with a constant result, for tests of the surrounding code. `failures` are set by ticket_id."""

    def __init__(self, version: str = "fake@000000000000") -> None:
        self.version = version
        self.failures: dict[str, EnrichmentError] = {}
        self.fault: Exception | None = None
        self.seen: list[list[str]] = []
        self.left: list[float] = []
        self.with_shadow: list[bool] = []

    def enrich(
        self,
        tickets: Sequence[RawTicket],
        *,
        time_left: Callable[[], float] | None = None,
        observe: Callable[[str, float, int], None] | None = None,
        with_shadow: bool = True,
        shadow_failed: Callable[[EnrichmentError], None] | None = None,
    ) -> list[EnrichmentData | EnrichmentError]:
        """As Enricher.enrich."""
        self.with_shadow.append(with_shadow)
        self.seen.append([ticket.ticket_id for ticket in tickets])
        if time_left is not None:
            self.left.append(time_left())
        if self.fault is not None:
            raise self.fault
        if observe is not None:
            observe("encode", 0.001, len(tickets))
        return [self.failures.get(ticket.ticket_id) or self._data(ticket) for ticket in tickets]

    def _data(self, ticket: RawTicket) -> EnrichmentData:
        return EnrichmentData(
            embedding=[1.0] + [0.0] * 383,
            intent="general_inquiry",
            intent_confidence=0.9,
            urgency=ticket.priority or "low",
            urgency_confidence=1.0 if ticket.priority else 0.7,
            sentiment="NEUTRAL",
            sentiment_confidence=0.8,
            summary="A summary.",
            processed_at="2026-11-20T09:00:00.000Z",
            model_version=self.version,
            scores={"sentiment": {"NEGATIVE": 0.1, "NEUTRAL": 0.8, "POSITIVE": 0.1}},
            needs_review=False,
            language="en",
            truncated=[],
        )


class FakeHarness:
    """A handler on fakes; also the `tests.support.cases.Harness` for the runner of sample events."""

    raw_bucket = BUCKET

    def __init__(self, models: Models | None = None, **settings: Any) -> None:
        self.source = FakeSource(max_bytes=settings.get("max_ticket_bytes", 1024 * 1024))
        self.sink = FakeSink()
        self.dead_letters = FakeDeadLetters()
        self.failure_counts = FakeFailureCounts()
        self.metrics = FakeMetrics()
        self.models = FakeModels()
        self.seconds = [60.0]
        self._log = StringIO()
        self._read = 0
        self.handler: Handler = self.build(models or self.models, **settings)

    def build(
        self, models: Models, *, on_settled: Callable[[Sequence[str]], None] = lambda _receipts: None, **settings: Any
    ) -> Handler:
        """Build a handler on the same fakes with other models and settings."""
        return build(
            Settings(**{**SETTINGS, **settings}),
            source=self.source,
            sink=self.sink,
            dead_letters=self.dead_letters,
            failure_counts=self.failure_counts,
            models=models,
            metrics=self.metrics,
            logger=make_logger("INFO"),
            on_settled=on_settled,
        )

    def invoke(self, event: Any) -> Answer:
        """Pass an event to the handler; `seconds` are the values of its remaining time, the last one is repeated.

        The handler reads the time at the beginning, before it waits for the fetches, in the models, and before it waits
        for the stores, the failure counts (if any), the rejections and the deferrals.
        """
        asked = iter(self.seconds)
        with written_to(self._log):
            response = self.handler(event, context(lambda: next(asked, self.seconds[-1])))
        log, self._log = self._log.getvalue(), StringIO()
        return Answer(response, log)

    def put_object(self, key: str, body: bytes) -> None:
        """As Harness.put_object."""
        self.source.put(key, body)

    def item(self, ticket_id: str, created_at: int) -> Mapping[str, Any] | None:
        """As Harness.item."""
        if (ticket_id, created_at) not in self.sink.items:
            return None
        write, version = self.sink.items[ticket_id, created_at]
        return {
            **write.enrichment.model_dump(exclude={"embedding", "scores", "truncated", "shadow"}),
            "subject": write.ticket.subject,
            "customer_id": write.ticket.customer_id,
            "s3_key": write.key,
            "s3_version_id": version,
            "content_sha256": write.content_sha256,
            "source_modified": write.source_modified,
        }

    def object(self, key: str, version_id: str) -> bytes:
        """As Harness.object."""
        return self.sink.objects[key][int(version_id)]

    def forget(self, ticket_id: str, created_at: int) -> None:
        """As Harness.forget."""
        self.sink.items.pop((ticket_id, created_at), None)

    def rejected_messages(self) -> list[RejectedMessage]:
        """As Harness.rejected_messages."""
        new, self._read = self.dead_letters.rejected[self._read :], len(self.dead_letters.rejected)
        return [_rejected_message(*entry) for entry in new]


@contextmanager
def written_to(stream: StringIO) -> Iterator[None]:
    """Redirect the function's log: loggers of one name share a handler, which keeps the first stream it was given."""
    handler = make_logger("INFO").registered_handler
    assert isinstance(handler, logging.StreamHandler)
    # Not with setStream, which flushes the old stream: captured output of a finished test is already closed.
    before, handler.stream = handler.stream, stream
    try:
        yield
    finally:
        handler.stream = before


def context(time_left: Callable[[], float] = lambda: 60.0) -> InvocationContext:
    """The invocation context that Lambda passes with the event."""
    return InvocationContext(
        function_name="ticket-enrichment",
        invoked_function_arn="arn:aws:lambda:us-east-1:123456789012:function:ticket-enrichment",
        memory_limit_in_mb="2048",
        time_left=time_left,
    )


def ticket(ticket_id: str = "T-1", **fields: Any) -> dict[str, Any]:
    """A raw ticket; `fields` override the defaults."""
    return {
        "ticket_id": ticket_id,
        "subject": "Printer",
        "body": "It does not print.",
        "created_at": 1_795_165_200,
        "customer_id": "C-1",
        **fields,
    }


def record(body: Any, message_id: str = "m-1", receive_count: int = 1, **fields: Any) -> dict[str, Any]:
    """A record of an SQS event; a body that is not a string becomes JSON."""
    return {
        "messageId": message_id,
        "receiptHandle": f"handle-{message_id}",
        "body": body if isinstance(body, str) else json.dumps(body),
        "attributes": {"ApproximateReceiveCount": str(receive_count), "SentTimestamp": "1795166102000"},
        "messageAttributes": {},
        "eventSource": "aws:sqs",
        **fields,
    }


def notification(*keys: str, event: str = "ObjectCreated:Put", bucket: str = BUCKET) -> dict[str, Any]:
    """An S3 notification for objects; keys are URL-encoded, as S3 sends them."""
    return {
        "Records": [{"eventName": event, "s3": {"bucket": {"name": bucket}, "object": {"key": key}}} for key in keys]
    }


def event(*records: Any) -> dict[str, Any]:
    """A Lambda event with these records."""
    return {"Records": list(records)}


def failed(answer: Answer) -> set[str]:
    """The ids of the messages that an invocation reported as failed."""
    return {failure["itemIdentifier"] for failure in answer.response["batchItemFailures"]}


def _rejected_message(record: Mapping[str, Any], reasons: Iterable[Mapping[str, Any]], code: str) -> RejectedMessage:
    own = {name: value["stringValue"] for name, value in (record.get("messageAttributes") or {}).items()}
    rejection = {"message_id": record.get("messageId"), "first_sent": 0, "rejected_at": "", "errors": list(reasons)}
    return RejectedMessage(record["body"], {**own, "Reason": code, "Rejection": json.dumps(rejection)})
