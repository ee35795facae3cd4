"""A circuit breaker: a process stops receiving messages while S3, DynamoDB or SQS is down.

Messages that are received during an outage can only be deferred, which costs each of them one of its receives. The
breaker leaves them in the queue. Its states are the usual ones:

    closed      messages are received as always
    open        after failures in a row: nothing is received, for a random time that doubles with each failed attempt
    half_open   that time is over: small batches are received, until one shows whether the services work again

Only errors of services count (throttled, service_failed). A ticket that is rejected, or whose model fails, says nothing
about the services. Nor does a message that fails again and again because its own object is refused: the messages that
are counted are different ones.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, Literal, TypeAlias

from enrichment.errors import ModelFailed
from handler.errors import ServiceFailed, Throttled, Unexpected

__all__ = ["STATES", "BreakerState", "CircuitBreaker"]

BreakerState: TypeAlias = Literal["closed", "open", "half_open"]
STATES: Final[tuple[BreakerState, ...]] = ("closed", "open", "half_open")

_MAX_FAILED_MESSAGES: Final = 10  # a full batch; an outage that begins with single messages is noticed a little later
_MAX_FAILED_RECEIVES: Final = 5
_PROBE_MESSAGES: Final = 3  # more than one: a single message may fail for a reason of its own
# Seconds, of which half to all is waited. After an outage, processes therefore begin again at different times.
_FIRST_WAIT: Final = 15.0
_LONGEST_WAIT: Final = 120.0

_OF_SERVICES: Final = frozenset({ServiceFailed.code, Throttled.code})
_OF_MESSAGES: Final = frozenset({ModelFailed.code, Unexpected.code})


def _ignore(_state: BreakerState, _reason: str) -> None:
    pass


class _Batch(threading.local):
    """The outcomes of the batch of this thread."""

    def __init__(self) -> None:
        self.codes: Counter[str] = Counter()
        self.done = 0  # tickets


class CircuitBreaker:
    """The breaker of one process. It measures no time: the poller waits `wait` seconds, then calls `probe`.

    Several batches may be processed at once, each in a thread of its own, which reports its tickets and its end.
    """

    def __init__(self, report: Callable[[BreakerState, str], None] = _ignore) -> None:
        """`report` is told of each change of the state, with its reason in one line."""
        self._report = report
        self._state: BreakerState = "closed"
        self._wait = _FIRST_WAIT
        self._lock = threading.Lock()
        self._batch = _Batch()
        self._failed: set[str] = set()  # messages that failed since a ticket was last stored
        self._failed_receives = 0

    @property
    def state(self) -> BreakerState:
        """The current state."""
        return self._state

    def batch_size(self, wanted: int) -> int:
        """How many messages to receive at once."""
        return min(wanted, _PROBE_MESSAGES) if self._state == "half_open" else wanted

    def wait(self) -> float:
        """Seconds until the next attempt while the breaker is open; longer each time it is asked."""
        with self._lock:
            ceiling, self._wait = self._wait, min(_LONGEST_WAIT, 2 * self._wait)
        return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, not for security

    def probe(self) -> None:
        """The wait is over: the next batches are small ones."""
        with self._lock:
            self._change("half_open", "trying a small batch")

    def receive_failed(self, detail: str) -> None:
        """SQS did not answer, or refused to deliver messages."""
        with self._lock:
            self._failed_receives += 1
            if self._state == "half_open" or self._failed_receives >= _MAX_FAILED_RECEIVES:
                self._change("open", f"the queue cannot be read ({detail})")

    def receive_succeeded(self) -> None:
        """SQS answered, with or without messages. Whether the other services work is known after a batch."""
        with self._lock:
            self._failed_receives = 0
            if self._state == "half_open" and not self._failed:
                self._close()

    def ticket(self, outcome: str, code: str | None) -> None:
        """The outcome of a ticket of this thread's batch and its error code, as in Metrics.outcome."""
        if code is not None:
            self._batch.codes[code] += 1
        elif outcome == "done":
            self._batch.done += 1

    def batch_finished(self, failed_ids: Iterable[str]) -> None:
        """This thread's batch is over; `failed_ids` are the messages that will be retried."""
        done, codes = self._batch.done, self._batch.codes
        self._batch.done, self._batch.codes = 0, Counter()
        with self._lock:
            if done:
                self._failed.clear()
                if self._state == "half_open":
                    self._close()
            elif codes.keys() & _OF_SERVICES and not codes.keys() & _OF_MESSAGES:
                self._failed.update(failed_ids)
                if self._state == "half_open" or len(self._failed) >= _MAX_FAILED_MESSAGES:
                    names = ", ".join(sorted(codes.keys() & _OF_SERVICES))
                    self._change("open", f"no ticket can be stored ({names}; the log names the service)")

    def _close(self) -> None:
        self._wait = _FIRST_WAIT
        self._failed.clear()
        self._change("closed", "the services work again")

    def _change(self, state: BreakerState, reason: str) -> None:
        if state != self._state:
            self._state = state
            self._report(state, reason)
