"""Bad messages of every kind among good ones of every kind: none takes its neighbours along."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.conftest import Scenario

MOST_BYTES = "65536"


def test_poison_among_good_messages(scenario: Scenario) -> None:
    traffic = scenario.traffic
    messages = [
        *islice(traffic.poison(), scenario.size(2000)),
        *islice(traffic.envelopes(), scenario.size(1000)),
        *traffic.mixed(scenario.size(1000), uploads=0.1),
    ]
    traffic.chance.shuffle(messages)
    account, containers = scenario.run(messages, MAX_TICKET_BYTES=MOST_BYTES)
    assert set(account.rejected) == {
        "bucket_unexpected",
        "message_invalid",
        "object_gone",
        "object_too_large",
        "schema_violation",
    }
    assert not containers.tickets()["failed"]
