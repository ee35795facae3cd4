"""Corrections that move a bundle's classifiers: what is learnt, what is refused, and what the new bundle says."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from enrichment import Bundle, Enricher
from enrichment.export.__main__ import app
from enrichment.export.corpus import TICKETS
from enrichment.export.corrections import FEWEST
from enrichment.score import f1_by_label
from tests.support.conventions import correction, decided, predicted, write_corrections, written_by

REVIEWED = 300
GAIN = 0.1
FALL = 0.02


@pytest.fixture(scope="module")
def tickets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every fourth ticket of the repository: a quarter of the time."""
    file = tmp_path_factory.mktemp("tickets") / "tickets.jsonl"
    file.write_text("\n".join(TICKETS.read_text(encoding="utf-8").splitlines()[::4]), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def reviewed() -> list[dict[str, Any]]:
    """Made-up tickets, with the urgency that the company wants of each."""
    return [correction(ticket, urgency=decided(ticket)) for ticket in written_by(0, REVIEWED, seed=1)]


Run = Callable[[list[dict[str, Any]], Path], tuple[int, str, Path]]


@pytest.fixture(scope="module")
def run(bundle: Path, tickets: Path) -> Run:
    """Runs the command from the compact bundle on; returns exit code, stderr and the directory of the new bundle."""

    def run(lines: list[dict[str, Any]], folder: Path) -> tuple[int, str, Path]:
        file, out = write_corrections(folder / "corrections.jsonl", lines), folder / "out"
        command = ["compact", "--out", str(out), "--corrections", str(file), "--base", str(bundle)]
        done = CliRunner().invoke(app, [*command, "--tickets", str(tickets)])
        return done.exit_code, done.stderr, out

    return run


@pytest.fixture(scope="module")
def moved(run: Run, reviewed: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the command says, and the bundle that it writes."""
    code, stderr, out = run(reviewed, tmp_path_factory.mktemp("moved"))
    assert code == 0, stderr
    return stderr, out


def test_a_convention_is_learnt_and_no_other_label_falls(moved: tuple[str, Path], enricher: Enricher) -> None:
    unseen = written_by(1, REVIEWED, seed=2)
    wanted = [decided(ticket) for ticket in unseen]
    before = f1_by_label(wanted, predicted(enricher, unseen))
    after = f1_by_label(wanted, predicted(Enricher.open(moved[1]), unseen))
    assert after["critical"] >= before["critical"] + GAIN, (before, after)
    assert all(after[label] >= before[label] - FALL for label in before), (before, after)


def test_corrections_of_wrong_labels_alone_are_learnt(run: Run, enricher: Enricher, tmp_path: Path) -> None:
    tickets = written_by(0, 2 * REVIEWED, seed=1)
    pairs = zip(tickets, predicted(enricher, tickets), strict=True)
    lines = [correction(ticket, urgency=decided(ticket)) for ticket, label in pairs if label != decided(ticket)]
    code, stderr, out = run(lines[:REVIEWED], tmp_path)
    assert code == 0, stderr
    unseen = written_by(1, REVIEWED, seed=2)
    wanted = [decided(ticket) for ticket in unseen]
    before = f1_by_label(wanted, predicted(enricher, unseen))
    after = f1_by_label(wanted, predicted(Enricher.open(out), unseen))
    assert after["critical"] >= before["critical"] + GAIN, (before, after)
    assert all(after[label] >= before[label] - FALL for label in before), (before, after)


def test_only_the_corrected_head_changes(moved: tuple[str, Path], bundle: Path) -> None:
    base, new = Bundle.open(bundle), Bundle.open(moved[1], verify=True)
    changed = {name for name, spec in new.manifest.files.items() if spec != base.manifest.files[name]}
    assert changed == {"heads.npz"}  # the encoder's pass can be shared
    assert new.manifest.models.encoder == base.manifest.models.encoder
    with np.load(bundle / "heads.npz") as before, np.load(moved[1] / "heads.npz") as after:
        same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {f"{task}.{part}" for task in ("intent", "sentiment") for part in ("weights", "bias")}
    assert new.manifest.models.review == base.manifest.models.review
    assert "intent stays as it is: fewer than 50 corrections" in moved[0]


def test_the_manifest_says_where_it_comes_from_without_a_text(
    moved: tuple[str, Path], bundle: Path, reviewed: list[dict[str, Any]]
) -> None:
    new = Bundle.open(moved[1])
    assert new.version == f"compact-int8-corrected@{new.digest[:12]}"
    origin = new.manifest.models.urgency.training["corrections"]
    assert (origin["base"], origin["texts"] > 0.9 * REVIEWED) == (Bundle.open(bundle).digest, True)
    assert "corrections" not in new.manifest.models.intent.training
    written = (moved[1] / "bundle.json").read_text()
    texts = {line[name][:40] for line in reviewed for name in ("subject", "body", "customer_id") if line[name]}
    assert not [text for text in texts if text in written]


def test_a_table_compares_before_and_after(moved: tuple[str, Path]) -> None:
    lines = [line for line in moved[0].splitlines() if "urgency   " in line]
    held_out, others = (next(line for line in lines if part in line) for part in ("held-out", "other labelled"))
    assert held_out.count(" -> ") == others.count(" -> ") == 3
    assert sum("F1 of " in line for line in lines if " -> " in line) == 4


def test_shuffled_labels_are_refused(run: Run, reviewed: list[dict[str, Any]], tmp_path: Path) -> None:
    labels = [line["urgency"] for line in reviewed]
    random.Random(1).shuffle(labels)
    lines = [line | {"urgency": label} for line, label in zip(reviewed, labels, strict=True)]
    code, stderr, out = run(lines, tmp_path)
    assert code == 1
    assert stderr.splitlines()[-1].startswith("error: nothing was written, urgency: ")
    assert not out.exists()


def test_corrections_that_make_other_labels_worse_are_refused(
    run: Run, reviewed: list[dict[str, Any]], tmp_path: Path
) -> None:
    code, stderr, out = run([line | {"urgency": "low"} for line in reviewed], tmp_path)
    assert code == 1
    assert "falls by" in stderr.splitlines()[-1]
    assert "--confirm" in stderr.splitlines()[-1]
    assert not out.exists()


def test_too_few_corrections_are_refused_before_any_work(
    run: Run, reviewed: list[dict[str, Any]], tmp_path: Path
) -> None:
    code, stderr, out = run(reviewed[: FEWEST - 1], tmp_path)
    assert code == 1
    assert stderr.splitlines()[-1].startswith("error: too few corrections (0 of intent, ")
    assert f"at least {FEWEST} of one task are needed" in stderr
    assert "texts: " not in stderr
    assert not out.exists()


def test_the_same_corrections_in_another_order_give_the_same_bytes(
    run: Run, moved: tuple[str, Path], reviewed: list[dict[str, Any]], tmp_path: Path
) -> None:
    code, stderr, out = run(reviewed[::-1], tmp_path)
    assert code == 0, stderr
    assert Bundle.open(out).digest == Bundle.open(moved[1]).digest
