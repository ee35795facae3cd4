"""The emulated AWS that the tests run on: the port, and code that both adapters share."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from tests.endtoend.deployment import Deployment
from tests.runtime.container import LABEL, docker

STANDIN = "ticket-enrichment:standin"
SAM = Path(".venv-sam/bin/sam")  # in the repository


class Cloud(Protocol):
    """An emulated AWS with the template deployed; a context manager."""

    tickets: int  # how many tickets a volume test sends

    @property
    def deployment(self) -> Deployment:
        """The deployed stack."""
        ...

    def log(self) -> str:
        """The function's log of all finished invocations."""
        ...

    def crashes(self) -> int:
        """How many invocations ended with a crash of their environment."""
        ...

    def environments(self) -> list[str]:
        """Names of the containers in which the function currently runs."""
        ...


def containers_of(pid: int) -> list[str]:
    """Names of the containers that a process started."""
    return docker("ps", "--filter", f"label={LABEL}={pid}", "--format", "{{.Names}}").stdout.split()
