"""A million bulk tickets beside live ones, in simulated time, with the mappings that template.yaml deploys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import pytest

from handler.local import EmbeddedStack
from handler.settings import Settings
from tests.infrastructure.cloudwatch import changes, states
from tests.infrastructure.watched import OBSERVABILITY, TEMPLATE, alarms
from tests.support.fakes import SETTINGS
from tests.support.mapping_simulation import Run, SimulatedMapping, poisson, simulate

BULK: Final = 1_000_000
LIVE_PER_SECOND: Final = 5.0
LIVE_SECONDS: Final = 1200.0
QUOTA: Final = 1000  # of concurrent executions in an account; a new account may have less
LIMIT: Final = 10.0  # seconds
ALARMS: Final = alarms(OBSERVABILITY)


class Profile(NamedTuple):
    """Times in seconds of the function with 2,048 MB; those of compact are from deploy/cost.md."""

    per_ticket: float
    init: float


COMPACT, FULL = Profile(0.031, 1.1), Profile(0.3, 5.0)


@pytest.fixture(scope="module")
def bulk_stack() -> Iterator[EmbeddedStack]:
    """A stack with a queue for bulk."""
    with EmbeddedStack(parameters={"BulkConcurrency": "20"}) as embedded:
        yield embedded


def run(stack: EmbeddedStack, profile: Profile, *, quota: int = QUOTA) -> tuple[Run, str, str]:
    """A backfill of a million tickets while live ones arrive; also the queues of both."""
    found = stack.environment()
    lanes = Settings(**{**SETTINGS, "queue_url": found["QUEUE_URL"], "dlq_url": found["DLQ_URL"]}).lanes
    live, bulk = lanes[0].name, lanes[-1].name  # dlq-replay backfill takes the last
    arrivals: dict[str, list[float]] = {lane.name: [] for lane in lanes}
    arrivals[live] += poisson(LIVE_PER_SECOND, LIVE_SECONDS)
    arrivals[bulk] = [0.0] * BULK + arrivals[bulk]
    mappings = [
        SimulatedMapping(
            name := each["EventSourceArn"].rpartition(":")[2],
            each["ScalingConfig"]["MaximumConcurrency"],
            each["BatchSize"],
            each["MaximumBatchingWindowInSeconds"],
            arrivals[name],
        )
        for each in stack.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    ]
    assert {mapping.queue for mapping in mappings} == arrivals.keys()
    measured = simulate(
        mappings, quota=quota, seconds_per_ticket=profile.per_ticket, init=profile.init, until_done=live
    )
    return measured, live, bulk


def alarmed(found: Run, live: str) -> set[str]:
    """The alarms that fire, of those whose metrics the simulation has."""
    samples = {
        "OldestTicketAlarm": {"ApproximateAgeOfOldestMessage": found.oldest[live]},
        "ThrottlesAlarm": {"Throttles": found.throttles},
        "DurationAlarm": {"Duration": found.milliseconds},
    }
    timeout = TEMPLATE["Parameters"]["Timeout"]["Default"]
    seen = {
        name: changes(states(ALARMS[name], OBSERVABILITY, metrics, until=found.seconds, Timeout=timeout))
        for name, metrics in samples.items()
    }
    return {name for name, changed in seen.items() if "ALARM" in {state for _, state in changed}}


@pytest.mark.parametrize("profile", [COMPACT, FULL], ids=["compact", "full"])
def test_live_tickets_do_not_wait_for_a_million_bulk_tickets(bulk_stack: EmbeddedStack, profile: Profile) -> None:
    found, live, bulk = run(bulk_stack, profile)
    assert live != bulk
    assert found.p99(live) < LIMIT
    assert max(found.ages[live]) < 2 * LIMIT
    assert alarmed(found, live) == set()
    # Nor does bulk wait for live tickets: all of its 20 batches run all the time.
    assert len(found.ages[bulk]) > 0.75 * 20 * found.seconds / profile.per_ticket


def test_in_one_queue_live_tickets_wait_for_all_of_them(stack: EmbeddedStack) -> None:
    found, live, bulk = run(stack, COMPACT)
    assert live == bulk
    waited = sorted(found.ages[live])[-int(LIVE_PER_SECOND * LIVE_SECONDS / 2) :]
    assert found.p99(live) > 100 * LIMIT
    assert waited[0] > 100 * LIMIT
    assert "OldestTicketAlarm" in alarmed(found, live)


def test_quota_below_the_sum_of_both_concurrencies_throttles_live_tickets(bulk_stack: EmbeddedStack) -> None:
    # This is why docs/operations.md wants the account's quota to be larger than the sum.
    found, live, _ = run(bulk_stack, FULL, quota=10)
    assert found.p99(live) > LIMIT
    assert "ThrottlesAlarm" in alarmed(found, live)
