"""The image as Lambda runs it, on the embedded stack; measurements are printed at the end."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator

import pytest

from handler.local import EmbeddedStack
from tests.runtime.container import LambdaContainer, docker, find_rie, remove_leftovers
from tests.runtime.deployed import Lambda, Metrics

_METRICS = pytest.StashKey[Metrics]()


def pytest_configure(config: pytest.Config) -> None:
    """Create the measurements of this run."""
    config.stash[_METRICS] = Metrics()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print cold starts (from RIE's report) and peak memory (from the cgroup)."""
    metrics = config.stash[_METRICS]
    if metrics.init_ms:
        terminalreporter.section("as Lambda runs it")
        low, high = min(metrics.init_ms), max(metrics.init_ms)
        terminalreporter.line(
            f"cold start (INIT REPORT): median {statistics.median(metrics.init_ms):.0f} ms of {len(metrics.init_ms)}, "
            f"{low:.0f} to {high:.0f}"
        )
    for name, peak in metrics.peaks.items():
        terminalreporter.line(f"peak memory of the container (cgroup), {name}: {peak / 1e6:.0f} MB")


@pytest.fixture(scope="session")
def image() -> str:
    """The function's image: the one without Flox, or TICKET_IMAGE."""
    name = os.environ.get("TICKET_IMAGE", "ticket-enrichment:standin")
    if docker("image", "inspect", name).returncode:
        pytest.fail(f"there is no image {name}, or no Docker engine responds; run `make image-standin` to see which")
    remove_leftovers()
    return name


@pytest.fixture(scope="session")
def deployed(stack: EmbeddedStack, image: str, request: pytest.FixtureRequest) -> Lambda:
    """Creates containers of the function as the template deploys it."""
    return Lambda(stack, image, find_rie(), request.config.stash[_METRICS])


@pytest.fixture(scope="module")
def container(deployed: Lambda) -> Iterator[LambdaContainer]:
    """A container shared by the tests of a module."""
    with deployed.container() as running:
        yield running
