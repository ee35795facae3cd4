"""Linear classifiers over the encoder's features: those that the repository ships, and training on a user's own data.

A head's regularization and temperature are chosen on held-out folds; where the labelled texts name their authors, folds
are split by author, since texts of one author are similar and would make every figure too good.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from enrichment.classify import TASKS, Task
from enrichment.encoder import Encoder, Floats
from enrichment.export.adapter import Adapter
from enrichment.export.corpus import Labelled
from enrichment.export.graph import Array
from enrichment.export.sources import ExportError
from enrichment.features import SURFACE, LexicalFeatures
from enrichment.manifest import PlattScaling
from enrichment.score import Booleans, Doubles, calibration_error, macro_f1

__all__ = [
    "COEFFICIENTS",
    "FOLDS",
    "RECIPE",
    "FittedHead",
    "Shipped",
    "accepted_matrix",
    "coefficients",
    "cross_entropy",
    "features",
    "fit_head",
    "folds_of",
    "head_figures",
    "interval",
    "one_thread",
    "softmax",
    "threshold_of",
    "write_npz",
]

COEFFICIENTS: Final = Path(__file__).parent / "classifiers.npz"
RECIPE: Final = Path(__file__).parent / "classifiers.json"
FOLDS: Final = 5
_SEED: Final = 20240229
_RESAMPLES: Final = 2000
_FIRST: Final = 0.7  # share of a text's weight that goes to its first label; the rest to any accepted one


@dataclass(frozen=True)
class FittedHead:
    """weights (features, labels) and bias (labels,), ready for softmax; the rest is from held-out folds."""

    labels: Sequence[str]
    weights: Floats
    bias: Floats
    threshold: float
    training: Mapping[str, Any]
    calibration: PlattScaling | None = None


@dataclass(frozen=True)
class Shipped:
    """What `enrichment.export.train` commits: the adapter, a head per task, and the recipe (data, weights, figures).

    `lexical` are the names of the lexical features that the heads read; they are the last rows of the weights.
    `review` is the bundle's threshold for the product of the confidences.
    """

    adapter: Adapter
    heads: Mapping[Task, FittedHead]
    lexical: Sequence[str]
    review: float
    recipe: Mapping[str, Any]

    @classmethod
    def read(cls, coefficients: Path = COEFFICIENTS, recipe: Path = RECIPE) -> Shipped:
        """Reads the committed files."""
        data = json.loads(recipe.read_text())
        with np.load(coefficients, allow_pickle=False) as file:
            arrays = dict(file)
        heads: dict[Task, FittedHead] = {
            task: FittedHead(
                data["heads"][task]["labels"],
                arrays[f"{task}.weights"].astype(np.float32),
                arrays[f"{task}.bias"].astype(np.float32),
                data["heads"][task]["threshold"],
                data["heads"][task]["training"],
                tuple(data["heads"][task]["calibration"]),
            )
            for task in TASKS
        }
        return cls(Adapter.from_arrays(arrays), heads, data["lexical"], data["review"], data["recipe"])

    def write(self, coefficients: Path = COEFFICIENTS, recipe: Path = RECIPE) -> None:
        """Writes coefficients in half precision (1 MB), and the rest as JSON."""
        arrays = self.adapter.arrays()
        for task, head in self.heads.items():
            arrays |= {
                f"{task}.weights": head.weights.astype(np.float16),
                f"{task}.bias": head.bias.astype(np.float32),
            }
        write_npz(coefficients, arrays, compress=True)
        data = {
            "heads": {
                task: {
                    "labels": [*head.labels],
                    "threshold": head.threshold,
                    "calibration": head.calibration,
                    "training": head.training,
                }
                for task, head in self.heads.items()
            },
            "lexical": [*self.lexical],
            "review": self.review,
            "recipe": self.recipe,
        }
        recipe.write_text(json.dumps(data, indent=1) + "\n")

    def head(self, task: Task, lexical: LexicalFeatures) -> FittedHead:
        """A task's head for these lexical features.

        A user's taxonomy may have other groups of phrases: new groups weigh nothing, missing ones count as never found.
        Raises ExportError where the features of every text (SURFACE) are not those that the head was trained on.
        """
        head = self.heads[task]
        first = len(head.weights) - len(self.lexical)
        rows = {name: first + i for i, name in enumerate(self.lexical)}
        if not rows.keys() >= set(SURFACE):
            raise ExportError("the shipped classifiers were trained on other lexical features; train them again")
        nothing = np.zeros(len(head.labels), np.float32)
        chosen = [head.weights[rows[name]] if name in rows else nothing for name in lexical.names]
        return replace(head, weights=np.concatenate([head.weights[:first], np.asarray(chosen, np.float32)]))


def features(encoder: Encoder, lexical: LexicalFeatures, texts: Sequence[str]) -> Floats:
    """What the heads read of texts, (texts, features): the encoder's features, then the lexical ones."""
    tokens = encoder.tokenize(texts)
    result = np.zeros((len(texts), encoder.features + len(lexical.names)), np.float32)
    order = sorted((i for i, t in enumerate(tokens) if len(t.ids)), key=lambda i: tokens[i].longest)
    for begin in range(0, len(order), 16):
        batch = order[begin : begin + 16]
        for i, encoded in zip(batch, encoder.encode([tokens[i] for i in batch], [[]] * len(batch)), strict=True):
            result[i] = np.concatenate([encoded.features, lexical.features(texts[i])])
    return result


def accepted_matrix(texts: Sequence[Labelled], task: Task, labels: Sequence[str]) -> Doubles:
    """(texts, labels): the target distribution of each text. Zero where a label is not accepted."""
    matrix = np.zeros((len(texts), len(labels)))
    for row, item in zip(matrix, texts, strict=True):
        accepted = item.labels[task]
        for label in accepted:
            row[labels.index(label)] += (1 - _FIRST) / len(accepted)
        row[labels.index(accepted[0])] += _FIRST
    return matrix


def folds_of(texts: Sequence[Labelled], target: Doubles, seed: int = _SEED) -> npt.NDArray[np.int_]:
    """The fold of each text: whole authors where every text names one, else stratified by the first label."""
    numbers = np.random.default_rng(seed)
    result = np.zeros(len(texts), int)
    if all(item.author for item in texts):
        sizes = {
            author: sum(item.author == author for item in texts) for author in sorted({i.author or "" for i in texts})
        }
        totals = [0] * FOLDS
        for author in sorted(sizes, key=lambda author: (-sizes[author], numbers.random())):
            fold = totals.index(min(totals))
            totals[fold] += sizes[author]
            result[[i for i, item in enumerate(texts) if item.author == author]] = fold
        return result
    for label in range(target.shape[1]):
        rows = np.flatnonzero(target.argmax(1) == label)
        result[numbers.permutation(rows)] = np.arange(len(rows)) % FOLDS
    return result


def fit_head(
    matrix: Floats,
    target: Doubles,
    labels: Sequence[str],
    folds: npt.NDArray[np.int_],
    *,
    regularization: Sequence[float],
    start: FittedHead | None = None,
) -> FittedHead:
    """Fits a head; `target` (texts, labels) is as from `accepted_matrix`, `folds` the fold of each text.

    With `start`, columns of labels that it knows begin there, and regularization pulls towards them instead of to zero.
    """
    offset = _offset(matrix, labels, start)
    best: tuple[float, float, float, Doubles] | None = None
    with one_thread():  # threads would only wait for each other at this size
        for strength in regularization:
            held_out = np.zeros(target.shape)
            for fold in np.unique(folds):
                train, test = folds != fold, folds == fold
                weights, bias = _regression(matrix[train], target[train], offset[train], strength)
                held_out[test] = matrix[test] @ weights + bias + offset[test]
            temperature = _temperature(held_out, target)
            loss = _loss(held_out / temperature, target)
            if best is None or loss < best[0]:
                best = (loss, strength, temperature, softmax(held_out / temperature))
        assert best is not None
        _, strength, temperature, probabilities = best
        weights, bias = _regression(matrix, target, offset, strength)
    if start is not None:
        known = [(i, start.labels.index(label)) for i, label in enumerate(labels) if label in start.labels]
        for i, j in known:
            weights[:, i] += start.weights[:, j]
            bias[i] += start.bias[j]
    threshold = threshold_of(probabilities, target > 0)
    training = {
        "texts": len(target),
        "regularization": strength,
        "temperature": round(temperature, 4),
        "cross_validated": head_figures(probabilities, target > 0, threshold),
    }
    return FittedHead(
        [*labels],
        (weights / temperature).astype(np.float32),
        (bias / temperature).astype(np.float32),
        threshold,
        training,
    )


def head_figures(probabilities: Doubles, accepted: Booleans, threshold: float) -> dict[str, float]:
    """Accuracy, macro-F1, calibration error, and shares for review, of probabilities (texts, labels)."""
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    right = accepted[np.arange(len(accepted)), predicted]
    wanted = np.where(right, predicted, accepted.argmax(1))
    sure = confidence >= threshold
    return {
        "accuracy": round(float(right.mean()), 4),
        "macro_f1": round(macro_f1([*map(str, wanted)], [*map(str, predicted)]), 4),
        "calibration_error": round(calibration_error(confidence, right), 4),
        "review_share": round(float(1 - sure.mean()), 4),
        "accuracy_without_review": round(float(right[sure].mean()), 4) if sure.any() else 0.0,
    }


def one_thread() -> AbstractContextManager[Any]:
    """Within it, fits use one thread: the sums of several are not repeatable."""
    import scipy.optimize  # noqa: F401 - has a BLAS of its own, whose threads can be limited only once it is loaded
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(limits=1)
    return limits


def interval(values: Any, groups: Sequence[str] | npt.NDArray[Any]) -> list[float]:
    """The 95 % interval of a mean, such as an accuracy: the 2.5th and 97.5th percentile over resampled groups."""
    numbers = np.random.default_rng(0)
    _, places = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(places, values), np.bincount(places)
    drawn = numbers.integers(0, len(counts), (_RESAMPLES, len(counts)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return [round(float(value), 4) for value in np.percentile(means, (2.5, 97.5))]


def threshold_of(probabilities: Doubles, accepted: Booleans) -> float:
    """The confidence below which a label was wrong more often than right on held-out texts.

    Of all thresholds the one with the least cost, where a wrong label that nobody reviews costs two reviews.
    """
    confidence = probabilities.max(1)
    right = accepted[np.arange(len(accepted)), probabilities.argmax(1)]
    order = np.argsort(confidence, kind="stable")
    missed = (~right).sum() - np.concatenate([[0], np.cumsum(~right[order])])
    cost = 2 * missed + np.arange(len(order) + 1)
    cut = int(cost.argmin())
    return round(float(confidence[order][min(cut, len(order) - 1)]), 3)


def softmax(logits: Doubles) -> Doubles:
    """Probabilities (texts, labels)."""
    shifted: Doubles = np.exp(logits - logits.max(1, keepdims=True))
    result: Doubles = shifted / shifted.sum(1, keepdims=True)
    return result


def _offset(matrix: Floats, labels: Sequence[str], start: FittedHead | None) -> Doubles:
    """What `start` says of the texts, for labels that it knows."""
    offset = np.zeros((len(matrix), len(labels)))
    if start is not None:
        logits = matrix @ start.weights + start.bias
        for i, label in enumerate(labels):
            if label in start.labels:
                offset[:, i] = logits[:, start.labels.index(label)]
    return offset


def _regression(matrix: Floats, target: Doubles, offset: Doubles, strength: float) -> tuple[Array, Array]:
    """Weights and bias on the raw features: softmax regression on standardised ones, with L2 regularization.

    `offset` (texts, labels) is added to the logits, so that zero weights say what it says.
    """
    mean, scale = matrix.mean(0, dtype=np.float64), matrix.std(0, dtype=np.float64)
    scale[scale < 1e-6] = 1.0
    standard = ((matrix - mean) / scale).astype(np.float32)
    both = coefficients(standard, target, offset, strength, np.ones(len(target)), iterations=200)
    weights = both[:-1] / scale[:, None]
    return weights, both[-1] - mean @ weights


def coefficients(
    matrix: Floats, target: Doubles, offset: Doubles, strength: float, importance: Doubles, *, iterations: int
) -> Array:
    """Weights and, in the last row, the bias (features + 1, labels) of a softmax regression with L2 regularization.

    `importance` (texts,) weighs the texts' loss; `offset` (texts, labels) is added to the logits, so that zero
    weights say what it says.
    """
    from scipy.optimize import minimize

    share = importance / importance.sum()
    shape = (matrix.shape[1] + 1, target.shape[1])

    def loss(flat: Array) -> tuple[float, Array]:
        both = flat.reshape(shape)
        logits = matrix @ both[:-1].astype(np.float32) + both[-1] + offset
        gradient = (softmax(logits) - target) * share[:, None]
        penalty = strength * both[:-1]
        grown = np.concatenate([matrix.T @ gradient.astype(np.float32) + 2 * penalty, gradient.sum(0)[None]])
        total = float(cross_entropy(logits, target) @ share + (penalty * both[:-1]).sum())
        return total, grown.ravel().astype(np.float64)

    found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": iterations})
    result: Array = found.x.reshape(shape)
    return result


def _temperature(logits: Doubles, target: Doubles) -> float:
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(lambda t: _loss(logits / np.exp(t), target), bounds=(-2, 2), method="bounded")
    return float(np.exp(found.x))


def _loss(logits: Doubles, target: Doubles) -> float:
    """Mean cross-entropy."""
    return float(cross_entropy(logits, target).mean())


def cross_entropy(logits: Doubles, target: Doubles) -> Doubles:
    """The cross-entropy of each text, (texts,)."""
    shifted = logits - logits.max(1, keepdims=True)
    result: Doubles = -(target * (shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))).sum(1)
    return result


def write_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]], *, compress: bool = False) -> None:
    """Writes arrays as an .npz file whose bytes depend on the arrays only.

    numpy.savez streams the entries, and the ZIP headers of streamed entries differ between patch releases of Python.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), archive.compression)
