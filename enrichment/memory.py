"""Returns freed memory to the operating system.

glibc keeps freed memory below a block that is still in use: after batches of many sizes, a process that needs 600 MB
can occupy 1 GB. Lambda stops a function for the memory it occupies, not for what it needs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

__all__ = ["give_back"]


def _find() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl and macOS do not have malloc_trim
        return None


_trim: Final = _find()


def give_back() -> None:
    """Returns freed memory to the system if the C library supports it; takes a few milliseconds."""
    if _trim is not None:
        _trim(0)
