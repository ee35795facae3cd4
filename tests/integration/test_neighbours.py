"""A read from S3 that never answers: the other tickets of its batch are stored in time, and it succeeds later."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from handler.app import build
from handler.settings import Settings
from tests.support.fakes import FakeModels, context, event, notification, record, ticket
from tests.support.fault_injection import Call, Stall
from tests.support.proxy import Proxy
from tests.support.stack_harness import StackHarness

if TYPE_CHECKING:
    from handler.local import EmbeddedStack


def test_read_that_never_answers_delays_no_other_ticket(stack: EmbeddedStack, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled: list[str] = []

    def stall(call: Call) -> Stall | None:
        if call.name == "GET" and call.subject.endswith("/hangs.json") and not stalled:
            stalled.append(call.subject)
            return Stall(6, delivered=False)
        return None

    names = ["hangs", *(f"good-{n}" for n in range(9))]
    with Proxy(stack.endpoint_url, stall) as proxy:
        for name, value in stack.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("MODEL_BUNDLE", "file:///unused")
        models = FakeModels()
        harness = StackHarness(stack, build(Settings.read(), models=models))
        for name in names:
            harness.put_object(f"{name}.json", json.dumps(ticket(f"neighbours-{name}")).encode())
        records = [record(notification(f"{name}.json", bucket=harness.raw_bucket), name) for name in names]
        end = time.monotonic() + 5
        answer = harness.handler(event(*records), context(lambda: end - time.monotonic()))
        assert time.monotonic() < end
        assert answer == {"batchItemFailures": [{"itemIdentifier": "hangs"}]}
        assert [len(batch) for batch in models.seen] == [9]
        created_at = ticket()["created_at"]
        assert all(harness.item(f"neighbours-{name}", created_at) for name in names[1:])
        assert harness.item("neighbours-hangs", created_at) is None
        records[0]["attributes"]["ApproximateReceiveCount"] = "2"
        assert harness.handler(event(records[0]), context()) == {"batchItemFailures": []}
        assert harness.item("neighbours-hangs", created_at)
    assert stalled
