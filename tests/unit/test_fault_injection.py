"""Injected faults depend only on the seed, not on the order in which threads make their calls."""

from __future__ import annotations

import json
import random

from tests.support.fault_injection import (
    Call,
    Disconnect,
    ErrorResponse,
    FaultPlan,
    PartialFailure,
    Reply,
    Rule,
    read_call,
)

SLOW, LOST = ErrorResponse(503, "SlowDown"), Disconnect(delivered=True)
CALLS = [Call("GET", "s3", f"raw/{number}", b"") for number in range(100)]


def fault_plan(seed: int) -> FaultPlan:
    return FaultPlan(seed, [Rule(lambda call: call.name == "GET", 0.5, (1, 2, 3), (SLOW, LOST))])


def test_same_seed_fails_the_same_calls_in_any_order() -> None:
    def injected(seed: int, order: random.Random) -> dict[str, list[object]]:
        plan, calls = fault_plan(seed), CALLS * 4
        order.shuffle(calls)
        found: dict[str, list[object]] = {}
        for call in calls:
            found.setdefault(call.subject, []).append(plan(call))
        return found

    faults_by_subject = injected(1, random.Random(1))
    assert faults_by_subject == injected(1, random.Random(2))
    assert faults_by_subject != injected(2, random.Random(1))
    for faults in faults_by_subject.values():  # the drawn number of faults in a row, then none
        number = sum(fault is not None for fault in faults)
        assert faults[number:] == [None] * (4 - number)


def test_number_of_faults_per_subject_is_predictable() -> None:
    plan = fault_plan(3)
    for call in CALLS:
        expected = plan.times(0, call.subject)
        assert sum(plan(call) is not None for _ in range(5)) == expected
    assert plan.injected.total() == sum(plan.times(0, call.subject) for call in CALLS) > 50


def test_other_calls_pass() -> None:
    assert fault_plan(1)(Call("PUT", "s3", "raw/1", b"")) is None


def test_calls_without_a_subject_fail_independently() -> None:
    plan = FaultPlan(1, [Rule(lambda _: True, 0.5, (1,), (LOST,))])
    number = sum(plan(Call("ReceiveMessage", "sqs", "", b"")) is not None for _ in range(400))
    assert 120 < number < 280


def test_half_of_a_batch_fails_and_the_rest_is_sent() -> None:
    entries = [{"Id": name} for name in "abc"]
    kept, refused = PartialFailure(2, 1).split(
        Call("DeleteMessageBatch", "sqs", "", json.dumps({"Entries": entries}).encode())
    )
    assert (json.loads(kept)["Entries"], refused) == ([{"Id": "a"}, {"Id": "c"}], ["b"])
    answer = json.loads(PartialFailure(2, 1).join(Reply(200, {}, b'{"Successful": [{"Id": "a"}]}'), refused).content)
    assert answer["Successful"] == [{"Id": "a"}]
    assert [entry["Id"] for entry in answer["Failed"]] == ["b"]
    assert (
        PartialFailure(1, 0).split(Call("DeleteMessageBatch", "sqs", "", json.dumps({"Entries": entries}).encode()))[0]
        == b""
    )


def test_read_call_finds_service_name_and_subject() -> None:
    assert read_call("PUT", "/bucket/a%20b.json?x-id=PutObject", None, b"").subject == "bucket/a b.json"
    item = read_call("POST", "/", "DynamoDB_20120810.PutItem", b'{"Item": {"ticket_id": {"S": "T-1"}}}')
    assert (item.service, item.name, item.subject) == ("dynamodb", "PutItem", "T-1")
    sent = [read_call("POST", "/", "AmazonSQS.SendMessage", b'{"MessageBody": "%s"}' % body) for body in (b"a", b"b")]
    assert sent[0].subject != sent[1].subject
    assert read_call("POST", "/", "AmazonSQS.ReceiveMessage", b"{}").subject == ""
