"""Python processes with a time limit, for code that might never return or use all memory."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

REPOSITORY = Path(__file__).resolve().parents[2]

# Opens the bundle, then enriches the tickets of each input line.
_ENRICHER = """
import json, sys
from enrichment import EnrichmentData, Enricher, parse_ticket

enricher = Enricher.open(sys.argv[1], threads=1)
print("ready", flush=True)
for line in sys.stdin:
    results = enricher.enrich([parse_ticket(json.dumps(raw)) for raw in json.loads(line)], time_left=lambda: 60.0)
    print(sum(isinstance(result, EnrichmentData) for result in results), flush=True)
"""


class Child:
    """A process with a single-threaded enricher; if it does not answer in time, the next call starts a new one."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def enrich(self, tickets: Sequence[Mapping[str, Any]], seconds: float) -> int:
        """Number of tickets that were enriched. Raises AssertionError after `seconds`."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _ENRICHER, str(self._bundle)],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert self._answer(60) == "ready\n"
        assert self._process.stdin is not None
        print(json.dumps(tickets), file=self._process.stdin, flush=True)
        return int(self._answer(seconds))

    def _answer(self, seconds: float) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        if not ready:
            self._end()
            raise AssertionError(f"no answer in {seconds} s")
        return self._process.stdout.readline()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def run_python(code: str, environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a new process, with a limit of two minutes."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
