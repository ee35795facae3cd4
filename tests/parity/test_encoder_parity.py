"""The encoder compared with sentence-transformers, on the published weights."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from enrichment import Bundle
from enrichment.encoder import Encoder
from enrichment.export.compact import encoder_graph, open_encoder
from enrichment.export.heads import Shipped
from enrichment.export.sources import MINILM, find_model

# torch, transformers and the exporter emit deprecation warnings about each other.
pytestmark = pytest.mark.filterwarnings("ignore")

HELDOUT = Path(__file__).with_name("heldout.jsonl").read_text(encoding="utf-8").splitlines()
TICKETS = [". ".join(filter(None, (row["subject"], row["body"]))) for row in map(json.loads, HELDOUT[::2])]
ODD = [
    "a",
    "?",
    "!!!",
    "7",
    "no",
    "OK.",
    "😀",
    "👩‍👩‍👧 ❤️‍🔥",
    "HTTP 500",
    "ÀÉÎÕÜ naïve café coöperate",
    "ALL CAPITALS AND NO OPTIONS",
    "发票有误，请更正。",
    "もう動きません。",
    "لا أستطيع تسجيل الدخول",
    "Не могу войти в аккаунт",
    "Ich kann mich nicht anmelden: der Bestätigungscode kommt nie an!",
    "zero\u200bwidth, soft\u00adhyphen, non\u00a0breaking, nul\x00, bell\x07, \ufffd",
    "https://example.com/a/b?c=d&e=%20f#g user@example.com +49-30-1234567",
    "SELECT * FROM orders WHERE id = 17; -- drop?",
    "x" * 99,
    "x" * 200,
    "a-b_c/d\\e|f",
    "  much    white\n\n\tspace  ",
    "word " * 253,
    "word " * 254,
    "word " * 255,
    "The parcel went to Norway instead of Graz, and nobody knows why. " * 40,
]
TEXTS = [*TICKETS, *ODD]


@pytest.fixture(scope="module")
def weights() -> Path:
    """The folder of the published files; their hashes are checked."""
    return find_model(MINILM, "package")


@pytest.fixture(scope="module")
def reference(weights: Path) -> Any:
    """The sentence-transformers model."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(weights), device="cpu")


@pytest.fixture(scope="module")
def wanted(reference: Any) -> Any:
    """Embeddings of sentence-transformers, (texts, dimensions)."""
    return reference.encode(TEXTS, normalize_embeddings=True)


@pytest.fixture(scope="module")
def int8(bundle: Path) -> Encoder:
    """The shipped encoder."""
    return Encoder.open(Bundle.open(bundle))


@pytest.fixture(scope="module")
def graph(weights: Path) -> bytes:
    """The shipped graph before it was quantised."""
    return encoder_graph(weights, "fp32", Shipped.read().adapter)


@pytest.fixture(scope="module")
def fp32(graph: bytes, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """The encoder in fp32."""
    folder = tmp_path_factory.mktemp("fp32")
    (folder / "encoder.onnx").write_bytes(graph)
    shutil.copyfile(weights / "tokenizer.json", folder / "tokenizer.json")
    return open_encoder(folder)


def _embeddings(encoder: Encoder, texts: Sequence[str]) -> Any:
    found = []
    for begin in range(0, len(texts), 10):
        tokens = encoder.tokenize(texts[begin : begin + 10])
        found += [encoded.embedding for encoded in encoder.encode(tokens, [[]] * len(tokens))]
    return np.asarray(found)


def test_fp32_encoder_equals_the_reference(fp32: Encoder, wanted: Any) -> None:
    cosines = (_embeddings(fp32, TEXTS) * wanted).sum(1)
    assert cosines.min() > 0.99999, TEXTS[int(cosines.argmin())]


def test_int8_encoder_is_close_to_the_reference(int8: Encoder, wanted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    cosines = (_embeddings(int8, TEXTS) * wanted).sum(1)
    with capsys.disabled():
        sys.stdout.write(f"\nint8: cosine {cosines.min():.4f} at worst, {cosines.mean():.4f} on average\n")
    assert cosines.min() >= 0.99, TEXTS[int(cosines.argmin())]


def test_tokens_equal_the_reference(int8: Encoder, reference: Any) -> None:
    for text, tokens in zip(TEXTS, int8.tokenize(TEXTS), strict=True):
        wanted = reference.tokenize([text])["input_ids"][0].tolist()
        assert tokens.ids[:254].tolist() == wanted[1:-1], text


def test_classification_branch_does_not_change_the_embedding(weights: Path, int8: Encoder) -> None:
    plain = ort.InferenceSession(encoder_graph(weights, "int8", None), providers=["CPUExecutionProvider"])
    assert {output.name for output in plain.get_outputs()} == {"last_hidden_state", "pooled"}
    for tokens in int8.tokenize(TICKETS):
        if tokens.windows != 1:
            continue
        [found] = int8.encode([tokens], [[]])
        ids = np.asarray([[101, *tokens.ids, 102]])
        [pooled] = plain.run(["pooled"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        np.testing.assert_array_equal(found.pooled, pooled[0])
        assert found.adapted.shape == (4 * 384,)


def test_int8_encoder_preserves_similarities(int8: Encoder, wanted: Any) -> None:
    found = _embeddings(int8, TICKETS)
    pairs = np.triu_indices(len(TICKETS), 1)
    theirs, ours = (wanted[: len(TICKETS)] @ wanted[: len(TICKETS)].T)[pairs], (found @ found.T)[pairs]
    assert np.abs(theirs - ours).max() < 0.05
    assert np.corrcoef(theirs, ours)[0, 1] > 0.995


def test_bundle_names_its_source(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    spec = manifest.models.encoder
    assert (spec.source, spec.revision) == (MINILM.repository, MINILM.revision)
    assert spec.source_sha256 == MINILM.sha256["model.safetensors"]
    assert manifest.files[spec.tokenizer].sha256 == MINILM.sha256["tokenizer.json"]
    assert manifest.verification["cosine_at_least"] == 0.99
