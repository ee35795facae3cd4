"""`python -m enrichment.export compact --encoder`: from a directory and from a hub, with German and French tickets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from enrichment import Enricher, EnrichmentData, RawTicket
from enrichment.text import model_text
from tests.support.hub import serve
from tests.support.random_encoders import MAX_TOKENS, Kind, write_encoder

ROOT = Path(__file__).parents[2]
TICKETS = Path(__file__).with_name("tickets_de_fr.jsonl")
ROWS = [json.loads(line) for line in TICKETS.read_text(encoding="utf-8").splitlines()]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The folder of encoders, which a local hub serves."""
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def _write(folder: Path, kind: Kind) -> Path:
    return write_encoder(folder, kind, [model_text(row["subject"], row["body"]) for row in ROWS])


def _run(out: Path, *arguments: str, endpoint: str = "http://127.0.0.1:9") -> subprocess.CompletedProcess[str]:
    # A local hub and a separate cache; otherwise a test might use models that a user has downloaded.
    hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(out.parent / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "enrichment.export", "compact", "--out", str(out), "--tickets", str(TICKETS)]
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env={**os.environ, **hub}, capture_output=True, text=True, check=False
    )


def _ticket(number: int, subject: str, body: str) -> RawTicket:
    return RawTicket(ticket_id=str(number), customer_id="C", created_at=0, subject=subject, body=body)


def _enrich(enricher: Enricher, tickets: list[RawTicket]) -> list[EnrichmentData]:
    results = enricher.enrich(tickets)
    good = [result for result in results if isinstance(result, EnrichmentData)]
    assert len(good) == len(tickets), results
    return good


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_bundle_of_an_encoder_in_a_directory(tmp_path: Path, models: Path, precision: str) -> None:
    # What paraphrase-multilingual-MiniLM-L12-v2 is: a BERT with the tokenizer of XLM-R.
    folder, out = _write(models / "mine", "bert-unigram"), tmp_path / "bundle"
    done = _run(out, "--encoder", str(folder), "--languages", "de,fr", "--precision", precision)
    assert done.returncode == 0, done.stderr
    enricher = Enricher.open(out, verify=True)
    manifest = enricher.bundle.manifest
    assert manifest.languages == ["de", "fr"]
    spec = manifest.models.encoder
    assert (spec.source, spec.revision, spec.license) == ("mine", "local", "apache-2.0")
    assert (spec.precision, spec.max_tokens) == (precision, MAX_TOKENS)
    assert manifest.verification["cosine_at_least"] == {"int8": 0.99, "fp32": 0.99999}[precision]
    # Heads are trained on these tickets, and on nothing else.
    models_of = manifest.models.model_dump()
    assert [models_of[task]["training"]["texts"] for task in ("intent", "urgency", "sentiment")] == [60, 60, 60]

    tickets = [_ticket(i, row["subject"], row["body"]) for i, row in enumerate(ROWS)]
    results = _enrich(enricher, tickets)
    assert {result.language for result in results} == {"de", "fr"}
    assert not [result for result in results if "language" in result.review_reasons]
    right = sum(result.intent == row["intent"] for result, row in zip(results, ROWS, strict=True))
    assert right > 40  # by chance, it would be 6
    assert all(len(result.embedding) == 384 and result.summary for result in results)
    # In a batch or alone, in any order.
    for i in (3, 17, 40):
        [alone] = _enrich(enricher, [tickets[i]])
        assert alone.embedding == pytest.approx(results[i].embedding, abs=1e-4)
        assert (alone.intent, alone.summary) == (results[i].intent, results[i].summary)
    english, empty, long = _enrich(
        enricher,
        [
            _ticket(0, "Login", "I cannot log in to my account since yesterday, and nobody answers the telephone."),
            _ticket(1, "", ""),
            _ticket(2, "Verlauf", " ".join(row["body"] for row in ROWS)),
        ],
    )
    assert english.review_reasons == ["language"]
    assert not any(empty.embedding)
    assert "embedding" in long.truncated
    tokens = enricher._encoder.count_tokens(long.summary)
    assert 0 < tokens <= 50


def test_bundle_of_an_encoder_on_the_hub(tmp_path: Path, models: Path) -> None:
    _write(models / "some-encoder", "xlm-roberta")
    out, arguments = tmp_path / "bundle", ("--encoder", "someone/some-encoder", "--languages", "fr,de,fr")
    with serve(models) as hub:
        missing = _run(out, *arguments, endpoint=hub.url)
        assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
        assert "add --revision with the 40 hexadecimal digits" in missing.stderr
        assert hub.asked == []
        done = _run(out, *arguments, "--revision", COMMIT, endpoint=hub.url)
        assert done.returncode == 0, done.stderr
        assert any(f"/someone/some-encoder/resolve/{COMMIT}/model.safetensors" in path for path in hub.asked)
    manifest = Enricher.open(out, verify=True).bundle.manifest
    assert manifest.languages == ["fr", "de"]
    spec = manifest.models.encoder
    assert (spec.source, spec.revision, spec.license) == ("someone/some-encoder", COMMIT, "apache-2.0")
