"""The snapshots, which `pytest tests/characterization --regenerate` writes anew."""

from __future__ import annotations

import pytest

from tests.characterization.snapshots import Snapshots


@pytest.fixture(scope="session")
def snapshots(request: pytest.FixtureRequest) -> Snapshots:
    asked = request.config.getoption("regenerate")
    return Snapshots(frozenset({"all": ("behaviour", "models"), None: ()}.get(asked, (asked,))))
