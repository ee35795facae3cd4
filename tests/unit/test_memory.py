"""Freed memory is returned to the system."""

from __future__ import annotations

import ctypes

import psutil
import pytest

from enrichment import memory


def test_freed_memory_below_a_used_block_is_released() -> None:
    blocks = [b"x" * 100_000 for _ in range(2000)]  # each too small for its own memory mapping
    last = blocks.pop()
    full = psutil.Process().memory_info().rss
    del blocks
    memory.give_back()
    assert full - psutil.Process().memory_info().rss > 150e6
    assert len(last) == 100_000


def test_other_c_library_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert memory._find() is None
    monkeypatch.setattr(memory, "_trim", None)
    memory.give_back()
