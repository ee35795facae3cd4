"""Puts tickets that an earlier version stored into day-index, by giving their items the attribute `day`.

It reads urgency-index, which has every ticket, and changes only items without `day`, so a run that was interrupted can
be repeated. At its end, an item of the table says that day-index is complete; until then, counts by day do not use it
(handler.tickets.repository). The same change removes `event` from these items: a pipe on the table's stream sends an
event for each change of an item that has it, and these tickets have not changed.

The role needs dynamodb:Query on urgency-index, and dynamodb:UpdateItem and dynamodb:PutItem on the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from handler.aws.forgetting import NO_TICKET, item_key
from handler.aws.storage import day_of
from handler.cli.shutdown import Shutdown
from handler.tickets.repository import READERS, UPGRADED, URGENCIES

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

__all__ = ["upgrade"]


def upgrade(client: DynamoDBClient, table: str, shutdown: Shutdown, on_progress: Callable[[int, int], object]) -> bool:
    """Gives each item its day. Returns False if a shutdown was requested before the end. Raises botocore's errors.

    `on_progress` gets the numbers of items read and changed since it was called last.
    """

    def change(key: dict[str, Any]) -> int:
        try:
            client.update_item(
                TableName=table,
                Key=key,
                UpdateExpression="SET #day = :day REMOVE #event",
                # The ticket is still there, and the function has not stored it again meanwhile.
                ConditionExpression="attribute_exists(ticket_id) AND attribute_not_exists(#day)",
                ExpressionAttributeNames={"#day": "day", "#event": "event"},
                ExpressionAttributeValues={":day": {"S": day_of(int(key["created_at"]["N"]))}},
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise
            return 0
        return 1

    with ThreadPoolExecutor(READERS) as pool:
        for scanned, keys in _pages(client, table):
            on_progress(scanned, sum(pool.map(change, keys)))
            if shutdown.is_requested:
                return False
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    client.put_item(TableName=table, Item={**item_key(UPGRADED, NO_TICKET), "upgraded_at": {"S": now}})
    return True


def _pages(client: DynamoDBClient, table: str) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The keys of the items without a day, by pages of the index, each with the number of items read."""
    for urgency in URGENCIES:
        pages = client.get_paginator("query").paginate(
            TableName=table,
            IndexName="urgency-index",
            KeyConditionExpression="urgency = :urgency",
            FilterExpression="attribute_not_exists(#day)",
            ProjectionExpression="ticket_id, created_at",
            ExpressionAttributeNames={"#day": "day"},
            ExpressionAttributeValues={":urgency": {"S": urgency}},
        )
        for page in pages:
            yield page["ScannedCount"], [dict(item) for item in page["Items"]]
