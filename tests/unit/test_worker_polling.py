"""The poller behaves like Lambda's event source mapping, even when the queue or the handler fails."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from handler.aws.sqs import QueueAttributes
from handler.cli.shutdown import Shutdown
from handler.errors import MessageError, ServiceFailed, Throttled
from handler.metrics import Logger
from handler.worker import polling
from handler.worker.breaker import CircuitBreaker
from handler.worker.polling import Poller
from handler.worker.reports import BatchReport, WorkerOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from handler.worker.invocation import Message

ARN = "arn:aws:sqs:eu-central-1:123456789012:ticket-processing"


class Queue:
    """An in-memory queue: returns each batch once, and requests shutdown at a long poll of the empty queue.

    An error among the batches is raised. Deleting a message fails as often as `failing_calls` says.
    """

    def __init__(self, shutdown: Shutdown, *batches: Sequence[Message] | MessageError, url: str = "queue") -> None:
        self.url = url
        self.shutdown = shutdown
        self.batches = list(batches)
        self.remaining = {
            message["MessageId"] for batch in batches if not isinstance(batch, MessageError) for message in batch
        }
        self.visibility_changes: list[tuple[list[str], int]] = []
        self.deletions: list[list[str]] = []
        self.receives: list[tuple[int, int]] = []
        self.waits: list[bool] = []
        self.failing_calls: Counter[str] = Counter()
        self.max_receive_count: int | None = 30

    def attributes(self) -> QueueAttributes:
        return QueueAttributes(arn=ARN, visibility_timeout=360, max_receive_count=self.max_receive_count)

    def receive(self, count: int, visibility_timeout: int, *, wait: bool) -> Sequence[Message]:
        self.waits.append(wait)
        self.receives.append((count, visibility_timeout))
        if not self.batches:
            if wait:
                self.shutdown.request()
            return []
        batch = self.batches.pop(0)
        if isinstance(batch, MessageError):
            raise batch
        return batch

    def delete(self, messages: Sequence[Message]) -> list[Message]:
        self.deletions.append([message["MessageId"] for message in messages])
        failed = []
        for message in messages:
            name = message["MessageId"]
            if self.failing_calls[name]:
                self.failing_calls[name] -= 1
                failed.append(message)
            else:
                self.remaining.remove(name)
        return failed

    def change_visibility(self, messages: Sequence[Message], seconds: int) -> list[Message]:
        self.visibility_changes.append(([message["MessageId"] for message in messages], seconds))
        return []


class Metrics(Counter[tuple[Any, ...]]):
    def invocation(self, result: str) -> None:
        self["invocation", result] += 1

    def messages(self, result: str, count: int) -> None:
        self["messages", result] += count

    def message_age(self, queue: str, seconds: float) -> None:
        self["message_age", queue, round(seconds, -1)] += 1

    def receive_failed(self, code: str) -> None:
        self["receive_failed", code] += 1

    def flush(self) -> None:
        pass


class Batches(list[BatchReport | None]):
    """What the parent is told; None is the end of a batch."""

    def batch_started(self, batch: BatchReport) -> None:
        self.append(batch)

    def batch_finished(self, batch: BatchReport) -> None:
        assert batch in self
        self.append(None)

    def is_settled(self, receipt: str) -> bool:
        return receipt in self.settled

    settled: frozenset[str] = frozenset()


class PauselessShutdown(Shutdown):
    def __init__(self, grace: float = 25.0) -> None:
        super().__init__(grace)
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


class Harness:
    """A poller with its queues, handler and metrics; `lines` are its log lines."""

    def __init__(
        self, handler: Callable[[Any, Any], Any], *batches: Any, bulk: Sequence[Any] | None = None, **options: Any
    ) -> None:
        self.shutdown = PauselessShutdown()
        self.queue = Queue(self.shutdown, *batches)
        self.bulk = Queue(self.shutdown, *(bulk or ()), url="bulk")
        self.metrics = Metrics()
        self.batches = Batches()
        self.breaker = CircuitBreaker(lambda state, _reason: self.breaker_states.append(state))
        self.breaker_states: list[str] = []
        self._log = io.StringIO()
        self.poller = Poller(
            [self.queue] if bulk is None else [self.queue, self.bulk],
            handler,
            self.shutdown,
            WorkerOptions(**options),
            metrics=self.metrics,
            # The same name would return the same logger, which keeps its first stream.
            logger=Logger(service=str(uuid4()), level="INFO", logger_handler=logging.StreamHandler(self._log)),
            batches=self.batches,
            breaker=self.breaker,
            memory_mb=512,
            max_receive_count=30,
        )

    def run(self) -> Harness:
        self.poller.run()
        return self

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.getvalue().splitlines()]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "_DELETE_PAUSE", 0.0)


def message(name: str) -> dict[str, Any]:
    return {"MessageId": name, "ReceiptHandle": f"handle-{name}", "MD5OfBody": "0" * 32, "Body": name}


def batch(names: str) -> list[dict[str, Any]]:
    return [message(name) for name in names]


def fail(*names: str) -> Callable[[Any, Any], Any]:
    return lambda _event, _context: {"batchItemFailures": [{"itemIdentifier": name} for name in names]}


def test_only_successful_messages_are_deleted() -> None:
    harness = Harness(fail("b"), batch("abc"), batch("bd"), batch("b")).run()
    assert harness.queue.remaining == {"b"}
    assert harness.queue.deletions == [["a", "c"], ["d"]]
    assert harness.metrics == {
        ("invocation", "ok"): 3,
        ("messages", "kept"): 3,
        ("messages", "deleted"): 3,
    }
    assert harness.lines == []


def test_event_and_context_match_lambda() -> None:
    seen: list[tuple[Any, Any]] = []
    Harness(lambda *call: seen.append(call), batch("ab"), batch("c")).run()
    (event, context), (_, other) = seen
    assert [record["messageId"] for record in event["Records"]] == ["a", "b"]
    assert {record["eventSourceARN"] for record in event["Records"]} == {ARN}
    assert (context.function_name, context.memory_limit_in_mb) == ("ticket-processor", "512")
    assert context.invoked_function_arn == "arn:aws:lambda:eu-central-1:123456789012:function:ticket-processor"
    assert context.aws_request_id != other.aws_request_id


@pytest.mark.parametrize(("timeout", "seconds"), [(None, 360), (7.5, 7.5)])
def test_time_left_starts_at_queue_visibility_or_option(timeout: float | None, seconds: float) -> None:
    left: list[int] = []

    def handler(_: Any, context: Any) -> None:
        left.extend(context.get_remaining_time_in_millis() for _ in range(2))

    Harness(handler, batch("a"), timeout=timeout).run()
    assert seconds * 1000 >= left[0] >= left[1] > seconds * 1000 - 2000


@pytest.mark.parametrize("response", ["ok", {"batchItemFailures": [{"itemIdentifier": ""}]}])
def test_malformed_response_keeps_the_batch(response: object) -> None:
    harness = Harness(lambda *_: response, batch("ab")).run()
    assert harness.queue.remaining == {"a", "b"}
    assert harness.queue.deletions == []
    assert harness.queue.visibility_changes == [(["a", "b"], 360)]
    assert harness.metrics == {("invocation", "malformed"): 1, ("messages", "deleted"): 0, ("messages", "kept"): 2}
    assert [line["level"] for line in harness.lines] == ["ERROR"]


def test_handler_exception_keeps_the_batch_and_polling_continues() -> None:
    def handler(event: Any, _: Any) -> None:
        if event["Records"][0]["messageId"] == "a":
            raise ZeroDivisionError

    harness = Harness(handler, batch("ab"), batch("c")).run()
    assert harness.queue.remaining == {"a", "b"}
    assert harness.queue.deletions == [["c"]]
    assert harness.queue.visibility_changes == [(["a", "b"], 360)]
    (line,) = harness.lines
    assert "ZeroDivisionError" in line["exception"]
    assert len(line["function_request_id"]) == 36
    assert (harness.metrics["invocation", "raised"], harness.metrics["invocation", "ok"]) == (1, 1)
    assert len(harness.shutdown.pauses) == 1


def test_failed_deletes_are_retried() -> None:
    harness = Harness(fail("c"), batch("abc"))
    harness.queue.failing_calls["a"] = 2
    harness.run()
    assert harness.queue.deletions == [["a", "b"], ["a"], ["a"]]
    assert harness.queue.remaining == {"c"}
    assert harness.metrics["messages", "deleted"] == 2
    assert harness.lines == []


def test_messages_that_the_handler_settled_are_left_alone() -> None:
    harness = Harness(fail("b"), batch("abc"))
    harness.batches.settled = frozenset({"handle-a", "handle-b"})
    harness.run()
    assert harness.queue.deletions == [["c"]]
    assert harness.metrics["messages", "deleted"] == 2
    assert harness.lines == []


def test_messages_that_the_handler_settled_keep_their_delay_after_an_exception() -> None:
    harness = Harness(lambda *_: 1 / 0, batch("abc"))
    harness.batches.settled = frozenset({"handle-a", "handle-b"})
    harness.run()
    assert harness.queue.visibility_changes == [(["c"], 360)]


def test_undeletable_message_is_logged_once() -> None:
    harness = Harness(fail(), batch("ab"), batch("c"))
    harness.queue.failing_calls["a"] = 99
    harness.run()
    assert harness.queue.remaining == {"a"}
    assert [(line["level"], line["message_ids"]) for line in harness.lines] == [("WARNING", ["a"])]
    assert harness.metrics["messages", "undeleted"] == 1
    assert harness.metrics["messages", "deleted"] == 2


@pytest.mark.parametrize(("timeout", "seconds"), [(None, 360), (7.5, 7.5)])
def test_parent_is_told_of_each_batch(timeout: float | None, seconds: float) -> None:
    harness = Harness(fail(), batch("ab"), batch("c"), visibility_timeout=20, timeout=timeout).run()
    first, second = (
        BatchReport(
            number=number,
            queue_url="queue",
            message_ids=list(names),
            receipts=[f"handle-{name}" for name in names],
            visibility_timeout=20,
            seconds=seconds,
        )
        for number, names in enumerate(("ab", "c"), start=1)
    )
    assert harness.batches == [first, None, second, None]


def test_end_of_a_batch_is_told_after_its_messages_are_deleted() -> None:
    deleted: list[int] = []
    harness = Harness(fail(), batch("ab"))

    def finished(batch: BatchReport) -> None:
        deleted.append(len(harness.queue.deletions) * len(batch.receipts))

    harness.batches.batch_finished = finished  # type: ignore[method-assign]
    harness.run()
    assert deleted == [2]


@pytest.mark.parametrize(("visibility_timeout", "effective"), [(30, 30), (5000, 360)])
def test_visibility_timeout_is_capped_by_the_queue(visibility_timeout: int, effective: int) -> None:
    harness = Harness(fail(), batch("a"), visibility_timeout=visibility_timeout, batch_size=4).run()
    assert harness.queue.receives[0] == (4, effective)


def test_current_batch_finishes_within_the_shutdown_time() -> None:
    left: list[float] = []

    def handler(_: Any, context: Any) -> dict[str, Any]:
        harness.shutdown.request()
        left.append(context.get_remaining_time_in_millis() / 1000)
        return {"batchItemFailures": [{"itemIdentifier": "b"}]}

    harness = Harness(handler, batch("ab"), batch("c"))
    harness.run()
    assert harness.queue.deletions == [["a"]]
    assert harness.queue.remaining == {"b", "c"}
    assert 20 < left[0] < 25


def test_long_poll_is_abandoned_on_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "_RECENT_POLL", 0.0)
    never, polling_started = threading.Event(), threading.Event()
    harness = Harness(fail())

    def receive(*_: object, **__: object) -> list[Message]:
        polling_started.set()
        never.wait()
        return []

    monkeypatch.setattr(harness.queue, "receive", receive)

    def request_shutdown() -> None:
        polling_started.wait()
        harness.shutdown.request()

    threading.Thread(target=request_shutdown).start()
    harness.run()
    assert not never.is_set()
    never.set()


def test_messages_of_a_recent_poll_are_processed_on_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "_RECENT_POLL", 30.0)
    harness = Harness(fail(), batch("ab"), batch("c"))
    receive = harness.queue.receive

    def receive_during_shutdown(count: int, visibility_timeout: int, *, wait: bool) -> Sequence[Message]:
        harness.shutdown.request()
        return receive(count, visibility_timeout, wait=wait)

    monkeypatch.setattr(harness.queue, "receive", receive_during_shutdown)
    harness.run()
    assert harness.queue.remaining == {"c"}


def test_queue_errors_are_logged_once_and_retried() -> None:
    down, slow = ServiceFailed("ReceiveMessage: EndpointConnectionError"), Throttled("ReceiveMessage: Throttling")
    harness = Harness(fail(), *[down] * 9, slow, batch("a"), down, batch("b")).run()
    assert [(line["level"], line.get("detail"), line.get("tries")) for line in harness.lines] == [
        ("WARNING", str(down), None),
        ("WARNING", str(slow), None),
        ("INFO", None, 10),
        ("WARNING", str(down), None),
        ("INFO", None, 1),
    ]
    # From the fifth failure on, the circuit breaker's waits.
    expected = [1, 2, 4, 8, 15, 30, 60, 120, 120, 120, 1]
    assert [
        longest / 2 <= pause <= longest for pause, longest in zip(harness.shutdown.pauses, expected, strict=True)
    ] == [True] * 11
    assert len(set(harness.shutdown.pauses)) == 11
    assert harness.metrics["receive_failed", "service_failed"] == 10
    assert harness.metrics["receive_failed", "throttled"] == 1
    assert harness.queue.remaining == set()


def services_down(harness: Harness, *states: bool) -> Callable[[Any, Any], Any]:
    """A handler that reports its tickets' outcomes: for each batch, whether a service fails all of its tickets."""
    remaining = list(states)

    def handler(event: Any, _: Any) -> Any:
        is_down = remaining.pop(0)
        for _record in event["Records"]:
            harness.breaker.ticket("failed" if is_down else "done", "service_failed" if is_down else None)
        failures = [{"itemIdentifier": record["messageId"]} for record in event["Records"]] if is_down else []
        return {"batchItemFailures": failures}

    return handler


def test_nothing_is_received_while_the_breaker_is_open() -> None:
    # Ten of 21 messages show no backlog, so no batch is received ahead.
    harness = Harness(fail(), batch("abcdefghij"), batch("klm"), batch("nop"), batch("qrstuvwxyz"), batch_size=21)
    harness.poller._handler = services_down(harness, True, True, False, False)
    harness.run()
    assert harness.breaker_states == ["open", "half_open", "open", "half_open", "closed"]
    # The batch that was received when the breaker opened was handled as always; one wait before each probe.
    assert [count for count, _ in harness.queue.receives] == [21, 3, 3, 21, 21]
    assert [longest / 2 <= p <= longest for p, longest in zip(harness.shutdown.pauses, [15, 30], strict=True)] == (
        [True] * 2
    )
    assert harness.queue.remaining == set("abcdefghijklm")


def test_shutdown_ends_the_wait_of_an_open_breaker() -> None:
    harness = Harness(fail(), batch("abcdefghij"), batch("k"), batch_size=21)
    harness.poller._handler = services_down(harness, True)
    harness.shutdown.pause = lambda seconds: harness.shutdown.request()  # type: ignore[method-assign]
    harness.run()
    assert len(harness.queue.receives) == 1
    assert "k" in harness.queue.remaining


def test_age_of_each_message_is_measured() -> None:
    sent = str(int((time.time() - 300) * 1000))
    old = {**message("a"), "Attributes": {"SentTimestamp": sent}}
    harness = Harness(fail(), [old, old, message("b")])
    harness.queue.remaining = {"a", "b"}
    harness.queue.delete = lambda messages: []  # type: ignore[method-assign]
    harness.run()
    assert harness.metrics["message_age", "ticket-processing", 300] == 2
    assert sum(count for key, count in harness.metrics.items() if key[0] == "message_age") == 2


@pytest.mark.parametrize(("queue_limit", "warnings"), [(30, 0), (None, 0), (5, 1), (100, 1)])
def test_different_max_receive_counts_are_logged_once(queue_limit: int | None, warnings: int) -> None:
    harness = Harness(lambda *_: None, [message("a")], [message("b")])
    harness.queue.max_receive_count = queue_limit
    found = [line for line in harness.run().lines if "MAX_RECEIVE_COUNT" in line["message"]]
    assert len(found) == warnings
    assert all((line["max_receive_count"], line["queue_max_receive_count"]) == (30, queue_limit) for line in found)


# -- several batches at once


class Gate:
    """A handler that keeps each batch until it is let through; `inside` are the batches that it keeps."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self._changed = threading.Condition()
        self._let: set[str] = set()

    def __call__(self, event: Any, _: Any) -> Any:
        name = event["Records"][0]["messageId"]
        with self._changed:
            self.inside.append(name)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: name in self._let, 60)
            self.inside.remove(name)
        return {"batchItemFailures": []}

    def wait_for(self, *names: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: sorted(self.inside) == sorted(names), 60), self.inside

    def let(self, *names: str) -> None:
        with self._changed:
            self._let.update(names)
            self._changed.notify_all()


@contextmanager
def in_background(harness: Harness) -> Iterator[None]:
    thread = threading.Thread(target=harness.run, daemon=True)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()


def again(name: str) -> dict[str, Any]:
    return {**message(name), "Attributes": {"ApproximateReceiveCount": "2"}}


def test_three_batches_are_processed_at_once_while_there_is_a_backlog() -> None:
    gate = Gate()
    harness = Harness(gate, batch("ab"), batch("cd"), batch("ef"), batch("gh"), batch_size=2)
    with in_background(harness):
        gate.wait_for("a", "c", "e")
        time.sleep(0.1)
        assert len(harness.queue.receives) == 3
        gate.let("c")
        gate.wait_for("a", "e", "g")
        assert harness.queue.deletions == [["c", "d"]]
        gate.let("a", "e", "g")
    assert harness.queue.remaining == set()
    assert {report.number for report in harness.batches if report} == {1, 2, 3, 4}
    # Only an idle process waits for messages: those that arrive while batches are processed are for the others.
    assert harness.queue.waits[0]
    assert not any(harness.queue.waits[1:4])


def test_without_a_backlog_the_next_batch_is_received_after_this_one() -> None:
    gate = Gate()
    harness = Harness(gate, batch("abcd"), batch("ef"), batch_size=10)
    with in_background(harness):
        gate.wait_for("a")
        time.sleep(0.1)
        assert len(harness.queue.receives) == 1
        gate.let("a", "e")
    assert harness.queue.waits == [True, True, True]


def test_batch_with_a_message_that_was_received_before_has_the_process_to_itself() -> None:
    gate = Gate()
    harness = Harness(gate, batch("ab"), [again("c"), message("d")], batch("ef"), batch_size=2)
    harness.queue.remaining = set("abcdef")
    with in_background(harness):
        gate.wait_for("a")
        while len(harness.batches) < 2:  # it is received, and its visibility timeout is renewed
            time.sleep(0.01)
        time.sleep(0.1)
        assert gate.inside == ["a"]
        gate.let("a")
        gate.wait_for("c")
        time.sleep(0.1)
        assert len(harness.queue.receives) == 2
        gate.let("c", "e")
    assert harness.queue.remaining == set()


def test_all_current_batches_are_finished_at_shutdown() -> None:
    gate = Gate()
    harness = Harness(gate, batch("ab"), batch("cd"), batch("ef"), batch("gh"), batch_size=2)
    with in_background(harness):
        gate.wait_for("a", "c", "e")
        harness.shutdown.request()
        gate.let("a", "c", "e")
    assert harness.queue.remaining == {"g", "h"}


def test_handler_exception_of_one_batch_leaves_the_others_alone() -> None:
    gate = Gate()

    def handler(event: Any, context: Any) -> Any:
        if event["Records"][0]["messageId"] == "c":
            raise ZeroDivisionError
        return gate(event, context)

    harness = Harness(handler, batch("ab"), batch("cd"), batch("ef"), batch_size=2)
    with in_background(harness):
        gate.wait_for("a", "e")
        gate.let("a", "e")
    assert harness.queue.remaining == {"c", "d"}
    assert harness.queue.visibility_changes == [(["c", "d"], 360)]


# -- several queues


def test_bulk_is_processed_only_while_no_live_message_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def handler(event: Any, _: Any) -> None:
        order.append(event["Records"][0]["messageId"])

    harness = Harness(handler, batch("a"), batch("b"), bulk=[batch("x"), batch("y"), batch("z")])
    receive = harness.bulk.receive

    def receive_meanwhile(count: int, visibility_timeout: int, *, wait: bool) -> Sequence[Message]:
        if len(harness.bulk.batches) == 2:  # a live message arrives
            harness.queue.batches.append(batch("c"))
            harness.queue.remaining.add("c")
        return receive(count, visibility_timeout, wait=wait)

    monkeypatch.setattr(harness.bulk, "receive", receive_meanwhile)
    harness.run()
    assert order == ["a", "b", "x", "y", "c", "z"]
    # Each batch is settled in its own queue, and reported with it.
    assert (harness.queue.deletions, harness.bulk.deletions) == ([["a"], ["b"], ["c"]], [["x"], ["y"], ["z"]])
    assert [report.queue_url for report in harness.batches if report] == [
        *["queue"] * 2,
        *["bulk"] * 2,
        "queue",
        "bulk",
    ]


def test_only_the_live_queue_is_waited_for_and_only_when_all_are_empty() -> None:
    harness = Harness(fail(), bulk=[batch("x")]).run()
    assert harness.bulk.waits == [False, False]
    assert harness.queue.waits == [False, False, True]
    assert harness.bulk.remaining == set()


def test_bulk_queue_that_cannot_be_read_does_not_hold_up_live_messages() -> None:
    down = ServiceFailed("ReceiveMessage: AccessDenied")
    # If both give nothing, the live queue is asked again, with a long poll.
    harness = Harness(fail(), [], batch("a"), [], batch("b"), bulk=[down, down, batch("x")]).run()
    assert harness.queue.waits == [False, True, False, True, False, False, True]
    assert harness.queue.remaining == harness.bulk.remaining == set()
    assert harness.shutdown.pauses == []
    assert [(line["level"], line["queue_url"]) for line in harness.lines] == [("WARNING", "bulk"), ("INFO", "bulk")]
    assert harness.metrics["receive_failed", "service_failed"] == 2
    assert harness.breaker_states == []


def test_errors_of_the_bulk_queue_are_reported_without_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness(fail(), bulk=[ServiceFailed("ReceiveMessage: AccessDenied")])
    reported: list[int] = []
    monkeypatch.setattr(
        harness.metrics, "flush", lambda: reported.append(harness.metrics["receive_failed", "service_failed"])
    )
    harness.run()
    assert reported == [1]
