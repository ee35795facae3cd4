"""`make demo` with fewer tickets: each one has an outcome."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from events.upload import make_uploads
from handler.local import demo
from handler.local.reconciliation import Stats


def test_every_ticket_has_an_outcome(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    demo.main(bundle=bundle, count=20, seed=3)
    out = capfd.readouterr().out
    result = json.loads(out.strip().splitlines()[-1])
    # Of the twenty, one is a duplicate and four are invalid: deleted, not JSON, not UTF-8, a missing field.
    assert {name: result[name] for name in ("sent", "done", "skipped", "rejected", "failed", "lost")} == {
        "sent": 20,
        "done": 15,
        "skipped": 1,
        "rejected": 4,
        "failed": 0,
        "lost": 0,
    }
    assert result["bundle"].startswith("compact-int8@")
    assert 0 < result["p50_ms"] <= result["p95_ms"]
    assert "a key with spaces and +: done" in out
    assert "deleted before it is read: rejected (object_gone)" in out


def test_full_bundle_runs(full_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    demo.main(bundle=full_bundle, count=12, seed=3)
    result = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert result["bundle"].startswith("full-int8@")
    assert (result["failed"], result["lost"]) == (0, 0)
    assert result["done"] + result["skipped"] + result["rejected"] == result["sent"] == 12
    assert result["done"] >= 6


def test_ticket_without_outcome_counts_as_lost() -> None:
    stats = Stats()
    for line in ('{"message": "ticket", "s3_key": "a", "outcome": "failed"}', "no json", '{"message": "other"}', "3"):
        stats.read(line)
    assert not stats.counts()
    assert stats.attempts_failed == 1


def test_missing_bundle_exits_1_with_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        demo.main(bundle=tmp_path, count=20, seed=3)
    assert ended.value.exit_code == 1
    assert "bundle.json" in capfd.readouterr().err


def test_same_seed_makes_same_uploads() -> None:
    assert make_uploads(30, 1) == make_uploads(30, 1)
    assert make_uploads(30, 1) != make_uploads(30, 2)
