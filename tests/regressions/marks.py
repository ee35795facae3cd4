"""Faults that are known and not yet repaired: strict, so that the repair must remove the mark."""

from __future__ import annotations

import pytest


def issue(number: int, what: str) -> pytest.MarkDecorator:
    """The mark of a test that fails until an issue is solved."""
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=f"issue {number}: {what}")
