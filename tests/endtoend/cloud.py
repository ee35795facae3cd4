"""Which AWS the tests run on: the port, and what both of its adapters use."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from tests.endtoend.deployment import Deployment
from tests.runtime.container import LABEL, docker

STANDIN = "ticket-enrichment:standin"
SAM = Path(".venv-sam/bin/sam")  # in the repository


class Cloud(Protocol):
    """An AWS of our own with the template deployed, from `with` to its end."""

    tickets: int  # how many a test may send that is about their number

    @property
    def deployment(self) -> Deployment:
        """What was deployed."""
        ...

    def log(self) -> str:
        """What the function has written in all invocations that have ended."""
        ...

    def crashes(self) -> int:
        """How many invocations ended because their environment did."""
        ...

    def environments(self) -> list[str]:
        """Names of the containers that the function runs in now."""
        ...


def containers_of(pid: int) -> list[str]:
    """Names of the containers that a process has started."""
    return docker("ps", "--filter", f"label={LABEL}={pid}", "--format", "{{.Names}}").stdout.split()
