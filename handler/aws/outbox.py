"""The outbox: events that are written in the same transaction as the commit, and deleted once they are delivered.

It is a partition of the table of the tickets. Its items have negative values of `created_at`, which no ticket has, and
are in no index. One partition takes 500 commits per second, more than one table's workers make.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from handler.aws.errors import from_aws
from handler.aws.forgetting import item_key

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

    from handler.result_event import ResultEvent

__all__ = ["OUTBOX", "DynamoOutbox", "OutboxEntry", "outbox_item"]

OUTBOX: Final = "#outbox"  # the items' ticket_id
KEPT: Final = 7 * 24 * 3600  # seconds until an event is given up; DynamoDB then deletes it (attribute `expires_at`)
_PAGE: Final = 100
_PER_SECOND: Final = 10**18  # an event's number consists of the time in nanoseconds and nine more digits


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """An event to deliver. `body` is its JSON; times are in Unix seconds; `number` is unique."""

    number: int
    event_id: str
    body: str
    due_at: int
    attempts: int
    expires_at: int

    @property
    def committed_at(self) -> float:
        """When the event's ticket was stored, in Unix seconds."""
        return -self.number / _PER_SECOND


def outbox_item(event: ResultEvent) -> dict[str, Any]:
    """The item of a new event, due at once, in DynamoDB's JSON."""
    now = time.time_ns()
    # The oldest first in descending order; the event's id distinguishes events of the same moment.
    number = -(now * 10**9 + int(event.event_id, 16) % 10**9)
    return {
        **item_key(OUTBOX, number),
        "event_id": {"S": event.event_id},
        "body": {"S": event.model_dump_json(exclude_none=True)},
        "due_at": {"N": str(now // 10**9)},
        "attempts": {"N": "0"},
        "expires_at": {"N": str(now // 10**9 + KEPT)},
    }


class DynamoOutbox:
    """The outbox in a table. Thread-safe; its methods raise Throttled or ServiceFailed."""

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._client = client
        self._table = table

    def due(self, now: int) -> Iterator[OutboxEntry]:
        """The events that are due, oldest first. Pages are read lazily."""
        request: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "ticket_id = :outbox",
            "FilterExpression": "due_at <= :now",
            "ExpressionAttributeValues": {":outbox": {"S": OUTBOX}, ":now": {"N": str(now)}},
            "ScanIndexForward": False,
            "ConsistentRead": True,
            "Limit": _PAGE,
        }
        while True:
            try:
                answer = self._client.query(**request)
            except (ClientError, BotoCoreError) as error:
                raise from_aws(error, "Query") from error
            yield from map(_entry, answer["Items"])
            if "LastEvaluatedKey" not in answer:
                return
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def reschedule(self, entry: OutboxEntry, due_at: int, attempts: int) -> OutboxEntry | None:
        """Makes an event due at another time; None if another sender has rescheduled or deleted it."""
        try:
            self._client.update_item(
                TableName=self._table,
                Key=_key(entry),
                UpdateExpression="SET due_at = :due_at, attempts = :attempts",
                ConditionExpression="due_at = :before",
                ExpressionAttributeValues={
                    ":due_at": {"N": str(due_at)},
                    ":attempts": {"N": str(attempts)},
                    ":before": {"N": str(entry.due_at)},
                },
            )
        except (ClientError, BotoCoreError) as error:
            if isinstance(error, ClientError) and error.response["Error"]["Code"] == "ConditionalCheckFailedException":
                return None
            raise from_aws(error, "UpdateItem") from error
        return replace(entry, due_at=due_at, attempts=attempts)

    def delete(self, entry: OutboxEntry) -> None:
        """Removes an event."""
        try:
            self._client.delete_item(TableName=self._table, Key=_key(entry))
        except (ClientError, BotoCoreError) as error:
            raise from_aws(error, "DeleteItem") from error


def _key(entry: OutboxEntry) -> dict[str, Any]:
    return item_key(OUTBOX, entry.number)


def _entry(item: Any) -> OutboxEntry:
    return OutboxEntry(
        number=int(item["created_at"]["N"]),
        event_id=item["event_id"]["S"],
        body=item["body"]["S"],
        due_at=int(item["due_at"]["N"]),
        attempts=int(item["attempts"]["N"]),
        expires_at=int(item["expires_at"]["N"]),
    )
