"""Every sample event through the queue and the event source mapping."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.endtoend.queue_harness import QueueHarness
from tests.support.cases import Case, load_cases, run_case

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.endtoend.pipeline import Pipeline

# Excluded: its outcome depends on whether the mapping puts both messages into one batch.
CASES = [case for case in load_cases() if case.name != "duplicate-message"]

# LocalStack 4.14 reformats JSON bodies, so that DLQ messages differ from what was sent.
pytestmark = pytest.mark.only("ministack")


@pytest.fixture(scope="module")
def harness(pipeline: Pipeline) -> Iterator[QueueHarness]:
    """The deployed system without S3 notifications: events are the only source of messages."""
    with pipeline.without_notifications():
        yield QueueHarness(pipeline)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sample_event(case: Case, harness: QueueHarness) -> None:
    run_case(case, harness.invoke, harness)
