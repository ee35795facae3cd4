"""Waiting for conditions and processes, with deadlines that a busy CI machine can meet."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["eventually", "killed_at_end"]


def eventually(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Returns once the condition is true. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition was not met within {seconds:.0f} s"
        time.sleep(0.01)


@contextmanager
def killed_at_end(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """Kills the process if it still runs: Popen alone would wait for it forever after a failed assertion."""
    with process:
        try:
            yield process
        finally:
            process.kill()
