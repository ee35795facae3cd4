"""Memory that was freed goes back to the system.

glibc keeps what lies below a piece that is still in use: after batches of many sizes, a process that needs 600 MB can
hold a gigabyte. Lambda stops a function for what it holds, not for what it needs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

__all__ = ["give_back"]


def _find() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library: musl's and macOS's have no such call
        return None


_trim: Final = _find()


def give_back() -> None:
    """Gives back what is free, where the C library can; takes some milliseconds."""
    if _trim is not None:
        _trim(0)
