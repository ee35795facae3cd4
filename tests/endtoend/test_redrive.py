"""Features that MiniStack lacks: the alarm on the DLQ, and SQS's redrive (StartMessageMoveTask)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.endtoend.deployment import run
from tests.endtoend.pipeline import Pipeline, wait_until
from tests.endtoend.test_tickets import made

pytestmark = pytest.mark.only("localstack")


@pytest.fixture(scope="module")
def broken(pipeline: Pipeline) -> dict[str, bytes]:
    """Valid tickets by key; invalid versions of them were uploaded and are in the DLQ."""
    good = {f"redrive/{ticket['ticket_id']}.json": json.dumps(ticket).encode() for ticket in made(12, seed=7)}
    pipeline.put({key: body[:-1] for key, body in good.items()})  # the last brace is missing
    wait_until(lambda: pipeline.depth("DlqUrl") == len(good), "all of them are in the DLQ")
    wait_until(lambda: pipeline.depth() == 0, "the queue is empty")
    return good


def test_dlq_message_raises_the_alarm(broken: dict[str, bytes], pipeline: Pipeline) -> None:
    assert broken
    name = f"{pipeline.deployment.stack_name}-observability-dead-letters"

    def state() -> str:
        (alarm,) = pipeline.deployment.client("cloudwatch").describe_alarms(AlarmNames=[name])["MetricAlarms"]
        return str(alarm["StateValue"])

    wait_until(lambda: state() == "ALARM", f"{name} is in ALARM", seconds=240)


def test_redrive_processes_repaired_tickets(broken: dict[str, bytes], pipeline: Pipeline) -> None:
    with pipeline.without_notifications():
        pipeline.put(broken)
    outputs = pipeline.deployment.outputs
    redrive = [str(Path(sys.executable).with_name("dlq-replay")), "redrive", "--yes"]
    output = run(
        [*redrive, "--source", outputs["DlqUrl"], "--destination", outputs["QueueUrl"]],
        pipeline.deployment.endpoint_url,
    )
    assert f"{len(broken)} of about {len(broken)} messages moved; COMPLETED" in output
    wait_until(lambda: pipeline.is_finished(broken), "every ticket has an item, and the queue is empty")
    assert pipeline.depth("DlqUrl") == 0
    stored = pipeline.stored("redrive/")
    assert {key: found.ticket["ticket_id"] for key, found in stored.items()} == {
        key: json.loads(body)["ticket_id"] for key, body in broken.items()
    }
