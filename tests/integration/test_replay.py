"""`dlq-replay` on the embedded stack's queues: what is looked at comes back, what is sent back arrives whole."""

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
from handler.local import EmbeddedStack
from handler.replay import command as replay
from handler.replay.queue import SqsQueue
from handler.worker.invocation import sqs_event
from tests.replay_fakes import text
from tests.support.proxy import Proxy

REPO = Path(__file__).resolve().parents[2]
MARKS = {"ReplayCount", "OriginalMessageId", "ReplayedAt"}
SOON = ["--wait", "1", "--empty-polls", "1"]  # nobody else is at these queues, so one empty answer is enough


class Queues:
    """A queue, its dead-letter queue, and the command on both."""

    def __init__(self, stack: EmbeddedStack, *, fifo: bool = False, **attributes: str) -> None:
        self.stack = stack
        self.sqs = stack.client("sqs")
        name, end = f"replay-{uuid4().hex[:12]}", ".fifo" if fifo else ""
        kind = {"FifoQueue": "true", "ContentBasedDeduplication": "true"} if fifo else {}
        self.dead = self.sqs.create_queue(QueueName=f"{name}-dlq{end}", Attributes=kind)["QueueUrl"]
        self.dead_arn = self._attribute(self.dead, "QueueArn")
        policy = json.dumps({"deadLetterTargetArn": self.dead_arn, "maxReceiveCount": 5})
        settings = {"RedrivePolicy": policy, **kind, **attributes}
        self.live = self.sqs.create_queue(QueueName=f"{name}{end}", Attributes=settings)["QueueUrl"]
        self.live_arn = self._attribute(self.live, "QueueArn")

    def delete(self) -> None:
        for url in (self.dead, self.live):
            self.sqs.delete_queue(QueueUrl=url)

    def redriven(self, *bodies: str, **options: Any) -> list[str]:
        """Puts messages into the dead-letter queue as SQS does, without a reason."""
        return [self.sqs.send_message(QueueUrl=self.dead, MessageBody=body, **options)["MessageId"] for body in bodies]

    def rejected(self, body: str, code: str, attributes: dict[str, Any] | None = None) -> str:
        """Sends a message and rejects it as the handler does; returns its id in the queue where it failed."""
        self.sqs.send_message(QueueUrl=self.live, MessageBody=body, MessageAttributes=attributes or {})
        (message,) = self._received(self.live)
        (record,) = sqs_event([message], self.live_arn)["Records"]
        letters = SqsDeadLetters(self.sqs, self.live, self.dead)
        letters.reject(record, [{"error": code, "detail": f"it is {code}", "stage": "fetch"}], code)
        self.sqs.delete_message(QueueUrl=self.live, ReceiptHandle=message["ReceiptHandle"])
        return str(message["MessageId"])

    def taken(self, url: str) -> list[dict[str, Any]]:
        """Takes every visible message out of a queue."""
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
        return {**settings, **endpoint, "QUEUE_URL": self.live, "DLQ_URL": self.dead, "RAW_BUCKET": ""}

    def run(self, *arguments: str, endpoint_url: str | None = None) -> Result:
        """Runs the command in this process."""
        return CliRunner().invoke(replay.app, arguments, env=self.environment(endpoint_url), catch_exceptions=False)

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


def test_dead_letters_go_back_whole_and_marked(queues: Queues) -> None:
    own = {
        "source": text("mail"),
        "weight": text("1.50", "Number"),
        "raw": {"DataType": "Binary.png", "BinaryValue": b"\x00\xff"},
        **{f"more{number}": text(str(number), "String.custom") for number in range(6)},
    }
    first = queues.rejected("rejected", "object_gone", own)
    second = queues.redriven("redriven", MessageAttributes={"source": text("chat")})[0]
    result = queues.run("--yes", *SOON)
    assert result.exit_code == 0, result.output
    assert "2 of 2 chosen messages sent (2 looked at)" in result.stdout
    found = {message["Body"]: message["MessageAttributes"] for message in queues.taken(queues.live)}
    assert {name: value for name, value in found["rejected"].items() if name not in MARKS} == own
    assert found["rejected"]["ReplayCount"] == text("1", "Number")  # nine of its own: there is room for one mark
    assert set(found["redriven"]) == {"source", *MARKS}
    assert found["redriven"]["OriginalMessageId"] == text(second)
    assert first != second
    assert queues.taken(queues.dead) == []


def test_a_second_replay_counts_on(queues: Queues) -> None:
    first = queues.rejected("body", "object_gone")
    assert queues.run("--yes", "--limit", "1").exit_code == 0
    (message,) = queues.taken(queues.live)
    queues.rejected("body", "object_gone", message["MessageAttributes"])
    assert queues.run("replay", "--yes", "--limit", "1").exit_code == 0
    (message,) = queues.taken(queues.live)
    assert message["MessageAttributes"]["ReplayCount"] == text("2", "Number")
    assert message["MessageAttributes"]["OriginalMessageId"] == text(first)
    queues.rejected("body", "object_gone", message["MessageAttributes"])
    result = queues.run("--yes", "--max-replays", "2", *SOON)
    assert result.exit_code == 1
    assert "1 refused: replayed too often" in result.stdout
    assert queues.visible(queues.dead) == 1


def test_more_than_a_batch_and_a_full_mebibyte(queues: Queues) -> None:
    sent = [str(number) * size for number, size in zip(range(10, 50), [1, 300_000, 5000, 520_000] * 10, strict=True)]
    queues.redriven(*sent, "x" * (1024 * 1024))
    result = queues.run("--yes", "--json", *SOON)
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)
    assert (metrics["replayed"], metrics["unmarked"], metrics["complete"]) == (41, 1, True)
    assert bodies(queues.taken(queues.live)) == Counter([*sent, "x" * (1024 * 1024)])


def test_what_the_queue_refuses_stays(stack: EmbeddedStack) -> None:
    queues = Queues(stack, MaximumMessageSize="1024")
    queues.redriven("small", "x" * 2000, "small too")
    result = queues.run("--yes", *SOON)
    assert result.exit_code == 1
    assert "1 failed" in result.stdout
    assert "must be shorter than 1024 bytes" in result.stderr
    assert bodies(queues.taken(queues.live)) == Counter(["small", "small too"])
    assert bodies(queues.taken(queues.dead)) == Counter(["x" * 2000])
    queues.delete()


def test_choices_and_what_they_leave(queues: Queues) -> None:
    ticket = {"ticket_id": "T-1", "customer_id": "C-7"}
    queues.rejected(json.dumps(ticket), "object_gone", {"source": text("mail")})
    queues.rejected(json.dumps({**ticket, "customer_id": "C-8"}), "object_gone")
    queues.rejected("not json", "message_invalid")
    queues.redriven("redriven")
    chosen = {
        "object_gone": ["--reason", "object_gone"],
        "redriven": ["--reason", "redriven", "--reason", "nothing_has_this"],
        "C-7": ["--match", "body.customer_id == 'C-7'"],
        "mail": ["--match", "attributes.source == 'mail'"],
        "old": ["--older-than", "1h"],
        "new": ["--newer-than", "1h"],
    }
    counts = {}
    for name, options in chosen.items():
        result = queues.run("count", "--json", *options, *SOON)
        assert result.exit_code == 0, result.output
        counts[name] = sum(json.loads(line)["messages"] for line in result.stdout.splitlines())
        assert queues.visible(queues.dead) == 4  # seen by others again at once
    assert counts == {"object_gone": 2, "redriven": 1, "C-7": 1, "mail": 1, "old": 0, "new": 4}
    result = queues.run("--yes", "--match", "body.customer_id == 'C-8'", *SOON)
    assert "1 of 1 chosen messages sent (4 looked at)" in result.stdout
    assert queues.visible(queues.dead) == 3
    assert queues.visible(queues.live) == 1


def test_what_an_expression_cannot_be_asked_of_and_what_others_hold_is_said(queues: Queues) -> None:
    queues.redriven('{"subject": "xyz"}', '{"subject": 7}', "held by somebody")
    held = queues.sqs.receive_message(QueueUrl=queues.dead, MaxNumberOfMessages=3, VisibilityTimeout=60)["Messages"]
    for message in held[:2]:
        queues.sqs.change_message_visibility(
            QueueUrl=queues.dead, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
        )
    result = queues.run("--yes", "--match", "contains(body.subject, 'x')", *SOON)
    assert result.exit_code == 0
    assert "1 of 1 chosen messages sent (2 looked at)" in result.stdout
    assert "--match could not be asked of 1 messages: contains() cannot take number" in result.stderr
    assert "about 1 messages were in other hands" in result.stderr
    result = queues.run("--yes", "--match", "body.subject && nothing(body)", *SOON)
    assert result.exit_code == 2
    assert result.stderr.startswith("dlq-replay: --match: Unknown function: nothing()")
    assert queues.visible(queues.dead) == 1


def test_a_message_by_its_id(queues: Queues) -> None:
    names = queues.redriven("one", "two", "three")
    source_id = queues.rejected("four", "object_gone")
    result = queues.run("--yes", "--message-id", names[1], "--message-id", source_id, *SOON)
    assert result.exit_code == 0, result.output
    assert bodies(queues.taken(queues.live)) == Counter(["two", "four"])
    assert queues.visible(queues.dead) == 2


def test_count_asks_sqs_only(queues: Queues) -> None:
    queues.redriven("one", "two")
    name = queues.dead.rpartition("/")[2]
    result = queues.run("count")
    assert table(result) == [[name, "visible", "2"], [name, "hidden", "0"], [name, "delayed", "0"]]
    (message, _) = queues.taken(queues.dead)
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"


def test_peek_shows_why_and_takes_nothing(queues: Queues) -> None:
    source_id = queues.rejected('{"ticket_id": "T-1", "subject": "secret"}', "object_gone")
    result = queues.run("peek", *SOON)
    assert result.exit_code == 0
    ((sent, reason, replays, name, subject, why),) = table(result)
    assert (reason, replays, subject, why) == ("object_gone", "0", "a ticket of 41 bytes", "it is object_gone")
    assert sent.endswith("Z")
    assert "secret" not in result.output
    (whole,) = [json.loads(line) for line in queues.run("peek", "--json", "--limit", "1").stdout.splitlines()]
    assert whole["message_id"] == name
    assert whole["rejection"]["message_id"] == source_id
    assert "secret" in whole["body"]
    assert queues.visible(queues.dead) == 1


def test_a_dry_run_groups_by_reason_and_sends_nothing(queues: Queues, tmp_path: Path) -> None:
    for number in range(3):
        queues.rejected(f"gone {number}", "object_gone")
    queues.redriven("redriven")
    result = queues.run("--dry-run", "--audit", str(tmp_path / "audit"), *SOON)
    assert result.exit_code == 0
    assert [row[:2] for row in table(result)] == [["object_gone", "3"], ["redriven", "1"]]
    assert "4 of 4 messages chosen; nothing was sent" in result.stderr
    assert not (tmp_path / "audit").exists()
    assert queues.visible(queues.dead) == 4
    assert queues.visible(queues.live) == 0


def test_queues_that_do_not_belong_together_are_refused(queues: Queues) -> None:
    queues.redriven("one")
    for arguments, said in [
        (["--destination", queues.dead], "source and destination are both"),
        (["--source", queues.live], "source and destination are both"),
        (["--source", queues.live_arn, "--destination", queues.dead_arn], "is not the dead-letter queue of"),
        (["--destination", "no-such-queue"], "check the queue's name"),
    ]:
        result = queues.run("--yes", *arguments, *SOON)
        assert result.exit_code == (1 if "no-such" in arguments[-1] else 2), result.output
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
    assert queues.visible(queues.dead) == 1
    assert queues.run("--yes", "--dry-run", "--destination", queues.dead, *SOON).exit_code == 2


def test_force_sends_anywhere_even_into_the_same_queue(queues: Queues, stack: EmbeddedStack) -> None:
    queues.redriven("one", "two")
    assert queues.run("--yes", "--force", "--destination", queues.dead, *SOON).exit_code == 0
    found = queues.taken(queues.dead)
    assert bodies(found) == Counter(["one", "two"])
    assert all(message["MessageAttributes"]["ReplayCount"] == text("1", "Number") for message in found)
    queues.redriven("three")
    other = Queues(stack)
    assert queues.run("--yes", "--force", "--destination", other.live_arn, "--limit", "1").exit_code == 0
    assert bodies(queues.taken(other.live)) == Counter(["three"])
    other.delete()


def test_a_fifo_queue_gets_its_messages_in_order_though_they_are_replayed_at_once(stack: EmbeddedStack) -> None:
    queues = Queues(stack, fifo=True)
    sent = [f"{group}{number}" for number in range(6) for group in "ab"]
    for body in sent:
        # As when the first delivery was a moment ago: the same deduplication id would be dropped now.
        for url in (queues.live, queues.dead):
            queues.sqs.send_message(
                QueueUrl=url, MessageBody=body, MessageGroupId=body[0], MessageDeduplicationId=f"id-{body}"
            )
    assert len(queues.taken(queues.live)) == 12
    result = queues.run("--yes", "--reason", "redriven", *SOON)
    assert result.exit_code == 0, result.output
    assert "in a FIFO queue, what stands behind a message that is not chosen cannot be seen" in result.stderr
    found = [message["Body"] for message in queues.taken(queues.live)]
    assert [body for body in found if body[0] == "a"] == [body for body in sent if body[0] == "a"]
    assert Counter(found) == Counter(sent)
    queues.delete()


def test_a_slow_replay_keeps_hidden_what_it_holds(queues: Queues) -> None:
    queues.redriven(*(f"body {number}" for number in range(10)))
    seen: list[Any] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.05):
            seen.extend(queues.sqs.receive_message(QueueUrl=queues.dead, VisibilityTimeout=0).get("Messages", []))

    other = threading.Thread(target=look)
    begun = time.monotonic()
    with Proxy(queues.stack.endpoint_url) as proxy:
        proxy.after = lambda operation: (
            other.start() if proxy.calls.count("ReceiveMessage") == 1 and not other.ident else None
        )
        result = queues.run(
            "--yes", "--rate", "2.5", "--hidden", "1", "--limit", "10", "--json", endpoint_url=proxy.url
        )
    stop.set()
    other.join()
    assert result.exit_code == 0, result.output
    assert time.monotonic() - begun > 3  # ten of them in groups of two, at 2.5 a second
    assert proxy.calls.count("ChangeMessageVisibilityBatch") >= 2
    assert seen == []
    assert bodies(queues.taken(queues.live)) == Counter(f"body {number}" for number in range(10))


def test_an_audit_file_says_what_was_done_and_finishes_what_was_not(queues: Queues, tmp_path: Path) -> None:
    names = queues.redriven(*(f"body {number}" for number in range(12)))
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
    result = queues.run("--yes", "--audit", str(audit), *SOON)
    assert result.exit_code == 0, result.output
    assert "10 had been sent by an earlier run and were only deleted" in result.stdout
    assert bodies(queues.taken(queues.live)) == Counter(f"body {number}" for number in range(12))
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [line["event"] for line in lines].count("begin") == 2
    assert {line["message_id"] for line in lines if line["event"] == "deleted"} == set(names)
    assert "body" not in audit.read_text().replace("ticket", "")
    result = queues.run(
        "--yes", "--audit", str(audit), "--source", queues.live, "--destination", queues.dead, "--force"
    )
    assert result.exit_code == 2
    assert "is the audit file of" in result.stderr


class Process:
    """The command in a process of its own, on a terminal."""

    def __init__(self, queues: Queues, endpoint_url: str, *arguments: str) -> None:
        self._terminal, inner = pty.openpty()
        environment = {**os.environ, **queues.environment(endpoint_url), "TERM": "xterm", "COLUMNS": "100"}
        command = [sys.executable, "-m", "handler.replay", *arguments]
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
        deadline = time.monotonic() + 30
        while words not in self.said:
            assert time.monotonic() < deadline, f"{words!r} was never said: {self.said}"
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
        except OSError:  # how a terminal ends on Linux
            return


def test_it_asks_before_it_sends_and_shows_a_bar(queues: Queues) -> None:
    queues.redriven(*(f"body {number}" for number in range(12)))
    refused = Process(queues, queues.stack.endpoint_url, *SOON)
    refused.until("send all of them to")
    refused.type("n")
    assert refused.end() == (1, "")
    assert "nothing was sent" in refused.said
    assert queues.visible(queues.dead) == 12
    agreed = Process(queues, queues.stack.endpoint_url, "--rate", "10", *SOON)
    agreed.until("About 12 messages")
    agreed.type("y")
    code, out = agreed.end()
    assert (code, out) == (0, "12 of 12 chosen messages sent (12 looked at)\n")
    assert "12/12" in agreed.said
    assert "/s" in agreed.said


def test_without_a_terminal_it_wants_yes(queues: Queues) -> None:
    queues.redriven("one")
    result = queues.run(*SOON)
    assert result.exit_code == 2
    assert result.stderr == "dlq-replay: there is no terminal to ask on; give --yes\n"
    assert queues.visible(queues.dead) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_the_batch_in_hand_and_gives_the_rest_back(queues: Queues, number: int) -> None:
    for name in range(25):
        queues.redriven(f"body {name}")
    with Proxy(queues.stack.endpoint_url) as proxy:
        process = Process(queues, proxy.url, "--yes", "--rate", "5", "--hidden", "600", "--json")

        def interrupt(operation: str) -> None:
            # In the middle of a batch: it has been sent, and the process does not know it yet.
            if operation == "SendMessageBatch" and proxy.calls.count(operation) == 2:
                process.process.send_signal(number)
                time.sleep(0.2)

        proxy.after = interrupt
        code, out = process.end()
    metrics = json.loads(out)
    assert code == 1
    assert (metrics["replayed"], metrics["interrupted"], metrics["complete"]) == (10, True, False)
    assert "finishing the batch in hand" in process.said
    assert queues.visible(queues.live) == 10
    assert queues.visible(queues.dead) == 15
    assert not bodies(queues.taken(queues.live)) & bodies(queues.taken(queues.dead))


def test_a_second_interrupt_ends_at_once(queues: Queues) -> None:
    queues.redriven(*(f"body {number}" for number in range(12)))
    with Proxy(queues.stack.endpoint_url) as proxy:
        process = Process(queues, proxy.url, "--yes", "--wait", "20")
        held = threading.Event()

        def hang(operation: str) -> None:
            if operation == "SendMessageBatch":
                process.process.send_signal(signal.SIGINT)
                process.until("once more ends at once")
                process.process.send_signal(signal.SIGINT)
                held.wait(30)

        proxy.before = hang
        code, _ = process.end()
        held.set()
    assert code == 1
    assert "ended at once" in process.said
    assert queues.visible(queues.dead) == 2  # what was in hand comes back by itself


def test_native_hands_over_to_sqs(queues: Queues) -> None:
    """The embedded stack has no move tasks: a stand-in moves the messages by the calls that it has."""
    queues.redriven(*(f"body {number}" for number in range(4)))
    started: list[dict[str, Any]] = []
    looks = iter([("RUNNING", 0), ("COMPLETED", 4)])

    def start(request: dict[str, Any]) -> dict[str, Any]:
        started.append(request)
        for message in queues.taken(queues.dead):
            queues.sqs.send_message(QueueUrl=queues.live, MessageBody=message["Body"])
        return {"TaskHandle": "handle"}

    def state(request: dict[str, Any]) -> dict[str, Any]:
        status, moved = next(looks)
        numbers = {"ApproximateNumberOfMessagesMoved": moved, "ApproximateNumberOfMessagesToMove": 4}
        return {"Results": [{"Status": status, "StartedTimestamp": 1, "SourceArn": queues.dead_arn, **numbers}]}

    with Proxy(queues.stack.endpoint_url) as proxy:
        proxy.answers = {"StartMessageMoveTask": start, "ListMessageMoveTasks": state}
        result = queues.run("--native", "--yes", "--rate", "50", endpoint_url=proxy.url)
    assert result.exit_code == 0, result.output
    assert result.stdout == "4 of about 4 messages moved; COMPLETED\n"
    arns = {"SourceArn": queues.dead_arn, "DestinationArn": queues.live_arn}
    assert started == [{**arns, "MaxNumberOfMessagesPerSecond": 50}]
    assert queues.visible(queues.live) == 4


def test_native_without_sqs_agreeing_is_an_error_in_one_line(queues: Queues) -> None:
    result = queues.run("--native", "--yes")
    assert result.exit_code == 1
    assert result.stderr.startswith("dlq-replay: StartMessageMoveTask: ")
    assert result.stderr.count("\n") == 1


def test_the_queue_of_the_port_is_the_queue_of_the_stack(queues: Queues) -> None:
    queue = SqsQueue(queues.sqs, queues.dead)
    sent = queue.send([{"MessageBody": "one"}, {"MessageBody": "bad \x00"}, {"MessageBody": "two"}])
    assert [answer.message_id is not None for answer in sent] == [True, False, True]
    assert not sent[1].transient
    letters = queue.receive(30, 1)
    assert {letter.message_id for letter in letters} == {sent[0].message_id, sent[2].message_id}
    assert queue.receive(30, 1) == []
    assert queue.change_visibility([letters[0].receipt, "nonsense"], 0) == [True, False]
    (again,) = queue.receive(30, 1)
    assert again.message_id == letters[0].message_id
    assert queue.delete([again.receipt, "nonsense"]) == [True, False]
    assert queue.attributes().hidden == 1
