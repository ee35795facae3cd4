"""The function's role is sufficient for every sample event, and each permission that the handler uses is needed."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from enrichment import ModelFailed
from handler.app import build
from handler.aws.forgetting import tombstone_key
from handler.local import EmbeddedStack
from handler.settings import Settings
from tests.support.cases import load_cases, run_case
from tests.support.fakes import FakeModels, event, notification, record, ticket
from tests.support.stack_harness import StackHarness

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from enrichment import Enricher

CASES = load_cases()
# Both allow UpdateItem, each for its own keys, which MiniStack 1.5.33 does not distinguish.
UPDATES = ("CountFailures", "RememberRawObjects")


def role_arn(stack: EmbeddedStack) -> str:
    function = stack.client("lambda").get_function_configuration(FunctionName=stack.outputs["FunctionName"])
    return str(function["Role"])


@contextmanager
def settings_of_role(stack: EmbeddedStack) -> Iterator[Settings]:
    """The deployed function's settings, and its role's credentials in the environment."""
    given = stack.client("sts").assume_role(RoleArn=role_arn(stack), RoleSessionName="function")["Credentials"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.environment().items():
            patch.setenv(name, value)
        patch.setenv("AWS_ACCESS_KEY_ID", given["AccessKeyId"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", given["SecretAccessKey"])
        patch.setenv("AWS_SESSION_TOKEN", given["SessionToken"])
        patch.setenv("MODEL_BUNDLE", "file:///unused")
        yield Settings.read()


@pytest.fixture(scope="module")
def stack() -> Iterator[EmbeddedStack]:
    """A separate stack, because the tests change its role."""
    with EmbeddedStack() as embedded:
        yield embedded


@pytest.fixture(scope="module")
def harness(stack: EmbeddedStack, enricher: Enricher) -> Iterator[StackHarness]:
    """A handler with the role's credentials, as on Lambda; the test itself uses root credentials."""
    with settings_of_role(stack) as settings:
        yield StackHarness(stack, build(settings, models=enricher))


@contextmanager
def without(stack: EmbeddedStack, *sids: str) -> Iterator[None]:
    """Remove statements from the role for the duration of the block."""
    iam, names = stack.client("iam"), {"RoleName": role_arn(stack).rpartition("/")[2], "PolicyName": "tickets"}
    policy = iam.get_role_policy(**names)["PolicyDocument"]
    rest = [statement for statement in policy["Statement"] if statement["Sid"] not in sids]
    assert len(rest) == len(policy["Statement"]) - len(sids)
    iam.put_role_policy(**names, PolicyDocument=json.dumps({**policy, "Statement": rest}))
    try:
        yield
    finally:
        iam.put_role_policy(**names, PolicyDocument=json.dumps(policy))


def outcomes(harness: StackHarness, name: str) -> list[str]:
    """The outcomes of a batch with a valid ticket and one whose object is missing."""
    harness.put_object(f"{name}.json", json.dumps(ticket(name)).encode())
    keys = {"good": f"{name}.json", "gone": f"{name}-gone.json"}
    records = [record(notification(key, bucket=harness.raw_bucket), message) for message, key in keys.items()]
    answer = harness.invoke(event(*records))
    return [line["outcome"] for message in keys for line in answer.tickets(message)]


def outcome_of_failing_model(stack: EmbeddedStack, harness: StackHarness, name: str) -> tuple[list[str], str]:
    """The outcome of a ticket whose model fails, with the role's credentials, and the log."""
    models = FakeModels()
    models.failures = {name: ModelFailed("a model raised RuntimeError")}
    handler = build(Settings.read(), models=models)
    answer = StackHarness(stack, handler).invoke(event(record(ticket(name), name)))
    (line,) = answer.tickets(name)
    return [line["outcome"], line.get("own_failures")], answer.log


def test_failure_counts_need_their_permission(stack: EmbeddedStack, harness: StackHarness) -> None:
    assert outcome_of_failing_model(stack, harness, "T-counted")[0] == ["failed", 1]
    with without(stack, *UPDATES):
        outcome, log = outcome_of_failing_model(stack, harness, "T-uncounted")
    assert outcome == ["failed", None]
    assert "UpdateItem: AccessDeniedException" in log


def test_notes_need_no_other_permission(stack: EmbeddedStack, harness: StackHarness) -> None:
    answer = harness.invoke(event(record(ticket("T-noted"), "T-noted", receive_count=2)))
    assert [line["outcome"] for line in answer.tickets("T-noted")] == ["done"]
    assert "could not be" not in answer.log
    key = {"ticket_id": {"S": "#failures#T-noted"}, "created_at": {"N": "-2"}}
    item = stack.client("dynamodb").get_item(TableName=stack.outputs["TableName"], Key=key).get("Item", {})
    assert "unfinished" not in item, "the note was written and cleared, or has expired already"
    with without(stack, *UPDATES):
        answer = harness.invoke(event(record(ticket("T-unnoted"), "T-unnoted", receive_count=2)))
    assert [line["outcome"] for line in answer.tickets("T-unnoted")] == ["done"]
    assert "messages could not be noted" in answer.log


def outcome_of_forgotten_ticket(stack: EmbeddedStack, harness: StackHarness, name: str) -> tuple[str, str, int]:
    """The outcome of a ticket that is forgotten while it is enriched, the error, and the objects that are left."""
    models = FakeModels()
    forgotten = {**tombstone_key("ticket", name), "forgotten_at": {"S": "now"}}
    enrich = models.enrich

    def forget_first(*arguments: Any, **options: Any) -> Any:
        stack.client("dynamodb").put_item(TableName=stack.outputs["TableName"], Item=forgotten)
        return enrich(*arguments, **options)

    models.enrich = forget_first  # type: ignore[method-assign]
    key = f"{name}.json"
    harness.put_object(key, json.dumps(ticket(name)).encode())
    body = notification(key, bucket=harness.raw_bucket)
    answer = StackHarness(stack, build(Settings.read(), models=models)).invoke(event(record(body, name)))
    (line,) = answer.tickets(name)
    prefix = {"Bucket": stack.outputs["EnrichedBucket"], "Prefix": key}
    left = len(stack.client("s3").list_object_versions(**prefix).get("Versions", []))
    return line["outcome"], line.get("detail", ""), left + (harness.item(name, ticket()["created_at"]) is not None)


def test_role_erases_what_was_stored_of_a_forgotten_ticket(stack: EmbeddedStack, harness: StackHarness) -> None:
    assert outcome_of_forgotten_ticket(stack, harness, "T-forgotten") == ("skipped", "", 0)


@pytest.mark.parametrize(
    ("sids", "detail"),
    [
        (UPDATES, "UpdateItem: AccessDeniedException"),
        (["EraseForgottenItems"], "DeleteItem: AccessDeniedException"),
        (["EraseForgottenTickets"], "GetObject: AccessDenied"),
        (["FindVersionsOfForgottenTickets"], "ListObjectVersions: AccessDenied"),
    ],
)
def test_erasing_needs_each_permission(
    sids: Sequence[str], detail: str, stack: EmbeddedStack, harness: StackHarness
) -> None:
    with without(stack, *sids):
        outcome, error, left = outcome_of_forgotten_ticket(stack, harness, f"T-{sids[0]}")
    # It is retried, and erased once the role may.
    assert (outcome, error) == ("failed", detail)
    assert left


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_role_is_sufficient(case: Any, harness: StackHarness) -> None:
    run_case(case, harness.invoke, harness)


@pytest.mark.parametrize(
    ("sid", "expected"),
    [
        ("ReadRawTickets", ["failed", "failed"]),
        ("WriteEnrichedTickets", ["failed", "rejected"]),
        ("ReadAndWriteItems", ["failed", "failed"]),  # an object that is gone may be a forgotten ticket's
        ("RejectMessages", ["done", "failed"]),
    ],
)
def test_each_permission_is_needed(sid: str, expected: list[str], stack: EmbeddedStack, harness: StackHarness) -> None:
    # Not included: CountFailures (tested above); TakeMessages and WriteLogs, which Lambda itself uses; and
    # SeeThatRawTicketsAreGone: without it S3 responds with 403 for a missing object, MiniStack 1.5.33 still with 404.
    with without(stack, sid):
        assert outcomes(harness, f"T-{sid}") == expected
    assert outcomes(harness, f"T-{sid}-again") == ["done", "rejected"]
