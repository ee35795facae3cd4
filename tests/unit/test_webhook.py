"""The webhook: what is delivered, signed, repeated and given up, against a real HTTP server."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from handler.errors import ServiceFailed
from handler.metrics import make_logger
from handler.result_event import ResultEvent, event_of_item
from handler.settings import WorkerSettings
from handler.worker.webhook import WebhookSender, http_post, signed_headers
from tests.support.fakes import SETTINGS, FakeOutbox, written_to
from tests.support.receiver import SECRET, Receiver
from tests.support.result_events import check_event
from tests.unit.test_result_event import item, write

DOCS = Path(__file__).resolve().parents[2] / "docs" / "events.md"


@dataclass
class Counts:
    """In-memory WebhookMetrics."""

    results: Counter[str] = field(default_factory=Counter)
    delays: list[float] = field(default_factory=list)

    def webhook(self, result: str) -> None:
        """As WebhookMetrics.webhook."""
        self.results[result] += 1

    def webhook_delay(self, seconds: float) -> None:
        """As WebhookMetrics.webhook_delay."""
        self.delays.append(seconds)


class Harness:
    """A sender with an in-memory outbox, a clock that the test moves, and a real receiver."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.outbox, self.metrics, self.stopped = FakeOutbox(), Counts(), threading.Event()
        self.ahead = 0.0  # seconds that the sender's clock is ahead
        self.log = StringIO()
        self.pool = ThreadPoolExecutor(8)
        self.sender = self.another()

    def another(self, url: str = "") -> WebhookSender:
        """A sender as of another worker."""
        return WebhookSender(
            self.outbox,
            http_post(url or self.receiver.url),
            SECRET,
            metrics=self.metrics,
            logger=make_logger("INFO"),
            stopped=self.stopped,
            clock=lambda: time.time() + self.ahead,
        )

    def put(self, *names: str) -> list[str]:
        """Commit events of tickets with these names; returns their ids."""
        return [self.outbox.put(event(name)).event_id for name in names]

    def deliver(self) -> float:
        """Deliver what is due; returns the seconds that the sender would wait."""
        with written_to(self.log):
            return self.sender.deliver_due(self.pool)


def event(ticket_id: str) -> ResultEvent:
    return event_of_item(item(write(ticket_id=ticket_id)))


@pytest.fixture
def harness() -> Iterator[Harness]:
    with Receiver() as receiver:
        found = Harness(receiver)
        yield found
        found.pool.shutdown()


def verify_as_documented() -> Any:
    """The function that docs/events.md shows to receivers."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(DOCS), "exec"), names)
    return names["is_genuine"]


def test_each_event_is_delivered_once_and_removed(harness: Harness) -> None:
    ids = harness.put(*(f"T-{number}" for number in range(20)))
    assert harness.deliver() == 1
    assert harness.receiver.accepted == Counter(ids)
    assert harness.outbox.entries == {}
    assert harness.metrics.results == {"delivered": 20}
    for found in harness.receiver.events:
        check_event(found)
    harness.deliver()
    assert len(harness.receiver.posts) == 20
    assert harness.metrics.delays[-1] == 0


def test_documented_check_accepts_only_genuine_events(harness: Harness) -> None:
    is_genuine = verify_as_documented()
    harness.put("T-1")
    harness.deliver()
    ((headers, body),) = harness.receiver.posts
    now = time.time()
    assert headers["Content-Type"] == "application/json"
    assert is_genuine(SECRET, headers, body, now)
    assert not is_genuine(SECRET, headers, body + b" ", now)
    assert not is_genuine(SECRET[:-4] + "AAAA", headers, body, now)
    assert not is_genuine(SECRET, headers, body, now + 600), "an old event, sent again by somebody else"
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        assert not is_genuine(SECRET, {**dict(headers), name: "1"}, body, now)


def test_documented_command_makes_a_valid_secret() -> None:
    (command,) = re.findall(r"^python3 -c '(.*)'$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    settings = WorkerSettings(
        **SETTINGS, result_webhook="https://helpdesk.example.com/hook", result_webhook_secret=done.stdout.strip()
    )
    assert settings.result_webhook_secret is not None
    assert done.stdout.strip() not in repr(settings)


def test_signature_is_that_of_the_standard() -> None:
    # The example of the specification at standardwebhooks.com.
    headers = signed_headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("status", [500, 503, 429, 408, 0])
def test_unavailable_receiver_gets_every_event_later(harness: Harness, status: int) -> None:
    harness.receiver.answer = lambda number, event: status
    ids = harness.put(*(f"T-{number}" for number in range(20)))
    pauses = [harness.deliver() for _ in range(8)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    # First eight at a time, then one to see whether it is back.
    assert len(harness.receiver.posts) == 8 + 7
    assert len(harness.outbox.entries) == 20
    assert harness.log.getvalue().count("unavailable") == 1, "the first of several failures is logged"
    harness.receiver.answer = lambda number, event: 200
    assert harness.deliver() == 1
    assert harness.receiver.accepted == Counter(ids)


def test_unreachable_receiver_is_unavailable(harness: Harness) -> None:
    with Receiver() as closed:
        url = closed.url
    harness.sender = harness.another(url)
    harness.put("T-1")
    assert harness.deliver() == 1
    assert harness.metrics.results == {"unavailable": 1}
    assert len(harness.outbox.entries) == 1


def test_refused_event_waits_longer_each_time_and_delays_no_other(harness: Harness) -> None:
    harness.receiver.answer = lambda number, event: 400 if event["ticket_id"] == "T-bad" else 200
    harness.put("T-bad", "T-1", "T-2")
    assert harness.deliver() == 1
    assert harness.metrics.results == {"refused": 1, "delivered": 2}
    (left,) = harness.outbox.entries.values()
    waits = []
    for _ in range(8):
        before = left.due_at
        harness.ahead = left.due_at - time.time() + 0.5
        harness.deliver()
        (left,) = harness.outbox.entries.values()
        waits.append(left.due_at - before)
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(120, abs=2)
    assert waits[-1] == pytest.approx(3600, abs=2)
    assert '"status":400' in harness.log.getvalue()
    harness.ahead = left.expires_at - time.time() + 1
    harness.deliver()
    assert harness.outbox.entries == {}, "it was given up after a week"
    assert harness.metrics.results["expired"] == 1
    assert "given up" in harness.log.getvalue()


def test_redirect_is_not_followed(harness: Harness) -> None:
    harness.receiver.answer = lambda number, event: 302
    harness.put("T-1")
    harness.deliver()
    assert len(harness.receiver.posts) == 1
    assert harness.metrics.results == {"refused": 1}


def test_two_senders_share_the_work(harness: Harness) -> None:
    ids = harness.put(*(f"T-{number}" for number in range(60)))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda sender: sender.deliver_due(harness.pool), [harness.another(), harness.another()]))
    assert harness.receiver.accepted == Counter(ids)


def test_event_of_a_sender_that_was_killed_comes_back(harness: Harness) -> None:
    harness.put("T-1")
    (entry,) = harness.outbox.entries.values()
    harness.outbox.reschedule(entry, entry.due_at + 60, 0)  # claimed, and then nothing
    harness.deliver()
    assert not harness.receiver.posts
    harness.ahead = 61
    harness.deliver()
    assert harness.receiver.accepted == {entry.event_id: 1}


def test_event_that_could_not_be_removed_is_sent_again_with_the_same_id(harness: Harness) -> None:
    (event_id,) = harness.put("T-1")
    harness.outbox.faults.set(ServiceFailed("DeleteItem: InternalServerError"), "delete")
    with pytest.raises(ServiceFailed):
        harness.deliver()
    harness.outbox.faults.clear()
    harness.ahead = 61
    harness.deliver()
    assert harness.receiver.accepted == {event_id: 2}
    assert harness.outbox.entries == {}


def test_outbox_that_cannot_be_read_does_not_end_the_sender(harness: Harness) -> None:
    (event_id,) = harness.put("T-1")
    failures = [ServiceFailed("Query: InternalServerError"), RuntimeError("canary")]

    def due(now: int, entries: Any = harness.outbox.due) -> Any:
        if failures:
            raise failures.pop()
        return entries(now)

    harness.outbox.due = due  # type: ignore[method-assign]
    with written_to(harness.log):
        thread = threading.Thread(target=harness.sender.run)
        thread.start()
        harness.receiver.wait_for(lambda: bool(harness.receiver.accepted))
        harness.stopped.set()
        thread.join()
    assert harness.receiver.accepted == {event_id: 1}
    assert "canary" not in harness.log.getvalue()
    assert "RuntimeError" in harness.log.getvalue()


def test_oldest_event_is_first_and_its_age_is_a_metric(harness: Harness) -> None:
    harness.put("T-1", "T-2")
    harness.ahead = 30
    first, second = sorted(harness.outbox.entries.values(), key=lambda entry: -entry.number)
    assert (event("T-1").event_id, event("T-2").event_id) == (first.event_id, second.event_id)
    harness.deliver()
    assert harness.metrics.delays[0] == pytest.approx(30, abs=5)


def test_entry_is_replaced_only_by_who_has_it() -> None:
    outbox = FakeOutbox()
    entry = outbox.put(event("T-1"))
    assert outbox.reschedule(entry, 5, 1) == replace(entry, due_at=5, attempts=1)
    assert outbox.reschedule(entry, 6, 1) is None
