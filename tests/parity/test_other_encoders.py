"""Encoders other than MiniLM, with random weights, compared with sentence-transformers."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enrichment.encoder import Encoded, Encoder
from enrichment.export.compact import custom_graph, open_encoder
from enrichment.export.encoders import find_encoder
from enrichment.export.weights import Precision
from enrichment.text import model_text, sentences
from tests.support.random_encoders import KINDS, MAX_TOKENS, Kind, write_encoder

# torch, transformers and the exporter emit deprecation warnings about each other.
pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = (Path(__file__).parents[1] / "export" / "tickets_de_fr.jsonl").read_text(encoding="utf-8").splitlines()
TICKETS = [model_text(row["subject"], row["body"]) for row in map(json.loads, ROWS)]
TEXTS = [
    *TICKETS[::6],
    "x",
    "😀",
    "发票有误，请更正。",
    "  viel   Platz\n\tdazwischen ",
    "w" * 300,
    " ".join(TICKETS[:9]),
]


@dataclass(frozen=True)
class Case:
    """A random encoder: its files, and what sentence-transformers makes of TEXTS."""

    folder: Path
    tokens: list[list[int]]
    embeddings: Any

    def exported(self, precision: Precision, folder: Path) -> Encoder:
        files = find_encoder(str(self.folder), None)
        (folder / "encoder.onnx").write_bytes(custom_graph(files, precision, TICKETS))
        shutil.copyfile(self.folder / "tokenizer.json", folder / "tokenizer.json")
        return open_encoder(folder, files.shape.max_tokens)


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Case]:
    """Writes a random encoder."""
    from sentence_transformers import SentenceTransformer

    def write(kind: Kind) -> Case:
        folder = write_encoder(tmp_path_factory.mktemp("encoders") / kind, kind, TICKETS)
        reference = SentenceTransformer(str(folder), device="cpu")
        tokens = [reference.tokenize([text])["input_ids"][0].tolist() for text in TEXTS]
        return Case(folder, tokens, reference.encode(TEXTS, normalize_embeddings=True))

    return write


def _encode(encoder: Encoder, texts: list[str]) -> list[Encoded]:
    return encoder.encode(encoder.tokenize(texts), [sentences(text) for text in texts])


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_equals_the_reference(case_of: Callable[[Kind], Case], kind: Kind, tmp_path: Path) -> None:
    case = case_of(kind)
    encoder = case.exported("fp32", tmp_path)
    found = np.asarray([encoded.embedding for encoded in _encode(encoder, TEXTS)])
    cosines = (found * case.embeddings).sum(1)
    assert cosines.min() >= 0.99999, TEXTS[int(cosines.argmin())]
    # The texts are told apart, so that a wrong position or a wrong special token would show.
    assert (case.embeddings @ case.embeddings.T).min() < 0.9
    for tokens, wanted in zip(encoder.tokenize(TEXTS), case.tokens, strict=True):
        assert tokens.ids[: MAX_TOKENS - 2].tolist() == wanted[1:-1]
    assert encoder.is_beyond_first_window(encoder.tokenize(TEXTS[-1:])[0])


def test_int8_is_close_to_the_reference_in_any_batch(case_of: Callable[[Kind], Case], tmp_path: Path) -> None:
    case = case_of("xlm-roberta")
    encoder = case.exported("int8", tmp_path)
    alone = [_encode(encoder, [text])[0] for text in TEXTS]
    cosines = (np.asarray([found.embedding for found in alone]) * case.embeddings).sum(1)
    assert cosines.min() >= 0.99, TEXTS[int(cosines.argmin())]
    for order in (range(len(TEXTS)), range(len(TEXTS) - 1, -1, -1), range(0, len(TEXTS), 3)):
        for i, found in zip(order, _encode(encoder, [TEXTS[i] for i in order]), strict=True):
            assert float(found.embedding @ alone[i].embedding) > 0.99999
            np.testing.assert_allclose(found.pooled, alone[i].pooled, atol=2e-3)
            np.testing.assert_allclose(found.sentences, alone[i].sentences, atol=2e-3)
