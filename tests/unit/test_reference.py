"""The distribution of the training texts, which is committed and becomes part of every bundle."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from enrichment.export import reference as module
from enrichment.export.compact import Recipe, open_encoder, reference
from enrichment.export.corpus import TAXONOMY, TICKETS, Labelled, Taxonomy, read_labelled
from enrichment.export.reference import label_shares, language_shares, mean_embedding, shipped_reference
from enrichment.manifest import ReferenceSpec


@cache
def tickets() -> list[Labelled]:
    return read_labelled(TICKETS, Taxonomy.read(TAXONOMY))


def test_committed_shares_are_those_of_the_committed_tickets() -> None:
    found = shipped_reference()
    remedy = "run: python -m enrichment.export.reference --bundle .bundles/compact"
    assert found["texts"] == len(tickets()), remedy
    assert found["labels"] == label_shares(tickets()), remedy
    assert found["languages"] == language_shares(tickets()), remedy


def test_committed_mean_is_that_of_the_committed_tickets(bundle: Path) -> None:
    sample = [item.text for item in tickets()[::25]]
    mean, committed = np.asarray(mean_embedding(sample, open_encoder(bundle))), shipped_reference()["embedding"]
    assert mean.shape == (384,)
    # Squared distance of the mean of 101 texts from that of all: about 0.88 / 101, less what both have in common.
    assert ((mean - committed) ** 2).sum() < 2 * 0.88 / len(sample)


def test_own_tickets_have_their_own_reference(bundle: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    rows = [{"text": "The login page is blank.", "intent": "login_issue"}, {"text": "Refund please.", "urgency": "low"}]
    own.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = reference(bundle, Recipe(tickets=own))
    assert found is not None
    assert ReferenceSpec.model_validate(found).texts == 2
    assert found["labels"] == {"intent": {"login_issue": 1.0}, "urgency": {"low": 1.0}, "sentiment": {}}
    assert 0.1 < np.linalg.norm(found["embedding"]) < 1
    own.write_text("")
    assert reference(bundle, Recipe(tickets=own)) is None


def test_command_writes_the_reference_of_the_tickets(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tmp_path / "tickets.jsonl"
    few.write_text("".join(TICKETS.read_text(encoding="utf-8").splitlines(keepends=True)[:20]), encoding="utf-8")
    monkeypatch.setattr(module, "TICKETS", few)
    monkeypatch.setattr(module, "REFERENCE", tmp_path / "reference.json")
    monkeypatch.setattr("sys.argv", ["python -m enrichment.export.reference", "--bundle", str(bundle)])
    lines: list[str] = []
    module.main(lines.append)
    written = ReferenceSpec.model_validate_json((tmp_path / "reference.json").read_bytes())
    assert (written.texts, len(written.embedding)) == (20, 384)
    assert lines == [f"20 texts: {tmp_path / 'reference.json'}"]


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(precision="fp32")])
def test_default_bundles_have_the_committed_reference(recipe: Recipe, tmp_path: Path) -> None:
    assert reference(tmp_path, recipe) == shipped_reference()
