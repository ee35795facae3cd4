"""Each action that the function's role allows is needed: without it, the corresponding call is denied."""

from __future__ import annotations

import json
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from tests.endtoend.deployment import REGION, Deployment, make_client
from tests.endtoend.pipeline import Pipeline, wait_until
from tests.endtoend.test_tickets import made

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Actions of the handler: the stage at which a ticket fails without them, and the error's detail.
TESTED_WITH_TICKETS = {
    "s3:GetObject": ("fetch", "GetObject: AccessDenied"),
    "dynamodb:BatchGetItem": ("fetch", "BatchGetItem: AccessDeniedException"),
    "s3:PutObject": ("store", "PutObject: AccessDenied"),
    "dynamodb:PutItem": ("store", "PutItem: AccessDeniedException"),
}
# Actions of Lambda under the same role, or for which MiniStack 1.5.33 returns the same error without permission (404
# for a missing object): the test makes the call with the role's credentials.
CALLED_DIRECTLY: dict[str, tuple[str, Callable[[Any, Mapping[str, str]], Any]]] = {
    "dynamodb:UpdateItem": (
        "dynamodb",
        lambda dynamodb, names: dynamodb.update_item(
            TableName=names["TableName"],
            Key={"ticket_id": {"S": "#failures#permission"}, "created_at": {"N": "-1"}},
        ),
    ),
    # Whether a notification is about an object that was removed because its ticket was forgotten.
    "dynamodb:GetItem": (
        "dynamodb",
        lambda dynamodb, names: dynamodb.get_item(
            TableName=names["TableName"], Key={"ticket_id": {"S": "permission"}, "created_at": {"N": "1"}}
        ),
    ),
    # What a batch has stored of a ticket that was forgotten meanwhile (tests/integration/test_role.py does it).
    "dynamodb:DeleteItem": (
        "dynamodb",
        lambda dynamodb, names: dynamodb.delete_item(
            TableName=names["TableName"], Key={"ticket_id": {"S": "permission"}, "created_at": {"N": "1"}}
        ),
    ),
    "s3:ListBucketVersions": ("s3", lambda s3, names: s3.list_object_versions(Bucket=names["EnrichedBucket"])),
    "s3:GetObjectVersion": (
        "s3",
        lambda s3, names: s3.get_object(Bucket=names["EnrichedBucket"], Key="permission", VersionId="none"),
    ),
    "s3:DeleteObjectVersion": (
        "s3",
        lambda s3, names: s3.delete_object(Bucket=names["EnrichedBucket"], Key="permission", VersionId="none"),
    ),
    "s3:ListBucket": ("s3", lambda s3, names: s3.list_objects_v2(Bucket=names["RawBucket"])),
    "sqs:ReceiveMessage": ("sqs", lambda sqs, names: sqs.receive_message(QueueUrl=names["QueueUrl"])),
    "sqs:DeleteMessage": (
        "sqs",
        lambda sqs, names: sqs.delete_message(QueueUrl=names["QueueUrl"], ReceiptHandle="none"),
    ),
    "sqs:GetQueueAttributes": ("sqs", lambda sqs, names: sqs.get_queue_attributes(QueueUrl=names["QueueUrl"])),
    "sqs:ChangeMessageVisibility": (
        "sqs",
        lambda sqs, names: sqs.change_message_visibility(
            QueueUrl=names["QueueUrl"], ReceiptHandle="none", VisibilityTimeout=0
        ),
    ),
}
# MiniStack checks the log group's name, AWS the group's streams: the policy is simulated with AWS's resource.
SIMULATED = ("logs:CreateLogStream", "logs:PutLogEvents")
_DENIALS = {"AccessDenied", "AccessDeniedException"}

pytestmark = pytest.mark.only("ministack")


def actions(policy: dict[str, Any]) -> set[str]:
    """All actions that a policy allows."""
    found = [s["Action"] if isinstance(s["Action"], list) else [s["Action"]] for s in policy["Statement"]]
    return {action for each in found for action in each}


@contextmanager
def without(deployment: Deployment, action: str) -> Iterator[None]:
    """Remove one action from the role for the duration of the block."""
    policy = deployment.policy()
    rest = []
    for statement in policy["Statement"]:
        allowed = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        if kept := [each for each in allowed if each != action]:
            rest.append({**statement, "Action": kept})
    assert actions({"Statement": rest}) == actions(policy) - {action}
    deployment.set_policy({**policy, "Statement": rest})
    try:
        yield
    finally:
        deployment.set_policy(policy)


def test_every_action_is_tested(pipeline: Pipeline) -> None:
    assert {*TESTED_WITH_TICKETS, *CALLED_DIRECTLY, *SIMULATED, "sqs:SendMessage"} == actions(
        pipeline.deployment.policy()
    )


@pytest.mark.parametrize("action", TESTED_WITH_TICKETS)
def test_ticket_is_retried_until_permitted(action: str, pipeline: Pipeline) -> None:
    stage, detail = TESTED_WITH_TICKETS[action]
    key = f"denied/{action.replace(':', '-')}.json"
    with without(pipeline.deployment, action):
        pipeline.put({key: json.dumps(made(1, seed=seed_of(action))[0]).encode()})
        wait_until(lambda: bool(pipeline.lines(key)), "the ticket was attempted")
    first = pipeline.lines(key)[0]
    logged = (first["outcome"], first["error_type"], first["stage"], first["detail"])
    assert logged == ("failed", "service_failed", stage, detail)
    wait_until(lambda: pipeline.lines(key)[-1]["outcome"] != "failed", "the permission is restored")
    assert key in pipeline.done()
    assert pipeline.lines(key)[-1]["outcome"] == "done"


def test_rejection_is_retried_until_permitted(pipeline: Pipeline) -> None:
    key = "denied/poison.json"
    with without(pipeline.deployment, "sqs:SendMessage"):
        pipeline.put({key: b"no ticket"})
        wait_until(lambda: bool(pipeline.lines(key)), "the ticket was attempted")
        assert pipeline.lines(key)[0]["outcome"] == "failed"
        assert '"detail":"SendMessage: AccessDenied"' in pipeline.log()
        assert pipeline.depth("DlqUrl") == 0
    wait_until(lambda: pipeline.depth("DlqUrl") == 1, "the message is in the DLQ once the permission is restored")
    (message,) = pipeline.rejected_messages()
    assert message.attributes["Reason"] == "schema_violation"


@pytest.mark.parametrize("action", CALLED_DIRECTLY)
def test_role_is_denied(action: str, pipeline: Pipeline) -> None:
    deployment = pipeline.deployment
    service, call = CALLED_DIRECTLY[action]
    client = make_client(service, deployment.endpoint_url, deployment.role_credentials())

    def is_denied() -> bool:
        try:
            call(client, deployment.outputs)
        except ClientError as error:
            return error.response["Error"]["Code"] in _DENIALS
        return False

    with closing(client):
        before = is_denied()
        with without(deployment, action):
            meanwhile = is_denied()
        assert (before, meanwhile, is_denied()) == (False, True, False)


@pytest.mark.parametrize("action", SIMULATED)
def test_role_may_log(action: str, pipeline: Pipeline) -> None:
    deployment = pipeline.deployment
    group = f"arn:aws:logs:{REGION}:000000000000:log-group:/aws/lambda/{deployment.outputs['FunctionName']}"

    def decision() -> str:
        (result,) = deployment.client("iam").simulate_principal_policy(
            PolicySourceArn=deployment.role_arn(), ActionNames=[action], ResourceArns=[f"{group}:log-stream:one"]
        )["EvaluationResults"]
        return str(result["EvalDecision"])

    assert decision() == "allowed"
    with without(deployment, action):
        assert decision() == "implicitDeny"


def seed_of(action: str) -> int:
    """A fixed seed per action."""
    return sum(action.encode())
