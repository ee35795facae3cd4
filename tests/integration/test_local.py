"""The embedded stack matches template.yaml, and behaves like AWS where the system relies on it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from handler.local import EmbeddedStack, StackError
from handler.local.__main__ import _env_file
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def empty(stack: EmbeddedStack) -> EmbeddedStack:
    """The shared stack with empty queues."""
    for url in (stack.outputs["QueueUrl"], stack.outputs["DlqUrl"]):
        stack.client("sqs").purge_queue(QueueUrl=url)
    return stack


@pytest.fixture(scope="module")
def other() -> Iterator[EmbeddedStack]:
    """A second stack with a different parameter."""
    with EmbeddedStack(parameters={"MaximumReceiveCount": "77"}) as embedded:
        yield embedded


def receive(stack: EmbeddedStack, output: str = "QueueUrl", **options: int) -> dict[str, Any]:
    """Receive one message, which must arrive within two seconds."""
    answer = stack.client("sqs").receive_message(
        QueueUrl=stack.outputs[output], MaxNumberOfMessages=1, **{"WaitTimeSeconds": 2, **options}
    )
    (message,) = answer["Messages"]
    return dict(message)


def waiting(stack: EmbeddedStack, output: str = "QueueUrl") -> tuple[int, int]:
    """Count the visible and the invisible messages."""
    names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
    answer = stack.client("sqs").get_queue_attributes(QueueUrl=stack.outputs[output], AttributeNames=list(names))
    visible, invisible = (int(answer["Attributes"][name]) for name in names)
    return visible, invisible


def eventually_empty(stack: EmbeddedStack) -> bool:
    deadline = time.monotonic() + 60
    while waiting(stack) != (0, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    return waiting(stack) == (0, 0)


def put(stack: EmbeddedStack, key: str, body: bytes = b"{}") -> None:
    stack.client("s3").put_object(Bucket=stack.outputs["RawBucket"], Key=key, Body=body)


def test_first_message_of_a_new_stack_is_the_test_event(other: EmbeddedStack) -> None:
    body = json.loads(receive(other)["Body"])
    assert (body["Service"], body["Event"], body["Bucket"]) == ("Amazon S3", "s3:TestEvent", other.outputs["RawBucket"])
    assert "Records" not in body


@pytest.mark.parametrize(
    ("key", "encoded"), [("plain/1.json", "plain/1.json"), ("a key +/ü&=.json", "a+key+%2B/%C3%BC%26%3D.json")]
)
def test_upload_notification_has_an_encoded_key(empty: EmbeddedStack, key: str, encoded: str) -> None:
    put(empty, key, b"12345")
    (record,) = json.loads(receive(empty)["Body"])["Records"]
    assert record["eventSource"] == "aws:s3"
    assert record["eventName"] == "ObjectCreated:Put"
    assert record["s3"]["bucket"]["name"] == empty.outputs["RawBucket"]
    assert record["s3"]["object"]["key"] == encoded
    assert unquote_plus(encoded) == key
    assert record["s3"]["object"]["size"] == len(b"12345")


def test_enriched_bucket_sends_no_notifications(empty: EmbeddedStack) -> None:
    empty.client("s3").put_object(Bucket=empty.outputs["EnrichedBucket"], Key="quiet", Body=b"{}")
    time.sleep(0.3)
    assert waiting(empty) == (0, 0)


def test_message_moves_to_the_dlq_after_its_last_receive(empty: EmbeddedStack) -> None:
    put(empty, "poison.json")
    bodies = {receive(empty, VisibilityTimeout=0)["Body"] for _ in range(int(empty.environment()["MAX_RECEIVE_COUNT"]))}
    assert waiting(empty, "DlqUrl") == (0, 0)
    answer = empty.client("sqs").receive_message(QueueUrl=empty.outputs["QueueUrl"])
    assert "Messages" not in answer
    assert {receive(empty, "DlqUrl")["Body"]} == bodies


def test_disabled_mapping_leaves_the_messages_to_the_worker(empty: EmbeddedStack) -> None:
    (mapping,) = empty.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    assert mapping["State"] == "Disabled"
    put(empty, "untouched.json")
    time.sleep(2)  # an enabled mapping needs less than half of that, see the next test
    assert waiting(empty) == (1, 0)


def test_enabled_mapping_feeds_the_function() -> None:
    events: queue.Queue[dict[str, Any]] = queue.Queue()

    class Function(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            events.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(HTTPStatus.OK)
            self.end_headers()
            self.wfile.write(b'{"batchItemFailures": []}')

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Function) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with EmbeddedStack(
            parameters={"MappingEnabled": "true"}, emulator={"MINISTACK_LAMBDA_PROXY_ticket-enrichment": url}
        ) as stack:
            put(stack, "fed.json")
            bodies = [record["body"] for record in events.get(timeout=60)["Records"]]
            if "fed.json" not in bodies[-1]:  # the test event may have arrived in a separate batch
                bodies += [record["body"] for record in events.get(timeout=60)["Records"]]
            assert "s3:TestEvent" in bodies[0]
            assert "fed.json" in bodies[1]
            assert eventually_empty(stack)
        server.shutdown()


def test_only_the_enriched_bucket_is_versioned(empty: EmbeddedStack) -> None:
    s3, bucket = empty.client("s3"), empty.outputs["EnrichedBucket"]
    old, new = (s3.put_object(Bucket=bucket, Key="v", Body=body)["VersionId"] for body in (b"old", b"new"))
    assert old != new
    assert s3.get_object(Bucket=bucket, Key="v", VersionId=old)["Body"].read() == b"old"
    assert "VersionId" not in s3.put_object(Bucket=empty.outputs["RawBucket"], Key="v", Body=b"")


def test_conditional_put_and_urgency_index_work(stack: EmbeddedStack) -> None:
    dynamodb, table = stack.client("dynamodb"), stack.outputs["TableName"]

    def commit(modified: int, created: int = 1) -> None:
        dynamodb.put_item(
            TableName=table,
            Item={
                "ticket_id": {"S": "conditional"},
                "created_at": {"N": str(created)},
                "urgency": {"S": "of this test"},  # other tests leave tickets in the shared stack
                "source_modified": {"N": str(modified)},
            },
            ConditionExpression="attribute_not_exists(ticket_id) OR source_modified <= :modified",
            ExpressionAttributeValues={":modified": {"N": str(modified)}},
        )

    commit(5)
    commit(6)
    with pytest.raises(ClientError, match="ConditionalCheckFailed"):
        commit(4)
    commit(4, created=2)
    found = dynamodb.query(
        TableName=table,
        IndexName="urgency-index",
        KeyConditionExpression="urgency = :urgency",
        ExpressionAttributeValues={":urgency": {"S": "of this test"}},
        ScanIndexForward=False,
    )
    assert [(i["created_at"]["N"], i["source_modified"]["N"]) for i in found["Items"]] == [("2", "4"), ("1", "6")]


def test_environment_equals_the_deployed_function(stack: EmbeddedStack, other: EmbeddedStack) -> None:
    environment = stack.environment()
    named = {"RAW_BUCKET": "RawBucket", "ENRICHED_BUCKET": "EnrichedBucket", "TABLE_NAME": "TableName"}
    named |= {"QUEUE_URL": "QueueUrl", "DLQ_URL": "DlqUrl"}
    assert {name: environment[name] for name in named} == {n: stack.outputs[output] for n, output in named.items()}
    assert environment["AWS_ENDPOINT_URL"] == stack.endpoint_url
    assert environment["AWS_SESSION_TOKEN"] == ""
    assert "MODEL_BUNDLE" not in environment
    assert [s.environment()["MAX_RECEIVE_COUNT"] for s in (stack, other)] == ["30", "77"]


def test_two_stacks_are_isolated(empty: EmbeddedStack, other: EmbeddedStack) -> None:
    assert empty.endpoint_url != other.endpoint_url
    assert empty.outputs["RawBucket"] == other.outputs["RawBucket"]
    put(empty, "mine.json")
    listed = [s.client("s3").list_objects_v2(Bucket=s.outputs["RawBucket"])["KeyCount"] for s in (empty, other)]
    assert listed[0] > 0 == listed[1]


def test_anonymous_access_and_foreign_buckets_are_denied(empty: EmbeddedStack) -> None:
    anonymous = boto3.client(
        "s3", endpoint_url=empty.endpoint_url, region_name="us-east-1", config=Config(signature_version=UNSIGNED)
    )
    with pytest.raises(ClientError, match="AccessDenied"):
        anonymous.list_objects_v2(Bucket=empty.outputs["RawBucket"])
    anonymous.close()
    s3 = empty.client("s3")
    s3.create_bucket(Bucket="foreign")
    queue = s3.get_bucket_notification_configuration(Bucket=empty.outputs["RawBucket"])["QueueConfigurations"][0]
    with pytest.raises(ClientError, match="Unable to validate"):
        s3.put_bucket_notification_configuration(
            Bucket="foreign",
            NotificationConfiguration={"QueueConfigurations": [{**queue, "Events": ["s3:ObjectCreated:*"]}]},
        )


@contextmanager
def up(file: Path, port: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m handler.local up` with this file; it is killed at the end if it still runs."""
    command = [sys.executable, "-m", "handler.local", "up", "--port", str(port), "--env-file", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def run_after_sourcing(file: Path, program: str) -> str:
    """The output of a shell program that sources the file first."""
    script = f'. "$1" && {program}'
    return subprocess.run(
        ["bash", "-c", script, "bash", str(file)], env={"PATH": os.defpath}, check=True, capture_output=True, text=True
    ).stdout


def test_env_file_exists_while_the_stack_runs(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "stack.env"
    with up(file) as process:
        eventually(file.is_file)
        # When the file exists, the resources that it names exist.
        shared = dict(line.split("=", 1) for line in run_after_sourcing(file, "env -0").split("\0") if line)
        s3 = boto3.client(
            "s3",
            endpoint_url=shared["AWS_ENDPOINT_URL"],
            aws_access_key_id=shared["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=shared["AWS_SECRET_ACCESS_KEY"],
            region_name=shared["AWS_DEFAULT_REGION"],
        )
        s3.head_bucket(Bucket=shared["RAW_BUCKET"])
        s3.close()
        assert run_after_sourcing(file, 'kill -0 "$STACK_PID" && printf %s "$STACK_PID"') == str(process.pid)
        process.terminate()
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 0
    exports = [line for line in printed.splitlines() if line.startswith("export ")]
    assert {line.removeprefix("export ").partition("=")[0] for line in exports} <= shared.keys()
    assert list(file.parent.iterdir()) == []


def test_env_file_of_a_killed_stack_names_a_dead_process(tmp_path: Path) -> None:
    file = tmp_path / "stack.env"
    with up(file) as process:
        eventually(file.is_file)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert run_after_sourcing(file, 'if kill -0 "$STACK_PID"; then echo up; else echo gone; fi 2>/dev/null') == "gone\n"


def test_env_file_of_another_stack_is_kept(stack: EmbeddedStack, tmp_path: Path) -> None:
    file = tmp_path / "stack.env"
    file.write_text("of another\n")
    with up(file, port=int(stack.endpoint_url.rpartition(":")[2])) as process:  # which is taken
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.startswith("port ")
    assert file.read_text() == "of another\n"
    with _env_file(file, "export NAME=value\n"):
        assert file.read_text() == f"export NAME=value\nSTACK_PID={os.getpid()}\n"
        file.write_text("of a later one\n")
    assert file.read_text() == "of a later one\n"


def test_unwritable_env_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StackError, match="File exists; name another file for the environment"),
        _env_file(tmp_path / "file" / "stack.env", ""),
    ):
        pytest.fail("there is no such file")
