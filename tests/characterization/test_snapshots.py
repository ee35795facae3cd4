"""The snapshot comparison: no file is unused, and differences are detected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.characterization import snapshots as module
from tests.characterization.harness import EVENTS
from tests.characterization.snapshots import FOLDER, Snapshots

MODELS: dict[str, Any] = {
    "label": "bug_report",
    "scores": {"label": {"bug_report": 0.7, "data_request": 0.3}},
    "confidence": 0.7,
    "embedding": [600, 800],
}


def test_every_event_has_snapshots_and_none_is_unused() -> None:
    names = {path.stem for path in EVENTS.glob("*.json")}
    for folder in ("behaviour/handler", "behaviour/worker", "models/events"):
        assert {path.stem for path in (FOLDER / folder).glob("*.json")} == names


@pytest.fixture
def snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Snapshots:
    """Snapshots in a temporary folder, which contains one of each part."""
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    writing = Snapshots(frozenset({"behaviour", "models"}))
    writing.check("case", "behaviour", {"stored": 1})
    writing.check("case", "models", MODELS)
    assert json.loads((tmp_path / "models" / "case.json").read_text()) == MODELS
    return Snapshots(frozenset())


def test_behaviour_is_compared_strictly(snapshots: Snapshots) -> None:
    snapshots.check("case", "behaviour", {"stored": 1})
    with pytest.raises(AssertionError, match='"stored": 2'):
        snapshots.check("case", "behaviour", {"stored": 2})
    with pytest.raises(AssertionError, match="--regenerate"):
        snapshots.check("another", "behaviour", {})


@pytest.mark.parametrize(
    "change",
    [
        {"label": "data_request"},
        {"confidence": 0.75},
        {"confidence": 1},
        {"embedding": [640, 760]},
        {"embedding": [60, 80]},
        {"scores": {"label": {"bug_report": 0.7}}},
    ],
)
def test_model_values_may_differ_only_as_between_cpus(snapshots: Snapshots, change: dict[str, Any]) -> None:
    snapshots.check("case", "models", MODELS | {"confidence": 0.71, "embedding": [602, 798]})
    with pytest.raises(AssertionError, match=r"case\."):
        snapshots.check("case", "models", MODELS | change)


def test_labels_with_nearly_equal_scores_are_interchangeable(snapshots: Snapshots) -> None:
    close = MODELS | {"scores": {"label": {"bug_report": 0.38, "data_request": 0.36, "login_issue": 0.26}}}
    Snapshots(frozenset({"models"})).check("close", "models", close)
    snapshots.check("close", "models", close | {"label": "data_request"})
    with pytest.raises(AssertionError, match=r"close\.label"):
        snapshots.check("close", "models", close | {"label": "login_issue"})
