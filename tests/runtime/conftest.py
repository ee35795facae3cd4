"""The image as Lambda runs it, against the embedded stack; figures that the tests saw are printed at the end."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator

import pytest

from handler.local import EmbeddedStack
from tests.runtime.container import LambdaContainer, docker, find_rie, sweep
from tests.runtime.deployed import Figures, Lambda

_FIGURES = pytest.StashKey[Figures]()


def pytest_configure(config: pytest.Config) -> None:
    """Makes room for what the tests see."""
    config.stash[_FIGURES] = Figures()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints cold starts and peak memory, as RIE's own report and the cgroup tell them."""
    figures = config.stash[_FIGURES]
    if figures.init_ms:
        terminalreporter.section("as Lambda runs it")
        low, high = min(figures.init_ms), max(figures.init_ms)
        terminalreporter.line(
            f"cold start (INIT REPORT): median {statistics.median(figures.init_ms):.0f} ms of {len(figures.init_ms)}, "
            f"{low:.0f} to {high:.0f}"
        )
    for name, peak in figures.peaks.items():
        terminalreporter.line(f"peak memory of the container (cgroup), {name}: {peak / 1e6:.0f} MB")


@pytest.fixture(scope="session")
def image() -> str:
    """The function's image: the stand-in, or another that TICKET_IMAGE names."""
    name = os.environ.get("TICKET_IMAGE", "ticket-enrichment:standin")
    if docker("image", "inspect", name).returncode:
        pytest.fail(f"there is no image {name}, or no Docker engine that answers; `make image-standin` says which")
    sweep()
    return name


@pytest.fixture(scope="session")
def deployed(stack: EmbeddedStack, image: str, request: pytest.FixtureRequest) -> Lambda:
    """Makes containers of the function as the template deploys it."""
    return Lambda(stack, image, find_rie(), request.config.stash[_FIGURES])


@pytest.fixture(scope="module")
def container(deployed: Lambda) -> Iterator[LambdaContainer]:
    """A container that the tests of a module share."""
    with deployed.container() as running:
        yield running
