"""A message that kills its process: it ends in the DLQ, and its neighbours are stored. Good ones cost nothing.

The process dies here by an exception that nothing catches, at which the invocation has no answer, as on Lambda.
"""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import pytest

from enrichment import EnrichmentData, EnrichmentError, RawTicket
from handler import crashes
from handler.errors import ServiceFailed, Throttled
from tests.support.fakes import FakeHarness, FakeModels, context, event, record, ticket


class Died(BaseException):
    """The process is gone."""


class DeadlyModels(FakeModels):
    """Models that kill the process for some tickets, and at random with a `probability`."""

    def __init__(self, *deadly: str, probability: float = 0.0) -> None:
        super().__init__()
        self.deadly = set(deadly)
        self.probability = probability
        self._rng = random.Random(5)

    def enrich(self, tickets: Sequence[RawTicket], **options: Any) -> list[EnrichmentData | EnrichmentError]:
        """As Models.enrich."""
        results = super().enrich(tickets, **options)
        if self.deadly & {each.ticket_id for each in tickets} or self._rng.random() < self.probability:
            raise Died
        return results


class Queue:
    """A queue and its consumer, with Lambda's semantics: what dies comes back, what is deleted does not."""

    def __init__(self, harness: FakeHarness, models: FakeModels, names: Sequence[str]) -> None:
        self.harness, self.models = harness, models
        harness.handler = harness.build(models)
        self.waiting = deque(names)
        self.receives: Counter[str] = Counter()
        self.kills = 0

    def step(self) -> None:
        """Processes one batch."""
        names = [self.waiting.popleft() for _ in range(min(10, len(self.waiting)))]
        self.receives.update(names)
        records = [record(ticket(name), name, receive_count=self.receives[name]) for name in names]
        try:
            answer = self.harness.handler(event(*records), context())
        except Died:
            self.kills += 1
            back = [name for name in names if name not in self.harness.dead_letters.deleted]
        else:
            back = [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]
        assert all(self.receives[name] < 30 for name in back), "SQS would move it to the DLQ"
        self.waiting.extend(back)

    def run(self) -> None:
        """Processes batches until the queue is empty."""
        while self.waiting:
            self.step()

    @property
    def stored(self) -> set[str]:
        """Ids of the stored tickets."""
        return {name for name, _ in self.harness.sink.items}

    @property
    def rejected(self) -> dict[str, str]:
        """Message ids in the DLQ, with their reasons."""
        return {found["messageId"]: code for found, _, code in self.harness.dead_letters.rejected}


@pytest.fixture
def harness() -> FakeHarness:
    return FakeHarness()


def invoke(harness: FakeHarness, *records: dict[str, Any]) -> Any:
    return harness.handler(event(*records), context())


def dies(harness: FakeHarness, models: FakeModels, *records: dict[str, Any]) -> None:
    handler, harness.handler = harness.handler, harness.build(models)
    with pytest.raises(Died):
        invoke(harness, *records)
    harness.handler = handler


def test_first_receives_cost_nothing(harness: FakeHarness) -> None:
    invoke(harness, *(record(ticket(f"T-{n}"), f"m-{n}") for n in range(10)))
    assert (harness.failure_counts.calls, harness.dead_letters.deleted) == (0, [])


def test_batch_with_a_message_received_before_is_noted_while_it_is_processed(harness: FakeHarness) -> None:
    noted: list[set[str]] = []

    class Models(FakeModels):
        def enrich(self, *arguments: Any, **options: Any) -> list[EnrichmentData | EnrichmentError]:
            noted.append(set(harness.failure_counts.notes))
            return super().enrich(*arguments, **options)

    harness.handler = harness.build(Models())
    answer = harness.invoke(event(record(ticket("new"), "new"), record(ticket("old"), "old", receive_count=2)))
    assert noted == [{"new", "old"}]
    assert harness.failure_counts.notes == {}
    assert harness.failure_counts.calls == 4
    (line,) = [line for line in answer.lines() if line["message"] == "messages that were received before"]
    assert (line["message_ids"], line["suspects"]) == (["new", "old"], [])
    assert ticket()["body"] not in answer.log


def test_after_an_outage_batches_are_full(harness: FakeHarness) -> None:
    records = [record(ticket(f"T-{n}"), f"m-{n}", receive_count=20) for n in range(10)]
    for each in records:
        harness.sink.faults_known.set(ServiceFailed("GetItem: InternalServerError"), "T-" + each["messageId"][2:])
    assert len(invoke(harness, *records)["batchItemFailures"]) == 10
    harness.sink.faults_known.clear()
    for each in records:
        each["attributes"]["ApproximateReceiveCount"] = "21"
    assert invoke(harness, *records) == {"batchItemFailures": []}
    assert harness.models.seen == [[f"T-{n}" for n in range(10)]]
    assert harness.dead_letters.deleted == []


def test_suspects_run_alone_after_the_others_are_stored_and_deleted(harness: FakeHarness) -> None:
    suspects = [record(ticket(name), name, receive_count=2) for name in ("a", "b")]
    dies(harness, DeadlyModels("a"), *suspects)
    state: list[tuple[list[str], list[str], list[str]]] = []

    class Models(FakeModels):
        def enrich(self, tickets: Sequence[RawTicket], **options: Any) -> list[EnrichmentData | EnrichmentError]:
            stored = [name for name, _ in harness.sink.items]
            state.append(([each.ticket_id for each in tickets], stored, list(harness.dead_letters.deleted)))
            return super().enrich(tickets, **options)

    settled: list[str] = []
    handler = harness.build(Models(), on_settled=settled.extend)
    for each in suspects:
        each["attributes"]["ApproximateReceiveCount"] = "3"
    harness.sink.faults.set(Throttled("PutItem: x"), "fails")
    good = [record(ticket(name), name) for name in ("c", "fails", "d")]
    answer = handler(event(suspects[0], *good, suspects[1]), context())
    assert answer == {"batchItemFailures": [{"itemIdentifier": "fails"}]}
    assert state == [
        (["c", "fails", "d"], [], []),
        (["a"], ["c", "d"], ["c", "d"]),
        (["b"], ["c", "d", "a"], ["c", "d", "a"]),
    ]
    assert settled == ["handle-c", "handle-d", "handle-fails", "handle-a"]
    assert harness.failure_counts.notes == {}


def test_message_that_kills_the_process_alone_twice_is_rejected(harness: FakeHarness) -> None:
    models = DeadlyModels("bad")
    for receive in range(1, 5):
        dies(harness, models, record(ticket("bad"), "m-1", receive_count=receive))
    harness.handler = harness.build(models)
    answer = harness.invoke(event(record(ticket("bad"), "m-1", receive_count=5)))
    assert answer.response == {"batchItemFailures": []}
    ((_, (reason,), code),) = harness.dead_letters.rejected
    assert (code, reason["error"], reason["stage"]) == ("crashed", "crashed", "process")
    assert len(models.seen) == 4
    assert harness.metrics.errors == {("rejected", "crashed"): 1}


def test_message_that_survives_alone_is_no_suspect_any_more(harness: FakeHarness) -> None:
    for receive in (2, 3):  # together, then alone
        dies(harness, DeadlyModels("good"), record(ticket("good"), "m-1", receive_count=receive))
    harness.sink.faults.set(Throttled("PutItem: x"), "good")
    assert invoke(harness, record(ticket("good"), "m-1", receive_count=4))["batchItemFailures"]
    harness.sink.faults.clear()
    dies(harness, DeadlyModels("good"), record(ticket("good"), "m-1", receive_count=5))
    assert invoke(harness, record(ticket("good"), "m-1", receive_count=6)) == {"batchItemFailures": []}
    assert harness.dead_letters.rejected == []


def test_crash_alone_before_the_last_receive_is_reason_enough(harness: FakeHarness) -> None:
    for receive in (28, 29):
        dies(harness, DeadlyModels("bad"), record(ticket("bad"), "m-1", receive_count=receive))
    invoke(harness, record(ticket("bad"), "m-1", receive_count=30))
    assert [code for _, _, code in harness.dead_letters.rejected] == ["crashed"]


def test_crashed_message_stays_a_suspect_if_the_dlq_refuses_it(harness: FakeHarness) -> None:
    for receive in range(2, 5):
        dies(harness, DeadlyModels("bad"), record(ticket("bad"), "m-1", receive_count=receive))
    harness.dead_letters.faults.set(Throttled("SendMessage: x"), "m-1")
    assert invoke(harness, record(ticket("bad"), "m-1", receive_count=5))["batchItemFailures"]
    harness.dead_letters.faults.clear()
    invoke(harness, record(ticket("bad"), "m-1", receive_count=6))
    assert [code for _, _, code in harness.dead_letters.rejected] == ["crashed"]
    assert harness.models.seen == []


def test_suspect_that_would_get_too_little_time_waits_and_stays_one(harness: FakeHarness) -> None:
    suspects = [record(ticket(name), name, receive_count=2) for name in ("a", "b")]
    dies(harness, DeadlyModels("a"), *suspects)
    for each in suspects:
        each["attributes"]["ApproximateReceiveCount"] = "3"
    left = [60.0]

    class SlowModels(FakeModels):
        def enrich(self, *arguments: Any, **options: Any) -> list[EnrichmentData | EnrichmentError]:
            left[0] -= 31
            return super().enrich(*arguments, **options)

    models = SlowModels()
    answer = harness.build(models)(event(*suspects), context(lambda: left[0]))
    assert answer == {"batchItemFailures": [{"itemIdentifier": "b"}]}
    assert models.seen == [["a"]]
    assert list(harness.failure_counts.notes) == ["b"]
    assert harness.metrics.errors == {("failed", "out_of_time"): 1}
    assert harness.dead_letters.deferred.keys() == {"b"}


@pytest.mark.parametrize("error", [Throttled("UpdateItem: x"), ServiceFailed("UpdateItem: Access"), ValueError("x")])
def test_message_that_cannot_be_noted_is_processed(harness: FakeHarness, error: Exception) -> None:
    harness.failure_counts.faults_note.set(error, "m-1")
    answer = harness.invoke(event(record(ticket("T"), receive_count=2)))
    assert answer.response == {"batchItemFailures": []}
    assert [name for name, _ in harness.sink.items] == ["T"]
    assert harness.metrics.failed_notes == 1
    assert any(
        line["message"] == "messages could not be noted; a crash would not be noticed" for line in answer.lines()
    )


@pytest.mark.parametrize("error", [Throttled("UpdateItem: x"), ValueError("x")])
def test_note_that_cannot_be_cleared_is_harmless(
    harness: FakeHarness, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: str) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(harness.failure_counts, "end", fail)
        harness.sink.faults.set(Throttled("PutItem: x"), "T")
        answer = harness.invoke(event(record(ticket("T"), receive_count=2)))
    harness.sink.faults.clear()
    assert harness.metrics.failed_notes == 1
    assert any(line["message"] == "the note of a message could not be cleared" for line in answer.lines())
    assert invoke(harness, record(ticket("T"), receive_count=3)) == {"batchItemFailures": []}
    assert [name for name, _ in harness.sink.items] == ["T"]


def test_note_without_an_answer_does_not_block_the_batch(harness: FakeHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crashes, "_MAX_WAIT", 0.05)
    gate = harness.failure_counts.faults_note.hang("m-1")
    threading.Timer(0.5, gate.set).start()
    assert invoke(harness, record(ticket("T"), receive_count=2)) == {"batchItemFailures": []}
    assert [name for name, _ in harness.sink.items] == ["T"]


@pytest.mark.parametrize("error", [ServiceFailed("DeleteMessageBatch: x"), ValueError("x")])
def test_suspect_runs_even_if_its_neighbours_cannot_be_deleted_early(harness: FakeHarness, error: Exception) -> None:
    dies(harness, DeadlyModels("a"), record(ticket("a"), "a", receive_count=2))
    harness.dead_letters.faults_delete.set(error, "b")
    settled: list[str] = []
    handler = harness.build(harness.models, on_settled=settled.extend)
    answer = handler(event(record(ticket("a"), "a", receive_count=3), record(ticket("b"), "b")), context())
    assert answer == {"batchItemFailures": []}
    assert (harness.models.seen, settled) == ([["b"], ["a"]], [])


def test_records_without_an_id_and_duplicates_are_processed(harness: FakeHarness) -> None:
    dies(harness, DeadlyModels("a"), record(ticket("a"), "a", receive_count=2))
    nameless = record(ticket("n"), receive_count=2)
    del nameless["messageId"]
    twice = [record(ticket("a"), "a", receive_count=n) for n in (4, 3)]
    assert invoke(harness, *twice, nameless) == {"batchItemFailures": []}
    assert harness.models.seen == [["n"], ["a"]]
    assert harness.failure_counts.notes == {}


def test_200_good_tickets_and_a_deadly_one(harness: FakeHarness) -> None:
    names = [f"good-{n}" for n in range(200)]
    queue = Queue(harness, DeadlyModels("deadly"), [*names[:57], "deadly", *names[57:]])
    queue.run()
    assert queue.stored == set(names)
    assert queue.rejected == {"deadly": "crashed"}
    assert queue.kills == 4
    assert max(queue.receives[name] for name in names) <= 3


@pytest.mark.parametrize("deadly", [[], ["deadly-1", "deadly-2", "deadly-3"]])
def test_random_kills_reject_no_good_ticket(harness: FakeHarness, deadly: list[str]) -> None:
    names = [f"good-{n}" for n in range(1000)]
    mixed = [*names, *deadly]
    random.Random(3).shuffle(mixed)
    queue = Queue(harness, DeadlyModels(*deadly, probability=0.02), mixed)
    queue.run()
    assert queue.kills > 4 * len(deadly)
    assert queue.stored == set(names)
    assert queue.rejected == dict.fromkeys(deadly, "crashed")


class DeadlyShadow(FakeModels):
    """Models whose shadow kills the process for some tickets."""

    def __init__(self, *deadly: str) -> None:
        super().__init__()
        self.deadly = set(deadly)

    def enrich(self, tickets: Sequence[RawTicket], **options: Any) -> list[EnrichmentData | EnrichmentError]:
        """As Models.enrich."""
        if options["with_shadow"] and self.deadly & {each.ticket_id for each in tickets}:
            raise Died
        return super().enrich(tickets, **options)


def test_shadow_that_kills_the_process_costs_no_ticket(harness: FakeHarness) -> None:
    names = [f"T-{n}" for n in range(10)]
    models = DeadlyShadow("T-3", "T-7")
    queue = Queue(harness, models, names)
    queue.run()
    assert (queue.stored, queue.rejected) == (set(names), {})
    assert queue.kills <= 3
    # Suspects ran without it, the next batch has it again.
    invoke(harness, record(ticket("T-later"), "later"))
    assert models.with_shadow[-1] is True
    assert False in models.with_shadow
