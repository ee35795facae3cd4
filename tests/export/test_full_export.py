"""`python -m enrichment.export full`: builds from a folder and from a hub, errors, and interrupted builds."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from enrichment import Enricher, EnrichmentData, RawTicket
from enrichment.export.corpus import TICKETS
from enrichment.export.sources import DISTILBART, DISTILBERT, MINILM
from tests.support.hub import serve
from tests.support.small_full import write_source
from tests.support.waiting import killed_at_end

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder for new bundles; nothing else may be written to it."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def _command(out: Path, *arguments: str) -> list[str]:
    # A tenth of the labelled tickets: enough for every label, and fitting the heads is fast.
    tickets = out.parent.parent / "tickets.jsonl"
    tickets.write_text("\n".join(TICKETS.read_text(encoding="utf-8").splitlines()[::10]), encoding="utf-8")
    return [
        *(sys.executable, "-m", "enrichment.export", "full"),
        *("--out", str(out), "--tickets", str(tickets), *arguments),
    ]


def _environment(cache: Path, endpoint: str = "http://127.0.0.1:9") -> dict[str, str]:
    # A local hub and a separate cache; otherwise a test might use models that a user has downloaded.
    return {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}


def _run(out: Path, *arguments: str, endpoint: str = "http://127.0.0.1:9") -> subprocess.CompletedProcess[str]:
    environment = _environment(out.parent.parent / "cache", endpoint)
    return subprocess.run(
        _command(out, *arguments), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def _assert_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """The last line is the error; the lines before it are progress."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("[")]
    assert done.returncode == 1, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def _assert_bundle(folder: Path, precision: str, pinned: tuple[bool, bool]) -> Enricher:
    enricher = Enricher.open(folder, verify=True)
    manifest = enricher.bundle.manifest
    assert (manifest.profile, manifest.name) == ("full", f"full-{precision}")
    assert set(manifest.files) | {"bundle.json"} == {path.name for path in folder.iterdir()}
    specs: Any = (manifest.models.sentiment, manifest.models.summary)
    assert tuple(spec.source for spec in specs) == (DISTILBERT.repository, DISTILBART.repository)
    assert tuple(spec.pinned for spec in specs) == pinned
    metrics = manifest.verification
    assert metrics["encoder"]["cosine_at_least"] >= 0.99
    assert {"label_agreement", "summary_equal", "summary_rouge_l"} <= set(metrics)
    [result] = enricher.enrich(
        [RawTicket(ticket_id="1", customer_id="C", created_at=0, subject="Login", body="My password is refused.")]
    )
    assert isinstance(result, EnrichmentData)
    assert result.intent == "login_issue"
    return enricher


def test_unpinned_weights_are_recorded_in_the_bundle(home: Path, full_source: Path) -> None:
    done = _run(home / "b", "--source", str(full_source), "--allow-unpinned")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == home / "b"
    assert [path.name for path in home.iterdir()] == ["b"]
    _assert_bundle(home / "b", "int8", pinned=(False, False))
    assert "not of the pinned" in done.stderr
    for figure in ("label_agreement", "summary_rouge_l", "encoder cosine_at_least"):
        assert f"        {figure}" in done.stderr, "the table"


def test_hub_is_a_source(home: Path, full_source: Path) -> None:
    with serve(full_source) as hub:
        done = _run(home / "b", "--source", "hub", "--allow-unpinned", "--precision", "fp32", endpoint=hub.url)
        assert done.returncode == 0, done.stderr
        # DistilBART has no recorded hash: the hub's files at the pinned revision count as pinned.
        metrics = _assert_bundle(home / "b", "fp32", pinned=(False, True)).bundle.manifest.verification
        assert (metrics["label_agreement"], metrics["summary_rouge_l"]) == (1.0, 1.0)
        for source in (MINILM, DISTILBERT, DISTILBART):
            assert any(f"/{source.repository}/resolve/{source.revision}/" in path for path in hub.asked)


def test_wrong_model_folder_is_reported(home: Path, full_source: Path) -> None:
    done = _run(home / "b", "--source", str(full_source / MINILM.name), "--allow-unpinned")
    _assert_error(done, "config.json is of a bert model; a distilbert one is needed")
    assert list(home.iterdir()) == []


def test_hub_file_with_wrong_hash_is_reported(home: Path, full_source: Path) -> None:
    with serve(full_source) as hub:
        done = _run(home / "b", "--source", "hub", endpoint=hub.url)
    _assert_error(done, "model.safetensors has sha256", "pinned is 7c3919835e44", DISTILBERT.repository)
    assert list(home.iterdir()) == []


def test_interrupted_download_is_reported(home: Path, full_source: Path) -> None:
    with serve(full_source, "pytorch_model.bin") as hub:
        done = _run(home / "b", "--source", "hub", "--allow-unpinned", endpoint=hub.url)
    _assert_error(done, f"{DISTILBART.repository} cannot be fetched", "give a local copy with --source PATH")
    assert list(home.iterdir()) == []


def test_unreachable_hub_error_names_the_fix(home: Path) -> None:
    done = _run(home / "b", "--source", "hub")
    _assert_error(done, f"{MINILM.repository} cannot be fetched", "give a local copy with --source PATH")
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("gone", "parts"),
    [
        ("all-MiniLM-L6-v2/config.json", ("config.json is missing", MINILM.repository)),
        ("distilbart-cnn-6-6/pytorch_model.bin", ("holds no model.safetensors", DISTILBART.repository)),
        ("distilbert-base-uncased-finetuned-sst-2-english", (DISTILBERT.name, "holds")),
    ],
)
def test_missing_source_file_is_reported(
    home: Path, tmp_path: Path, full_source: Path, gone: str, parts: Sequence[str]
) -> None:
    shutil.copytree(full_source, tmp_path / "models", symlinks=True)
    path = tmp_path / "models" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = _run(home / "b", "--source", str(tmp_path / "models"), "--allow-unpinned")
    _assert_error(done, *parts)
    assert list(home.iterdir()) == []


def test_unpinned_weights_are_refused_unless_allowed(home: Path, full_source: Path) -> None:
    done = _run(home / "b", "--source", str(full_source))
    _assert_error(done, "model.safetensors has sha256", "pinned is 7c3919835e44", "--allow-unpinned")
    assert list(home.iterdir()) == []


def test_wrong_labels_are_refused(home: Path, tmp_path: Path, full_source: Path) -> None:
    shutil.copytree(full_source, tmp_path / "models", symlinks=True)
    path = tmp_path / "models" / DISTILBERT.name / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "id2label": {"0": "HAM", "1": "SPAM"}}))
    done = _run(home / "b", "--source", str(tmp_path / "models"), "--allow-unpinned")
    _assert_error(done, "config.json has the labels ['HAM', 'SPAM']")
    assert list(home.iterdir()) == []


def test_graph_that_differs_from_torch_is_not_written(home: Path, tmp_path: Path) -> None:
    # The graphs support only GELU: another activation is detected when they are compared with torch.
    source = write_source(tmp_path / "models", activation_function="relu")
    arguments = ("--source", str(source), "--allow-unpinned", "--precision", "fp32")
    done = _run(home / "b", *arguments)
    _assert_error(done, "the bundle differs from torch: summary_rouge_l is 0.", "nothing was written")
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_build_keeps_the_existing_bundle(
    home: Path, tmp_path: Path, full_source: Path, number: signal.Signals
) -> None:
    (home / "b").mkdir()
    (home / "b" / "bundle.json").write_text("an older bundle")
    arguments = ("--source", str(full_source), "--allow-unpinned")
    process = subprocess.Popen(
        _command(home / "b", *arguments),
        cwd=ROOT,
        env=_environment(tmp_path / "cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with killed_at_end(process):
        assert process.stderr
        while "heads: reading" not in process.stderr.readline():
            assert process.poll() is None
        assert len(list(home.iterdir())) == 2, "it is being built beside the older one"
        process.send_signal(number)
        _, said = process.communicate()
    assert (process.returncode, said) == (130, "interrupted: nothing was written\n")
    assert [path.name for path in home.iterdir()] == ["b"]
    assert (home / "b" / "bundle.json").read_text() == "an older bundle"
