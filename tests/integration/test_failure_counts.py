"""The failure counts, in DynamoDB and in memory."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from handler.aws.failure_counts import DynamoFailureCounts
from handler.errors import ServiceFailed
from handler.ports import FailureCounts, Unfinished
from tests.support.fakes import FakeFailureCounts

if TYPE_CHECKING:
    from handler.local import EmbeddedStack


@pytest.fixture(params=["DynamoDB", "memory"])
def counts(request: pytest.FixtureRequest, stack: EmbeddedStack) -> FailureCounts:
    if request.param == "memory":
        return FakeFailureCounts()
    return DynamoFailureCounts(stack.client("dynamodb"), stack.outputs["TableName"])


def test_each_receive_counts_once(counts: FailureCounts) -> None:
    assert [counts.add("m-1", receive) for receive in (3, 4, 4, 3, 25)] == [1, 2, 2, 2, 3]
    assert counts.add("m-2", 25) == 1


def test_concurrent_counts_add_up(counts: FailureCounts) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda receive: counts.add("at once", receive), range(20)))
    assert max(found) == counts.add("at once", 0) == 20


def test_notes_that_were_not_cleared_are_found_by_later_receives(counts: FailureCounts) -> None:
    assert counts.begin("noted", 2, alone=False) == Unfinished()
    assert counts.begin("noted", 2, alone=False) == Unfinished(), "botocore may repeat a call"
    assert counts.begin("noted", 3, alone=False) == Unfinished(together=1)
    assert counts.begin("noted", 3, alone=True) == Unfinished(together=1)
    assert counts.begin("noted", 5, alone=False) == Unfinished(together=2, alone=1)
    assert counts.begin("another", 5, alone=False) == Unfinished()
    counts.end("noted")
    assert counts.begin("noted", 6, alone=False) == Unfinished()
    counts.end("never noted")


def test_notes_and_counts_are_separate(counts: FailureCounts) -> None:
    assert counts.begin("both", 2, alone=False) == Unfinished()
    assert counts.add("both", 2) == 1
    counts.end("both")
    assert counts.add("both", 3) == 2
    assert counts.begin("both", 4, alone=True) == Unfinished()


def test_cleared_note_expires_at_once(stack: EmbeddedStack) -> None:
    dynamodb, table = stack.client("dynamodb"), stack.outputs["TableName"]
    notes, before = DynamoFailureCounts(dynamodb, table), time.time()
    key = {"ticket_id": {"S": "#failures#note"}, "created_at": {"N": "-2"}}
    notes.begin("note", 2, alone=True)
    item = dynamodb.get_item(TableName=table, Key=key)["Item"]
    assert int(item["expires_at"]["N"]) >= int(before) + 14 * 24 * 3600
    assert item.keys() == {"ticket_id", "created_at", "expires_at", "unfinished_alone"}
    notes.end("note")
    item = dynamodb.get_item(TableName=table, Key=key).get("Item")
    assert item is None or (  # it may have expired already
        int(before) <= int(item["expires_at"]["N"]) <= int(time.time())
        and item.keys() == {"ticket_id", "created_at", "expires_at"}
    )


def test_item_expires_and_is_not_a_ticket(stack: EmbeddedStack) -> None:
    dynamodb, table = stack.client("dynamodb"), stack.outputs["TableName"]
    before = time.time()
    DynamoFailureCounts(dynamodb, table).add("ends", 1)
    key = {"ticket_id": {"S": "#failures#ends"}, "created_at": {"N": "-1"}}
    item = dynamodb.get_item(TableName=table, Key=key)["Item"]
    # It lives as long as SQS can retain the message, and has no attribute by which `tickets` would find it.
    assert int(item["expires_at"]["N"]) >= int(before) + 14 * 24 * 3600
    assert item.keys() == {"ticket_id", "created_at", "expires_at", "failed_receives"}


def test_missing_table_is_a_transient_error(stack: EmbeddedStack) -> None:
    with pytest.raises(ServiceFailed, match=r"^UpdateItem: ResourceNotFoundException$") as caught:
        DynamoFailureCounts(stack.client("dynamodb"), "gone").add("m-1", 1)
    assert caught.value.transient
    with pytest.raises(ServiceFailed, match=r"^UpdateItem: ResourceNotFoundException$"):
        DynamoFailureCounts(stack.client("dynamodb"), "gone").begin("m-1", 1, alone=True)
    with pytest.raises(ServiceFailed, match=r"^UpdateItem: ResourceNotFoundException$"):
        DynamoFailureCounts(stack.client("dynamodb"), "gone").end("m-1")
