"""Python runs this module in each process whose PYTHONPATH has this folder: some tickets then kill the function.

The subject says how: "segfault", "killed" (as the kernel does without memory) or "hang" (holds the interpreter lock).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

if {"handler.worker.processor", "tests.support.function_process", "awslambdaric"} & set(sys.orig_argv):
    from enrichment import Enricher, RawTicket

    enrich = Enricher.enrich

    def enrich_or_die(self: Enricher, tickets: Sequence[RawTicket], **options: Any) -> Any:
        """As Enricher.enrich."""
        for ticket in tickets:
            match ticket.subject:
                case "segfault":
                    ctypes.string_at(0)
                case "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang":
                    ctypes.PyDLL(None).sleep(600)
        return enrich(self, tickets, **options)

    Enricher.enrich = enrich_or_die  # type: ignore[method-assign]
