"""The sample events as test cases, and the runner that every test suite uses for them.

`events/NAME.json` is an event as Lambda passes it, `events/expected/NAME.json` lists the objects that the raw bucket
contains beforehand and the outcome of each record. A suite supplies two things: `invoke`, which passes an event to
the handler, and a `Harness`, which gives access to the handler's stores and queues.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from handler.compression import decompress

EVENTS = Path(__file__).resolve().parents[2] / "events"
BUCKET = "tickets-raw"  # the raw bucket's name in all events

_ORDER = ("failed", "rejected", "done", "skipped")
_IN_THE_TABLE = (
    "intent",
    "intent_confidence",
    "urgency",
    "urgency_confidence",
    "sentiment",
    "sentiment_confidence",
    "summary",
    "processed_at",
    "model_version",
    "needs_review",
)


@dataclass(frozen=True)
class Case:
    """One sample event and its expected outcomes, which are in the order of the event's records."""

    name: str
    description: str
    event: dict[str, Any]
    objects: dict[str, bytes]
    outcomes: list[dict[str, Any]]
    failures: list[dict[str, str]]

    def event_for(self, bucket: str) -> dict[str, Any]:
        """The event with this name of the raw bucket."""
        records = [{**record, "body": record["body"].replace(BUCKET, bucket)} for record in self.event["Records"]]
        return {**self.event, "Records": records}


@dataclass(frozen=True)
class RejectedMessage:
    """A message in the DLQ; string attributes as str, binary ones as bytes."""

    body: str
    attributes: dict[str, str | bytes]

    @classmethod
    def receive_all(cls, sqs: Any, url: str) -> list[RejectedMessage]:
        """Receive and delete all messages of a queue."""
        received = []
        while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]).get(
            "Messages"
        ):
            for message in messages:
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
                attributes = message.get("MessageAttributes", {})
                values = {name: a.get("StringValue", a.get("BinaryValue")) for name, a in attributes.items()}
                received.append(cls(message["Body"], values))
        return received

    @property
    def rejection(self) -> dict[str, Any]:
        """The reason why it was rejected."""
        return dict(json.loads(self.attributes["Rejection"]))


@dataclass(frozen=True)
class Answer:
    """The result of an invocation: the function's response and its log."""

    response: Any
    log: str

    def lines(self) -> list[dict[str, Any]]:
        """The JSON objects in the log; other lines are skipped."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def tickets(self, message_id: str) -> list[dict[str, Any]]:
        """The log lines for the tickets of a message."""
        return [x for x in self.lines() if x.get("message") == "ticket" and x["message_id"] == message_id]


Invoke = Callable[[dict[str, Any]], Answer]


class Harness(Protocol):
    """Access to the stores and queues of a handler."""

    raw_bucket: str

    def put_object(self, key: str, body: bytes) -> None:
        """Put an object into the raw bucket."""
        ...

    def item(self, ticket_id: str, created_at: int) -> Mapping[str, Any] | None:
        """The ticket's item in the table as plain values, or None."""
        ...

    def object(self, key: str, version_id: str) -> bytes:
        """A version of an object in the enriched bucket."""
        ...

    def forget(self, ticket_id: str, created_at: int) -> None:
        """Delete the item of a ticket, so that a case can be run again."""
        ...

    def rejected_messages(self) -> Sequence[RejectedMessage]:
        """The messages that arrived in the DLQ since the last call."""
        ...


def load_cases(folder: Path = EVENTS) -> list[Case]:
    """All cases, sorted by name. Raises AssertionError if an event and its expected outcome do not match."""
    names = {path.stem for path in folder.glob("*.json")}
    expected = {path.stem for path in (folder / "expected").glob("*.json")}
    _same("events that have an expected outcome", expected, names)
    return [_case(folder, name) for name in sorted(names)]


def run_case(case: Case, invoke: Invoke, harness: Harness) -> Answer:
    """Run a case and check all its expectations. Raises AssertionError."""
    for key, body in case.objects.items():
        harness.put_object(key, body)
    for expected in case.outcomes:
        for ticket in expected.get("tickets", ()):
            harness.forget(ticket["ticket_id"], ticket["created_at"])
    harness.rejected_messages()
    event = case.event_for(harness.raw_bucket)
    answer = invoke(event)
    _same("response", answer.response, {"batchItemFailures": case.failures})
    dlq_messages = list(harness.rejected_messages())
    rejected = [e for e in case.outcomes if e["outcome"] == "rejected"]
    _same("number of DLQ messages", len(dlq_messages), len(rejected))
    for record, expected in zip(event["Records"], case.outcomes, strict=True):
        _check_log(answer.tickets(record["messageId"]), expected)
        if expected["outcome"] == "rejected":
            _check_dlq_message(record, expected, dlq_messages)
        for ticket in expected.get("tickets", ()):
            _check_ticket(ticket, case.objects, harness)
    return answer


def _case(folder: Path, name: str) -> Case:
    event = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    expected = json.loads((folder / "expected" / f"{name}.json").read_text(encoding="utf-8"))
    _same(f"{name}: outcomes", len(expected["outcomes"]), len(event["Records"]))
    return Case(
        name,
        expected["description"],
        event,
        {spec["key"]: _content(spec) for spec in expected["objects"]},
        expected["outcomes"],
        expected["batchItemFailures"],
    )


def _content(spec: Mapping[str, Any]) -> bytes:
    """An object's bytes: a string as it is, other values as JSON, base64, or a text with a repeated part."""
    if "base64" in spec:
        return base64.b64decode(spec["base64"], validate=True)
    if "repeat" in spec:
        part = spec["repeat"]
        return f"{part['before']}{part['text'] * part['times']}{part['after']}".encode()
    body: object = spec["body"]
    return (body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)).encode()


def _check_log(lines: Sequence[Mapping[str, Any]], expected: Mapping[str, Any]) -> None:
    outcomes = {line["outcome"] for line in lines}
    found = next((outcome for outcome in _ORDER if outcome in outcomes), "none in the log")
    _same("outcome", found, expected["outcome"])
    if expected["outcome"] == "done":
        _same("tickets that are done", [line["outcome"] for line in lines], ["done"] * len(expected["tickets"]))
    _same("notes", [line["note"] for line in lines if "note" in line], expected.get("notes", []))
    wrong = [line for line in lines if line["outcome"] in {"rejected", "failed"}]
    for line, error in zip(wrong, expected.get("errors", ()), strict=True):
        logged = {"error": line["error_type"], **{name: line.get(name) for name in error if name != "error"}}
        _same("error in the log", logged, error)


def _check_dlq_message(
    record: Mapping[str, Any], expected: Mapping[str, Any], dlq_messages: Iterable[RejectedMessage]
) -> None:
    (found,) = [each for each in dlq_messages if each.rejection["message_id"] == record["messageId"]]
    _same("body of the DLQ message", found.body, record["body"])
    _same("Reason", found.attributes["Reason"], expected["reason"])
    own = {name: value for name, value in found.attributes.items() if name not in {"Reason", "Rejection"}}
    _same("attributes of the sender", own, expected.get("attributes", {}))
    _same("fields of Rejection", set(found.rejection), {"message_id", "first_sent", "rejected_at", "errors"})
    for error, wanted in zip(found.rejection["errors"], expected["errors"], strict=True):
        if not error.pop("detail"):
            raise AssertionError(f"the error has no detail: {error}")
        _same("error in Rejection", error, wanted)


def _check_ticket(expected: Mapping[str, Any], objects: Mapping[str, bytes], harness: Harness) -> None:
    name = expected["ticket_id"]
    item = harness.item(name, expected["created_at"])
    if item is None:
        raise AssertionError(f"{name} is not in the table")
    _same(f"{name}: s3_key", item["s3_key"], expected["key"])
    stored = json.loads(harness.object(item["s3_key"], item["s3_version_id"]))
    enrichment = stored["enrichment"]
    _same(f"{name}: ids", [stored["ticket_id"], stored["created_at"]], [name, expected["created_at"]])
    if expected["key"] in objects:
        raw = decompress(objects[expected["key"]], 1024 * 1024)
        _same(f"{name}: content_sha256", item["content_sha256"], hashlib.sha256(raw).hexdigest())
        passed = {
            k: v for k, v in json.loads(raw.decode("utf-8-sig")).items() if k in {"subject", "body", "customer_id"}
        }
        _same(f"{name}: texts", {field: stored[field] for field in passed}, passed)
    for field in _IN_THE_TABLE:
        value = enrichment[field]
        same = math.isclose(item[field], value) if isinstance(value, float) else item[field] == value
        if not same:
            raise AssertionError(f"{name}: {field} is {item[field]!r} in the table and {value!r} in the object")
    length = math.hypot(*enrichment["embedding"])
    wanted = 0.0 if expected.get("embedding") == "zero" else 1.0
    if len(enrichment["embedding"]) != 384 or not math.isclose(length, wanted, abs_tol=1e-4):
        raise AssertionError(f"{name}: the embedding has {len(enrichment['embedding'])} values and length {length}")
    if "summary" not in expected and not enrichment["summary"].endswith((".", "!", "?")):
        raise AssertionError(f"{name}: the summary is {enrichment['summary']!r}")
    for field in ("intent", "urgency", "urgency_confidence", "sentiment", "summary"):
        if field in expected:
            _same(f"{name}: {field}", enrichment[field], expected[field])
    _same(f"{name}: truncated", enrichment["truncated"], expected.get("truncated", []))
    kept = expected.get("kept", {})
    _same(f"{name}: fields passed through", {field: stored.get(field) for field in kept}, kept)


def _same(what: str, found: object, expected: object) -> None:
    # Not a bare assert: pytest does not rewrite assertions of this module in every suite.
    if found != expected:
        raise AssertionError(f"{what}: found {found!r}, expected {expected!r}")
