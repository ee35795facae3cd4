"""What a full bundle is compared with before it is used: the same models in torch, on sample texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from enrichment.bundle import Bundle
from enrichment.export.assembly import quiet
from enrichment.export.sources import ExportError
from enrichment.manifest import AbstractiveSpec, ClassifierSpec
from enrichment.sentiment import SequenceClassifier
from enrichment.summary.extractive import outline
from enrichment.summary.summarizer import Summarizer

__all__ = ["TOLERANCES", "rouge_l", "verify"]

_LABELLED: Final = 100  # texts for the labels
_SUMMARISED: Final = 12  # texts for the summaries, which torch takes seconds for

# At least so much; int8 only of the published weights, since random ones (as in tests) are sure of nothing.
TOLERANCES: Final[Mapping[str, Mapping[str, float]]] = {
    "fp32": {"label_agreement": 0.99, "summary_rouge_l": 0.95},
    "int8": {"label_agreement": 0.95, "summary_rouge_l": 0.6},
}


def verify(bundle: Bundle, distilbert: Path, distilbart: Path, texts: Sequence[str], *, pinned: bool) -> dict[str, Any]:
    """Compares sentiment and summaries with torch. Raises ExportError past the tolerances."""
    models = bundle.manifest.models
    assert isinstance(models.sentiment, ClassifierSpec)
    assert isinstance(models.summary, AbstractiveSpec)
    texts = [text for text in texts if text.strip()]
    labels = _labels(bundle, models.sentiment, distilbert, texts[:: max(1, len(texts) // _LABELLED)])
    long = [text for text in texts if outline("", text).words >= models.summary.min_words] or texts
    figures = {**labels, **_summaries(bundle, models.summary, distilbart, long[:: max(1, len(long) // _SUMMARISED)])}
    precision = models.summary.precision
    for name, least in TOLERANCES[precision].items():
        if (precision == "fp32" or pinned) and figures[name] < least:
            raise ExportError(
                f"the bundle differs from torch: {name} is {figures[name]:.3f}, at least {least} is needed; "
                "nothing was written"
            )
    return figures


def rouge_l(one: Sequence[Any], other: Sequence[Any]) -> float:
    """F-measure of the longest common subsequence: 1 for equal sequences, 0 where nothing is common."""
    lengths = np.zeros((len(one) + 1, len(other) + 1), int)
    for i, a in enumerate(one, 1):
        for j, b in enumerate(other, 1):
            lengths[i, j] = lengths[i - 1, j - 1] + 1 if a == b else max(lengths[i - 1, j], lengths[i, j - 1])
    total = len(one) + len(other)
    return 2 * float(lengths[-1, -1]) / total if total else 1.0


def _labels(bundle: Bundle, spec: ClassifierSpec, weights: Path, texts: Sequence[str]) -> dict[str, Any]:
    with quiet():
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(weights))  # type: ignore[no-untyped-call] # ships none
        model = AutoModelForSequenceClassification.from_pretrained(str(weights), dtype=torch.float32).eval()
        with torch.inference_mode():
            wanted = []
            for text in texts:
                ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=spec.max_tokens)
                logits = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).logits
                wanted.append(logits[0].tolist())
    ours = [j.probabilities for j in SequenceClassifier.open(bundle, spec).judge(texts)]
    agreed = [max(p, key=p.__getitem__) == spec.labels[int(np.argmax(w))] for p, w in zip(ours, wanted, strict=True)]
    return {"label_texts": len(texts), "label_agreement": round(float(np.mean(agreed)), 3)}


def _summaries(bundle: Bundle, spec: AbstractiveSpec, weights: Path, texts: Sequence[str]) -> dict[str, Any]:
    with quiet():
        import torch
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(weights))  # type: ignore[no-untyped-call] # ships none
        model = AutoModelForSeq2SeqLM.from_pretrained(str(weights), dtype=torch.float32).eval()
        wanted = []
        for text in texts:
            ids = tokenizer([text], return_tensors="pt", truncation=True, max_length=spec.max_source_tokens)
            found = model.generate(
                input_ids=ids["input_ids"],
                attention_mask=ids["attention_mask"],
                do_sample=False,
                **spec.generation.model_dump(),
            )
            wanted.append(
                tokenizer.decode(found[0], skip_special_tokens=True, clean_up_tokenization_spaces=False).split()
            )
    ours = [s.text.split() for s in Summarizer.open(bundle, spec).read(texts)]
    scores = [rouge_l(_bare(a), _bare(b)) for a, b in zip(ours, wanted, strict=True)]
    return {
        "summary_texts": len(texts),
        "summary_equal": round(float(np.mean([_bare(a) == _bare(b) for a, b in zip(ours, wanted, strict=True)])), 3),
        "summary_rouge_l": round(float(np.mean(scores)), 3),
    }


def _bare(words: list[str]) -> list[str]:
    """Without the full stop that a summary gets where it has none."""
    return " ".join(words).rstrip(".").split()
