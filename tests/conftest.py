"""Fixtures for all tests: the compact bundle, and an enricher on it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from enrichment import Enricher

# The same examples on every machine, and no limits of time: a busy one would fail what is right. To look for new
# examples: pytest --hypothesis-profile=default
settings.register_profile(
    "repeatable", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def bundle() -> Path:
    """The compact bundle's folder; the tests run on real weights."""
    folder = Path(os.environ.get("TICKET_BUNDLE", REPOSITORY / ".bundles" / "compact"))
    if not (folder / "bundle.json").is_file():
        pytest.fail(f"there is no bundle at {folder}; build it with `make bundle`")
    return folder


@pytest.fixture(scope="session")
def enricher(bundle: Path) -> Enricher:
    """An enricher on the compact bundle."""
    return Enricher.open(bundle)
