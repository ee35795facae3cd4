"""The failure counts, in DynamoDB and in memory."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from handler.aws.failure_counts import DynamoFailureCounts
from handler.errors import ServiceFailed
from handler.ports import FailureCounts
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
