"""Fixtures for all tests: the bundles, an enricher and the AWS services."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from enrichment import Enricher

if TYPE_CHECKING:
    from handler.local import EmbeddedStack
    from tests.characterization.harness import Product

# The same examples on every machine, and no time limits, which would fail correct code on a busy one. To search for
# new examples: pytest --hypothesis-profile=default
settings.register_profile(
    "repeatable", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")

# A shell starts background jobs with SIGINT ignored, and children inherit that: tests that interrupt programs would
# hang.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option of tests/characterization; it must be defined here to exist before collection."""
    parser.addoption(
        "--regenerate",
        nargs="?",
        const="all",
        choices=("all", "behaviour", "models"),
        help="tests/characterization: rewrite the snapshots instead of comparing with them; "
        "--regenerate=models rewrites only the models' results",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Registers the markers."""
    config.addinivalue_line("markers", "last: a long test, which runs after all others")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves long tests to the end."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.fixture(scope="session")
def bundle() -> Path:
    """The compact bundle's folder; tests use the real weights."""
    folder = Path(os.environ.get("TICKET_BUNDLE", REPOSITORY / ".bundles" / "compact"))
    if not (folder / "bundle.json").is_file():
        pytest.fail(f"there is no bundle at {folder}; build it with `make bundle`")
    return folder


@pytest.fixture(scope="session")
def enricher(bundle: Path) -> Enricher:
    """An enricher on the compact bundle."""
    return Enricher.open(bundle)


@pytest.fixture(scope="session")
def shadow_bundle(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    """A second bundle with the same encoder, which often gives another intent."""
    from tests.support.shadow_bundles import write_shadow

    return write_shadow(tmp_path_factory.mktemp("shadow") / "candidate", bundle)


@pytest.fixture(scope="session")
def stack() -> Iterator[EmbeddedStack]:
    """All AWS services, created from template.yaml; tests share them, so each test uses its own keys and ids."""
    from handler.local import EmbeddedStack

    with EmbeddedStack() as embedded:
        yield embedded


@pytest.fixture(scope="session")
def product(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """The handler and the worker on a separate stack, whose stores and queues a test may empty."""
    from tests.characterization.harness import Product

    with Product.started(bundle, tmp_path_factory.mktemp("cache")) as found:
        yield found


@pytest.fixture(scope="session")
def full_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the full profile's three models; two of them are small and random."""
    from tests.support.small_full import write_source

    return write_source(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def full_bundle(tmp_path_factory: pytest.TempPathFactory, bundle: Path, full_source: Path) -> Path:
    """A full bundle of those models, in int8."""
    from tests.support.small_full import write_bundle

    return write_bundle(tmp_path_factory.mktemp("bundles") / "full", bundle, full_source)
