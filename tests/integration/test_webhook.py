"""The outbox on the embedded stack, and a real worker with a webhook: no commit loses its event."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError

from handler.aws.errors import from_aws
from handler.aws.outbox import OUTBOX, DynamoOutbox, outbox_item
from handler.aws.storage import AwsTicketSink
from handler.errors import ServiceFailed, StoreRefused, Throttled
from handler.local import EmbeddedStack
from handler.local.emulator import REGION
from handler.ports import Write
from handler.result_event import ResultEvent, event_of_item
from tests.integration.test_role import role_arn
from tests.support.fakes import FakeOutbox
from tests.support.receiver import SECRET, Receiver
from tests.support.result_events import check_event
from tests.support.waiting import eventually
from tests.support.workers import worker
from tests.unit.test_result_event import item, write

if TYPE_CHECKING:
    from collections.abc import Callable

DOCS = Path(__file__).resolve().parents[2] / "docs" / "events.md"


@pytest.fixture(scope="module")
def stack() -> Iterator[EmbeddedStack]:
    with EmbeddedStack() as embedded:
        yield embedded


class Outboxes:
    """An outbox, and a function that puts an event into it."""

    def __init__(self, outbox: Any, put: Callable[[ResultEvent], object]) -> None:
        self.outbox, self.put = outbox, put

    def ids(self, now: int = 10**10) -> list[str]:
        """The ids of the events that are due then."""
        return [entry.event_id for entry in self.outbox.due(now)]


def emptied(stack: EmbeddedStack) -> DynamoOutbox:
    outbox = DynamoOutbox(stack.client("dynamodb"), stack.outputs["TableName"])
    for entry in list(outbox.due(10**10)):
        outbox.delete(entry)
    return outbox


@pytest.fixture(params=["table", "fake"])
def outboxes(request: pytest.FixtureRequest) -> Outboxes:
    if request.param == "fake":
        fake = FakeOutbox()
        return Outboxes(fake, fake.put)
    stack: EmbeddedStack = request.getfixturevalue("stack")
    client, table = stack.client("dynamodb"), stack.outputs["TableName"]
    return Outboxes(emptied(stack), lambda event: client.put_item(TableName=table, Item=outbox_item(event)))


def event(ticket_id: str) -> ResultEvent:
    return event_of_item(item(write(ticket_id=ticket_id)))


# -- the contract of the outbox and its fake


def test_due_events_come_oldest_first(outboxes: Outboxes) -> None:
    events = [event(f"T-{number}") for number in range(130)]  # more than a page
    for one in events:
        outboxes.put(one)
    assert outboxes.ids() == [one.event_id for one in events]
    assert outboxes.ids(1) == []
    first = next(outboxes.outbox.due(10**10))
    assert ResultEvent.model_validate_json(first.body) == events[0]
    assert first.expires_at - first.due_at == 7 * 24 * 3600
    assert abs(first.committed_at - first.due_at) <= 1


def test_event_is_rescheduled_only_by_who_knows_when_it_is_due(outboxes: Outboxes) -> None:
    outboxes.put(event("T-1"))
    (entry,) = outboxes.outbox.due(10**10)
    later = outboxes.outbox.reschedule(entry, entry.due_at + 60, 1)
    assert (later.due_at, later.attempts, later.number) == (entry.due_at + 60, 1, entry.number)
    assert outboxes.outbox.reschedule(entry, entry.due_at + 90, 1) is None
    assert outboxes.ids(entry.due_at) == []
    assert list(outboxes.outbox.due(entry.due_at + 60)) == [later]
    outboxes.outbox.delete(later)
    outboxes.outbox.delete(later)
    assert outboxes.ids() == []
    assert outboxes.outbox.reschedule(later, 1, 1) is None


# -- commits with an outbox


def sink(stack: EmbeddedStack) -> AwsTicketSink:
    outputs = stack.outputs
    return AwsTicketSink(
        stack.client("s3"), stack.client("dynamodb"), outputs["EnrichedBucket"], outputs["TableName"], outbox=True
    )


def modified(entry: Write, source_modified: int) -> Write:
    return Write(entry.ticket, entry.enrichment, entry.body, entry.key, entry.content_sha256, source_modified)


def test_each_commit_has_its_event_in_the_outbox(stack: EmbeddedStack) -> None:
    outbox, store = emptied(stack), sink(stack).store
    assert store(modified(write(ticket_id="T-outbox"), 10)) == "clear"
    assert store(modified(write(ticket_id="T-outbox"), 10)) == "clear"  # the same result: no commit
    assert store(modified(write(ticket_id="T-outbox", sha="other"), 10)) == "tie"
    assert store(modified(write(ticket_id="T-outbox", sha="other"), 12)) == "clear"
    assert store(modified(write(ticket_id="T-outbox", sha="old"), 5)) is None
    found = [ResultEvent.model_validate_json(entry.body) for entry in outbox.due(10**10)]
    assert [one.change for one in found] == ["new", "updated", "enriched_again"]
    key = {"ticket_id": {"S": "T-outbox"}, "created_at": {"N": found[0].created_at}}
    answer = stack.client("dynamodb").get_item(TableName=stack.outputs["TableName"], Key=key)
    assert event_of_item(answer["Item"]) == found[-1]


@pytest.mark.parametrize(
    ("reasons", "kind"),
    [
        (["TransactionConflict", "None"], Throttled),
        (["None", "ProvisionedThroughputExceeded"], Throttled),
        (["ThrottlingError", "None"], Throttled),
        (["ValidationError", "None"], StoreRefused),
        (["None", "None"], ServiceFailed),
    ],
)
def test_cancelled_transaction_is_mapped_by_its_reason(reasons: list[str], kind: type[Exception]) -> None:
    answer: Any = {
        "Error": {"Code": "TransactionCanceledException", "Message": "a canary"},
        "CancellationReasons": [{"Code": reason} for reason in reasons],
        "ResponseMetadata": {"HTTPStatusCode": 400},
    }
    found = from_aws(ClientError(answer, "TransactWriteItems"), "PutItem")
    assert type(found) is kind
    assert "canary" not in str(found)


def test_documented_permissions_are_sufficient_and_needed(stack: EmbeddedStack) -> None:
    outbox = emptied(stack)
    (text,) = (b for b in re.findall(r"^```json\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL) if "Sid" in b)
    client, role = stack.client("dynamodb"), role_arn(stack)
    table = client.describe_table(TableName=stack.outputs["TableName"])["Table"]["TableArn"]
    given = stack.client("sts").assume_role(RoleArn=role, RoleSessionName="worker")["Credentials"]
    worker_client = boto3.session.Session(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"], REGION)
    dynamodb = worker_client.client("dynamodb", endpoint_url=stack.endpoint_url)
    as_worker = DynamoOutbox(dynamodb, stack.outputs["TableName"])
    # Committing needs no more than the function's permissions.
    own = AwsTicketSink(
        stack.client("s3"), dynamodb, stack.outputs["EnrichedBucket"], stack.outputs["TableName"], outbox=True
    )
    assert own.store(write(ticket_id="T-role")) == "clear"
    with pytest.raises(ServiceFailed, match="Query: AccessDeniedException"):
        list(as_worker.due(10**10))
    document = {"Version": "2012-10-17", "Statement": [json.loads(text.replace("TABLE_ARN", table))]}
    names = {"RoleName": role.rpartition("/")[2], "PolicyName": "webhook"}
    stack.client("iam").put_role_policy(**names, PolicyDocument=json.dumps(document))
    try:
        (entry,) = as_worker.due(10**10)
        later = as_worker.reschedule(entry, 1, 1)
        assert later is not None
        as_worker.delete(later)
        assert list(outbox.due(10**10)) == []
    finally:
        stack.client("iam").delete_role_policy(**names)


# -- a real worker


def outbox_size(stack: EmbeddedStack) -> int:
    query = {"KeyConditionExpression": "ticket_id = :id", "ExpressionAttributeValues": {":id": {"S": OUTBOX}}}
    return int(stack.client("dynamodb").query(TableName=stack.outputs["TableName"], Select="COUNT", **query)["Count"])


def test_events_of_a_killed_worker_are_delivered_by_the_next(
    stack: EmbeddedStack, bundle: Path, tmp_path: Path
) -> None:
    outbox = emptied(stack)
    names = [f"T-killed-{number}" for number in range(8)]
    with Receiver() as receiver:
        environment = stack.environment() | {
            "MODEL_BUNDLE": bundle.as_uri(),
            "BUNDLE_CACHE_DIR": str(tmp_path),
            "RESULT_WEBHOOK": receiver.url,
            "RESULT_WEBHOOK_SECRET": SECRET,
        }
        receiver.answer = lambda number, event: 503
        for name in names:
            ticket = {"ticket_id": name, "subject": "canary", "body": "", "created_at": 1, "customer_id": "canary"}
            stack.client("sqs").send_message(QueueUrl=environment["QUEUE_URL"], MessageBody=json.dumps(ticket))
        with worker(environment, tmp_path / "first.log") as first:
            eventually(lambda: bool(receiver.posts) and outbox_size(stack) == len(names), 60)
            first.process.kill()
            first.process.wait()
        receiver.answer = lambda number, event: 200
        for entry in outbox.due(10**10):  # as if a minute had passed: the first worker may have been sending this one
            outbox.reschedule(entry, entry.due_at - 60, entry.attempts)
        with worker(environment, tmp_path / "second.log"):
            # A claim that reached the table after its worker was killed, and after the loop above, lasts a minute.
            receiver.wait_for(lambda: len(receiver.accepted) == len(names), 150)
        assert not receiver.accepted - Counter(receiver.accepted.keys()), "delivered once: nobody was killed then"
    assert outbox_size(stack) == 0
    accepted = {found["event_id"]: found for found in receiver.events if found["event_id"] in receiver.accepted}
    assert {(found["ticket_id"], found["change"]) for found in accepted.values()} == {(name, "new") for name in names}
    for found in receiver.events:
        check_event(found)
        assert "canary" not in json.dumps(found)
    for log in (tmp_path / "first.log", tmp_path / "second.log"):
        assert receiver.url not in log.read_text()
        assert SECRET not in log.read_text()
