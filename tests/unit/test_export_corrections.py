"""Corrections that move a bundle's classifiers: what is read, groups, features and options."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from enrichment import Bundle, Enricher, EnrichmentData, RawTicket
from enrichment.classify import Task
from enrichment.encoder import Encoder
from enrichment.export import corrections as corrections_module
from enrichment.export.__main__ import app
from enrichment.export.corpus import TICKETS, Taxonomy, read_labelled
from enrichment.export.corrections import Correction, labels_of, read_corrections
from enrichment.export.heads import features, softmax
from enrichment.export.sources import ExportError
from enrichment.features import LexicalFeatures
from enrichment.score import read_examples
from enrichment.text import model_text
from tests.support.conventions import correction, write_corrections, written_by

LABELS: dict[Task, list[str]] = {
    "intent": ["bug_report", "login_issue"],
    "urgency": ["critical", "high", "medium", "low"],
    "sentiment": ["POSITIVE", "NEGATIVE", "NEUTRAL"],
}


def _line(body: str, at: str = "2026-11-26T10:00:00Z", **fields: Any) -> dict[str, Any]:
    return {"subject": "", "body": body, "customer_id": "C-1", "at": at} | fields


def _read(path: Path, *lines: dict[str, Any]) -> tuple[list[Correction], list[str]]:
    said: list[str] = []
    return read_corrections(write_corrections(path / "c.jsonl", lines), LABELS, said.append), said


# -- the file ----------------------------------------------------------------------------------------------------------


def test_lines_are_read_in_any_order(tmp_path: Path) -> None:
    lines = [_line("It crashes", intent="bug_report"), _line("Locked out", intent="login_issue", urgency="high")]
    forwards, _ = _read(tmp_path, *lines)
    backwards, _ = _read(tmp_path, *reversed(lines))
    assert forwards == backwards
    assert [item.labels for item in forwards] == [
        {"intent": "bug_report"},
        {"intent": "login_issue", "urgency": "high"},
    ]


def test_the_latest_correction_of_a_text_counts(tmp_path: Path) -> None:
    found, said = _read(
        tmp_path,
        _line("It crashes", "2026-11-26T12:00:00Z", intent="login_issue"),
        _line("It crashes", "2026-11-26T11:00:00Z", intent="bug_report", urgency="low", customer_id="C-2"),
    )
    assert found == [Correction("It crashes", {"intent": "login_issue", "urgency": "low"}, frozenset({"C-1", "C-2"}))]
    assert said == ["corrections: 1 are left out, because a later one gives the same text another label"]


def test_tickets_without_text_are_left_out(tmp_path: Path) -> None:
    found, said = _read(tmp_path, _line(" ", intent="bug_report"), _line("It crashes", intent="bug_report"))
    assert [item.text for item in found] == ["It crashes"]
    assert said == ["corrections: 1 without text are left out"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "Invalid JSON"),
        ("[]", "should be an object"),
        ('{"subject": "", "intent": "bug_report"}', "body: Field required"),
        ('{"subject": "", "body": "x"}', "no intent, urgency or sentiment"),
        ('{"subject": "", "body": "x", "intent": ["bug_report"]}', "intent: Input should be a valid string"),
        (
            '{"subject": "", "body": "x", "intent": "parcel"}',
            "intent 'parcel' is not a label of the bundle; it knows bug_report, login_issue",
        ),
    ],
)
def test_the_line_that_is_wrong_is_named_and_not_quoted(tmp_path: Path, line: str, problem: str) -> None:
    file = tmp_path / "c.jsonl"
    file.write_text(json.dumps(_line("a secret", intent="bug_report")) + f"\n{line}\n")
    with pytest.raises(ExportError) as error:
        read_corrections(file, LABELS, print)
    assert str(error.value).startswith(f"{file}, line 2: ")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_separators_of_lines_within_a_text_end_no_line(tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    line = json.dumps(_line("It crashes\u2028every day\x85", intent="bug_report"), ensure_ascii=False)
    file.write_text(f"{line}\r\n\n", encoding="utf-8", newline="")
    [found] = read_corrections(file, LABELS, print)
    assert "every day" in found.text
    assert len(read_examples(file, LABELS)) == 1
    assert len(read_labelled(file, Taxonomy(LABELS, {}, [], {}, {}))) == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.jsonl cannot be read"):
        read_corrections(tmp_path / "none.jsonl", LABELS, print)


# -- groups ------------------------------------------------------------------------------------------------------------


def _groups(customers: list[str], directions: list[list[float]]) -> tuple[list[str], list[str]]:
    said: list[str] = []
    items = [Correction(str(i), {}, frozenset({customer})) for i, customer in enumerate(customers)]
    return corrections_module._groups(items, np.asarray(directions, np.float32), said.append), said


def test_a_customer_s_texts_and_similar_texts_are_held_out_together() -> None:
    apart = np.eye(6).tolist()
    apart[3] = apart[0]  # the texts of a and of c are the same but for a number
    groups, _ = _groups(["a", "a", "b", "c", "d", "e"], apart)
    assert groups[0] == groups[1] == groups[3]
    assert len(set(groups)) == 4


def test_one_customer_for_everything_is_no_group() -> None:
    groups, said = _groups(["form"] * 6, np.eye(6).tolist())
    assert len(set(groups)) == 6
    assert said == ["corrections: most are of one customer, so only similar texts are held out together"]


# -- fits and features ------------------------------------------------------------------------------------------------


def test_fits_use_one_thread_from_the_first_one_on() -> None:
    program = (
        "from enrichment.export.heads import one_thread\n"
        "with one_thread():\n"
        "    import scipy.optimize, threadpoolctl\n"
        "    print(*(library['num_threads'] for library in threadpoolctl.threadpool_info()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"1"}


def test_features_are_those_of_the_function(bundle: Path, enricher: Enricher, tmp_path: Path) -> None:
    tickets = written_by(1, 20, seed=3)
    lines = [correction(ticket, urgency="high") for ticket in tickets]
    file = write_corrections(tmp_path / "c.jsonl", lines)
    items = read_corrections(file, labels_of(enricher.bundle), lambda _: None)
    matrix = features(
        Encoder.open(enricher.bundle),
        LexicalFeatures.from_file(bundle / "features.json"),
        [item.text for item in items],
    )
    head = corrections_module._heads(enricher.bundle)["urgency"]
    results = enricher.enrich([RawTicket.model_validate(ticket) for ticket in tickets])
    by_text = {
        model_text(ticket["subject"], ticket["body"]).strip(): result
        for ticket, result in zip(tickets, results, strict=True)
    }
    confidence = head.confidence(head.logits(matrix))
    for item, label, value in zip(items, softmax(head.logits(matrix)).argmax(1), confidence, strict=True):
        result = by_text[item.text]
        assert isinstance(result, EnrichmentData)
        assert max(result.scores["urgency"], key=result.scores["urgency"].__getitem__) == head.spec.labels[label]
        assert value == pytest.approx(max(result.scores["urgency"].values()), abs=1e-3)


# -- options -----------------------------------------------------------------------------------------------------------


def test_a_base_without_corrections_is_refused(bundle: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compact", "--out", str(tmp_path / "b"), "--base", str(bundle)])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "add --corrections" in done.stderr


def test_a_base_is_not_built_again(bundle: Path, tmp_path: Path) -> None:
    file = write_corrections(tmp_path / "c.jsonl", [_line("It crashes", intent="bug_report")])
    command = ["compact", "--out", str(tmp_path / "b"), "--corrections", str(file), "--base", str(bundle)]
    done = CliRunner().invoke(app, [*command, "--precision", "fp32"])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "--base is a finished bundle" in done.stderr


def test_a_bundle_with_other_labels_needs_tickets(bundle: Path) -> None:
    own = labels_of(Bundle.open(bundle)) | {"intent": ["parcel", "refund"]}
    with pytest.raises(ExportError, match="other labels than the tickets of the repository: add --tickets FILE"):
        corrections_module._labelled(TICKETS, own)
