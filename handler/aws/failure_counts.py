"""Counts the failures that each message caused itself, and notes which messages are being processed.

Both are in the table, which all containers and workers share, and which outlives a process that dies.

SQS's receive count includes all causes. After an outage of two hours a good message has been received 20 times, so the
receive count cannot distinguish a ticket whose model fails from one that waited for DynamoDB.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from handler.aws.errors import from_aws
from handler.aws.forgetting import item_key
from handler.ports import Unfinished

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

__all__ = ["DynamoFailureCounts"]

_KEPT: Final = 14 * 24 * 3600  # seconds: SQS's longest retention period
# No ticket has these values of created_at, so these items never overwrite a ticket's.
_COUNT: Final = -1
_NOTE: Final = -2


class DynamoFailureCounts:
    """FailureCounts in the table of the tickets: an item for the count of a message, and one for its note.

    Neither is in the index. DynamoDB deletes them after two weeks, a cleared note at once (time to live, attribute
    `expires_at`).
    """

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._client = client
        self._table = table

    def add(self, message_id: str, receive_count: int) -> int:
        """As FailureCounts.add. A set of receives, not a counter, because botocore may retry a call that succeeded."""
        return len(self._with_receive(message_id, _COUNT, "failed_receives", receive_count)["failed_receives"]["NS"])

    def begin(self, message_id: str, receive_count: int, *, alone: bool) -> Unfinished:
        """As FailureCounts.begin; a set of receives for the same reason."""
        name = "unfinished_alone" if alone else "unfinished"
        found = self._with_receive(message_id, _NOTE, name, receive_count)
        together, by_itself = (
            {int(receive) for receive in found.get(each, {}).get("NS", ())} - {receive_count}
            for each in ("unfinished", "unfinished_alone")
        )
        return Unfinished(len(together), len(by_itself))

    def end(self, message_id: str) -> None:
        """As FailureCounts.end. The item stays until DynamoDB deletes it: the role cannot delete items."""
        self._update(message_id, _NOTE, "SET expires_at = :expires_at REMOVE unfinished, unfinished_alone", 0, {})

    def _with_receive(self, message_id: str, created_at: int, name: str, receive_count: int) -> dict[str, Any]:
        expression = f"SET expires_at = :expires_at ADD {name} :receive"
        return self._update(message_id, created_at, expression, _KEPT, {":receive": {"NS": [str(receive_count)]}})

    def _update(
        self, message_id: str, created_at: int, expression: str, kept: int, values: dict[str, Any]
    ) -> dict[str, Any]:
        """Updates an item, which is then kept for `kept` seconds; returns it as it is now."""
        try:
            answer = self._client.update_item(
                TableName=self._table,
                Key=item_key(f"#failures#{message_id}", created_at),
                UpdateExpression=expression,
                ExpressionAttributeValues={":expires_at": {"N": str(int(time.time()) + kept)}, **values},
                ReturnValues="ALL_NEW",
            )
        except (ClientError, BotoCoreError) as error:
            raise from_aws(error, "UpdateItem") from error
        return dict(answer["Attributes"])
