"""What a dead letter says of itself, and what it becomes when it is sent again."""

from __future__ import annotations

import base64
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.aws.dead_letters import SqsDeadLetters
from handler.replay.letter import MOST_BYTES, REDRIVEN, Ancestor, Letter, LetterUnsendable, Parcel, batches, pack
from handler.worker.invocation import sqs_event
from tests.replay_fakes import letter, text

ARN = "arn:aws:sqs:us-east-1:123456789012:ticket-processing"
MARKS = {"ReplayCount", "OriginalMessageId", "ReplayedAt"}

NAMES = st.from_regex(r"\A[A-Za-z][A-Za-z0-9_.-]{0,20}\Z").filter(
    lambda name: name not in MARKS | {"Reason", "Rejection"}
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


class Rejecting:
    """As much of an SQS client as the handler's dead letters need: keeps what was sent."""

    def __init__(self) -> None:
        self.sent: dict[str, Any] = {}

    def send_message(self, **request: Any) -> None:
        self.sent = request


def rejected(before: dict[str, Any], message_id: str = "first") -> Letter:
    """The letter that the handler makes of a message with these attributes, on its way through a Lambda event."""
    message = {
        "MessageId": message_id,
        "ReceiptHandle": "r",
        "Body": "body",
        "MD5OfBody": "",
        "MessageAttributes": before,
    }
    (record,) = sqs_event([message], ARN)["Records"]
    client: Any = Rejecting()
    SqsDeadLetters(client, "queue", "dlq").reject(record, [{"error": "object_gone"}], "object_gone")
    sent = client.sent
    return Letter.from_message(
        {
            "MessageId": f"dead {message_id}",
            "ReceiptHandle": "r",
            "Body": sent["MessageBody"],
            "MessageAttributes": sent["MessageAttributes"],
        }
    )


def packed(found: Letter, **options: Any) -> Parcel:
    return pack(found, found.ancestor({}), **{"fifo": False, **options})


def size(entry: Any) -> int:
    """As SQS counts."""
    total = len(entry["MessageBody"].encode())
    for name, value in entry.get("MessageAttributes", {}).items():
        total += sum(len(part.encode() if isinstance(part, str) else part) for part in (name, *value.values()))
    return total


@given(before=ATTRIBUTES)
def test_whatever_the_sender_attached_is_there_again_after_rejection_and_replay(before: dict[str, Any]) -> None:
    found = rejected(before)
    parcel = packed(found)
    after = parcel.entry.get("MessageAttributes", {})
    assert {name: value for name, value in after.items() if name not in MARKS} == before
    assert len(after) <= 10
    assert set(parcel.left_out) == MARKS - set(after)
    assert len(after) == min(10, len(before) + 3)
    assert parcel.size == size(parcel.entry)
    assert found.reason == "object_gone"
    assert found.source_id == "first"


@given(before=ATTRIBUTES)
def test_a_second_replay_counts_on_and_keeps_the_first_id(before: dict[str, Any]) -> None:
    parcel = packed(rejected(before))
    again = packed(rejected(dict(parcel.entry.get("MessageAttributes", {})), "second"))
    after = again.entry.get("MessageAttributes", {})
    assert {name: value for name, value in after.items() if name not in MARKS} == before
    if "ReplayCount" in after:
        assert after["ReplayCount"] == text("2", "Number")
        assert again.replay_count == 2
    if "OriginalMessageId" in after:
        assert after["OriginalMessageId"] == text("first")


def test_a_redriven_message_keeps_everything_and_gets_three_marks() -> None:
    own: dict[str, Any] = {
        "source": text("mail"),
        "weight": text("1.50", "Number"),
        "raw": {"DataType": "Binary", "BinaryValue": b"x"},
    }
    found = letter("m-7", attributes=own)
    entry = packed(found).entry
    marks = {name: value for name, value in entry["MessageAttributes"].items() if name not in own}
    assert found.reason == REDRIVEN
    assert {name: entry["MessageAttributes"][name] for name in own} == own
    assert marks["ReplayCount"] == text("1", "Number")
    assert marks["OriginalMessageId"] == text("m-7")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", marks["ReplayedAt"]["StringValue"])
    assert entry["MessageBody"] == found.body


def test_sqs_empty_lists_do_not_go_back() -> None:
    received = {"x": {**text("1"), "StringListValues": [], "BinaryListValues": []}}
    assert packed(letter(attributes=received)).entry["MessageAttributes"]["x"] == text("1")


def test_the_count_wins_where_room_is_short() -> None:
    nine = {f"own{number}": text("x") for number in range(9)}
    assert packed(letter(attributes=nine)).left_out == ("OriginalMessageId", "ReplayedAt")
    eight = {f"own{number}": text("x") for number in range(8)}
    assert packed(letter(attributes=eight)).left_out == ("ReplayedAt",)


def test_what_was_sent_without_marks_is_known_by_an_earlier_run() -> None:
    ten = {f"own{number}": text("x") for number in range(10)}
    back = rejected(ten, "second")
    assert back.ancestor({}) == Ancestor("second", 0)
    assert back.ancestor({"second": Ancestor("first", 4)}) == Ancestor("first", 4)


def test_a_message_with_eleven_attributes_of_its_own_stays() -> None:
    moved = {f"own{number}": {"dataType": "String", "stringValue": "x"} for number in range(11)}
    with pytest.raises(LetterUnsendable, match="11 attributes"):
        packed(letter(reason="x", rejection={"attributes": moved}))


def test_a_message_without_a_body_stays() -> None:
    with pytest.raises(LetterUnsendable, match="empty"):
        packed(letter(body=""))


@pytest.mark.parametrize("room", range(0, 120, 7))
def test_no_mark_makes_a_message_larger_than_sqs_takes(room: int) -> None:
    body = "é" * ((MOST_BYTES - room) // 2)
    parcel = packed(letter(body=body))
    assert parcel.entry["MessageBody"] == body
    assert parcel.size == size(parcel.entry) <= MOST_BYTES
    assert ("ReplayCount" in parcel.left_out) == (MOST_BYTES - len(body.encode()) < 18)


def test_a_queue_for_smaller_messages_gets_fewer_marks() -> None:
    assert packed(letter(body="x" * 1000), most_bytes=1024).left_out == ("OriginalMessageId", "ReplayedAt")


def test_order_fairness_and_trace_survive() -> None:
    system = {"MessageGroupId": "customer-1", "AWSTraceHeader": "Root=1-2-3", "SenderId": "somebody"}
    entry = packed(letter("m-9", system=system)).entry
    assert entry["MessageGroupId"] == "customer-1"
    assert entry["MessageSystemAttributes"] == {"AWSTraceHeader": text("Root=1-2-3")}
    assert "MessageDeduplicationId" not in entry


def test_in_a_fifo_queue_a_replay_is_no_duplicate_of_the_original_but_of_itself() -> None:
    found = letter("m-9", system={"MessageGroupId": "g", "MessageDeduplicationId": "original"})
    first, again = packed(found, fifo=True), packed(found, fifo=True)
    assert first.entry["MessageDeduplicationId"] == again.entry["MessageDeduplicationId"] != "original"
    later = pack(found, Ancestor("m-9", 1), fifo=True)
    assert later.entry["MessageDeduplicationId"] != first.entry["MessageDeduplicationId"]


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
def test_a_rejection_that_nobody_wrote_does_no_harm(rejection: str) -> None:
    found = letter("m-3", reason="x", rejection=rejection, attributes={"own": text("1")})
    assert found.own == {"own": text("1")}
    assert found.source_id == "m-3"


def test_a_reason_alone_is_stripped_too() -> None:
    assert set(packed(letter(reason="too_large")).entry["MessageAttributes"]) == MARKS


def test_what_is_restored_comes_from_the_form_of_a_lambda_event() -> None:
    moved = {"raw": {"dataType": "Binary.png", "binaryValue": base64.b64encode(b"\x00\xff").decode()}}
    found = letter(reason="x", rejection={"attributes": moved})
    assert found.own == {"raw": {"DataType": "Binary.png", "BinaryValue": b"\x00\xff"}}


@pytest.mark.parametrize("count", ["-1", "x", "1.5", "", "9" * 30])
def test_a_count_that_is_none_counts_as_nothing(count: str) -> None:
    assert letter(attributes={"ReplayCount": text(count, "Number")}).ancestor({}).replay_count == 0


def test_a_time_that_is_none_is_unknown() -> None:
    assert letter(system={"SentTimestamp": "soon"}).sent_at is None
    assert letter(sent_at=17).sent_at == 17


@given(
    sizes=st.lists(st.integers(1, MOST_BYTES), max_size=40),
    most=st.integers(1, 20),
)
def test_batches_keep_the_order_and_both_limits(sizes: list[int], most: int) -> None:
    parcels = [Parcel(letter(str(n)), {}, size, Ancestor("", 0), ()) for n, size in enumerate(sizes)]
    cut = list(batches(parcels, most))
    assert [parcel for batch in cut for parcel in batch] == parcels
    for batch in cut:
        assert 0 < len(batch) <= min(10, most)
        assert sum(parcel.size for parcel in batch) <= MOST_BYTES
    for batch, after in pairwise(cut):
        full = len(batch) == min(10, most)
        assert full or sum(parcel.size for parcel in batch) + after[0].size > MOST_BYTES
