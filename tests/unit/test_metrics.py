"""Metrics in CloudWatch's embedded metric format, and logs as JSON lines."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest

from enrichment import Enricher, EnrichmentData, ModelFailed, parse_ticket
from handler.errors import ServiceFailed
from handler.metrics import NAMESPACE, SERVICE, EmfMetrics, StoredLabels, make_logger, report_labels
from tests.support.cases import load_cases, run_case
from tests.support.fakes import FakeHarness, FakeMetrics, FakeModels, event, record, ticket, written_to

OUTCOMES = {"TicketsDone", "TicketsSkipped", "TicketsRejected", "TicketsFailed"}


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def values(line: dict[str, Any]) -> dict[str, list[float]]:
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == NAMESPACE
    assert line["_aws"]["Timestamp"] > 0
    for dimension in directive["Dimensions"][0]:
        assert isinstance(line[dimension], str)
    return {metric["Name"]: line[metric["Name"]] for metric in directive["Metrics"]}


def unit(line: dict[str, Any], name: str) -> str:
    return str(next(m["Unit"] for m in line["_aws"]["CloudWatchMetrics"][0]["Metrics"] if m["Name"] == name))


def test_batch_is_one_line_with_every_outcome_even_zeros(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = EmfMetrics()
    metrics.batch(2)
    metrics.stage("fetch", 0.5)
    metrics.outcome("done", None)
    metrics.outcome("done", None)
    metrics.flush()
    (line,) = lines(capsys)
    found = values(line)
    assert {name: found[name] for name in OUTCOMES} == {
        "TicketsDone": [2.0],
        "TicketsSkipped": [0.0],
        "TicketsRejected": [0.0],
        "TicketsFailed": [0.0],
    }
    assert (found["TicketsTotal"], found["TicketsPerBatch"], found["FetchLatency"]) == ([2.0], [2.0], [500.0])
    assert (unit(line, "TicketsDone"), unit(line, "FetchLatency")) == ("Count", "Milliseconds")
    assert line["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["service"]]
    assert line["service"] == SERVICE
    assert "ColdStart" not in found


def test_failed_notes_are_written_only_if_there_are_any(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = EmfMetrics()
    metrics.note_failed()
    metrics.note_failed()
    metrics.flush()
    metrics.flush()
    with_notes, without = (values(line) for line in lines(capsys))
    assert with_notes["CrashNotesFailed"] == [2.0]
    assert "CrashNotesFailed" not in without


def test_each_error_type_is_a_line_in_addition_to_the_total(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = EmfMetrics()
    for outcome, code in [("failed", "throttled")] * 3 + [("rejected", "object_gone"), ("rejected", "message_invalid")]:
        metrics.outcome(outcome, code)
    metrics.flush()
    total, *by_type = lines(capsys)
    assert (values(total)["TicketsFailed"], values(total)["TicketsRejected"]) == ([3.0], [2.0])
    assert [(line["ErrorType"], values(line)) for line in by_type] == [
        ("throttled", {"TicketsFailed": [3.0]}),
        ("object_gone", {"TicketsRejected": [1.0]}),
        ("message_invalid", {"TicketsRejected": [1.0]}),
    ]
    for line in by_type:
        assert sorted(line["_aws"]["CloudWatchMetrics"][0]["Dimensions"][0]) == ["ErrorType", "service"]


def test_cold_start_is_reported_once_and_counts_are_reset(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = EmfMetrics()
    metrics.started(1.5)
    metrics.outcome("failed", "throttled")
    metrics.flush()
    metrics.outcome("done", None)
    metrics.flush()
    first, _, second = lines(capsys)
    assert (values(first)["ColdStart"], values(first)["BundleLoadTime"]) == ([1.0], [1500.0])
    assert {"ColdStart", "BundleLoadTime"}.isdisjoint(values(second))
    assert (values(second)["TicketsDone"], values(second)["TicketsFailed"]) == ([1.0], [0.0])


def test_published_version_has_its_own_outcomes(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = EmfMetrics("acme-ticket-enrichment", "7")
    metrics.batch(2)
    for outcome, code in (("done", None), ("failed", "throttled")):
        metrics.outcome(outcome, code)
    metrics.flush()
    metrics.flush()
    total, of_version, by_type, *second = lines(capsys)
    assert {line["service"] for line in (total, of_version, by_type)} == {"acme-ticket-enrichment"}
    assert sorted(of_version["_aws"]["CloudWatchMetrics"][0]["Dimensions"][0]) == ["service", "version"]
    assert of_version["version"] == "7"
    assert values(of_version) == {
        name: values(total)[name] for name in OUTCOMES | {"TicketsLabelled", "TicketsNeedingReview"}
    }
    assert values(of_version)["TicketsFailed"] == [1.0]
    assert {name for line in second for name, found in values(line).items() if found != [0.0]} == set()


def test_batch_reports_every_stage_and_model(enricher: Enricher, capsys: pytest.CaptureFixture[str]) -> None:
    harness = FakeHarness(enricher)
    harness.metrics = EmfMetrics()  # type: ignore[assignment]
    harness.handler = harness.build(enricher)
    case = next(case for case in load_cases() if case.name == "mixed")
    run_case(case, harness.invoke, harness)
    total, *others = lines(capsys)
    by_type = [line for line in others if "ErrorType" in line]
    found = values(total)
    stages = {"Fetch", "Tokenize", "Encode", "Classify", "Summarize", "Store"}
    confidences = {f"{task}Confidence" for task in ("Intent", "Urgency", "Sentiment")}
    checks = {"TicketsLabelled", "TicketsNeedingReview", "TicketsTruncated"}
    assert found.keys() == OUTCOMES | {"TicketsTotal", "TicketsPerBatch", *confidences, *checks} | {
        f"{s}Latency" for s in stages
    }
    assert found["TicketsLabelled"] == [2.0]
    assert sum(values(line)["TicketsLabelled"][0] for line in others if "intent" in line) == 2
    assert {name: found[name] for name in OUTCOMES} == {
        "TicketsDone": [2.0],
        "TicketsSkipped": [1.0],
        "TicketsRejected": [3.0],
        "TicketsFailed": [0.0],
    }
    assert found["TicketsTotal"] == [6.0]
    assert {line["ErrorType"]: values(line) for line in by_type} == {
        "schema_violation": {"TicketsRejected": [2.0]},
        "object_gone": {"TicketsRejected": [1.0]},
    }


def label(metrics: EmfMetrics, urgency: str, *, review: bool = False, intent: str = "bug_report") -> None:
    labels = {"intent": intent, "urgency": urgency, "sentiment": "NEUTRAL", "language": "en"}
    confidences = {"intent": 0.5, "urgency": 1.0, "sentiment": 0.25}
    metrics.labels({"labels": labels, "confidences": confidences, "needs_review": review, "is_truncated": False})


def test_labels_are_counted_by_value_and_confidences_are_values(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = EmfMetrics("tickets")
    for urgency, review in (("high", False), ("high", True), ("low", False)):
        label(metrics, urgency, review=review)
    metrics.flush()
    total, *by_label = lines(capsys)
    found = values(total)
    assert (found["TicketsLabelled"], found["TicketsNeedingReview"], found["TicketsTruncated"]) == ([3.0], [1.0], [0.0])
    assert found["SentimentConfidence"] == [0.25, 0.25, 0.25]
    tasks = ("intent", "urgency", "sentiment", "language")
    assert {
        (task, line[task]): values(line)["TicketsLabelled"] for line in by_label for task in tasks if task in line
    } == {
        ("intent", "bug_report"): [3.0],
        ("urgency", "high"): [2.0],
        ("urgency", "low"): [1.0],
        ("sentiment", "NEUTRAL"): [3.0],
        ("language", "en"): [3.0],
    }
    assert {line["service"] for line in by_label} == {"tickets"}
    metrics.flush()
    (empty,) = lines(capsys)
    assert values(empty)["TicketsLabelled"] == [0.0]
    assert "IntentConfidence" not in values(empty)


def test_published_version_writes_every_urgency(capsys: pytest.CaptureFixture[str]) -> None:
    # A formula has no value where one of its metrics has none.
    metrics = EmfMetrics("tickets", "7")
    label(metrics, "high")
    metrics.flush()
    by_urgency = [line for line in lines(capsys) if "urgency" in line]
    expected = {("critical", 0.0), ("high", 1.0), ("medium", 0.0), ("low", 0.0)}
    for written in (True, False):
        some = [line for line in by_urgency if ("version" in line) is written]
        assert {(line["urgency"], values(line)["TicketsLabelled"][0]) for line in some} == expected


def test_number_of_label_values_is_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = EmfMetrics("tickets")
    for number in range(100):
        label(metrics, "low", intent=f"intent {number}")
    label(metrics, "low", intent="intent 3")
    metrics.flush()
    intents = {line["intent"]: values(line)["TicketsLabelled"] for line in lines(capsys) if "intent" in line}
    assert len(intents) == 21
    assert (intents["other"], intents["intent 3"]) == ([80.0], [2.0])


def test_only_stored_tickets_are_labelled() -> None:
    harness = FakeHarness()
    harness.sink.faults.set(ServiceFailed("no answer"), "T-failed")
    harness.models.failures["T-model"] = ModelFailed("x")
    messages = [record(ticket(name), name) for name in ("T-done", "T-failed", "T-model")]
    harness.invoke(event(*messages, record("{", "bad"), record(ticket("T-done"), "again")))
    assert harness.metrics.labelled == [
        (
            {"intent": "general_inquiry", "urgency": "low", "sentiment": "NEUTRAL", "language": "en"},
            {"intent": 0.9, "urgency": 0.7, "sentiment": 0.8},
            False,
            False,
        )
    ]


def test_differences_of_the_shadow_are_zeros_and_ones(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = EmfMetrics()
    stored: StoredLabels = {
        "labels": {"intent": "bug_report", "urgency": "low", "sentiment": "NEUTRAL", "language": "en"},
        "confidences": {"intent": 0.5, "urgency": 1.0, "sentiment": 0.25},
        "needs_review": False,
        "is_truncated": False,
    }
    for differs in (["intent"], [], ["intent", "sentiment"]):
        metrics.labels({**stored, "differs": differs})
    metrics.labels(stored)  # the shadow did not label this one
    metrics.shadow_failed("out_of_time")
    metrics.flush()
    metrics.labels(stored)
    metrics.flush()
    with_shadow, without = [line for line in lines(capsys) if "TicketsDone" in line]
    # The average is the share of the tickets that both bundles labelled.
    assert values(with_shadow)["IntentDiffers"] == [1.0, 0.0, 1.0]
    assert values(with_shadow)["UrgencyDiffers"] == [0.0, 0.0, 0.0]
    assert values(with_shadow)["SentimentDiffers"] == [0.0, 0.0, 1.0]
    assert values(with_shadow)["ShadowFailures"] == [1.0]
    assert not [name for name in without if "Differs" in name or "Shadow" in name]


@pytest.mark.parametrize(
    ("language", "reasons", "label"), [("de", ["language"], "other"), ("en", ["intent"], "en"), (None, [], "unknown")]
)
def test_languages_are_those_of_the_bundle_and_others(language: str | None, reasons: list[str], label: str) -> None:
    (found,) = FakeModels().enrich([parse_ticket(json.dumps(ticket()))])
    assert isinstance(found, EnrichmentData)
    metrics = FakeMetrics()
    report_labels(metrics, found.model_copy(update={"language": language, "review_reasons": reasons}))
    assert metrics.labelled[0][0]["language"] == label


def test_log_line_is_json_and_leaks_nothing_into_the_next() -> None:
    log = StringIO()
    logger = make_logger("INFO")
    with written_to(log):
        logger.info("ticket", extra={"ticket_id": "ü\n1"})
        logger.warning("other")
        logger.debug("not logged")
    first, second = (json.loads(line) for line in log.getvalue().splitlines())
    assert (first["ticket_id"], first["level"], first["service"]) == ("ü\n1", "INFO", SERVICE)
    assert first["timestamp"].endswith("Z") or first["timestamp"].endswith("+00:00")
    assert "ticket_id" not in second
