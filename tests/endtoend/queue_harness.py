"""The sample events through the queue: their bodies are sent, and the event source mapping invokes the function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.endtoend.pipeline import Pipeline, wait_until
from tests.support.cases import Answer, RejectedMessage
from tests.support.stack_harness import StackHarness


class QueueHarness(StackHarness):
    """`tests.support.cases.Harness` on a real queue; SQS's message ids are mapped back to those of the event.

    S3 must not send notifications meanwhile (`Pipeline.without_notifications`), because the events replace them.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline.deployment, lambda *_: {})
        self._pipeline = pipeline
        self._ids: dict[str, str] = {}

    def invoke(self, event: Mapping[str, Any]) -> Answer:
        """Send the event's messages and wait until the function has logged each one."""
        self._ids = {self._send(record): record["messageId"] for record in event["Records"]}
        wait_until(lambda: self._ids.keys() <= self._logged_ids(), "the function logged every message")
        answer = Answer(None, self._translated(self._pipeline.log()))
        # The mapping does not expose the response. A message that will be retried is logged as failed.
        failed = [id_ for id_ in self._ids.values() if "failed" in {x["outcome"] for x in answer.tickets(id_)}]
        return Answer({"batchItemFailures": [{"itemIdentifier": id_} for id_ in failed]}, answer.log)

    def rejected_messages(self) -> list[RejectedMessage]:
        """As Harness.rejected_messages."""
        return [
            RejectedMessage(message.body, {n: self._translated(v) for n, v in message.attributes.items()})
            for message in super().rejected_messages()
        ]

    def _send(self, record: Mapping[str, Any]) -> str:
        attributes = {
            name: {"DataType": value["dataType"], "StringValue": value["stringValue"]}
            for name, value in record["messageAttributes"].items()
        }
        sent = self._sqs.send_message(
            QueueUrl=self._outputs["QueueUrl"], MessageBody=record["body"], MessageAttributes=attributes
        )
        return str(sent["MessageId"])

    def _logged_ids(self) -> set[str]:
        lines = Answer(None, self._pipeline.log()).lines()
        return {line["message_id"] for line in lines if line.get("message") == "ticket"}

    def _translated(self, text: Any) -> Any:
        for sent_id, event_id in self._ids.items():
            text = text.replace(sent_id, event_id) if isinstance(text, str) else text
        return text
