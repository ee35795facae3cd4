"""Option values that several commands accept."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

__all__ = ["WHEN", "unix_time"]

WHEN: Final = "2h|3d|TIME"
"""How the help describes what unix_time accepts."""

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def unix_time(text: str, clock: Callable[[], float] = time.time) -> float:
    """Unix seconds of an age (`90s`, `30m`, `2h`, `3d`, `1w` ago) or of an ISO 8601 time, in UTC if it has no zone.

    Raises ValueError, whose message is one line for users.
    """
    if ago := re.fullmatch(r"([0-9]{1,6})([smhdw])", text):
        return clock() - int(ago[1]) * _SECONDS[ago[2]]
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is neither like 90s, 30m, 2h, 3d or 1w nor an ISO 8601 time") from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
