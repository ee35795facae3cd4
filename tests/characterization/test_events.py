"""Each sample event through the Lambda handler and the worker: everything they answer, store, send and log."""

from __future__ import annotations

import pytest

from tests.characterization.harness import EVENTS, Event, Product
from tests.characterization.observation import metrics, observed
from tests.characterization.snapshots import Snapshots

NAMES = sorted(path.stem for path in EVENTS.glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_handler(name: str, product: Product, snapshots: Snapshots) -> None:
    _compare("handler", Event.load(name), product, snapshots)


@pytest.mark.parametrize("name", NAMES)
def test_worker(name: str, product: Product, snapshots: Snapshots) -> None:
    _compare("worker", Event.load(name), product, snapshots)


def test_metrics_of_the_first_batch(product: Product, snapshots: Snapshots) -> None:
    snapshots.check("first-batch", "behaviour", metrics(product, product.first))


def _compare(route: str, event: Event, product: Product, snapshots: Snapshots) -> None:
    run = product.through_handler(event) if route == "handler" else product.through_worker(event)
    behaviour, models = observed(product, run)
    snapshots.check(f"{route}/{event.name}", "behaviour", behaviour)
    # One file for both routes: their results must be equal.
    snapshots.check(f"events/{event.name}", "models", models)
