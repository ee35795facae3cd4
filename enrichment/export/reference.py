"""The distribution of the training texts, which a bundle's manifest has for `tickets drift`.

    python -m enrichment.export.reference --bundle .bundles/compact

writes reference.json for the committed tickets. It is committed as well, because a mean embedding differs in its last
digits between CPUs, and a bundle must not. After a change of tickets.jsonl, run it again.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from enrichment.classify import TASKS
from enrichment.encoder import Encoder
from enrichment.export.corpus import TAXONOMY, TICKETS, Labelled, Taxonomy, read_labelled
from enrichment.manifest import ReferenceSpec
from enrichment.text.language import detect

__all__ = ["REFERENCE", "label_shares", "language_shares", "mean_embedding", "reference_of", "shipped_reference"]

REFERENCE: Final = Path(__file__).parent / "reference.json"
_AT_ONCE: Final = 64  # texts
_DIGITS: Final = 4


def shipped_reference() -> dict[str, Any]:
    """The committed distribution of the committed tickets."""
    return ReferenceSpec.model_validate_json(REFERENCE.read_bytes()).model_dump()


def reference_of(texts: Sequence[Labelled], encoder: Encoder) -> dict[str, Any]:
    """The distribution of labelled texts: shares of labels and languages, and the mean embedding."""
    return {
        "texts": len(texts),
        "labels": label_shares(texts),
        "languages": language_shares(texts),
        "embedding": mean_embedding([item.text for item in texts], encoder),
    }


def label_shares(texts: Sequence[Labelled]) -> dict[str, dict[str, float]]:
    """Per task the share of each label among the texts that have one; the best label of each counts."""
    return {
        str(task): _shares(Counter(item.labels[task][0] for item in texts if item.labels.get(task))) for task in TASKS
    }


def language_shares(texts: Sequence[Labelled]) -> dict[str, float]:
    """The share of each detected language; "" stands for texts too short to tell."""
    return _shares(Counter(detect(item.text) or "" for item in texts))


def mean_embedding(texts: Sequence[str], encoder: Encoder) -> list[float]:
    """The mean of the embeddings (384 numbers), which are of unit length, over texts that have one."""
    total, count = np.zeros(384), 0
    tokens = [found for found in encoder.tokenize(texts) if len(found.ids)]
    for begin in range(0, len(tokens), _AT_ONCE):
        part = tokens[begin : begin + _AT_ONCE]
        for encoded in encoder.encode(part, [[] for _ in part]):
            total += encoded.embedding
            count += 1
    return [round(float(number), _DIGITS) + 0.0 for number in total / max(count, 1)]


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {name: round(count / total, _DIGITS) for name, count in sorted(counts.items())}


def main(say: Callable[[str], object] = print) -> None:
    """Write reference.json."""
    parser = argparse.ArgumentParser(prog="python -m enrichment.export.reference", description=main.__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="a compact bundle, for its encoder")
    texts = read_labelled(TICKETS, Taxonomy.read(TAXONOMY))
    from enrichment.export.compact import open_encoder  # which imports this module

    found = reference_of(texts, open_encoder(parser.parse_args().bundle))
    REFERENCE.write_text(json.dumps(found, sort_keys=True) + "\n", encoding="utf-8")
    say(f"{len(texts)} texts: {REFERENCE}")


if __name__ == "__main__":
    main()
