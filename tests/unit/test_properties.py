"""Properties that hold for any input: messages are parsed or rejected, and each record has exactly one outcome."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from enrichment import EnrichmentError, ModelFailed, OutOfTime, TicketInvalid, parse_ticket
from handler.app import EventNotUnderstood
from handler.errors import MessageInvalid, ServiceFailed, StoreRefused, Throttled
from handler.messages import Ignored, InlineTicket, StoredTicket, references
from tests.support.fakes import FakeHarness, FakeModels, event, failed, notification, record, ticket

KEYS = ["a", "b", "c", "d"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
# Almost valid messages: known formats with parts replaced or removed.
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "Records": st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "eventName": st.sampled_from(["ObjectCreated:Put", "ObjectRemoved:Delete", "ObjectAcl:Put"])
                    | VALUES,
                    "s3": VALUES
                    | st.fixed_dictionaries(
                        {},
                        optional={
                            "bucket": st.just({"name": "tickets-raw"}) | VALUES,
                            "object": st.fixed_dictionaries({"key": st.sampled_from(KEYS) | VALUES}),
                        },
                    ),
                },
            )
            | VALUES,
            max_size=3,
        )
        | VALUES,
        "Event": st.just("s3:TestEvent") | VALUES,
        "Type": st.just("Notification") | VALUES,
        "Message": st.text(max_size=20) | st.just(json.dumps(notification("a"))) | VALUES,
        "source": st.just("aws.s3") | VALUES,
        "detail-type": st.sampled_from(["Object Created", "Object Deleted"]) | VALUES,
        "detail": VALUES,
        "ticket_id": st.text(max_size=5) | VALUES,
    },
)
TICKETS = st.builds(
    lambda fields: ticket() | fields,
    st.fixed_dictionaries(
        {},
        optional={
            "ticket_id": st.sampled_from(KEYS) | VALUES,
            "subject": st.text(max_size=20) | VALUES,
            "body": st.text(max_size=40) | VALUES,
            "created_at": st.integers(min_value=0, max_value=3) | VALUES,
            "customer_id": st.text(max_size=5) | VALUES,
            "priority": VALUES,
            "metadata": VALUES,
            "extra": VALUES,
        },
    ),
)
NOTIFICATIONS = st.lists(st.sampled_from(KEYS), min_size=1, max_size=3).map(lambda keys: notification(*keys))
BODIES = st.text() | (VALUES | PARTS | TICKETS | NOTIFICATIONS).map(json.dumps)
RAW = st.binary(max_size=30) | (VALUES | TICKETS).map(lambda value: json.dumps(value).encode())
ERRORS = st.sampled_from(
    [
        Throttled("x"),
        ServiceFailed("x"),
        StoreRefused("x"),
        OutOfTime("x"),
        ModelFailed("x"),
        ValueError("x"),
        KeyError(1),
    ]
)
MODEL_ERRORS = st.sampled_from([OutOfTime("x"), ModelFailed("x"), TicketInvalid("x")])
FAULTS = st.dictionaries(st.sampled_from(KEYS), ERRORS, max_size=2)
RANDOM_RECORDS = st.dictionaries(
    st.sampled_from(["messageId", "receiptHandle", "body", "attributes", "messageAttributes"]), VALUES, max_size=5
)
WELL_FORMED = st.tuples(BODIES, st.integers(min_value=1, max_value=6))


@given(BODIES)
@settings(max_examples=300, deadline=None)
def test_any_message_is_parsed_or_rejected(body: str) -> None:
    try:
        found = references(body)
    except MessageInvalid:
        return
    assert found
    assert len(set(found)) == len(found)
    for reference in found:
        assert isinstance(reference, StoredTicket | InlineTicket | Ignored)
        if isinstance(reference, StoredTicket):
            assert reference.bucket
            assert reference.key


@given(
    st.lists(WELL_FORMED, min_size=1, max_size=5),
    st.dictionaries(st.sampled_from(KEYS), RAW),
    st.tuples(FAULTS, FAULTS, FAULTS),
    st.dictionaries(st.sampled_from(KEYS), MODEL_ERRORS, max_size=2),
    st.dictionaries(st.sampled_from(["m-0", "m-1"]), ERRORS, max_size=2),
)
@settings(max_examples=120, deadline=None)
def test_every_record_has_exactly_one_outcome(
    messages: list[tuple[str, int]],
    objects: dict[str, bytes],
    faults: tuple[dict[str, Exception], ...],
    model_faults: dict[str, EnrichmentError],
    dlq_faults: dict[str, Exception],
) -> None:
    harness = FakeHarness()
    for key, raw in objects.items():
        harness.source.put(key, raw)
    for place, errors in zip(
        (harness.source.faults, harness.sink.faults_known, harness.sink.faults), faults, strict=True
    ):
        for name, error in errors.items():
            place.set(error, name)
    for name, error in dlq_faults.items():
        harness.dead_letters.faults.set(error, name)
    harness.models.failures = dict(model_faults)
    records = [record(body, f"m-{i}", count) for i, (body, count) in enumerate(messages)]
    answer = harness.invoke(event(*records))
    rejected = [found["messageId"] for found, _, _ in harness.dead_letters.rejected]
    assert len(rejected) == len(set(rejected)), "no message is sent to the DLQ twice"
    logged = 0
    for sent in records:
        name = sent["messageId"]
        outcomes = [line["outcome"] for line in answer.tickets(name)]
        logged += len(outcomes)
        assert outcomes, "every record is logged"
        assert ("failed" in outcomes) == (name in failed(answer)) == (name in harness.dead_letters.deferred)
        assert ("rejected" in outcomes) == (name in rejected)
        assert not {"failed", "rejected"} <= set(outcomes)
        assert name not in dlq_faults or name not in rejected
    assert (
        sum(harness.metrics.outcomes.values()) == logged == sum(1 for x in answer.lines() if x["message"] == "ticket")
    )
    for name, created_at in harness.sink.items:
        item = harness.item(name, created_at)
        assert item is not None
        stored = json.loads(harness.object(item["s3_key"], item["s3_version_id"]))
        assert (stored["ticket_id"], stored["created_at"]) == (name, created_at)


HARNESS = FakeHarness(FakeModels())
SQS_RECORDS = RANDOM_RECORDS.map(lambda fields: {**fields, "eventSource": "aws:sqs"})
LISTS = st.lists(SQS_RECORDS, max_size=4) | st.lists(SQS_RECORDS | RANDOM_RECORDS | VALUES, max_size=4)


@given(VALUES | LISTS | st.fixed_dictionaries({"Records": VALUES | LISTS}))
@settings(max_examples=200, deadline=None)
def test_any_event_is_rejected_or_answered_with_its_own_ids(any_event: Any) -> None:
    try:
        answer = HARNESS.invoke(any_event)
    except EventNotUnderstood:
        assert any_event
        return
    assert answer.response.keys() == {"batchItemFailures"}
    sent_ids = (
        [r.get("messageId") for r in (any_event["Records"] if isinstance(any_event, dict) else any_event)]
        if answer.response["batchItemFailures"]
        else []
    )
    for failure in answer.response["batchItemFailures"]:
        assert failure["itemIdentifier"] in sent_ids
        assert failure["itemIdentifier"]


@given(RAW)
@settings(max_examples=200, deadline=None)
def test_every_accepted_ticket_can_be_stored(raw: bytes) -> None:
    harness = FakeHarness()
    harness.source.put("a", raw)
    answer = harness.invoke(event(record(notification("a"))))
    try:
        parsed = parse_ticket(raw)
    except TicketInvalid:
        assert [code for _, _, code in harness.dead_letters.rejected] == ["schema_violation"]
    else:
        assert [line["outcome"] for line in answer.tickets("m-1")] == ["done"]
        assert (parsed.ticket_id, parsed.created_at) in harness.sink.items
