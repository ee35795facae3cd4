"""The whole system, deployed by sam to an emulated AWS: `--cloud ministack` (the default) or `--cloud localstack`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.endtoend.cloud import Cloud
from tests.endtoend.localstack import LocalStack
from tests.endtoend.ministack import MiniStack
from tests.endtoend.pipeline import Pipeline

CLOUDS: dict[str, Callable[[], AbstractContextManager[Cloud]]] = {"ministack": MiniStack, "localstack": LocalStack}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option --cloud."""
    parser.addoption("--cloud", choices=sorted(CLOUDS), default="ministack", help="the AWS to deploy to")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of tests that run on one cloud only."""
    config.addinivalue_line("markers", "only(cloud): needs features that the other clouds lack")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that the chosen cloud does not support."""
    chosen = config.getoption("--cloud")
    marks = {item: item.get_closest_marker("only") for item in items}
    left_out = [item for item, mark in marks.items() if mark is not None and mark.args != (chosen,)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def cloud(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    """The chosen cloud with the template deployed; tests share it, so each uses its own keys."""
    with CLOUDS[request.config.getoption("--cloud")]() as chosen:
        yield chosen


@pytest.fixture(scope="session")
def pipeline(cloud: Cloud) -> Pipeline:
    """The deployed system, as seen from outside."""
    return Pipeline(cloud.deployment, cloud.log)
