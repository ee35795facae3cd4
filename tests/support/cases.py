"""The sample events as test cases, and the one runner that holds whatever runs the handler to what they expect.

`events/NAME.json` is an event as Lambda hands it over, `events/expected/NAME.json` says which objects lie in the raw
bucket before, and how each record ends. A runner brings two things: `invoke`, which gives an event to the handler, and
a `Harness`, which is where that handler reads and writes.
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
    """One sample event and what is expected of it; `outcomes` are in the order of the event's records."""

    name: str
    description: str
    event: dict[str, Any]
    objects: dict[str, bytes]
    outcomes: list[dict[str, Any]]
    failures: list[dict[str, str]]

    def event_for(self, bucket: str) -> dict[str, Any]:
        """The event as it is where the raw bucket has that name."""
        records = [{**record, "body": record["body"].replace(BUCKET, bucket)} for record in self.event["Records"]]
        return {**self.event, "Records": records}


@dataclass(frozen=True)
class DeadLetter:
    """A message in the dead-letter queue; text attributes as texts, binary ones as bytes."""

    body: str
    attributes: dict[str, str | bytes]

    @classmethod
    def take_all(cls, sqs: Any, url: str) -> list[DeadLetter]:
        """Takes what lies in a queue."""
        letters = []
        while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]).get(
            "Messages"
        ):
            for message in messages:
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
                attributes = message.get("MessageAttributes", {})
                values = {name: a.get("StringValue", a.get("BinaryValue")) for name, a in attributes.items()}
                letters.append(cls(message["Body"], values))
        return letters

    @property
    def rejection(self) -> dict[str, Any]:
        """Why it is there."""
        return dict(json.loads(self.attributes["Rejection"]))


@dataclass(frozen=True)
class Answer:
    """What an invocation gave: the function's response, and what it wrote to its log."""

    response: Any
    log: str

    def lines(self) -> list[dict[str, Any]]:
        """The log's JSON objects, whatever else stands between them."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def tickets(self, message_id: str) -> list[dict[str, Any]]:
        """The lines that tell of the tickets of a message."""
        return [x for x in self.lines() if x.get("message") == "ticket" and x["message_id"] == message_id]


Invoke = Callable[[dict[str, Any]], Answer]


class Harness(Protocol):
    """Where the handler reads and writes."""

    raw_bucket: str

    def put_object(self, key: str, body: bytes) -> None:
        """Puts an object into the raw bucket."""
        ...

    def item(self, ticket_id: str, created_at: int) -> Mapping[str, Any] | None:
        """What the table holds of a ticket, as plain values."""
        ...

    def object(self, key: str, version_id: str) -> bytes:
        """A version of an object in the bucket of enriched tickets."""
        ...

    def forget(self, ticket_id: str, created_at: int) -> None:
        """Removes the item of a ticket, so that a case can be run again."""
        ...

    def dead_letters(self) -> Sequence[DeadLetter]:
        """What has come into the dead-letter queue since this was last asked."""
        ...


def load_cases(folder: Path = EVENTS) -> list[Case]:
    """All cases, by name. Raises AssertionError where an event and its expectation do not belong together."""
    names = {path.stem for path in folder.glob("*.json")}
    expected = {path.stem for path in (folder / "expected").glob("*.json")}
    _same("events with an expectation beside them", expected, names)
    return [_case(folder, name) for name in sorted(names)]


def run_case(case: Case, invoke: Invoke, harness: Harness) -> Answer:
    """Runs a case and checks everything that it expects. Raises AssertionError."""
    for key, body in case.objects.items():
        harness.put_object(key, body)
    for expected in case.outcomes:
        for ticket in expected.get("tickets", ()):
            harness.forget(ticket["ticket_id"], ticket["created_at"])
    harness.dead_letters()
    event = case.event_for(harness.raw_bucket)
    answer = invoke(event)
    _same("response", answer.response, {"batchItemFailures": case.failures})
    letters = list(harness.dead_letters())
    rejected = [e for e in case.outcomes if e["outcome"] == "rejected"]
    _same("number of dead letters", len(letters), len(rejected))
    for record, expected in zip(event["Records"], case.outcomes, strict=True):
        _check_log(answer.tickets(record["messageId"]), expected)
        if expected["outcome"] == "rejected":
            _check_letter(record, expected, letters)
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
    """An object's bytes: a text as it stands, anything else as JSON, base64, or a text with a part many times over."""
    if "base64" in spec:
        return base64.b64decode(spec["base64"], validate=True)
    if "repeat" in spec:
        part = spec["repeat"]
        return f"{part['before']}{part['text'] * part['times']}{part['after']}".encode()
    body: object = spec["body"]
    return (body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)).encode()


def _check_log(lines: Sequence[Mapping[str, Any]], expected: Mapping[str, Any]) -> None:
    outcomes = {line["outcome"] for line in lines}
    found = next((outcome for outcome in _ORDER if outcome in outcomes), "none that the log tells of")
    _same("outcome", found, expected["outcome"])
    if expected["outcome"] == "done":
        _same("tickets that are done", [line["outcome"] for line in lines], ["done"] * len(expected["tickets"]))
    _same("notes", [line["note"] for line in lines if "note" in line], expected.get("notes", []))
    wrong = [line for line in lines if line["outcome"] in {"rejected", "failed"}]
    for line, error in zip(wrong, expected.get("errors", ()), strict=True):
        told = {"error": line["error_type"], **{name: line.get(name) for name in error if name != "error"}}
        _same("error in the log", told, error)


def _check_letter(record: Mapping[str, Any], expected: Mapping[str, Any], letters: Iterable[DeadLetter]) -> None:
    (letter,) = [letter for letter in letters if letter.rejection["message_id"] == record["messageId"]]
    _same("body of the dead letter", letter.body, record["body"])
    _same("Reason", letter.attributes["Reason"], expected["reason"])
    own = {name: value for name, value in letter.attributes.items() if name not in {"Reason", "Rejection"}}
    _same("attributes of the sender", own, expected.get("attributes", {}))
    _same("fields of Rejection", set(letter.rejection), {"message_id", "first_sent", "rejected_at", "errors"})
    for error, wanted in zip(letter.rejection["errors"], expected["errors"], strict=True):
        if not error.pop("detail"):
            raise AssertionError(f"the error says nothing to people: {error}")
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
    # Not a bare assert: this module also serves where pytest rewrites none.
    if found != expected:
        raise AssertionError(f"{what}: found {found!r}, expected {expected!r}")
