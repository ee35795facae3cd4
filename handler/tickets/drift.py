"""Drift: whether the labels, languages and texts of recent tickets differ from those of a baseline.

Each measure has a limit that depends on the number of tickets, so that chance alone rarely exceeds it, and a least
value, below which a difference is of no consequence:

- PSI of a task's labels. Between two samples of n and m tickets of the same distribution, PSI / (1/n + 1/m) is
  distributed as chi-square with one degree of freedom less than there are labels. The limit is its 99.9 % quantile.
- Share of one label, of one language, or of tickets for review: the z value of two proportions, at least 3.5; and one
  share is 4/3 of the other, and 10 tickets differ. This finds what PSI misses: a single label that is not frequent.
- Mean embedding: the distance between two means, less what is expected of two samples of these sizes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Final

from enrichment.manifest import ReferenceSpec
from handler.aws.corrections import TASKS
from handler.tickets.repository import Item

__all__ = [
    "DRIFT_ATTRIBUTES",
    "FEWEST",
    "Distribution",
    "Measure",
    "compare",
    "distribution",
    "training_distribution",
]

DRIFT_ATTRIBUTES: Final = (
    *("ticket_id", "created_at", "s3_key", "s3_version_id", "s3_batch", "model_version", "needs_review", "language"),
    "corrections",
    *TASKS,
    *(f"{task}_confidence" for task in TASKS),
)
"""The attributes of an item that a comparison reads."""
FEWEST: Final = 100  # tickets; fewer say nothing about shares

_CHANCE: Final = 0.001  # probability that two samples of the same distribution exceed the limit of PSI
_BETWEEN_WEEKS: Final = (
    1 / 2000
)  # what quiet weeks differ by in addition: a share of 10 % has a deviation of 0.7 points
_LEAST_PSI: Final = 0.05
_LEAST_Z: Final = 3.5
_LEAST_RATIO: Final = 4 / 3
_LEAST_TICKETS: Final = 10
_LEAST_SHIFT: Final = 0.1


@dataclass(frozen=True, slots=True)
class Distribution:
    """What is compared: the number of tickets, and how many have each label per task, and each language ("": unknown).

    `reviews` is the number of tickets that need review, `confidences` the mean per task; None and empty for a training
    set. `mean` is the mean embedding of `embedded` tickets, None if none was read.
    """

    tickets: float
    labels: Mapping[str, Mapping[str, float]]
    languages: Mapping[str, float]
    reviews: float | None = None
    confidences: Mapping[str, float] = field(default_factory=dict)
    mean: Sequence[float] | None = None
    embedded: int = 0


@dataclass(frozen=True, slots=True)
class Measure:
    """One comparison. `baseline` and `recent` are shares or means; `value` is flagged when it exceeds `limit`.

    `name` is psi, share, language, review, confidence or embedding. None where there is nothing to compare with.
    """

    name: str
    label: str
    baseline: float | None
    recent: float | None
    value: float | None = None
    limit: float | None = None
    drifted: bool = False


def distribution(items: Sequence[Item], vectors: Sequence[Sequence[float]] = ()) -> Distribution:
    """The distribution of stored tickets; `vectors` are the embeddings of some of them, without those of no text.

    Its labels are the models', without people's corrections.
    """
    known = [vector for vector in vectors if any(vector)]
    confidences = {}
    for task in TASKS:
        found = [_prediction(item, task)[1] for item in items]
        present = [number for number in found if number is not None]
        if present:
            confidences[task] = sum(present) / len(present)
    return Distribution(
        tickets=len(items),
        labels={task: Counter(_prediction(item, task)[0] for item in items) for task in TASKS},
        languages=Counter(item.language or "" for item in items),
        reviews=sum(item.needs_review or any(label.uncertain for label in item.corrections.values()) for item in items),
        confidences=confidences,
        mean=[sum(column) / len(known) for column in zip(*known, strict=True)] if known else None,
        embedded=len(known),
    )


def _prediction(item: Item, task: str) -> tuple[str, float | None]:
    """The model's label and confidence, also where a person corrected it: drift is about the model."""
    if corrected := item.corrections.get(task):
        return corrected.predicted, corrected.confidence
    return getattr(item, task), getattr(item, f"{task}_confidence")


def training_distribution(reference: ReferenceSpec) -> Distribution:
    """The distribution of the texts that a bundle was trained on."""
    count = reference.texts

    def counted(shares: Mapping[str, float]) -> dict[str, float]:
        return {name: share * count for name, share in shares.items()}

    return Distribution(
        tickets=count,
        labels={task: counted(shares) for task, shares in reference.labels.items()},
        languages=counted(reference.languages),
        mean=reference.embedding,
        embedded=count,
    )


def compare(baseline: Distribution, recent: Distribution) -> list[Measure]:
    """All measures of two distributions, each of at least one ticket."""
    measures = []
    for task in TASKS:
        before, now = baseline.labels.get(task, {}), recent.labels[task]
        measures.append(_psi(task, before, now))
        measures += [_share("share", f"{task} {label}", before, now, label) for label in _names(before, now)]
        measures.append(Measure("confidence", task, baseline.confidences.get(task), recent.confidences.get(task)))
    names = _names(baseline.languages, recent.languages)
    measures += [_share("language", name or "unknown", baseline.languages, recent.languages, name) for name in names]
    measures.append(_review(baseline, recent))
    if baseline.mean is not None and recent.mean is not None:
        measures.append(_embedding(baseline, recent))
    return measures


def _names(before: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
    return sorted({*before, *now})


def _psi(task: str, before: Mapping[str, float], now: Mapping[str, float]) -> Measure:
    names, total_before, total_now = _names(before, now), sum(before.values()), sum(now.values())
    if not total_before or not total_now or len(names) < 2:
        return Measure("psi", task, None, None)
    value = 0.0
    for name in names:
        # Half a ticket more for each label, because the logarithm of 0 is infinite.
        share_before = (before.get(name, 0) + 0.5) / (total_before + 0.5 * len(names))
        share_now = (now.get(name, 0) + 0.5) / (total_now + 0.5 * len(names))
        value += (share_now - share_before) * math.log(share_now / share_before)
    scatter = 1 / total_before + 1 / total_now + _BETWEEN_WEEKS
    limit = max(_LEAST_PSI, _chi_square(len(names) - 1, 1 - _CHANCE) * scatter)
    return Measure("psi", task, None, None, value, limit, value > limit)


def _chi_square(freedom: int, probability: float) -> float:
    """A quantile of the chi-square distribution, by Wilson and Hilferty's approximation (within 3 %)."""
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + NormalDist().inv_cdf(probability) * math.sqrt(spread)) ** 3)


def _share(name: str, label: str, before: Mapping[str, float], now: Mapping[str, float], key: str) -> Measure:
    counts = (before.get(key, 0), sum(before.values()), now.get(key, 0), sum(now.values()))
    return _proportions(name, label, *counts)


def _proportions(name: str, label: str, before: float, of_before: float, now: float, of_now: float) -> Measure:
    if not of_before or not of_now:
        return Measure(name, label, None, now / of_now if of_now else None)
    share_before, share_now = before / of_before, now / of_now
    pooled = (before + now) / (of_before + of_now)
    error = math.sqrt(pooled * (1 - pooled) * (1 / of_before + 1 / of_now + _BETWEEN_WEEKS))
    z = abs(share_now - share_before) / error if error else 0.0
    low, high = sorted((share_before, share_now))
    is_large = high >= _LEAST_RATIO * low and abs(now - share_before * of_now) >= _LEAST_TICKETS
    return Measure(name, label, share_before, share_now, z, _LEAST_Z, z > _LEAST_Z and is_large)


def _review(baseline: Distribution, recent: Distribution) -> Measure:
    reviews = recent.reviews or 0
    if baseline.reviews is None:
        return Measure("review", "", None, reviews / recent.tickets)
    return _proportions("review", "", baseline.reviews, baseline.tickets, reviews, recent.tickets)


def _embedding(baseline: Distribution, recent: Distribution) -> Measure:
    assert baseline.mean is not None
    assert recent.mean is not None
    # The vectors have unit length, so their variance around the mean is what the mean's length lacks.
    noise = sum((1 - math.hypot(*one.mean or ()) ** 2) / one.embedded for one in (baseline, recent))
    shift = math.sqrt(max(0.0, math.dist(baseline.mean, recent.mean) ** 2 - noise))
    # Squared distances of two samples scatter by about a fifth of the noise: twice the noise is hardly chance.
    limit = max(_LEAST_SHIFT, math.sqrt(max(0.0, noise)))
    return Measure("embedding", "", None, None, shift, limit, shift > limit)
