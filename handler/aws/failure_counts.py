"""How often each message failed through its own fault, counted where every container and worker sees it.

SQS has one receive counter for all causes. After an outage of two hours a good message has been received 20 times, so
that counter cannot tell a ticket whose model fails from one that waited for DynamoDB.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from botocore.exceptions import BotoCoreError, ClientError

from handler.aws.errors import from_aws

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

__all__ = ["DynamoFailureCounts"]

_KEPT: Final = 14 * 24 * 3600  # seconds: no message stays in a queue of SQS for longer
_CREATED_AT: Final = -1  # no ticket has it, so an item that counts never takes the place of a ticket's


class DynamoFailureCounts:
    """FailureCounts in the table of the tickets: an item per message, without the attributes that its index needs.

    DynamoDB deletes the item after two weeks, by its time to live `expires_at`.
    """

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._client = client
        self._table = table

    def add(self, message_id: str, receive_count: int) -> int:
        """As FailureCounts.add. A set of receives, not a number: botocore may repeat a call that was carried out."""
        try:
            answer = self._client.update_item(
                TableName=self._table,
                Key={"ticket_id": {"S": f"#failures#{message_id}"}, "created_at": {"N": str(_CREATED_AT)}},
                UpdateExpression="SET expires_at = :expires_at ADD failed_receives :receive",
                ExpressionAttributeValues={
                    ":expires_at": {"N": str(int(time.time()) + _KEPT)},
                    ":receive": {"NS": [str(receive_count)]},
                },
                ReturnValues="UPDATED_NEW",
            )
        except (ClientError, BotoCoreError) as error:
            raise from_aws(error, "UpdateItem") from error
        return len(answer["Attributes"]["failed_receives"]["NS"])
