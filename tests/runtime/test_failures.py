"""Timeout, out of memory, crash, concurrent containers: the next invocation succeeds, and no result is duplicated."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from handler.local import EmbeddedStack
from tests.runtime.container import LambdaContainer
from tests.runtime.deployed import Lambda, answer
from tests.runtime.invocation import Invocation
from tests.runtime.proxy import LambdaPool
from tests.support.fakes import event, notification, record, ticket
from tests.support.proxy import Proxy
from tests.support.stack_harness import StackHarness

CREATED_AT = 1_795_165_200


@pytest.fixture
def gate(stack: EmbeddedStack) -> Iterator[Gate]:
    with Gate.before(stack.endpoint_url) as made:
        yield made


class Gate:
    """A proxy that blocks the calls of one operation between `close` and `open`."""

    def __init__(self, proxy: Proxy) -> None:
        self.url = proxy.url
        self.reached = threading.Event()
        self._open = threading.Event()
        self._held: str | None = None
        proxy.before = self._wait

    @classmethod
    @contextmanager
    def before(cls, endpoint_url: str) -> Iterator[Gate]:
        """A gate in front of the stack; it is opened at the end."""
        with Proxy(endpoint_url) as proxy:
            made = cls(proxy)
            try:
                yield made
            finally:
                made.open()

    def close(self, operation: str) -> None:
        """Block calls of this operation from now on."""
        self.reached.clear()
        self._open.clear()
        self._held = operation

    def open(self) -> None:
        """Let all calls pass."""
        self._held = None
        self._open.set()

    def _wait(self, operation: str) -> None:
        if operation == self._held:
            self.reached.set()
            self._open.wait(60)


def put(harness: StackHarness, name: str) -> dict[str, object]:
    """Put a ticket into the raw bucket and return the event for it."""
    harness.put_object(f"{name}.json", json.dumps(ticket(name)).encode())
    return event(record(notification(f"{name}.json", bucket=harness.raw_bucket), f"m-{name}"))


def in_the_background(call: Callable[[], Invocation]) -> Future[Invocation]:
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(call)
    finally:
        pool.shutdown(wait=False)


def test_unresponsive_services_cause_no_function_timeout(deployed: Lambda, gate: Gate) -> None:
    with deployed.container(timeout_seconds=25, endpoint_url=gate.url) as container:
        harness = deployed.harness(container)
        message = put(harness, "STALLED-1")
        answer(deployed.recorded(container.invoke({})))  # init is over
        gate.close("PUT")
        first = answer(container.invoke(message))
        assert first.response == {"batchItemFailures": [{"itemIdentifier": "m-STALLED-1"}]}
        assert [line["error_type"] for line in first.tickets("m-STALLED-1")] == ["out_of_time"]
        gate.open()
        assert answer(container.invoke(message)).response == {"batchItemFailures": []}
        assert harness.item("STALLED-1", CREATED_AT) is not None


def test_invocation_after_a_timeout_succeeds(deployed: Lambda, gate: Gate) -> None:
    with deployed.container(timeout_seconds=25, endpoint_url=gate.url) as container:
        harness = deployed.harness(container)
        message = put(harness, "TIMEOUT-1")
        answer(deployed.recorded(container.invoke({})))
        gate.close("PUT")
        running = in_the_background(lambda: container.invoke(message))
        assert gate.reached.wait(60)
        container.kill("STOP")  # a process that hangs completely, so that its own deadline does not work either
        assert not running.done()  # it was stopped before its deadline ended the invocation
        first = running.result(60)
        assert (first.failed, first.error_type) == (True, "Sandbox.Timedout"), first.log
        assert harness.item("TIMEOUT-1", CREATED_AT) is None
        gate.open()
        # Lambda ended the process. RIE counts the new one's init against the function's timeout: on a busy machine
        # too little of the 25 seconds may remain for a ticket, and the function correctly defers it.
        new = deployed.recorded(container.invoke({}))
        assert answer(new).response == {"batchItemFailures": []}
        assert new.init_ms is not None
        again = deployed.recorded(container.invoke(message))  # as SQS redelivers it
        assert answer(again).response == {"batchItemFailures": []}
        assert again.init_ms is None
        assert harness.item("TIMEOUT-1", CREATED_AT) is not None


def test_invocation_after_a_crash_succeeds(deployed: Lambda, gate: Gate, stack: EmbeddedStack) -> None:
    with deployed.container(endpoint_url=gate.url) as container:
        harness = deployed.harness(container)
        message = put(harness, "CRASH-1")
        gate.close("PutItem")  # the object is written, the item that commits it is not
        running = in_the_background(lambda: container.invoke(message))
        assert gate.reached.wait(60)
        container.kill()
        assert running.result(60).crashed
        assert harness.item("CRASH-1", CREATED_AT) is None
        gate.open()
        again = deployed.recorded(container.invoke(message))
        assert answer(again).response == {"batchItemFailures": []}
        assert_one_result(harness, stack, "CRASH-1")


def test_invocation_after_out_of_memory_succeeds(deployed: Lambda) -> None:
    # The largest tickets and the smallest memory that the template allows.
    with deployed.container(memory_mb=512, variables={"MAX_TICKET_BYTES": str(100 * 1024 * 1024)}) as container:
        harness = deployed.harness(container)
        message = put(harness, "MEMORY-1")
        body = '{"ticket_id": "MEMORY-%d", "subject": "' + "x" * (95 * 1024 * 1024) + '"}'
        for number in (2, 3):
            harness.put_object(f"MEMORY-{number}.json", (body % number).encode())
        names = ["MEMORY-2.json", "MEMORY-3.json"]
        huge = event(*(record(notification(name, bucket=harness.raw_bucket), f"m-{name}") for name in names))
        answer(deployed.recorded(container.invoke(message)))
        assert container.memory_kills() == 0
        deployed.metrics.peaks["one ticket, of 512 MB"] = container.memory_peak()
        crashed = container.invoke(huge)
        assert crashed.crashed, crashed.log
        assert container.memory_kills() > 0
        again = deployed.recorded(container.invoke(put(harness, "MEMORY-4")))
        assert answer(again).response == {"batchItemFailures": []}
        assert again.init_ms is not None
        assert harness.item("MEMORY-4", CREATED_AT) is not None


def test_same_ticket_in_two_containers_has_one_result(deployed: Lambda, gate: Gate, stack: EmbeddedStack) -> None:
    with (
        deployed.container(endpoint_url=gate.url) as first,
        deployed.container(endpoint_url=stack.endpoint_url) as second,
    ):
        harness = deployed.harness(first)
        message = put(harness, "TWICE-1")
        for container in (first, second):
            answer(deployed.recorded(container.invoke({})))
        # The first container has written the object when the second one processes the same message.
        gate.close("PutItem")
        running = in_the_background(lambda: first.invoke(message))
        assert gate.reached.wait(60)
        assert answer(second.invoke(message)).response == {"batchItemFailures": []}
        won = harness.item("TWICE-1", CREATED_AT)
        gate.open()
        assert answer(running.result(60)).response == {"batchItemFailures": []}
        item = assert_one_result(harness, stack, "TWICE-1")
        assert won is not None
        changing = {"processed_at", "s3_version_id"}
        assert {k: v for k, v in item.items() if k not in changing} == {
            k: v for k, v in won.items() if k not in changing
        }
        assert [line["note"] for line in answer(first.invoke(message)).tickets("m-TWICE-1")] == ["already enriched"]


def test_pool_replaces_a_crashed_container(deployed: Lambda) -> None:
    def make() -> LambdaContainer:
        return LambdaContainer(deployed.function, rie=deployed.rie, environment=deployed.environment)

    with LambdaPool(make, size=1) as pool:
        assert pool.invoke({}).response == {"batchItemFailures": []}
        (crashed,) = pool.containers
        crashed.kill()
        assert pool.invoke({}).crashed
        assert not crashed.is_running
        assert pool.invoke({}).response == {"batchItemFailures": []}
        (second,) = pool.containers
        assert (second is not crashed, pool.started) == (True, 2)
        second.stop()  # as if its host was gone
        assert pool.invoke({}).response == {"batchItemFailures": []}
        assert [i.failed for i in pool.invocations] == [False, True, False, False]


def assert_one_result(harness: StackHarness, stack: EmbeddedStack, name: str) -> dict[str, object]:
    """Assert that there is one item, and that it refers to the object written with it."""
    found = stack.client("dynamodb").query(
        TableName=stack.outputs["TableName"],
        KeyConditionExpression="ticket_id = :name",
        ExpressionAttributeValues={":name": {"S": name}},
    )
    assert found["Count"] == 1
    item = harness.item(name, CREATED_AT)
    assert item is not None
    stored = json.loads(harness.object(item["s3_key"], item["s3_version_id"]))
    assert stored["enrichment"]["processed_at"] == item["processed_at"]
    assert stored["enrichment"]["summary"] == item["summary"]
    return dict(item)
