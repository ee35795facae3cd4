"""Invalid messages of every kind among valid ones of every kind: none affects the others."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.conftest import Scenario

MAX_BYTES = "65536"


def test_poison_among_good_messages(scenario: Scenario) -> None:
    traffic = scenario.traffic
    messages = [
        *islice(traffic.poison(), scenario.size(2000)),
        *islice(traffic.envelopes(), scenario.size(1000)),
        *traffic.mixed(scenario.size(1000), uploads=0.1),
    ]
    traffic.rng.shuffle(messages)
    reconciliation, containers = scenario.run(messages, MAX_TICKET_BYTES=MAX_BYTES)
    assert set(reconciliation.rejected) == {
        "bucket_unexpected",
        "message_invalid",
        "object_gone",
        "object_too_large",
        "schema_violation",
    }
    assert not containers.tickets()["failed"]
