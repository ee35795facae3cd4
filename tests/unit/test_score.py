"""Scoring a labelled file: what is read, the figures, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrichment.__main__ import main
from enrichment.classify import Task, calibrated
from enrichment.export.heads import interval, softmax
from enrichment.export.training import calibration_for, choose_review, choose_thresholds
from enrichment.score import FileInvalid, calibration_error, macro_f1, read_examples, score_task

LABELS: dict[Task, list[str]] = {
    "intent": ["bug_report", "login_issue"],
    "urgency": ["critical", "high", "low", "medium"],
    "sentiment": ["NEGATIVE", "NEUTRAL", "POSITIVE"],
}


def _file(folder: Path, *rows: object) -> Path:
    path = folder / "labelled.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_labels_are_one_or_several(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        {"subject": "Crash", "body": "It crashes.", "intent": ["bug_report", "login_issue"], "urgency": "high"},
        "",
        {"text": "Great!", "sentiment": "POSITIVE", "priority": "critical"},
    )
    first, second = read_examples(path, LABELS)
    assert first.accepted == {"intent": ["bug_report", "login_issue"], "urgency": ["high"]}
    assert (second.ticket.body, second.ticket.priority) == ("Great!", None)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "line 2: "),
        ("[1]", "line 2: expected a JSON object"),
        ({"body": "x", "intent": "parcel"}, "line 2: intent 'parcel' is not a label of this bundle"),
        ({"body": "x", "intent": []}, "line 2: intent must be a label or a list of labels"),
        ({"body": "x", "intent": [5]}, "line 2: intent must be a label or a list of labels"),
        ({"body": 5, "intent": "bug_report"}, "line 2: body"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: object, reason: str) -> None:
    path = _file(tmp_path, {"body": "x", "intent": "bug_report"}, row)
    with pytest.raises(FileInvalid, match=reason):
        read_examples(path, LABELS)


def test_a_file_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileInvalid, match="has no labelled tickets"):
        read_examples(_file(tmp_path, {"body": "x"}), LABELS)
    with pytest.raises(FileInvalid, match="cannot be read"):
        read_examples(tmp_path / "nowhere", LABELS)


def test_any_accepted_label_is_right() -> None:
    figures = score_task(
        [["a", "b"], ["a"], ["b"], ["c", "a"]], ["b", "b", "b", "a"], np.asarray([0.9, 0.4, 0.6, 0.8]), 0.5
    )
    assert figures["accuracy"] == 0.75
    assert figures["confusion"] == {"a": {"a": 1, "b": 1}, "b": {"a": 0, "b": 2}}
    assert (figures["review_share"], figures["accuracy_without_review"]) == (0.25, 1.0)


def test_the_measures_are_those_computed_by_hand() -> None:
    # a has precision 1/2 and recall 1, b 1 and 1/2, c 1 and 1.
    assert macro_f1(["a", "b", "b", "c"], ["a", "a", "b", "c"]) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    confidence, right = np.asarray([0.95, 0.95, 0.55, 0.55]), np.asarray([True, True, True, False])
    assert calibration_error(confidence, right) == pytest.approx(0.5 * 0.05 + 0.5 * 0.05)


def test_calibrated_confidence_is_how_often_the_label_is_right() -> None:
    numbers = np.random.default_rng(3)
    target = numbers.integers(0, 3, 4000)
    # Too confident, and every second text has two accepted labels, so that doubtful labels are often right.
    logits = 6 * (np.eye(3)[target] + numbers.normal(size=(4000, 3)))
    allowed = np.eye(3)[target] > 0
    allowed[::2] |= np.eye(3)[(target[::2] + 1) % 3] > 0
    right = allowed[np.arange(4000), logits.argmax(1)]
    slope_and_offset = calibration_for(logits[:2000], allowed[:2000])
    before = softmax(logits[2000:])
    after = np.array([calibrated(row, slope_and_offset) for row in before])
    assert calibration_error(before.max(1), right[2000:]) > 0.1
    assert calibration_error(after.max(1), right[2000:]) < 0.03
    assert (after.argmax(1) == before.argmax(1)).all()
    np.testing.assert_allclose(after.sum(1), 1)


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=10), st.floats(0.1, 5), st.floats(-5, 5))
def test_calibration_changes_no_label_and_keeps_a_distribution(
    logits: list[float], slope: float, offset: float
) -> None:
    before = softmax(np.asarray([logits]))[0]
    after = calibrated(before, (slope, offset))
    assert after.sum() == pytest.approx(1)
    assert (after >= 0).all()
    assert before[after.argmax()] == before.max()


def test_review_threshold_reaches_both_targets() -> None:
    numbers = np.random.default_rng(4)
    tasks: list[Task] = ["intent", "urgency", "sentiment"]
    confidence = {task: numbers.uniform(0.6, 1, 6000) for task in tasks}
    right = {task: numbers.uniform(size=6000) < confidence[task] for task in tasks}
    seen = slice(3000)
    review = choose_review(
        {task: confidence[task][seen] for task in tasks},
        {task: right[task][seen] for task in tasks},
        accuracy=0.6,
        share=0.3,
    )
    product = np.prod([confidence[task][3000:] for task in tasks], 0)
    every = np.logical_and.reduce([right[task][3000:] for task in tasks])
    assert every.mean() < 0.55
    assert every[product >= review].mean() > 0.6
    assert (product >= review).mean() > 0.3


def test_thresholds_reach_both_targets_where_possible() -> None:
    numbers = np.random.default_rng(4)
    tasks: list[Task] = ["intent", "urgency", "sentiment"]
    confidence = {task: numbers.uniform(0.4, 1, 3000) for task in tasks}
    right = {task: numbers.uniform(size=3000) < confidence[task] ** 0.4 for task in tasks}
    thresholds = choose_thresholds(confidence, right, accuracy=0.72, share=0.3)
    sure = np.logical_and.reduce([confidence[task] >= thresholds[task] for task in tasks])
    every = np.logical_and.reduce([right[task] for task in tasks])
    assert every.mean() < 0.7
    assert every[sure].mean() >= 0.72
    assert sure.mean() >= 0.3


def test_intervals_are_wider_for_fewer_authors() -> None:
    right = np.asarray([True, True, True, False] * 50)
    many, few = interval(right, np.arange(200)), interval(right, np.repeat(np.arange(10), 20))
    assert many[0] < 0.75 < many[1]
    lopsided = interval(np.repeat([True, True, True, False], 50), np.repeat(np.arange(4), 50))
    assert lopsided[1] - lopsided[0] > many[1] - many[0] > few[1] - few[0]


def test_the_command_prints_tables_or_json(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(
        tmp_path,
        {
            "body": "I forgot my password.",
            "intent": "login_issue",
            "urgency": ["low", "medium"],
            "sentiment": "NEUTRAL",
        },
        {"body": "The app crashes.", "intent": "bug_report", "urgency": "medium", "sentiment": "NEUTRAL"},
    )
    assert main(["score", "--bundle", str(bundle), "--json", str(path)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["tickets"] == 2
    assert set(figures["tasks"]) == {"intent", "urgency", "sentiment"}
    assert figures["tasks"]["intent"]["accuracy"] == 1.0
    assert figures["all_tasks"]["review_share"] in {0.0, 0.5, 1.0}
    assert main(["score", "--bundle", str(bundle), str(path)]) == 0
    table = capsys.readouterr().out
    assert "macro-F1" in table
    assert "login_issue" in table
    assert main(["score", "--bundle", str(bundle), str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
