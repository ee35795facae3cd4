"""Where the labels of two bundles differ, and which of them is right where people have decided.

The item of a ticket has the first bundle's labels and, in the attribute `shadow`, those of the second one that differ.
A correction, or a confirmation (`tickets correct --confirm`), says which label is right.

The p-value is that of the sign test (exact McNemar test): how probable so uneven a result, or a more uneven one, would
be if both bundles were right equally often. It counts the disagreements in which exactly one of them is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from handler.aws.corrections import TASKS
from handler.tickets.repository import Item, RepositoryError

__all__ = ["COMPARED_ATTRIBUTES", "Agreement", "Comparison", "Difference", "compare_bundles", "sign_test"]

COMPARED_ATTRIBUTES: Final = ("ticket_id", "created_at", *TASKS, "model_version", "corrections", "shadow")
"""The attributes of an item that a comparison reads."""

_CHANCE: Final = 0.05  # a p-value below this is hardly chance

Label = Annotated[str, StringConstraints(min_length=1)]


class _Shadow(BaseModel):
    """The attribute `shadow` of an item: the second bundle, and its labels where they differ."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True, protected_namespaces=())

    model_version: Label
    intent: Label | None = None
    urgency: Label | None = None
    sentiment: Label | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """Tickets that one bundle labels `primary` and the other one `shadow`, and who was right where people decided.

    `examples` are ids, newest first, those that nobody has decided before the others.
    """

    task: str
    primary: str
    shadow: str
    tickets: int
    primary_right: int
    shadow_right: int
    neither_right: int
    examples: list[str]


@dataclass(frozen=True, slots=True)
class Agreement:
    """One task: the number of tickets, those with the same label from both bundles, and the differences."""

    task: str
    tickets: int
    same: int
    differences: list[Difference]

    @property
    def share(self) -> float:
        """The share of tickets with the same label."""
        return self.same / self.tickets

    @property
    def primary_right(self) -> int:
        """The number of disagreements in which people decided for the first bundle."""
        return sum(each.primary_right for each in self.differences)

    @property
    def shadow_right(self) -> int:
        """The number of disagreements in which people decided for the second bundle."""
        return sum(each.shadow_right for each in self.differences)

    @property
    def neither_right(self) -> int:
        """The number of disagreements in which people decided for another label."""
        return sum(each.neither_right for each in self.differences)

    @property
    def p_value(self) -> float | None:
        """See the module; None if people decided no disagreement for either bundle."""
        decided = self.primary_right + self.shadow_right
        return sign_test(self.primary_right, self.shadow_right) if decided else None

    @property
    def sentence(self) -> str:
        """What the numbers say, in words."""
        differ = self.tickets - self.same
        if not differ:
            return f"{self.task}: both bundles give all {self.tickets} tickets the same label"
        decided = self.primary_right + self.shadow_right + self.neither_right
        if not decided:
            return (
                f"{self.task}: {differ} of {self.tickets} tickets differ, and nobody has decided any of them; "
                f"`tickets correct ID --{self.task} LABEL` does"
            )
        ranked = [(self.primary_right, "the primary"), (self.shadow_right, "the shadow")]
        (most, better), (least, other) = sorted(ranked, key=lambda each: -each[0])
        text = f"{self.task}: {better} is right in {most} of {decided} disagreements that people decided"
        text += f", {other} in {least}"
        if self.p_value is not None:
            text += f" (p = {self.p_value:.2g}: {'hardly' if self.p_value < _CHANCE else 'possibly'} chance)"
        if not self.primary_right:
            text += (
                ". People correct what is wrong, so this says nothing for the primary until they also confirm what is "
                "right (`tickets correct ID --confirm`)"
            )
        return text


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two bundles, compared by the tickets that both have labelled; `others` are the tickets of other pairs."""

    primary: str
    shadow: str
    tasks: list[Agreement]
    others: int


def compare_bundles(items: Iterable[Item], *, examples: int) -> Comparison:
    """Compares the two bundles of the newest ticket; `items` are newest first, each with the attribute `shadow`.

    Raises RepositoryError if there is no such ticket.
    """
    both = [(item, _shadow(item)) for item in items]
    if not both:
        raise RepositoryError(
            "no such ticket has labels of two bundles; SHADOW_BUNDLE names the second one (docs/models.md)"
        )
    pair = (both[0][0].model_version, both[0][1].model_version)
    chosen = [(item, shadow) for item, shadow in both if (item.model_version, shadow.model_version) == pair]
    tasks = [_agreement(task, chosen, examples) for task in TASKS]
    return Comparison(*pair, tasks, others=len(both) - len(chosen))


def sign_test(one: int, other: int) -> float:
    """The two-sided p-value of the sign test for these two counts."""
    total = one + other
    tail = ways = 1  # the binomial coefficients, each from the one before
    for number in range(min(one, other)):
        ways = ways * (total - number) // (number + 1)
        tail += ways
    return min(1.0, float(2 * tail / 2**total))


def _shadow(item: Item) -> _Shadow:
    try:
        return _Shadow.model_validate((item.model_extra or {}).get("shadow"))
    except ValidationError as error:
        raise RepositoryError(f"ticket {item.ticket_id} has an unexpected shadow in the table") from error


def _agreement(task: str, tickets: Sequence[tuple[Item, _Shadow]], examples: int) -> Agreement:
    found: dict[tuple[str, str], list[Item]] = {}
    for item, shadow in tickets:
        other = getattr(shadow, task)
        primary = _predicted(item, task)
        if other is not None and other != primary:
            found.setdefault((primary, other), []).append(item)
    differences = [_difference(task, *labels, items, examples) for labels, items in found.items()]
    differences.sort(key=lambda each: (-each.tickets, each.primary, each.shadow))
    return Agreement(task, len(tickets), len(tickets) - sum(each.tickets for each in differences), differences)


def _difference(task: str, primary: str, shadow: str, items: Sequence[Item], examples: int) -> Difference:
    right = Counter(item.corrections[task].label for item in items if task in item.corrections)
    undecided_first = sorted(items, key=lambda item: task in item.corrections)
    return Difference(
        task=task,
        primary=primary,
        shadow=shadow,
        tickets=len(items),
        primary_right=right[primary],
        shadow_right=right[shadow],
        neither_right=sum(right.values()) - right[primary] - right[shadow],
        examples=[item.ticket_id for item in undecided_first[:examples]],
    )


def _predicted(item: Item, task: str) -> str:
    """The first bundle's label, also where a person's is in force."""
    return item.corrections[task].predicted if task in item.corrections else str(getattr(item, task))
