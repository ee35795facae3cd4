"""Metrics in CloudWatch's embedded metric format, and logs as JSON lines."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest

from enrichment import Enricher
from handler.metrics import NAMESPACE, SERVICE, EmfMetrics, make_logger
from tests.support.cases import load_cases, run_case
from tests.support.fakes import FakeHarness, written_to

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
    assert values(of_version) == {name: values(total)[name] for name in OUTCOMES}
    assert values(of_version)["TicketsFailed"] == [1.0]
    assert {name for line in second for name, found in values(line).items() if found != [0.0]} == set()


def test_batch_reports_every_stage_and_model(enricher: Enricher, capsys: pytest.CaptureFixture[str]) -> None:
    harness = FakeHarness(enricher)
    harness.metrics = EmfMetrics()  # type: ignore[assignment]
    harness.handler = harness.build(enricher)
    case = next(case for case in load_cases() if case.name == "mixed")
    run_case(case, harness.invoke, harness)
    total, *by_type = lines(capsys)
    found = values(total)
    stages = {"Fetch", "Tokenize", "Encode", "Classify", "Summarize", "Store"}
    assert found.keys() == OUTCOMES | {"TicketsTotal", "TicketsPerBatch"} | {f"{stage}Latency" for stage in stages}
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
