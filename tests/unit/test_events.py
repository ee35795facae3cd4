"""Every sample event, through the whole handler with real models and in-memory stores."""

from __future__ import annotations

import json

import pytest

from enrichment import Enricher
from tests.support.cases import BUCKET, EVENTS, Case, load_cases, run_case
from tests.support.fakes import FakeHarness

CASES = load_cases()
RECORD_FIELDS = {
    "messageId",
    "receiptHandle",
    "body",
    "attributes",
    "messageAttributes",
    "md5OfBody",
    "eventSource",
    "eventSourceARN",
    "awsRegion",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sample_event(case: Case, enricher: Enricher) -> None:
    harness = FakeHarness(enricher)
    run_case(case, harness.invoke, harness)
    stored = {
        (ticket["ticket_id"], ticket["created_at"])
        for expected in case.outcomes
        for ticket in expected.get("tickets", ())
    }
    assert set(harness.sink.items) == stored, "only the expected tickets are stored"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_event_has_the_format_of_lambda(case: Case) -> None:
    assert case.description.endswith(".")
    ids = [record["messageId"] for record in case.event["Records"]]
    assert len(ids) == len(set(ids)) <= 10
    for record in case.event["Records"]:
        assert set(record) == RECORD_FIELDS
        assert record["eventSourceARN"].endswith(":ticket-processing")


def test_cases_share_no_objects() -> None:
    names = [set(case.objects) for case in CASES]
    assert sum(map(len, names)) == len(set().union(*names)), "on real stores, all cases share one bucket"


def test_every_outcome_except_failed_has_an_event() -> None:
    reasons = {expected.get("reason") for case in CASES for expected in case.outcomes}
    assert reasons >= {"schema_violation", "message_invalid", "object_gone", "object_too_large", "bucket_unexpected"}
    assert {expected["outcome"] for case in CASES for expected in case.outcomes} == {"done", "skipped", "rejected"}


def test_bucket_is_replaced_throughout_the_event() -> None:
    case = next(case for case in CASES if case.name == "sns-wrapped")
    assert BUCKET in json.dumps(case.event)
    assert BUCKET not in json.dumps(case.event_for("elsewhere"))
    assert (EVENTS / "expected" / "sns-wrapped.json").is_file()
