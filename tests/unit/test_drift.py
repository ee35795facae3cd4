"""`tickets drift`: what is flagged, and what is not, in simulated weeks of tickets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from enrichment.manifest import ReferenceSpec
from handler.tickets.drift import Distribution, Measure, _chi_square, compare, distribution, training_distribution
from handler.tickets.repository import Item

# A mix as in production: some labels are frequent, some are rare.
MIX: Mapping[str, Sequence[float]] = {
    "intent": (0.22, 0.18, 0.14, 0.11, 0.09, 0.08, 0.06, 0.05, 0.04, 0.03),
    "urgency": (0.05, 0.2, 0.5, 0.25),
    "sentiment": (0.35, 0.55, 0.1),
}
LANGUAGES = (0.8, 0.1, 0.05, 0.03, 0.02)
REVIEW = 0.2
# Weeks differ by more than chance, too: a share of 10 % has a standard deviation of half a point between weeks.
ALIKE = 4000


def drawn(shares: Sequence[float], tickets: int, numbers: np.random.Generator) -> dict[str, int]:
    of_week = numbers.dirichlet(np.asarray(shares) * ALIKE)
    return {f"label {i}": int(count) for i, count in enumerate(numbers.multinomial(tickets, of_week))}


def week(tickets: int, numbers: np.random.Generator, mix: Mapping[str, Sequence[float]] = MIX) -> Distribution:
    return Distribution(
        tickets=tickets,
        labels={task: drawn(shares, tickets, numbers) for task, shares in mix.items()},
        languages=drawn(LANGUAGES, tickets, numbers),
        reviews=drawn((REVIEW, 1 - REVIEW), tickets, numbers)["label 0"],
    )


def volume(numbers: np.random.Generator) -> int:
    """Tickets of a week: about 700, between 200 and 3,000."""
    return int(np.clip(numbers.lognormal(np.log(700), 0.4), 200, 3000))


def four_weeks(numbers: np.random.Generator) -> Distribution:
    weeks = [week(volume(numbers), numbers) for _ in range(4)]

    def total(counts: Sequence[Mapping[str, float]]) -> Counter[str]:
        return sum((Counter(one) for one in counts), Counter[str]())

    return Distribution(
        tickets=sum(one.tickets for one in weeks),
        labels={task: total([one.labels[task] for one in weeks]) for task in MIX},
        languages=total([one.languages for one in weeks]),
        reviews=sum(one.reviews or 0 for one in weeks),
    )


def doubled(shares: Sequence[float], place: int) -> list[float]:
    """A mix in which one label is twice as frequent, at the expense of all others."""
    share = shares[place]
    return [2 * share if i == place else other * (1 - 2 * share) / (1 - share) for i, other in enumerate(shares)]


def flagged(measures: Sequence[Measure]) -> list[tuple[str, str]]:
    return [(measure.name, measure.label) for measure in measures if measure.drifted]


def test_at_most_one_false_alarm_in_20_quiet_weeks() -> None:
    numbers = np.random.default_rng(17)
    alarms = []
    for _ in range(40):
        baseline = four_weeks(numbers)
        alarms.append(sum(bool(flagged(compare(baseline, week(volume(numbers), numbers)))) for _ in range(20)))
    assert sum(count > 1 for count in alarms) <= 1  # of 40 histories of 20 weeks
    assert sum(alarms) / len(alarms) < 0.5


@pytest.mark.parametrize(("place", "least"), [(0, 50), (1, 50), (2, 49), (3, 47), (4, 45), (5, 42)])  # of 22 to 8 %
def test_doubled_intent_is_flagged_within_500_tickets(place: int, least: int) -> None:
    numbers = np.random.default_rng(18)
    mix = {**MIX, "intent": doubled(MIX["intent"], place)}
    found = [flagged(compare(four_weeks(numbers), week(500, numbers, mix))) for _ in range(50)]
    assert sum(bool({("psi", "intent"), ("share", f"intent label {place}")} & set(one)) for one in found) >= least


@pytest.mark.parametrize("place", [6, 7, 8])  # shares of 6 to 4 %
def test_doubled_rare_intent_is_flagged_within_2000_tickets(place: int) -> None:
    numbers = np.random.default_rng(19)
    mix = {**MIX, "intent": doubled(MIX["intent"], place)}
    found = [flagged(compare(four_weeks(numbers), week(2000, numbers, mix))) for _ in range(40)]
    assert sum(("share", f"intent label {place}") in one for one in found) >= 36


def test_every_doubled_intent_is_flagged_against_the_training_texts() -> None:
    shares = {f"intent {i}": 0.1 for i in range(10)}
    reference = ReferenceSpec(
        texts=2500,
        labels={"intent": shares, "urgency": {"low": 0.5, "high": 0.5}, "sentiment": {"NEUTRAL": 1.0}},
        languages={"en": 1.0},
        embedding=[0.0] * 384,
    )
    baseline, numbers = training_distribution(reference), np.random.default_rng(20)

    def recent(mix: Sequence[float]) -> Distribution:
        counts = dict(zip(shares, map(int, numbers.multinomial(500, mix)), strict=True))
        other = {"urgency": {"low": 250, "high": 250}, "sentiment": {"NEUTRAL": 500}}
        return Distribution(500, {"intent": counts, **other}, {"en": 500}, reviews=100)

    for place in range(10):
        mix = doubled([0.1] * 10, place)
        found = [flagged(compare(baseline, recent(mix))) for _ in range(20)]
        assert sum(("share", f"intent intent {place}") in one for one in found) >= 18
    assert flagged(compare(baseline, recent([0.1] * 10))) == []
    review = next(one for one in compare(baseline, recent([0.1] * 10)) if one.name == "review")
    assert (review.baseline, review.recent, review.drifted) == (None, 0.2, False)  # training texts are not reviewed


def test_limit_of_psi_falls_with_the_number_of_tickets() -> None:
    def psi(tickets: int) -> Measure:
        labels = {task: {"a": tickets // 2, "b": tickets // 2} for task in MIX}
        one = Distribution(tickets, labels, {"en": tickets}, reviews=0)
        return next(measure for measure in compare(one, one) if measure.name == "psi")

    assert psi(100).value == psi(10_000).value == 0
    assert (psi(100).limit or 0) > 3 * (psi(10_000).limit or 0)


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 10.83), (2, 13.82), (3, 16.27), (9, 27.88), (20, 45.31)])
def test_quantiles_of_chi_square(freedom: int, quantile: float) -> None:
    assert _chi_square(freedom, 0.999) == pytest.approx(quantile, rel=0.04)


def test_new_and_vanished_languages_and_reviews_are_flagged() -> None:
    labels = {task: {"a": 500.0} for task in MIX}
    before = Distribution(500, labels, {"en": 450, "de": 50}, reviews=50)
    now = Distribution(500, labels, {"en": 450, "pl": 50}, reviews=150)
    assert flagged(compare(before, now)) == [("language", "de"), ("language", "pl"), ("review", "")]


def embeddings(count: int, topics: Sequence[float], numbers: np.random.Generator) -> npt.NDArray[np.float64]:
    """Unit vectors around ten centres, with these shares; their mean has the length 0.35, as that of real tickets."""
    centres = np.random.default_rng(1).normal(size=(10, 384)) * 0.6 + np.random.default_rng(2).normal(size=384) * 0.55
    vectors = centres[numbers.choice(10, count, p=topics)] + numbers.normal(size=(count, 384)) * 0.9
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float64)


def with_embeddings(vectors: npt.NDArray[np.float64]) -> Distribution:
    items = [Item(ticket_id=f"T-{i}", created_at=i, intent="a", urgency="low", sentiment="b") for i in range(300)]
    return distribution(items, vectors.tolist())


def test_mean_embedding_of_other_texts_is_flagged_and_of_a_second_sample_is_not() -> None:
    numbers, even = np.random.default_rng(21), [0.1] * 10
    quiet = 0
    for _ in range(20):
        before, now = (with_embeddings(embeddings(300, even, numbers)) for _ in range(2))
        quiet += bool(flagged(compare(before, now)))
    assert quiet == 0
    other = [0.5, 0.5, *([0.0] * 8)]
    before, now = with_embeddings(embeddings(300, even, numbers)), with_embeddings(embeddings(300, other, numbers))
    assert flagged(compare(before, now)) == [("embedding", "")]


def test_tickets_without_text_have_no_embedding() -> None:
    found = with_embeddings(np.zeros((5, 384)))
    assert (found.mean, found.embedded) == (None, 0)
    assert "embedding" not in {measure.name for measure in compare(found, found)}
