"""Known bugs that are not fixed yet. The mark is strict, so that a fix must remove it."""

from __future__ import annotations

import pytest


def issue(number: int, what: str) -> pytest.MarkDecorator:
    """Marks a test that fails until an issue is solved."""
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=f"issue {number}: {what}")
