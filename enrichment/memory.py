"""Returns freed memory to the operating system.

glibc keeps freed memory below a block that is still in use: after batches of many sizes, a process that needs 600 MB
can occupy a gigabyte. Lambda's limit applies to what a function occupies.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

__all__ = ["give_back"]


def _find() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # other C libraries, such as musl's and macOS's, have no malloc_trim
        return None


_trim: Final = _find()


def give_back() -> None:
    """Return free memory if the C library supports it; takes some milliseconds."""
    if _trim is not None:
        _trim(0)
