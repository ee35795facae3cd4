"""Trains the linear heads: multinomial logistic regression on standardised features, calibrated on held-out folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from enrichment.cues import Cues
from enrichment.encoder import Encoder, Floats

__all__ = ["FOLDS", "FittedHead", "features", "fit_head", "score_head"]

FOLDS: Final = 5
_SEED: Final = 20240229

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FittedHead:
    """weights (features, labels) and bias (labels,), ready for softmax; threshold and scores from held-out folds."""

    labels: list[str]
    weights: Floats
    bias: Floats
    threshold: float
    training: dict[str, Any]


def features(encoder: Encoder, cues: Cues, texts: Sequence[str]) -> Floats:
    """What the heads see of texts, (texts, features): the encoder's means, then the cues."""
    tokens = encoder.tokenize(texts)
    result = np.zeros((len(texts), encoder.features + len(cues.names)), np.float32)
    order = sorted((i for i, t in enumerate(tokens) if len(t.ids)), key=lambda i: tokens[i].longest)
    for begin in range(0, len(order), 16):
        batch = order[begin : begin + 16]
        for i, encoded in zip(batch, encoder.encode([tokens[i] for i in batch], [[]] * len(batch)), strict=True):
            result[i] = np.concatenate([encoded.pooled, cues.features(texts[i])])
    return result


def fit_head(
    matrix: Floats,
    labels: Sequence[str],
    *,
    strengths: Sequence[float],
    weights: Sequence[float] | None = None,
    groups: Mapping[str, npt.NDArray[np.bool_]] | None = None,
) -> FittedHead:
    """Fits a head: the regularisation by held-out likelihood, the temperature and the threshold on held-out folds.

    `weights` are those of the samples. Of `groups` of samples the first decides when something is chosen or scored;
    of the others the held-out accuracy is recorded, among the labels that occur in them.
    """
    from sklearn.model_selection import StratifiedKFold
    from threadpoolctl import threadpool_limits

    names = sorted(set(labels))
    target = np.asarray([names.index(label) for label in labels])
    sample = np.ones(len(target)) if weights is None else np.asarray(weights, np.float64)
    groups = groups or {"all": np.ones(len(target), bool)}
    counts = next(iter(groups.values()))
    with threadpool_limits(limits=1):  # the order of summation, and with it the last digits, must not vary
        folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=_SEED).split(matrix, target))
        best: tuple[float, float, Doubles] | None = None
        for strength in strengths:
            held_out = np.zeros((len(target), len(names)))
            for train, test in folds:
                w, b = _regression(matrix[train], target[train], sample[train], strength)
                held_out[test] = matrix[test] @ w + b
            temperature = _temperature(held_out[counts], target[counts])
            loss = _loss(held_out[counts] / temperature, target[counts])
            if best is None or loss < best[0]:
                best = (loss, strength, held_out / temperature)
                chosen_temperature = temperature
        assert best is not None
        w, b = _regression(matrix, target, sample, best[1])
    probabilities = _softmax(best[2][counts])
    threshold = _threshold(probabilities, target[counts])
    scores = score_head(probabilities, target[counts], threshold)
    training = {
        "samples": len(target),
        "strength": best[1],
        "temperature": round(chosen_temperature, 4),
        "cross_validated": scores,
        **{f"{name}_accuracy": _accuracy(best[2][group], target[group]) for name, group in [*groups.items()][1:]},
    }
    return FittedHead(
        names,
        (w / chosen_temperature).astype(np.float32),
        (b / chosen_temperature).astype(np.float32),
        threshold,
        training,
    )


def score_head(probabilities: Doubles, target: npt.NDArray[np.int_], threshold: float) -> dict[str, float]:
    """Accuracy, macro-F1, expected calibration error (10 bins), and how many would be sent to review."""
    from sklearn.metrics import f1_score

    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    right = predicted == target
    bins = np.minimum((confidence * 10).astype(int), 9)
    error = sum(
        abs(right[bins == k].mean() - confidence[bins == k].mean()) * (bins == k).mean() for k in np.unique(bins)
    )
    sure = confidence >= threshold
    return {
        "accuracy": round(float(right.mean()), 4),
        "macro_f1": round(float(f1_score(target, predicted, average="macro")), 4),
        "calibration_error": round(float(error), 4),
        "review_share": round(float(1 - sure.mean()), 4),
        "accuracy_without_review": round(float(right[sure].mean()), 4) if sure.any() else 0.0,
    }


def _accuracy(logits: Doubles, target: npt.NDArray[np.int_]) -> float:
    present = np.unique(target)
    return round(float((present[logits[:, present].argmax(1)] == target).mean()), 4)


def _regression(
    matrix: Floats, target: npt.NDArray[np.int_], sample: Doubles, strength: float
) -> tuple[Doubles, Doubles]:
    """Weights and bias in terms of the raw features: the standardisation is folded in."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = matrix.mean(0, dtype=np.float64), matrix.std(0, dtype=np.float64)
    scale[scale < 1e-6] = 1.0
    model = LogisticRegression(C=strength, max_iter=300, tol=1e-4)
    model.fit((matrix - mean) / scale, target, sample_weight=sample)
    weights = model.coef_.T / scale[:, None]
    return weights, model.intercept_ - mean @ weights


def _temperature(logits: Doubles, target: npt.NDArray[np.int_]) -> float:
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(lambda t: _loss(logits / np.exp(t), target), bounds=(-2, 2), method="bounded")
    return float(np.exp(found.x))


def _threshold(probabilities: Doubles, target: npt.NDArray[np.int_]) -> float:
    """The confidence under which a label was wrong more often than right.

    Of all thresholds the one with the least cost, where a wrong label that nobody looks at costs two reviews.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == target
    order = np.argsort(confidence)
    missed = (~right).sum() - np.concatenate([[0], np.cumsum(~right[order])])
    cost = 2 * missed + np.arange(len(order) + 1)
    cut = int(cost.argmin())
    return round(float(confidence[order][min(cut, len(order) - 1)]), 3)


def _softmax(logits: Doubles) -> Doubles:
    shifted: Doubles = np.exp(logits - logits.max(1, keepdims=True))
    result: Doubles = shifted / shifted.sum(1, keepdims=True)
    return result


def _loss(logits: Doubles, target: npt.NDArray[np.int_]) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    return float(-(shifted[np.arange(len(target)), target] - np.log(np.exp(shifted).sum(1))).mean())
