"""Messages and events that were once rejected, changed or silently lost, on the embedded stack."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest

from tests.characterization.harness import Product, get, run_command, ticket_processor, wait_until
from tests.regressions.children import run_python
from tests.regressions.tickets import CREATED, raw, record

BODY = "The ferry timetable on the page is that of last year, and travellers miss the boat because of it."


class Function:
    """The Lambda handler and its stores."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.dlq: str = product.environment["DLQ_URL"]

    def invoke(self, *bodies: Any, **system: str) -> Any:
        """Invokes the handler with an SQS event of these messages."""
        return self.product.invoke({"Records": [record(body, f"m-{n}", **system) for n, body in enumerate(bodies)]})

    def item(self, ticket_id: str, created_at: int = CREATED) -> dict[str, Any] | None:
        """The item of a ticket."""
        keys = {"ticket_id": {"S": ticket_id}, "created_at": {"N": str(created_at)}}
        return next((item for item in self.product.items() if keys.items() <= item.items()), None)

    def dlq_messages(self) -> list[dict[str, Any]]:
        """Receives and deletes the messages in the DLQ."""
        return self.product.take(self.dlq)


@pytest.fixture
def function(product: Product) -> Iterator[Function]:
    product.empty()
    yield Function(product)
    product.empty()


def created(bucket: str, key: str, size: int) -> dict[str, Any]:
    """An S3 notification of a new object."""
    place = {"bucket": {"name": bucket}, "object": {"key": quote_plus(key, safe="/"), "size": size}}
    return {
        "Records": [{"eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": place}]
    }


@pytest.mark.parametrize("key", ["inbox/", "inbox/2027 spring/"])
def test_folder_marker_of_the_s3_console_is_skipped(key: str, function: Function) -> None:
    bucket = function.product.environment["RAW_BUCKET"]
    function.product.s3.put_object(Bucket=bucket, Key=key, Body=b"")
    assert function.invoke(created(bucket, key, 0)) == {"batchItemFailures": []}
    assert function.dlq_messages() == []


def test_inline_ticket_with_a_byte_order_mark_is_stored(function: Function) -> None:
    function.invoke("\ufeff" + json.dumps(raw("BYTE-ORDER", "Timetable", BODY)))
    assert function.item("BYTE-ORDER") is not None
    assert function.dlq_messages() == []


def test_each_record_of_a_pipes_list_is_stored_or_failed(function: Function) -> None:
    """A pipe deletes every message that the answer does not report as failed."""
    records = [record(raw(f"PIPE-{number}", "Timetable", BODY), f"p-{number}") for number in range(2)]
    answer = function.product.invoke(records)
    failed = [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]
    for number in range(2):
        assert function.item(f"PIPE-{number}") is not None or f"p-{number}" in failed


def test_dlq_message_keeps_the_message_group(function: Function) -> None:
    function.invoke("{", MessageGroupId="customer-31")
    (dlq_message,) = function.dlq_messages()
    assert dlq_message["Attributes"].get("MessageGroupId") == "customer-31"


def test_created_at_in_milliseconds_is_rejected(function: Function) -> None:
    function.invoke(raw("MILLI", "Timetable", BODY, created_at=CREATED * 1000))
    assert function.item("MILLI", CREATED * 1000) is None
    (dlq_message,) = function.dlq_messages()
    assert "millisecond" in dlq_message["MessageAttributes"]["Rejection"]["StringValue"]


@pytest.mark.parametrize("letter", ["船", "😀"])
def test_inline_key_stays_within_the_limit_of_s3(letter: str, function: Function) -> None:
    """The embedded S3 accepts longer keys, AWS does not."""
    ticket_id = letter * 220
    function.invoke(raw(ticket_id, "Timetable", BODY))
    item = function.item(ticket_id)
    assert item is None or len(item["s3_key"]["S"].encode()) <= 1024
    assert item is not None or len(function.dlq_messages()) == 1


@pytest.mark.parametrize("number", ["90071992547409931.125", "0.1000000000000000000001", "1.50"])
def test_number_in_an_unknown_field_keeps_its_digits(number: str, function: Function) -> None:
    function.invoke(json.dumps(raw("DIGITS", "Timetable", BODY))[:-1] + f', "balance": {number}}}')
    item = function.item("DIGITS")
    assert item is not None
    _, body = function.product.object(item["s3_key"]["S"], item["s3_version_id"]["S"])
    assert f'"balance":{number},' in body.decode()


@pytest.mark.parametrize("subject", ["کتاب\u200cها", "👩\u200d🚒 at the door"])
def test_tickets_get_prints_joiners(subject: str, function: Function) -> None:
    function.invoke(raw("JOINED", subject, BODY))
    shown = run_command("tickets", ["get", "JOINED"], function.product.environment)
    assert subject in shown.out


@pytest.mark.parametrize(
    "digits",
    [10, 4_301, 4_400],
)
def test_long_character_reference_is_text(digits: int, function: Function) -> None:
    function.invoke(raw("REFERENCE", "Gate", f"{'Still shut ' * 600}&#{'7' * digits}; and more of it"))
    assert function.item("REFERENCE") is not None


_FAILING_MODEL = """
import json, sys
from handler.main import lambda_handler
from onnxruntime import InferenceSession

def fail(*_, **__):
    raise ValueError("the customer wrote: my secret is swordfish")

InferenceSession.run = InferenceSession.run_with_iobinding = fail
class Context:
    function_name = "f"
    invoked_function_arn = "arn:aws:lambda:us-east-1:123456789012:function:f"
    memory_limit_in_mb = "2048"
    aws_request_id = "r"
    def get_remaining_time_in_millis(self):
        return 60000
print(json.dumps(lambda_handler(json.loads(sys.argv[1]), Context())))
"""


def test_model_exception_is_logged_as_json_without_its_message(function: Function) -> None:
    event = {"Records": [record(raw("MODEL", "Timetable", BODY))]}
    done = run_python(_FAILING_MODEL, function.product.environment, json.dumps(event))
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line]
    assert done.returncode == 0
    assert [line for line in lines if not line.startswith("{")] == []
    assert "swordfish" not in "".join(lines)
    assert any(json.loads(line).get("level") == "ERROR" and "ValueError" in line for line in lines)


def test_worker_answers_head(product: Product) -> None:
    with ticket_processor(product.environment | {"QUEUE_URL": product.queue}) as (port, _):
        wait_until(lambda: get(port, "/livez")[0] != 0)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("HEAD", "/livez")
        assert connection.getresponse().status == 200
        connection.close()


def test_enrichment_with_a_closed_pipe_ends_quietly(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "tickets.jsonl"
    file.write_text((json.dumps(raw("HEAD", "Timetable", BODY)) + "\n") * 64, encoding="utf-8")
    code = (
        "import subprocess, sys\n"
        "first = subprocess.Popen([sys.executable, '-m', 'enrichment', '--bundle', *sys.argv[1:]], "
        "stdout=subprocess.PIPE)\n"
        "first.stdout.readline(); first.stdout.close(); first.wait()"
    )
    done = run_python(code, {}, str(bundle), str(file))
    assert "Traceback" not in done.stderr
