"""The pipe of template.yaml, evaluated: MiniStack 1.5.33 delivers raw stream records, without filter and template.

`ResultEvents` collects what the pipe delivers to the topic of an embedded stack and applies the template's own filter
and InputTemplate to it, as AWS does before the delivery.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jsonschema
from samtranslator.yaml_helper import yaml_parse

from handler.local import EmbeddedStack

REPO = Path(__file__).resolve().parents[2]
PIPE: dict[str, Any] = yaml_parse((REPO / "template.yaml").read_text(encoding="utf-8"))["Resources"]["ResultPipe"][
    "Properties"
]
PATTERNS: list[dict[str, Any]] = [
    json.loads(each["Pattern"]) for each in PIPE["SourceParameters"]["FilterCriteria"]["Filters"]
]
INPUT_TEMPLATE: str = PIPE["TargetParameters"]["InputTemplate"]
SCHEMA: dict[str, Any] = json.loads((REPO / "events" / "schemas" / "result_event.json").read_text(encoding="utf-8"))
_SHORT = 8  # characters: a shorter text may also be a part of an id
_VALID = jsonschema.Draft202012Validator(SCHEMA)


def matches(pattern: Mapping[str, Any], record: Any) -> bool:
    """EventBridge's pattern matching, with the comparisons that the template and docs/events.md use."""
    for name, expected in pattern.items():
        found = record.get(name) if isinstance(record, Mapping) else None
        if isinstance(expected, Mapping):
            if not matches(expected, found if found is not None else {}):
                return False
        elif not any(_compare(each, found) for each in expected):
            return False
    return True


def _compare(expected: Any, found: Any) -> bool:
    if not isinstance(expected, Mapping):
        return bool(found == expected and type(found) is type(expected))
    ((kind, value),) = expected.items()
    match kind:
        case "exists":
            return (found is not None) is bool(value)
        case "anything-but" if isinstance(value, Mapping):
            return found is not None and not str(found).startswith(value["prefix"])
        case "anything-but":
            return found is not None and found not in (value if isinstance(value, list) else [value])
    raise AssertionError(f"{kind} is not known here")


def is_selected(record: Mapping[str, Any]) -> bool:
    """Whether the pipe's filter passes a stream record."""
    return any(matches(pattern, record) for pattern in PATTERNS)


def rendered(record: Mapping[str, Any], template: str = INPUT_TEMPLATE) -> dict[str, Any]:
    """The InputTemplate with the values of a stream record, each as JSON. Raises KeyError if one does not exist."""

    def value(path: re.Match[str]) -> str:
        found: Any = record
        for step in path[1].split("."):
            found = found[step]
        return json.dumps(found)

    return dict(json.loads(re.sub(r"<\$\.([\w.]+)>", value, template)))


def check_event(event: Mapping[str, Any]) -> None:
    """Raise an error if an event does not fit the committed schema."""
    _VALID.validate(event)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A stream record as the topic delivers it. `seconds` is the time since the commit."""

    record: Mapping[str, Any]
    seconds: float

    @property
    def event(self) -> dict[str, Any] | None:
        """The event, or None if the filter does not pass the record."""
        return rendered(self.record) if is_selected(self.record) else None


def reconcile_events(
    deliveries: Sequence[Delivery],
    items: Mapping[tuple[str, int], Mapping[str, Any]],
    texts: Mapping[str, Sequence[str]],
) -> list[str]:
    """What is wrong with the events of a scenario: its items by key, and what the customers wrote, by ticket id."""
    errors = []
    for delivery in deliveries:
        record, event = delivery.record, delivery.event
        image = record["dynamodb"].get("NewImage", {"created_at": {"N": "-1"}})
        if (event is not None) != (int(image["created_at"]["N"]) >= 0):
            errors.append(
                f"{record['dynamodb']['Keys']}: {record['eventName']} should {'not ' * bool(event)}be an event"
            )
        if event is None:
            continue
        check_event(event)
        ticket_id, written = event["ticket_id"], json.dumps(event, ensure_ascii=False)
        if (ticket_id, int(event["created_at"])) not in items:
            errors.append(f"{ticket_id}: an event of a ticket that is not stored")
        if (event["change"] == "new") != (record["eventName"] == "INSERT"):
            errors.append(f"{ticket_id}: {record['eventName']} as {event['change']}")
        if any(text in written for text in texts.get(ticket_id, ()) if len(text) > _SHORT):
            errors.append(f"{ticket_id}: its event contains text")
    ids = {event["event_id"] for delivery in deliveries if (event := delivery.event) is not None}
    errors += [f"{name}: no event" for name, item in items.items() if item["event"]["id"] not in ids]
    return errors


class ResultEvents:
    """Collects, in a thread, the deliveries of a stack with ResultEvents=topic. A context manager."""

    def __init__(self, stack: EmbeddedStack) -> None:
        self._sqs = stack.client("sqs")
        self._url = self._sqs.create_queue(QueueName="collected-result-events")["QueueUrl"]
        arn = self._sqs.get_queue_attributes(QueueUrl=self._url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        topic = stack.outputs["ResultTopicArn"]
        allow = {"Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": arn}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
        self._sqs.set_queue_attributes(QueueUrl=self._url, Attributes={"Policy": policy})
        stack.client("sns").subscribe(
            TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes={"RawMessageDelivery": "true"}
        )
        self.deliveries: list[Delivery] = []
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._collect, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events so far, each checked against the schema."""
        found = [event for delivery in list(self.deliveries) if (event := delivery.event) is not None]
        for event in found:
            check_event(event)
        return found

    def delay(self) -> float:
        """Seconds from a commit to its event, 99th percentile."""
        delays = sorted(delivery.seconds for delivery in list(self.deliveries) if delivery.event is not None)
        return delays[int(0.99 * (len(delays) - 1))] if delays else 0.0

    def wait_for(self, ids: Sequence[str], seconds: float = 60.0) -> None:
        """Wait until there is an event with each of these ids. Raises AssertionError if one does not arrive in time."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while missing := set(ids) - self._ids():
                assert time.monotonic() < deadline, f"no event: {sorted(missing)[:5]}"
                self._changed.wait(1)

    def _ids(self) -> set[str]:
        return {event["event_id"] for delivery in list(self.deliveries) if (event := delivery.event) is not None}

    def _collect(self) -> None:
        while not self._stop.is_set():
            found = self._sqs.receive_message(QueueUrl=self._url, MaxNumberOfMessages=10, WaitTimeSeconds=1)
            now = time.time()
            messages = found.get("Messages", [])
            if not messages:
                continue
            records = [json.loads(message["Body"]) for message in messages]
            with self._changed:
                self.deliveries += [Delivery(record, now - committed_at(record)) for record in records]
                self._changed.notify_all()
            entries = [{"Id": str(n), "ReceiptHandle": m["ReceiptHandle"]} for n, m in enumerate(messages)]
            self._sqs.delete_message_batch(QueueUrl=self._url, Entries=entries)


def committed_at(record: Mapping[str, Any]) -> float:
    """Unix time of a record: MiniStack's sequence numbers begin with it, in milliseconds."""
    return int(record["dynamodb"]["SequenceNumber"][:20]) / 1000
