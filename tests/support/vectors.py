"""Many embeddings that are distributed like those of real tickets, and the exact answers to queries among them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from enrichment.encoder import Encoder

__all__ = ["around", "embed", "exact_nearest", "labelled_texts"]

Floats = npt.NDArray[np.float32]
TEXTS = Path(__file__).resolve().parents[2] / "enrichment" / "export" / "tickets.jsonl"


def labelled_texts(step: int) -> list[tuple[str, str]]:
    """Short words and the whole text of each `step`-th training ticket."""
    found = [json.loads(line) for line in TEXTS.read_text(encoding="utf-8").splitlines()[::step]]
    return [(one["subject"] or one["body"][:40], f"{one['subject']}. {one['body']}") for one in found]


def embed(encoder: Encoder, texts: Sequence[str]) -> Floats:
    """The embeddings (texts, dimensions)."""
    batches = [encoder.tokenize(texts[start : start + 16]) for start in range(0, len(texts), 16)]
    return np.array([one.embedding for batch in batches for one in encoder.encode(batch, [[]] * len(batch))])


def around(real: Floats, number: int, seed: int = 5) -> Floats:
    """`number` unit vectors between some of the real ones, so that there are dense and empty regions."""
    chance = np.random.default_rng(seed)
    first, second, third = real[chance.integers(len(real), size=(3, number))]
    share = chance.uniform(0.1, 0.5, (number, 1)).astype(np.float32)
    vectors: Floats = first * (1 - share) + second * share + 0.2 * share * third
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def exact_nearest(queries: Floats, vectors: Floats, number: int) -> list[set[int]]:
    """The rows of the nearest vectors of each query, by comparing all."""
    return [set(np.argsort(-(vectors @ query))[:number].tolist()) for query in queries]
