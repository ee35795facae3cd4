"""Intent, urgency and sentiment: linear classifiers over the encoder's output and lexical features.

The full profile has a separate sequence classifier for sentiment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from enrichment.bundle import Bundle
from enrichment.encoder import Encoded, Encoder, Floats, Tokens
from enrichment.errors import BundleInvalid
from enrichment.features import LexicalFeatures
from enrichment.manifest import ClassifierSpec, HeadSpec, PlattScaling
from enrichment.text import MAX_CHARACTERS
from enrichment.ticket import EnrichmentData, RawTicket

if TYPE_CHECKING:
    from enrichment.sentiment import Judgement, SequenceClassifier

__all__ = ["TASKS", "Classified", "Classifiers", "Head", "Labelled", "Task", "calibrated", "open_heads"]

Doubles = npt.NDArray[np.float64]

Task = Literal["intent", "urgency", "sentiment"]
TASKS: Final[tuple[Task, ...]] = ("intent", "urgency", "sentiment")


class Head:
    """softmax(features @ weights + bias), calibrated; the scaling of features is folded into the weights at export."""

    def __init__(
        self,
        labels: list[str],
        fallback: str,
        threshold: float,
        weights: Floats,
        bias: Floats,
        calibration: PlattScaling | None = None,
    ) -> None:
        self.labels = labels
        self.fallback = fallback
        self.threshold = threshold
        self._weights = weights
        self._bias = bias
        self._calibration = calibration

    def probabilities(self, features: Floats) -> dict[str, float]:
        """The probability of each label for one feature vector of shape (features,)."""
        logits = features @ self._weights + self._bias
        shifted = np.exp((logits - logits.max()).astype(np.float64))
        shares = shifted / shifted.sum()
        if self._calibration is not None:
            shares = calibrated(shares, self._calibration)
        return dict(zip(self.labels, shares.tolist(), strict=True))

    def unknown(self) -> dict[str, float]:
        """The probabilities for an empty text: uniform."""
        return dict.fromkeys(self.labels, 1.0 / len(self.labels))


def calibrated(shares: Doubles, calibration: PlattScaling) -> Doubles:
    """Probabilities (labels,) whose largest one is how often such a label is right.

    Platt scaling of the largest probability: its log-odds become slope * log-odds + offset. The others share the rest
    in the same proportions, and the label stays the same.
    """
    slope, offset = calibration
    top = int(shares.argmax())
    rest = 1 - shares[top]
    if rest < 1e-9:
        return shares
    odds = (shares[top] / rest) ** slope * np.exp(offset)
    second = float(np.partition(shares, -2)[-2] / rest)
    confidence = max(odds / (1 + odds), (1 + 1e-9) * second / (1 + second))  # never below the second one
    result: Doubles = shares * ((1 - confidence) / rest)
    result[top] = confidence
    return result


def open_heads(bundle: Bundle, features: int) -> Mapping[Task, Head]:
    """The linear classifiers of a bundle; `features` is the length of their input vectors.

    Raises BundleInvalid if the arrays do not match the manifest.
    """
    heads: dict[Task, Head] = {}
    for task in TASKS:
        spec = getattr(bundle.manifest.models, task)
        if not isinstance(spec, HeadSpec):
            continue  # a separate model
        path = bundle.path(spec.file)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                weights, bias = arrays[f"{task}.weights"], arrays[f"{task}.bias"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise BundleInvalid(f"{path} holds no classifier for {task} ({error}); rebuild the bundle") from error
        if weights.shape != (features, len(spec.labels)) or bias.shape != (len(spec.labels),):
            raise BundleInvalid(
                f"{path}: the {task} classifier has the shape {weights.shape}, "
                f"the manifest and the encoder ask for {(features, len(spec.labels))}; rebuild the bundle"
            )
        if spec.fallback not in spec.labels:
            raise BundleInvalid(f"{bundle.folder}: {task} falls back to {spec.fallback!r}, which is no label of it")
        heads[task] = Head(list(spec.labels), spec.fallback, spec.threshold, weights, bias, spec.calibration)
    return heads


@dataclass(frozen=True, slots=True)
class Classified:
    """The predictions for a text: probabilities and label per task.

    `truncated`: whether a separate sentiment model saw only the beginning of the text; None without such a model.
    `lexical`: the lexical features of the text; None if it has no tokens.
    """

    scores: dict[Task, dict[str, float]]
    labels: dict[Task, str]
    truncated: bool | None
    lexical: Floats | None

    def decided(self, priority: str | None) -> tuple[dict[Task, str], dict[Task, float]]:
        """The label and its confidence per task. The ticket's own priority, if it has one, is its urgency."""
        labels = dict(self.labels)
        # NEUTRAL may not be a label of the model; its confidence is then that of the most probable label.
        confidence = {task: self.scores[task].get(labels[task], max(self.scores[task].values())) for task in TASKS}
        if priority is not None:
            labels["urgency"], confidence["urgency"] = priority, 1.0
        return labels, confidence


@dataclass(frozen=True, slots=True)
class Labelled:
    """A ticket with its result, and with what was computed for it: another bundle's classifiers can read that too."""

    ticket: RawTicket
    text: str
    tokens: Tokens
    encoded: Encoded | None
    classified: Classified
    result: EnrichmentData


class Classifiers:
    """All classifiers of a bundle. Thread-safe."""

    def __init__(
        self,
        lexical: LexicalFeatures,
        heads: Mapping[Task, Head],
        sentiment: SequenceClassifier | None = None,
        review: float | None = None,
    ) -> None:
        self._lexical = lexical
        self._heads = heads
        self._sentiment = sentiment
        self._review = review

    @classmethod
    def open(
        cls, bundle: Bundle, encoder: Encoder, *, threads: int | None = None, only_heads: bool = False
    ) -> Classifiers:
        """Opens the classifiers of a bundle, which read its encoder's output. Raises BundleInvalid.

        With `only_heads`, a separate sentiment model is not opened, and `classify` says nothing about the sentiment.
        """
        models = bundle.manifest.models
        lexical = LexicalFeatures.from_file(bundle.path(models.features))
        heads = open_heads(bundle, encoder.features + len(lexical.names))
        if isinstance(models.sentiment, ClassifierSpec) and not only_heads:
            from enrichment.sentiment import SequenceClassifier  # only for bundles with one

            sentiment = SequenceClassifier.open(bundle, models.sentiment, threads=threads)
            return cls(lexical, heads, sentiment, models.review)
        return cls(lexical, heads, review=models.review)

    def classify(
        self,
        texts: Sequence[str],
        encoded: Sequence[Encoded | None],
        lexical: Sequence[Floats | None] | None = None,
    ) -> list[Classified]:
        """The predictions for each text from the encoder's output, which is None for a text without tokens.

        `lexical` are the lexical features of the texts, as far as they are known already.
        """
        judged: dict[int, Judgement] = {}
        if self._sentiment is not None and (full := [i for i, e in enumerate(encoded) if e is not None]):
            judged = dict(zip(full, self._sentiment.judge([texts[i] for i in full]), strict=True))
        known = lexical or [None] * len(texts)
        parts = zip(texts, encoded, known, strict=True)
        return [self._classified(*part, judged.get(i)) for i, part in enumerate(parts)]

    def uncertain(self, confidence: Mapping[Task, float]) -> list[Task]:
        """The tasks because of which a ticket with these confidences needs review; empty if it needs none.

        The product of calibrated confidences is about the probability that all labels are right.
        """
        if self._review is None:
            return [task for task in TASKS if confidence[task] < self._threshold(task)]
        if math.prod(confidence.values()) >= self._review:
            return []
        limit = self._review ** (1 / len(TASKS))  # one of the factors of a smaller product is below this
        return [task for task in TASKS if confidence[task] < limit]

    def _threshold(self, task: Task) -> float:
        sentiment = self._sentiment
        return sentiment.threshold if task == "sentiment" and sentiment is not None else self._heads[task].threshold

    def warm_up(self, text: str) -> None:
        """Runs the separate sentiment model once, if there is one."""
        if self._sentiment is not None:
            self._sentiment.judge([text])

    def _classified(
        self, text: str, encoded: Encoded | None, lexical: Floats | None, judgement: Judgement | None
    ) -> Classified:
        if encoded is None:
            scores = {task: head.unknown() for task, head in self._heads.items()}
            labels = {task: head.fallback for task, head in self._heads.items()}
        else:
            if lexical is None:
                lexical = self._lexical.features(text[:MAX_CHARACTERS])
            features: Floats = np.concatenate([encoded.features, lexical])
            scores = {task: head.probabilities(features) for task, head in self._heads.items()}
            labels = {task: max(scores[task], key=scores[task].__getitem__) for task in self._heads}
        if self._sentiment is None:
            return Classified(scores, labels, None, lexical)
        judgement = judgement or self._sentiment.unknown()
        scores["sentiment"], labels["sentiment"] = judgement.probabilities, judgement.label
        return Classified(scores, labels, judgement.truncated, lexical)
