"""The worker invokes the handler like Lambda: the event, the context and the interpretation of the response."""

from __future__ import annotations

import json

import pytest
from aws_lambda_powertools.logging.lambda_context import build_lambda_context_model
from aws_lambda_powertools.utilities.data_classes import SQSEvent

from handler.worker.invocation import AnswerMalformed, InvocationContext, failed_ids, function_arn, sqs_event

ARN = "arn:aws-cn:sqs:cn-north-1:123456789012:ticket-processing"

# As decoded by boto3. Lambda turns it into the event shown in its documentation.
MESSAGE = {
    "MessageId": "2e1424d4-f796-459a-8184-9c92662be6da",
    "ReceiptHandle": "AQEBzWwaftRI0KuVm4tP+/7q1rGgNqicHq==",
    "MD5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
    "Body": "Test message.",
    "Attributes": {
        "SenderId": "AIDAIENQZJOLO23YVJ4VO",
        "ApproximateFirstReceiveTimestamp": "1545082650649",
        "ApproximateReceiveCount": "1",
        "SentTimestamp": "1545082650636",
        "AWSTraceHeader": "Root=1-5759e988-bd862e3fe1be46a994272793",
    },
    "MD5OfMessageAttributes": "00484c68c13ab4bc0af0f8b5df43b8ab",
    "MessageAttributes": {
        "name": {"StringValue": "value", "DataType": "String"},
        "count": {"StringValue": "3", "DataType": "Number.int"},
        "picture": {"BinaryValue": b"\xff\x00", "DataType": "Binary.gif"},
    },
}


def test_event_equals_that_of_lambda() -> None:
    assert sqs_event([MESSAGE], ARN) == {
        "Records": [
            {
                "messageId": "2e1424d4-f796-459a-8184-9c92662be6da",
                "receiptHandle": "AQEBzWwaftRI0KuVm4tP+/7q1rGgNqicHq==",
                "body": "Test message.",
                "attributes": MESSAGE["Attributes"],
                "messageAttributes": {
                    "name": {
                        "stringValue": "value",
                        "stringListValues": [],
                        "binaryListValues": [],
                        "dataType": "String",
                    },
                    "count": {
                        "stringValue": "3",
                        "stringListValues": [],
                        "binaryListValues": [],
                        "dataType": "Number.int",
                    },
                    "picture": {
                        "binaryValue": "/wA=",
                        "stringListValues": [],
                        "binaryListValues": [],
                        "dataType": "Binary.gif",
                    },
                },
                "md5OfMessageAttributes": "00484c68c13ab4bc0af0f8b5df43b8ab",
                "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
                "eventSource": "aws:sqs",
                "eventSourceARN": ARN,
                "awsRegion": "cn-north-1",
            }
        ]
    }


def test_event_is_json_that_powertools_reads() -> None:
    plain = {name: MESSAGE[name] for name in ("MessageId", "ReceiptHandle", "MD5OfBody", "Body")}
    event = json.loads(json.dumps(sqs_event([MESSAGE, plain], ARN)))
    first, second = SQSEvent(event).records
    assert first.attributes.approximate_receive_count == "1"
    picture = first.message_attributes["picture"]
    assert picture is not None
    assert picture.binary_value == "/wA="
    assert second.message_attributes == {}
    assert "md5OfMessageAttributes" not in event["Records"][1]


@pytest.mark.parametrize("response", [None, {}, {"batchItemFailures": None}, {"batchItemFailures": []}, {"other": 1}])
def test_response_without_failures_fails_nothing(response: object) -> None:
    assert failed_ids(response, {"a", "b"}) == frozenset()


def test_listed_messages_failed() -> None:
    response = {"batchItemFailures": [{"itemIdentifier": "b"}, {"itemIdentifier": "c", "more": 1}]}
    assert failed_ids(response, {"a", "b", "c"}) == {"b", "c"}


@pytest.mark.parametrize(
    "response",
    [
        "ok",
        [],
        7,
        {"batchItemFailures": {}},
        {"batchItemFailures": "a"},
        {"batchItemFailures": ["a"]},
        {"batchItemFailures": [None]},
        {"batchItemFailures": [{"itemIdentifier": "a"}, {"itemIdentifier": ""}]},
        {"batchItemFailures": [{"itemIdentifier": None}]},
        {"batchItemFailures": [{"itemIdentifier": 1}]},
        {"batchItemFailures": [{"itemIdentifier": ["a"]}]},
        {"batchItemFailures": [{"itemidentifier": "a"}]},
        {"batchItemFailures": [{"itemIdentifier": "unknown"}]},
    ],
)
def test_malformed_response_error_omits_its_content(response: object) -> None:
    with pytest.raises(AnswerMalformed) as caught:
        failed_ids(response, {"a", "b"})
    assert "unknown" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_context_is_what_powertools_expects() -> None:
    left = iter([1.2349, 0.5, -3.0])
    arn = function_arn(ARN, "ticket-processor")
    context = InvocationContext(
        function_name="ticket-processor",
        invoked_function_arn=arn,
        memory_limit_in_mb="512",
        time_left=lambda: next(left),
    )
    assert arn == "arn:aws-cn:lambda:cn-north-1:123456789012:function:ticket-processor"
    assert [context.get_remaining_time_in_millis() for _ in range(3)] == [1234, 500, 0]
    model = build_lambda_context_model(context)
    assert (model.function_name, model.function_arn) == ("ticket-processor", arn)
    assert str(model.function_memory_size) == "512"
    assert model.function_request_id == context.aws_request_id
    other = InvocationContext(
        function_name="f", invoked_function_arn=arn, memory_limit_in_mb="1", time_left=lambda: 1.0
    )
    assert other.aws_request_id != context.aws_request_id
