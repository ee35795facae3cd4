"""A two-hour outage in simulated time, with the real delays and the real decision when a message is rejected."""

from __future__ import annotations

import random
from collections import Counter, deque
from itertools import chain
from pathlib import Path
from typing import Any, Final

import pytest
from samtranslator.yaml_helper import yaml_parse

from enrichment.errors import EnrichmentError
from handler.errors import ServiceFailed, Throttled
from handler.messages import StoredTicket
from handler.outcome import MessageState, TicketState, backoff_seconds

TEMPLATE: Final = yaml_parse((Path(__file__).parents[2] / "template.yaml").read_text(encoding="utf-8"))
RECEIVES: Final = TEMPLATE["Parameters"]["MaximumReceiveCount"]
OUTAGE: Final = 7200  # seconds
TICKETS: Final = 72_000
IN_FLIGHT: Final = 120_000  # limit of a standard queue: above it, a receive returns nothing
ERRORS: Final[tuple[EnrichmentError, ...]] = (Throttled("PutItem: x"), ServiceFailed("PutItem: InternalServerError"))


@pytest.mark.parametrize(
    ("arrivals", "receives_per_second"),
    [
        pytest.param([TICKETS], IN_FLIGHT, id="all at once, received as soon as visible"),
        pytest.param([10] * (TICKETS // 10), 100, id="ten per second, ten batches of ten per second"),
    ],
)
def test_two_hour_outage_rejects_no_valid_ticket(arrivals: list[int], receives_per_second: int) -> None:
    assert simulate(arrivals, receives_per_second) == {"done": TICKETS}


def test_fewer_receives_would_reject_valid_tickets() -> None:
    outcomes = simulate([1000], IN_FLIGHT, max_receive_count=RECEIVES["MinValue"] - 7)
    assert outcomes["rejected"]


def test_receives_span_two_hours_even_with_minimal_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random.SystemRandom, "randint", lambda _self, low, _high: low)
    assert sum(backoff_seconds(count) for count in range(1, RECEIVES["MinValue"])) > OUTAGE
    # Nine crashes, after which a message comes back early, may replace the longest delays.
    least = sorted(backoff_seconds(count) for count in range(1, RECEIVES["Default"]))
    assert sum(least[:-9]) > OUTAGE


def test_receives_end_within_message_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random.SystemRandom, "randint", lambda _self, _low, high: high)
    longest = sum(backoff_seconds(count) for count in range(1, RECEIVES["MaxValue"]))
    assert longest < TEMPLATE["Resources"]["TicketQueue"]["Properties"]["MessageRetentionPeriod"] / 4


def simulate(
    arrivals: list[int], receives_per_second: int, *, max_receive_count: int = RECEIVES["Default"]
) -> Counter[str]:
    """The outcomes of messages that arrive second by second, starting with the outage."""
    visible: deque[MessageState] = deque()
    invisible: dict[int, list[MessageState]] = {}
    outcomes: Counter[str] = Counter()
    in_flight = 0
    second = 0
    while second < len(arrivals) or visible or in_flight:
        visible.extend(message() for _ in range(arrivals[second] if second < len(arrivals) else 0))
        back = invisible.pop(second, [])
        in_flight -= len(back)
        visible.extend(back)
        for _ in range(min(len(visible), receives_per_second, IN_FLIGHT - in_flight)):
            received = visible.popleft()
            attributes: dict[str, Any] = received.record["attributes"]
            attributes["ApproximateReceiveCount"] += 1
            (ticket,) = received.tickets
            if second < OUTAGE:
                ticket.fail(ERRORS[second % len(ERRORS)])
            else:
                ticket.end("done")
            received.outcome = received.conclude(max_receive_count)
            if received.outcome == "failed":
                invisible.setdefault(second + received.delay(), []).append(received)
                in_flight += 1
            else:
                outcomes[received.outcome] += 1
        second += 1
    assert not list(chain.from_iterable(invisible.values()))
    return outcomes


def message() -> MessageState:
    ticket = TicketState(StoredTicket("tickets-raw", "one.json"), 0)
    return MessageState({"attributes": {"ApproximateReceiveCount": 0}}, [ticket], [True])
