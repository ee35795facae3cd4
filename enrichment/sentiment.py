"""Sentiment by a sequence classifier: DistilBERT on ONNX Runtime.

Reference: transformers' text-classification pipeline with truncation. NEUTRAL if neither label is probable enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from enrichment.bundle import Bundle
from enrichment.errors import BundleInvalid
from enrichment.manifest import ClassifierSpec
from enrichment.packing import check_inputs, packed
from enrichment.session import ParallelSession, ort
from enrichment.text import MAX_CHARACTERS

__all__ = ["Judgement", "SequenceClassifier"]

NEUTRAL = "NEUTRAL"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A prediction: the label, the probability of each label, and whether only the beginning of the text was read."""

    label: str
    probabilities: dict[str, float]
    truncated: bool


class SequenceClassifier:
    """A classifier with its own tokenizer. Thread-safe."""

    def __init__(self, texts: ParallelSession, tokenizer: Tokenizer, spec: ClassifierSpec) -> None:
        self._texts = texts
        self._tokenizer = tokenizer
        self._spec = spec
        self.threshold = spec.threshold
        self.fallback = spec.fallback

    @classmethod
    def open(cls, bundle: Bundle, spec: ClassifierSpec, *, threads: int | None = None) -> SequenceClassifier:
        """Opens the classifier of a bundle. Raises BundleInvalid if graph or tokenizer do not match the manifest."""
        with bundle.opening("the sentiment classifier"):
            texts = ParallelSession(bundle.path(spec.file), threads=threads)
            tokenizer = Tokenizer.from_file(str(bundle.path(spec.tokenizer)))
        labels = {output.name: output.shape for output in texts.session.get_outputs()}.get("logits", [0])[-1]
        if labels != len(spec.labels):
            raise BundleInvalid(
                f"{bundle.path(spec.file)} knows {labels} labels, the manifest {len(spec.labels)}; rebuild the bundle"
            )
        check_inputs(texts.session, bundle.path(spec.file))
        tokenizer.enable_truncation(spec.max_tokens)
        tokenizer.no_padding()
        return cls(texts, tokenizer, spec)

    def logits(self, ids: Sequence[np.typing.NDArray[np.int64]]) -> np.typing.NDArray[np.float32]:
        """The model's outputs (texts, labels) for texts of token ids."""

        def run(part: slice, options: ort.RunOptions | None) -> np.typing.NDArray[np.float32]:
            [logits] = self._texts.session.run(["logits"], packed(ids[part]), options)
            return np.asarray(logits)

        return np.concatenate(self._texts.each([len(text) for text in ids], run))

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """One prediction per text; no text may be empty."""
        encodings = self._tokenizer.encode_batch([text[:MAX_CHARACTERS] for text in texts])
        logits = self.logits([np.asarray(encoding.ids, np.int64) for encoding in encodings])
        powers = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = powers / powers.sum(1, keepdims=True)
        cut = [bool(e.overflowing) or len(text) > MAX_CHARACTERS for e, text in zip(encodings, texts, strict=True)]
        return [self._judgement(row.tolist(), c) for row, c in zip(probabilities, cut, strict=True)]

    def unknown(self) -> Judgement:
        """The prediction for an empty text."""
        labels = self._spec.labels
        return Judgement(self.fallback, dict.fromkeys(labels, 1 / len(labels)), truncated=False)

    def _judgement(self, row: list[float], truncated: bool) -> Judgement:  # noqa: FBT001 - private
        low, high = self._spec.neutral
        scores = dict(zip(self._spec.labels, row, strict=True))
        label = NEUTRAL if low <= row[-1] <= high else max(scores, key=scores.__getitem__)
        return Judgement(label, scores, truncated)
