"""What a DLQ message says about itself, and what a replay sends for it."""

from __future__ import annotations

import base64
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.aws.dead_letters import SqsDeadLetters
from handler.aws.sqs import MAX_BYTES, QueueAttributes
from handler.dlq.message import NO_REASON, DlqMessage, Lineage, Outgoing, Unsendable, batches, prepare
from handler.settings import Lane
from handler.worker.invocation import sqs_event
from tests.support.dlq_queues import ARN, dlq_message, text

LIVE = QueueAttributes(arn=ARN + "ticket-processing")
OURS = {"ReplayCount", "FirstSentTimestamp", "OriginalMessageId", "ReplayedAt"}

NAMES = st.from_regex(r"\A[A-Za-z][A-Za-z0-9_.-]{0,20}\Z").filter(
    lambda name: name not in OURS | {"Reason", "Rejection"}
)
TEXTS = st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs"]), min_size=1, max_size=50)
ATTRIBUTES = st.dictionaries(
    NAMES,
    st.one_of(
        st.builds(text, TEXTS, st.sampled_from(["String", "String.mail"])),
        st.builds(text, st.integers().map(str), st.sampled_from(["Number", "Number.int"])),
        st.builds(lambda value: {"DataType": "Binary.png", "BinaryValue": value}, st.binary(min_size=1, max_size=50)),
    ),
    max_size=10,
)


class Client:
    """The part of an SQS client that a rejection needs; keeps what was sent."""

    def __init__(self) -> None:
        self.sent: dict[str, Any] = {}

    def send_message(self, **request: Any) -> None:
        self.sent = request


def rejected(attributes: dict[str, Any], message_id: str = "first") -> DlqMessage:
    """The DLQ message that the handler makes of a message with these attributes, which came in a Lambda event."""
    message = {
        "MessageId": message_id,
        "ReceiptHandle": "r",
        "Body": "body",
        "MD5OfBody": "",
        "MessageAttributes": attributes,
        "Attributes": {"SentTimestamp": "5"},
    }
    (record,) = sqs_event([message], LIVE.arn)["Records"]
    client: Any = Client()
    SqsDeadLetters(client, [Lane("queue", "dlq")]).reject(record, [{"error": "object_gone"}], "object_gone")
    return DlqMessage.from_boto3(
        {
            "MessageId": f"dead {message_id}",
            "ReceiptHandle": "r",
            "Body": client.sent["MessageBody"],
            "MessageAttributes": client.sent["MessageAttributes"],
        }
    )


def prepared(message: DlqMessage, destination: QueueAttributes = LIVE) -> Outgoing:
    return prepare(message, message.lineage({}), destination)


def size(entry: Any) -> int:
    """As SQS counts it."""
    total = len(entry["MessageBody"].encode())
    for name, value in entry.get("MessageAttributes", {}).items():
        total += sum(len(part.encode() if isinstance(part, str) else part) for part in (name, *value.values()))
    return total


# -- attributes


@given(attributes=ATTRIBUTES)
def test_sender_attributes_survive_rejection_and_replay(attributes: dict[str, Any]) -> None:
    message = rejected(attributes)
    outgoing = prepared(message)
    after = outgoing.entry.get("MessageAttributes", {})
    assert {name: value for name, value in after.items() if name not in OURS} == attributes
    assert len(after) == min(10, len(attributes) + 4)
    assert set(outgoing.left_out) == OURS - set(after)
    assert outgoing.size == size(outgoing.entry)
    assert message.reason == "object_gone"
    assert message.source_id == "first"


@given(attributes=ATTRIBUTES)
def test_second_replay_counts_on_and_keeps_the_first_id(attributes: dict[str, Any]) -> None:
    outgoing = prepared(rejected(attributes))
    again = prepared(rejected(dict(outgoing.entry.get("MessageAttributes", {})), "second"))
    after = again.entry.get("MessageAttributes", {})
    assert {name: value for name, value in after.items() if name not in OURS} == attributes
    if "ReplayCount" in after:
        assert after["ReplayCount"] == text("2", "Number")
    if "OriginalMessageId" in after:
        assert after["OriginalMessageId"] == text("first")


def test_message_that_sqs_moved_keeps_everything_and_gets_three_attributes() -> None:
    raw = {"DataType": "Binary", "BinaryValue": b"x"}
    own: dict[str, Any] = {"source": text("mail"), "weight": text("1.50", "Number"), "raw": raw}
    message = dlq_message("m-7", attributes=own)
    entry = prepared(message).entry
    ours = {name: value for name, value in entry["MessageAttributes"].items() if name not in own}
    assert message.reason == NO_REASON
    assert {name: entry["MessageAttributes"][name] for name in own} == own
    assert ours["ReplayCount"] == text("1", "Number")
    assert ours["OriginalMessageId"] == text("m-7")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", ours["ReplayedAt"]["StringValue"])
    assert entry["MessageBody"] == message.body


def test_empty_lists_of_sqs_are_not_sent() -> None:
    received = {"x": {**text("1"), "StringListValues": [], "BinaryListValues": []}}
    assert prepared(dlq_message(attributes=received)).entry["MessageAttributes"]["x"] == text("1")


def test_reason_without_rejection_is_removed() -> None:
    assert set(prepared(dlq_message(reason="too_large")).entry["MessageAttributes"]) == OURS - {"FirstSentTimestamp"}


def test_attributes_moved_into_the_rejection_are_restored() -> None:
    moved = {"raw": {"dataType": "Binary.png", "binaryValue": base64.b64encode(b"\x00\xff").decode()}}
    message = dlq_message(reason="x", rejection={"attributes": moved})
    assert message.sender_attributes == {"raw": {"DataType": "Binary.png", "BinaryValue": b"\x00\xff"}}


@pytest.mark.parametrize(
    "rejection",
    [
        "",
        "{",
        "[]",
        "7",
        "[" * 100_000,
        '{"attributes": 3}',
        '{"attributes": {"a": 3, "b": {}}, "message_id": 5}',
        '{"attributes": {"c": {"dataType": "Binary", "binaryValue": "%"}, "d": {"dataType": "String"}}}',
    ],
)
def test_malformed_rejection_is_ignored(rejection: str) -> None:
    message = dlq_message("m-3", reason="x", rejection=rejection, attributes={"own": text("1")})
    assert message.sender_attributes == {"own": text("1")}
    assert message.source_id == "m-3"


# -- room


def test_replay_count_has_priority() -> None:
    nine = {f"own{number}": text("x") for number in range(9)}
    assert prepared(dlq_message(attributes=nine)).left_out == ("FirstSentTimestamp", "OriginalMessageId", "ReplayedAt")
    eight = {f"own{number}": text("x") for number in range(8)}
    assert prepared(dlq_message(attributes=eight)).left_out == ("OriginalMessageId", "ReplayedAt")


@pytest.mark.parametrize("room", range(0, 120, 7))
def test_our_attributes_never_exceed_the_size_limit(room: int) -> None:
    body = "é" * ((MAX_BYTES - room) // 2)
    outgoing = prepared(dlq_message(body=body))
    assert outgoing.entry["MessageBody"] == body
    assert outgoing.size == size(outgoing.entry) <= MAX_BYTES
    assert ("ReplayCount" in outgoing.left_out) == (MAX_BYTES - len(body.encode()) < 18)


def test_queue_with_a_smaller_size_limit_gets_fewer_attributes() -> None:
    small = QueueAttributes(arn=LIVE.arn, max_message_bytes=1024)
    assert prepared(dlq_message(body="x" * 1000), small).left_out == (
        "FirstSentTimestamp",
        "OriginalMessageId",
        "ReplayedAt",
    )


def test_eleven_sender_attributes_are_unsendable() -> None:
    moved = {f"own{number}": {"dataType": "String", "stringValue": "x"} for number in range(11)}
    with pytest.raises(Unsendable, match="11 attributes"):
        prepared(dlq_message(reason="x", rejection={"attributes": moved}))


def test_empty_body_is_unsendable() -> None:
    with pytest.raises(Unsendable, match="empty"):
        prepared(dlq_message(body=""))


@given(sizes=st.lists(st.integers(1, MAX_BYTES), max_size=40), most=st.integers(1, 20))
def test_batches_keep_the_order_and_both_limits(sizes: list[int], most: int) -> None:
    outgoing = [Outgoing(dlq_message(str(n)), Lineage("", 0), {}, size, ()) for n, size in enumerate(sizes)]
    cut = list(batches(outgoing, most))
    assert [message for batch in cut for message in batch] == outgoing
    for batch in cut:
        assert 0 < len(batch) <= min(10, most)
        assert sum(message.size for message in batch) <= MAX_BYTES
    for batch, after in pairwise(cut):
        full = len(batch) == min(10, most)
        assert full or sum(message.size for message in batch) + after[0].size > MAX_BYTES


# -- lineage, system attributes


def test_recorded_lineage_replaces_missing_attributes() -> None:
    back = rejected({f"own{number}": text("x") for number in range(10)}, "second")
    assert back.lineage({}) == Lineage("second", 0)
    assert back.lineage({"second": Lineage("first", 4)}) == Lineage("first", 4)


@pytest.mark.parametrize("count", ["-1", "x", "1.5", "", "9" * 30])
def test_invalid_replay_count_counts_as_zero(count: str) -> None:
    assert dlq_message(attributes={"ReplayCount": text(count, "Number")}).lineage({}).replay_count == 0


def test_group_and_trace_are_kept() -> None:
    system = {"MessageGroupId": "customer-1", "AWSTraceHeader": "Root=1-2-3", "SenderId": "somebody"}
    entry = prepared(dlq_message("m-9", system=system)).entry
    assert entry["MessageGroupId"] == "customer-1"
    assert entry["MessageSystemAttributes"] == {"AWSTraceHeader": text("Root=1-2-3")}
    assert "MessageDeduplicationId" not in entry


def test_fifo_deduplication_id_differs_from_the_original_but_not_between_retries() -> None:
    fifo = QueueAttributes(arn=f"{LIVE.arn}.fifo")
    message = dlq_message("m-9", system={"MessageGroupId": "g", "MessageDeduplicationId": "original"})
    first, retry = prepared(message, fifo), prepared(message, fifo)
    assert first.entry["MessageDeduplicationId"] == retry.entry["MessageDeduplicationId"] != "original"
    later = prepare(message, Lineage("m-9", 1), fifo)
    assert later.entry["MessageDeduplicationId"] != first.entry["MessageDeduplicationId"]


def test_invalid_sent_timestamp_is_unknown() -> None:
    assert dlq_message(system={"SentTimestamp": "soon"}).sent_at is None
    assert dlq_message(sent_at=17).sent_at == 17


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (dlq_message(sent_at=9, rejection={"message_id": "m", "first_sent": 5}, reason="throttled"), "5"),
        (dlq_message(sent_at=9), "9"),
        (dlq_message(sent_at=9, attributes={"FirstSentTimestamp": text("4")}), "4"),
        (dlq_message(sent_at=9, rejection={"message_id": "written by an older version"}, reason="throttled"), None),
    ],
    ids=["rejected", "moved by SQS", "replayed before", "older version"],
)
def test_the_first_time_of_sending_survives_replays(message: DlqMessage, expected: str | None) -> None:
    found = prepared(message).entry["MessageAttributes"].get("FirstSentTimestamp")
    assert (found or {}).get("StringValue") == expected
