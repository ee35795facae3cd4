"""One embedded stack for all integration tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from handler.local import EmbeddedStack

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def stack() -> Iterator[EmbeddedStack]:
    """Every AWS service, made from template.yaml; tests share it, so each uses keys and ids of its own."""
    with EmbeddedStack() as embedded:
        yield embedded
