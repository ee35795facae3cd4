"""The snapshots; `pytest tests/characterization --regenerate` rewrites them."""

from __future__ import annotations

import pytest

from tests.characterization.snapshots import Snapshots


@pytest.fixture(scope="session")
def snapshots(request: pytest.FixtureRequest) -> Snapshots:
    part = request.config.getoption("regenerate")
    return Snapshots(frozenset({"all": ("behaviour", "models"), None: ()}.get(part, (part,))))
