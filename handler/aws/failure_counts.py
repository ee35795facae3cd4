"""Counts the failures that each message caused itself, in the table, which all containers and workers share.

SQS's receive count includes all causes. After an outage of two hours a good message has been received 20 times, so the
receive count cannot distinguish a ticket whose model fails from one that waited for DynamoDB.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from botocore.exceptions import BotoCoreError, ClientError

from handler.aws.errors import from_aws

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

__all__ = ["DynamoFailureCounts"]

_KEPT: Final = 14 * 24 * 3600  # seconds: SQS's longest retention period
_CREATED_AT: Final = -1  # no ticket has this value, so these items never overwrite a ticket's


class DynamoFailureCounts:
    """FailureCounts in the table of the tickets: one item per message, which is not in the index.

    DynamoDB deletes the item after two weeks (time to live, attribute `expires_at`).
    """

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._client = client
        self._table = table

    def add(self, message_id: str, receive_count: int) -> int:
        """As FailureCounts.add. A set of receives, not a counter, because botocore may retry a call that succeeded."""
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
