"""`dlq-replay` on the embedded stack's queues: messages that are only read stay, replayed ones arrive unchanged."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner, Result

from handler.aws.dead_letters import SqsDeadLetters
from handler.aws.sqs import Queue
from handler.dlq import command
from handler.local import EmbeddedStack
from handler.settings import Lane
from handler.worker.invocation import sqs_event
from tests.support.dlq_queues import text
from tests.support.proxy import Proxy

REPO = Path(__file__).resolve().parents[2]
OURS = {"ReplayCount", "OriginalMessageId", "ReplayedAt", "FirstSentTimestamp"}
FAST = ["--wait", "1", "--empty-polls", "1"]  # these queues have no other consumer, so one empty receive is enough


class Queues:
    """A queue and its DLQ, and the command on both."""

    def __init__(self, stack: EmbeddedStack, *, fifo: bool = False, **attributes: str) -> None:
        self.stack = stack
        self.sqs = stack.client("sqs")
        name, end = f"replay-{uuid4().hex[:12]}", ".fifo" if fifo else ""
        kind = {"FifoQueue": "true", "ContentBasedDeduplication": "true"} if fifo else {}
        self.dlq = self.sqs.create_queue(QueueName=f"{name}-dlq{end}", Attributes=kind)["QueueUrl"]
        self.dlq_arn = self._attribute(self.dlq, "QueueArn")
        policy = json.dumps({"deadLetterTargetArn": self.dlq_arn, "maxReceiveCount": 5})
        settings = {"RedrivePolicy": policy, **kind, **attributes}
        self.live = self.sqs.create_queue(QueueName=f"{name}{end}", Attributes=settings)["QueueUrl"]
        self.live_arn = self._attribute(self.live, "QueueArn")

    def delete(self) -> None:
        for url in (self.dlq, self.live):
            self.sqs.delete_queue(QueueUrl=url)

    def moved(self, *bodies: str, **options: Any) -> list[str]:
        """Put messages into the DLQ as SQS does, without a Reason."""
        return [self.sqs.send_message(QueueUrl=self.dlq, MessageBody=body, **options)["MessageId"] for body in bodies]

    def rejected(self, body: str, code: str, attributes: dict[str, Any] | None = None) -> str:
        """Send a message and reject it as the handler does; returns its id in the queue where it failed."""
        self.sqs.send_message(QueueUrl=self.live, MessageBody=body, MessageAttributes=attributes or {})
        (message,) = self._received(self.live)
        (record,) = sqs_event([message], self.live_arn)["Records"]
        SqsDeadLetters(self.sqs, [Lane(self.live, self.dlq)]).reject(
            record, [{"error": code, "detail": f"it is {code}", "stage": "fetch"}], code
        )
        self.sqs.delete_message(QueueUrl=self.live, ReceiptHandle=message["ReceiptHandle"])
        return str(message["MessageId"])

    def take(self, url: str) -> list[dict[str, Any]]:
        """Receive and delete every visible message."""
        found = []
        while messages := self._received(url):
            for message in messages:
                self.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            found += messages
        return found

    def visible(self, url: str) -> int:
        return int(self._attribute(url, "ApproximateNumberOfMessages"))

    def environment(self, endpoint_url: str | None = None) -> dict[str, str]:
        settings = {name: value for name, value in self.stack.environment().items() if name.startswith("AWS_")}
        endpoint = {"AWS_ENDPOINT_URL": endpoint_url} if endpoint_url else {}
        return {**settings, **endpoint, "QUEUE_URL": self.live, "DLQ_URL": self.dlq, "RAW_BUCKET": ""}

    def run(self, *arguments: str, endpoint_url: str | None = None) -> Result:
        """Run the command in this process."""
        return CliRunner().invoke(command.app, arguments, env=self.environment(endpoint_url), catch_exceptions=False)

    def _received(self, url: str) -> list[dict[str, Any]]:
        names = {"MessageAttributeNames": ["All"], "MessageSystemAttributeNames": ["All"]}
        return list(self.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, **names).get("Messages", []))

    def _attribute(self, url: str, name: str) -> str:
        return str(self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=[name])["Attributes"][name])


@pytest.fixture
def queues(stack: EmbeddedStack) -> Iterator[Queues]:
    made = Queues(stack)
    yield made
    made.delete()


def bodies(messages: Sequence[dict[str, Any]]) -> Counter[str]:
    return Counter(message["Body"] for message in messages)


def table(result: Result) -> list[list[str]]:
    return [line.split("\t") for line in result.stdout.splitlines()]


def test_messages_are_replayed_unchanged_with_our_attributes(queues: Queues) -> None:
    own = {
        "source": text("mail"),
        "weight": text("1.50", "Number"),
        "raw": {"DataType": "Binary.png", "BinaryValue": b"\x00\xff"},
        **{f"more{number}": text(str(number), "String.custom") for number in range(6)},
    }
    queues.rejected("rejected", "object_gone", own)
    moved = queues.moved("moved", MessageAttributes={"source": text("chat")})[0]
    result = queues.run("--yes", *FAST)
    assert result.exit_code == 0, result.output
    assert "2 of 2 selected messages sent (2 scanned)" in result.stdout
    found = {message["Body"]: message["MessageAttributes"] for message in queues.take(queues.live)}
    assert {name: value for name, value in found["rejected"].items() if name not in OURS} == own
    assert found["rejected"]["ReplayCount"] == text("1", "Number")  # nine of its own leave room for one
    assert set(found["moved"]) == {"source", *OURS}
    assert found["moved"]["OriginalMessageId"] == text(moved)
    assert queues.take(queues.dlq) == []


def test_second_replay_increments_the_count(queues: Queues) -> None:
    first = queues.rejected("body", "object_gone")
    assert queues.run("--yes", "--limit", "1").exit_code == 0
    (message,) = queues.take(queues.live)
    queues.rejected("body", "object_gone", message["MessageAttributes"])
    assert queues.run("replay", "--yes", "--limit", "1").exit_code == 0
    (message,) = queues.take(queues.live)
    assert message["MessageAttributes"]["ReplayCount"] == text("2", "Number")
    assert message["MessageAttributes"]["OriginalMessageId"] == text(first)
    queues.rejected("body", "object_gone", message["MessageAttributes"])
    result = queues.run("--yes", "--max-replays", "2", *FAST)
    assert result.exit_code == 1
    assert "1 refused: replayed too often" in result.stdout
    assert queues.visible(queues.dlq) == 1


def test_several_batches_and_a_1_mib_message_are_replayed(queues: Queues) -> None:
    sent = [str(number) * size for number, size in zip(range(10, 50), [1, 300_000, 5000, 520_000] * 10, strict=True)]
    queues.moved(*sent, "x" * (1024 * 1024))
    result = queues.run("--yes", "--json", *FAST)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["replayed"], figures["unmarked"], figures["complete"]) == (41, 1, True)
    assert bodies(queues.take(queues.live)) == Counter([*sent, "x" * (1024 * 1024)])


def test_messages_refused_by_sqs_stay(stack: EmbeddedStack) -> None:
    queues = Queues(stack, MaximumMessageSize="1024")
    queues.moved("small", "x" * 2000, "small too")
    result = queues.run("--yes", *FAST)
    assert result.exit_code == 1
    assert "1 failed" in result.stdout
    assert "must be shorter than 1024 bytes" in result.stderr
    assert bodies(queues.take(queues.live)) == Counter(["small", "small too"])
    assert bodies(queues.take(queues.dlq)) == Counter(["x" * 2000])
    queues.delete()


def test_unselected_messages_stay_unchanged(queues: Queues) -> None:
    ticket = {"ticket_id": "T-1", "customer_id": "C-7"}
    queues.rejected(json.dumps(ticket), "object_gone", {"source": text("mail")})
    queues.rejected(json.dumps({**ticket, "customer_id": "C-8"}), "object_gone")
    queues.rejected("not json", "message_invalid")
    queues.moved("moved")
    filters = {
        "object_gone": ["--reason", "object_gone"],
        "redriven": ["--reason", "redriven", "--reason", "nothing_has_this"],
        "C-7": ["--match", "body.customer_id == 'C-7'"],
        "mail": ["--match", "attributes.source == 'mail'"],
        "old": ["--older-than", "1h"],
        "new": ["--newer-than", "1h"],
    }
    counts = {}
    for name, options in filters.items():
        result = queues.run("count", "--json", *options, *FAST)
        assert result.exit_code == 0, result.output
        counts[name] = sum(json.loads(line)["messages"] for line in result.stdout.splitlines())
        assert queues.visible(queues.dlq) == 4  # visible again at once
    assert counts == {"object_gone": 2, "redriven": 1, "C-7": 1, "mail": 1, "old": 0, "new": 4}
    result = queues.run("--yes", "--match", "body.customer_id == 'C-8'", *FAST)
    assert "1 of 1 selected messages sent (4 scanned)" in result.stdout
    assert queues.visible(queues.dlq) == 3
    assert queues.visible(queues.live) == 1


def test_type_errors_and_messages_in_flight_are_reported(queues: Queues) -> None:
    queues.moved('{"subject": "xyz"}', '{"subject": 7}', "in flight")
    held = queues.sqs.receive_message(QueueUrl=queues.dlq, MaxNumberOfMessages=3, VisibilityTimeout=60)["Messages"]
    for message in held[:2]:
        queues.sqs.change_message_visibility(
            QueueUrl=queues.dlq, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
        )
    result = queues.run("--yes", "--match", "contains(body.subject, 'x')", *FAST)
    assert result.exit_code == 0
    assert "1 of 1 selected messages sent (2 scanned)" in result.stdout
    assert (
        "--match could not be evaluated on 1 messages, which were skipped: contains() does not accept number"
        in result.stderr
    )
    assert "about 1 messages were already in flight" in result.stderr
    result = queues.run("--yes", "--match", "body.subject && nothing(body)", *FAST)
    assert result.exit_code == 2
    assert result.stderr.startswith("dlq-replay: --match: Unknown function: nothing()")
    assert queues.visible(queues.dlq) == 1


def test_message_id_option_selects_one_message(queues: Queues) -> None:
    names = queues.moved("one", "two", "three")
    source_id = queues.rejected("four", "object_gone")
    result = queues.run("--yes", "--message-id", names[1], "--message-id", source_id, *FAST)
    assert result.exit_code == 0, result.output
    assert bodies(queues.take(queues.live)) == Counter(["two", "four"])
    assert queues.visible(queues.dlq) == 2


def test_count_without_a_filter_receives_nothing(queues: Queues) -> None:
    queues.moved("one", "two")
    name = queues.dlq.rpartition("/")[2]
    result = queues.run("count")
    assert table(result) == [[name, "visible", "2"], [name, "hidden", "0"], [name, "delayed", "0"]]
    (message, _) = queues.take(queues.dlq)
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"


def test_peek_shows_the_reason_and_changes_nothing(queues: Queues) -> None:
    source_id = queues.rejected('{"ticket_id": "T-1", "subject": "secret"}', "object_gone")
    result = queues.run("peek", *FAST)
    assert result.exit_code == 0
    ((sent, reason, replays, name, content, why),) = table(result)
    assert (reason, replays, content, why) == ("object_gone", "0", "a ticket of 41 bytes", "it is object_gone")
    assert sent.endswith("Z")
    assert "secret" not in result.output
    (whole,) = [json.loads(line) for line in queues.run("peek", "--json", "--limit", "1").stdout.splitlines()]
    assert whole["message_id"] == name
    assert whole["rejection"]["message_id"] == source_id
    assert "secret" in whole["body"]
    assert queues.visible(queues.dlq) == 1


def test_dry_run_counts_by_reason_and_sends_nothing(queues: Queues, tmp_path: Path) -> None:
    for number in range(3):
        queues.rejected(f"gone {number}", "object_gone")
    queues.moved("moved")
    result = queues.run("--dry-run", "--audit", str(tmp_path / "audit"), *FAST)
    assert result.exit_code == 0
    assert [row[:2] for row in table(result)] == [["object_gone", "3"], ["redriven", "1"]]
    assert "4 of 4 messages selected; nothing was sent" in result.stderr
    assert not (tmp_path / "audit").exists()
    assert queues.visible(queues.dlq) == 4
    assert queues.visible(queues.live) == 0


def test_source_that_is_not_the_dlq_of_the_destination_exits_2(queues: Queues) -> None:
    queues.moved("one")
    for arguments, said in [
        (["--destination", queues.dlq], "source and destination are both"),
        (["--source", queues.live], "source and destination are both"),
        (["--source", queues.live_arn, "--destination", queues.dlq_arn], "is not the dead-letter queue of"),
        (["--destination", "no-such-queue"], "check the queue's name"),
    ]:
        result = queues.run("--yes", *arguments, *FAST)
        assert result.exit_code == (1 if "no-such" in arguments[-1] else 2), result.output
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
    assert queues.visible(queues.dlq) == 1
    assert queues.run("--yes", "--dry-run", "--destination", queues.dlq, *FAST).exit_code == 2


def test_force_allows_any_destination(queues: Queues, stack: EmbeddedStack) -> None:
    queues.moved("one", "two")
    assert queues.run("--yes", "--force", "--destination", queues.dlq, *FAST).exit_code == 0
    found = queues.take(queues.dlq)
    assert bodies(found) == Counter(["one", "two"])
    assert all(message["MessageAttributes"]["ReplayCount"] == text("1", "Number") for message in found)
    queues.moved("three")
    other = Queues(stack)
    assert queues.run("--yes", "--force", "--destination", other.live_arn, "--limit", "1").exit_code == 0
    assert bodies(queues.take(other.live)) == Counter(["three"])
    other.delete()


def test_fifo_replay_keeps_order_and_bypasses_deduplication(stack: EmbeddedStack) -> None:
    queues = Queues(stack, fifo=True)
    sent = [f"{group}{number}" for number in range(6) for group in "ab"]
    for body in sent:
        # Delivered a moment ago: SQS would drop a message with the same deduplication id.
        for url in (queues.live, queues.dlq):
            queues.sqs.send_message(
                QueueUrl=url, MessageBody=body, MessageGroupId=body[0], MessageDeduplicationId=f"id-{body}"
            )
    assert len(queues.take(queues.live)) == 12
    result = queues.run("--yes", "--reason", "redriven", *FAST)
    assert result.exit_code == 0, result.output
    assert "in a FIFO queue, messages behind one that is not selected cannot be received" in result.stderr
    found = [message["Body"] for message in queues.take(queues.live)]
    assert [body for body in found if body[0] == "a"] == [body for body in sent if body[0] == "a"]
    assert Counter(found) == Counter(sent)
    queues.delete()


def test_slow_replay_keeps_its_messages_invisible(queues: Queues) -> None:
    queues.moved(*(f"body {number}" for number in range(10)))
    seen: list[Any] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.05):
            seen.extend(queues.sqs.receive_message(QueueUrl=queues.dlq, VisibilityTimeout=0).get("Messages", []))

    other = threading.Thread(target=look)
    started = time.monotonic()
    with Proxy(queues.stack.endpoint_url) as proxy:
        proxy.after = lambda operation: (
            other.start() if proxy.calls.count("ReceiveMessage") == 1 and not other.ident else None
        )
        result = queues.run(
            "--yes", "--rate", "2", "--visibility-timeout", "3", "--limit", "10", "--json", endpoint_url=proxy.url
        )
    stop.set()
    other.join()
    assert result.exit_code == 0, result.output
    assert time.monotonic() - started > 3  # ten messages at two per second
    assert proxy.calls.count("ChangeMessageVisibilityBatch") >= 1
    assert seen == []
    assert bodies(queues.take(queues.live)) == Counter(f"body {number}" for number in range(10))


def test_run_with_the_same_audit_file_deletes_what_was_sent(queues: Queues, tmp_path: Path) -> None:
    names = queues.moved(*(f"body {number}" for number in range(12)))
    audit = tmp_path / "audit.jsonl"
    with Proxy(queues.stack.endpoint_url) as proxy:
        proxy.answers["DeleteMessageBatch"] = lambda request: {
            "Successful": [],
            "Failed": [
                {"Id": entry["Id"], "Code": "InternalError", "SenderFault": False} for entry in request["Entries"]
            ],
        }
        result = queues.run("--yes", "--limit", "10", "--audit", str(audit), endpoint_url=proxy.url)
    assert result.exit_code == 1
    assert "10 sent but not deleted" in result.stdout
    result = queues.run("--yes", "--audit", str(audit), *FAST)
    assert result.exit_code == 0, result.output
    assert "10 had been sent by an earlier run and were only deleted" in result.stdout
    assert bodies(queues.take(queues.live)) == Counter(f"body {number}" for number in range(12))
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [line["event"] for line in lines].count("begin") == 2
    assert {line["message_id"] for line in lines if line["event"] == "deleted"} == set(names)
    assert "body" not in audit.read_text().replace("ticket", "")
    result = queues.run("--yes", "--audit", str(audit), "--source", queues.live, "--destination", queues.dlq, "--force")
    assert result.exit_code == 2
    assert "is the audit file of" in result.stderr


class Process:
    """The command in its own process, on a terminal."""

    def __init__(self, queues: Queues, endpoint_url: str, *arguments: str) -> None:
        self._terminal, inner = pty.openpty()
        environment = {**os.environ, **queues.environment(endpoint_url), "TERM": "xterm", "COLUMNS": "100"}
        command = [sys.executable, "-m", "handler.dlq", *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=REPO,
            env=environment,
            stdin=inner,
            stdout=subprocess.PIPE,
            stderr=inner,
            start_new_session=True,
        )
        os.close(inner)
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def type(self, line: str) -> None:
        os.write(self._terminal, f"{line}\n".encode())

    def until(self, words: str) -> None:
        deadline = time.monotonic() + 60
        while words not in self.said:
            assert time.monotonic() < deadline, f"{words!r} was not printed: {self.said}"
            time.sleep(0.02)

    def end(self) -> tuple[int, str]:
        """Its exit code and standard output."""
        out, _ = self.process.communicate(timeout=60)
        self._reader.join()
        os.close(self._terminal)
        return self.process.returncode, out.decode()

    def _read(self) -> None:
        try:
            while data := os.read(self._terminal, 4096):
                self.said += data.decode(errors="replace")
        except OSError:  # the end of a terminal on Linux
            return


def test_terminal_shows_confirmation_and_progress(queues: Queues) -> None:
    queues.moved(*(f"body {number}" for number in range(12)))
    refused = Process(queues, queues.stack.endpoint_url, *FAST)
    refused.until("send all of them to")
    refused.type("n")
    assert refused.end() == (1, "")
    assert "nothing was sent" in refused.said
    assert queues.visible(queues.dlq) == 12
    agreed = Process(queues, queues.stack.endpoint_url, "--rate", "10", *FAST)
    agreed.until("About 12 messages")
    agreed.type("y")
    code, out = agreed.end()
    assert (code, out) == (0, "12 of 12 selected messages sent (12 scanned)\n")
    assert "12/12" in agreed.said
    assert "/s" in agreed.said


def test_missing_terminal_exits_2(queues: Queues) -> None:
    queues.moved("one")
    result = queues.run(*FAST)
    assert result.exit_code == 2
    assert result.stderr == "dlq-replay: there is no terminal to ask for confirmation; use --yes\n"
    assert queues.visible(queues.dlq) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_finishes_the_batch_and_releases_the_rest(queues: Queues, number: int) -> None:
    for name in range(25):
        queues.moved(f"body {name}")
    with Proxy(queues.stack.endpoint_url) as proxy:
        process = Process(queues, proxy.url, "--yes", "--rate", "5", "--hidden", "600", "--json")

        def interrupt(operation: str) -> None:
            # In the middle of a batch: SQS has accepted it, and the process does not know it yet.
            if operation == "SendMessageBatch" and proxy.calls.count(operation) == 2:
                process.process.send_signal(number)
                time.sleep(0.2)

        proxy.after = interrupt
        code, out = process.end()
    figures = json.loads(out)
    assert code == 1
    assert (figures["replayed"], figures["interrupted"], figures["complete"]) == (10, True, False)
    assert "finishing the current batch" in process.said
    assert queues.visible(queues.live) == 10
    assert queues.visible(queues.dlq) == 15
    assert not bodies(queues.take(queues.live)) & bodies(queues.take(queues.dlq))


def test_second_interrupt_stops_immediately(queues: Queues) -> None:
    queues.moved(*(f"body {number}" for number in range(12)))
    with Proxy(queues.stack.endpoint_url) as proxy:
        process = Process(queues, proxy.url, "--yes", "--wait", "20")
        held = threading.Event()

        def hang(operation: str) -> None:
            if operation == "SendMessageBatch":
                process.process.send_signal(signal.SIGINT)
                process.until("again to stop immediately")
                process.process.send_signal(signal.SIGINT)
                held.wait(30)

        proxy.before = hang
        code, _ = process.end()
        held.set()
    assert code == 1
    assert "stopped immediately" in process.said
    assert queues.visible(queues.dlq) == 2  # the others become visible later


def test_redrive_uses_sqs_message_move(queues: Queues) -> None:
    """The embedded stack has no move tasks; the test moves the messages itself."""
    queues.moved(*(f"body {number}" for number in range(4)))
    started: list[dict[str, Any]] = []
    states = iter([("RUNNING", 0), ("COMPLETED", 4)])

    def start(request: dict[str, Any]) -> dict[str, Any]:
        started.append(request)
        for message in queues.take(queues.dlq):
            queues.sqs.send_message(QueueUrl=queues.live, MessageBody=message["Body"])
        return {"TaskHandle": "handle"}

    def state(request: dict[str, Any]) -> dict[str, Any]:
        status, moved = next(states)
        numbers = {"ApproximateNumberOfMessagesMoved": moved, "ApproximateNumberOfMessagesToMove": 4}
        return {"Results": [{"Status": status, "StartedTimestamp": 1, "SourceArn": queues.dlq_arn, **numbers}]}

    with Proxy(queues.stack.endpoint_url) as proxy:
        proxy.answers = {"StartMessageMoveTask": start, "ListMessageMoveTasks": state}
        result = queues.run("--native", "--yes", "--rate", "50", endpoint_url=proxy.url)
    assert result.exit_code == 0, result.output
    assert result.stdout == "4 of about 4 messages moved; COMPLETED\n"
    arns = {"SourceArn": queues.dlq_arn, "DestinationArn": queues.live_arn}
    assert started == [{**arns, "MaxNumberOfMessagesPerSecond": 50}]
    assert queues.visible(queues.live) == 4


def test_redrive_refused_by_sqs_is_one_line(queues: Queues) -> None:
    result = queues.run("--native", "--yes")
    assert result.exit_code == 1
    assert result.stderr.startswith("dlq-replay: StartMessageMoveTask: ")
    assert result.stderr.count("\n") == 1


def test_queue_adapter(queues: Queues) -> None:
    queue = Queue(queues.sqs, queues.dlq)
    sent = queue.send([{"MessageBody": "one"}, {"MessageBody": "bad \x00"}, {"MessageBody": "two"}])
    assert [result.message_id is not None for result in sent] == [True, False, True]
    assert not sent[1].transient
    messages = queue.receive(wait=1, visibility_timeout=30)
    assert {message["MessageId"] for message in messages} == {sent[0].message_id, sent[2].message_id}
    assert queue.receive(wait=1, visibility_timeout=30) == []
    assert queue.change_visibility([messages[0]["ReceiptHandle"], "nonsense"], 0) == [True, False]
    (again,) = queue.receive(wait=1, visibility_timeout=30)
    assert again["MessageId"] == messages[0]["MessageId"]
    assert queue.delete([again["ReceiptHandle"], "nonsense"]) == [True, False]
    assert queue.attributes().in_flight == 1
