"""Intent, urgency and sentiment: linear classifiers over the encoder's means and the cues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal
from zipfile import BadZipFile

import numpy as np

from enrichment.bundle import Bundle
from enrichment.encoder import Floats
from enrichment.errors import BundleInvalid
from enrichment.manifest import HeadSpec

__all__ = ["TASKS", "Head", "Task", "open_heads"]

Task = Literal["intent", "urgency", "sentiment"]
TASKS: Final[tuple[Task, ...]] = ("intent", "urgency", "sentiment")


class Head:
    """softmax(features @ weights + bias); scaling and calibration are folded into the weights at export."""

    def __init__(self, labels: list[str], fallback: str, threshold: float, weights: Floats, bias: Floats) -> None:
        self.labels = labels
        self.fallback = fallback
        self.threshold = threshold
        self._weights = weights
        self._bias = bias

    def probabilities(self, features: Floats) -> dict[str, float]:
        """Label to probability, for one feature vector of shape (features,)."""
        logits = features @ self._weights + self._bias
        shifted = np.exp(logits - logits.max())
        return dict(zip(self.labels, (shifted / shifted.sum()).tolist(), strict=True))

    def unknown(self) -> dict[str, float]:
        """What is said of a text that holds nothing: every label is as likely as another."""
        return dict.fromkeys(self.labels, 1.0 / len(self.labels))


def open_heads(bundle: Bundle, features: int) -> Mapping[Task, Head]:
    """The linear classifiers of a bundle; `features` is the length of the vectors that they will get.

    Raises BundleInvalid where arrays and manifest differ.
    """
    heads: dict[Task, Head] = {}
    for task in TASKS:
        spec = getattr(bundle.manifest.models, task)
        if not isinstance(spec, HeadSpec):
            continue  # a model of its own
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
        heads[task] = Head(list(spec.labels), spec.fallback, spec.threshold, weights, bias)
    return heads
