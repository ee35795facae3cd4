"""The canaries through real clients, queues and models: nothing of a ticket's text is logged there either."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handler.local import EmbeddedStack
from tests.support.canaries import BROKEN, REFUSED, SKIPPED, WORD, assert_no_canary, valid
from tests.support.cases import BUCKET
from tests.support.fakes import event, notification, record
from tests.support.stack_harness import StackHarness, deployed


@pytest.fixture(scope="module")
def harness(stack: EmbeddedStack, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackHarness]:
    with deployed(stack, bundle, tmp_path_factory.mktemp("cache")) as found:
        yield found


def test_no_canary_is_logged(harness: StackHarness, capfd: pytest.CaptureFixture[str]) -> None:
    harness.rejected_messages()
    objects = {**BROKEN, "good.json": json.dumps(valid("CAN-1")).encode()}
    for key, body in objects.items():
        harness.put_object(f"leaks/{key}", body)
    sent: list[dict[str, Any]] = [
        record(notification(f"leaks/{key}", bucket=harness.raw_bucket), key) for key in objects
    ]
    sent += [
        record(body.replace(BUCKET, harness.raw_bucket), name)
        for name, body in {**REFUSED, **SKIPPED, "inline-good": json.dumps(valid("CAN-2"))}.items()
    ]
    answer = harness.invoke(event(*sent))
    assert answer.response == {"batchItemFailures": []}
    dlq_messages = harness.rejected_messages()
    bodies = {message.rejection["message_id"]: message.body for message in dlq_messages}
    assert bodies.keys() == BROKEN.keys() | REFUSED.keys()
    assert all(WORD in bodies[name] for name in REFUSED), "the message keeps its body"
    assert_no_canary(answer, dlq_messages)
    captured = capfd.readouterr()
    assert WORD not in (captured.out + captured.err).lower()
    for name in ("good.json", "inline-good"):
        assert [line["outcome"] for line in answer.tickets(name)] == ["done"]
    item = harness.item("CAN-1", 1_795_165_200)
    assert item is not None
    assert WORD in item["customer_id"]
