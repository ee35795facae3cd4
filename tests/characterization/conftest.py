"""The product, started once for all characterization tests, and the snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.characterization.harness import Product
from tests.characterization.snapshots import Snapshots


@pytest.fixture(scope="session")
def product(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with Product.started(bundle, tmp_path_factory.mktemp("cache")) as found:
        yield found


@pytest.fixture(scope="session")
def snapshots(request: pytest.FixtureRequest) -> Snapshots:
    asked = request.config.getoption("regenerate")
    return Snapshots(frozenset({"all": ("behaviour", "models"), None: ()}.get(asked, (asked,))))
