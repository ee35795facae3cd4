"""Faults of calls to AWS: error responses, broken connections, missing responses, partially failed batches."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias
from urllib.parse import unquote


@dataclass(frozen=True, slots=True)
class Call:
    """A call as seen on the wire.

    `name` is the operation for SQS and DynamoDB, the HTTP method for S3. `subject` is the object's bucket and key, the
    ticket's id or a hash of the message's body; it is empty for batch calls.
    """

    name: str
    service: str
    subject: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """A response: status, headers, body."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """AWS responds with an error code; the call has no effect."""

    status: int
    code: str

    def reply(self, call: Call) -> Reply:
        """The error in the format of the call's service."""
        if call.service == "s3":
            text = f"<Error><Code>{self.code}</Code><Message>injected by a test</Message></Error>"
            return Reply(self.status, {"Content-Type": "application/xml"}, text.encode())
        error = {"__type": f"com.amazonaws.{call.service}#{self.code}", "message": "injected by a test"}
        headers = {"Content-Type": "application/x-amz-json-1.0", "x-amzn-errortype": self.code}
        return Reply(self.status, headers, json.dumps(error).encode())


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The connection breaks: before AWS receives the call, or (`delivered`) after this `share` of the response."""

    delivered: bool
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Stall:
    """No data for this number of seconds, then the connection breaks.

    AWS may have received the call (`delivered`), and this `share` of its response may have been sent before.
    """

    seconds: float
    delivered: bool
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class PartialFailure:
    """In an SQS batch, each entry with number % `by` == `rest` fails; the others succeed."""

    by: int = 2
    rest: int = 1

    def split(self, call: Call) -> tuple[bytes, list[str]]:
        """The request with the entries for SQS (empty if all fail), and the ids of the other entries."""
        request = json.loads(call.body)
        kept = [entry for number, entry in enumerate(request["Entries"]) if number % self.by != self.rest]
        refused = [entry["Id"] for number, entry in enumerate(request["Entries"]) if number % self.by == self.rest]
        return (json.dumps({**request, "Entries": kept}).encode() if kept else b""), refused

    def join(self, reply: Reply | None, refused: Sequence[str]) -> Reply:
        """The response with the refused entries added to the failed ones."""
        answer = json.loads(reply.content) if reply else {}
        injected = {"Code": "InternalError", "Message": "injected by a test", "SenderFault": False}
        failed = [*answer.get("Failed", []), *({"Id": name, **injected} for name in refused)]
        content = json.dumps({"Successful": [], **answer, "Failed": failed}).encode()
        return Reply(200, {"Content-Type": "application/x-amz-json-1.0"}, content)


Fault: TypeAlias = ErrorResponse | Disconnect | Stall | PartialFailure


@dataclass(frozen=True, slots=True)
class Rule:
    """Faults for the calls that `matches` accepts.

    A subject is affected with this `probability`. Its first calls fail, as many as a random choice of `times` (drawn
    once per subject), each with one of `kinds`; later calls succeed. Without a subject, each call counts as its own.
    """

    matches: Callable[[Call], bool]
    probability: float
    times: tuple[int, ...]
    kinds: tuple[Fault, ...]


@dataclass
class FaultPlan:
    """Chooses the fault of each call from a seed, independently of the order in which threads make their calls.

    The choice depends only on the seed, the rule, the subject and the number of earlier calls.
    """

    seed: int
    rules: Sequence[Rule]
    injected: Counter[str] = field(default_factory=Counter)
    _calls: Counter[tuple[int, str]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, call: Call) -> Fault | None:
        """The fault for this call, or None. A batch read has the fault of the first of its tickets that has one."""
        return next((fault for fault in map(self._fault, _calls_in(call)) if fault is not None), None)

    def _fault(self, call: Call) -> Fault | None:
        for number, rule in enumerate(self.rules):
            if rule.matches(call):
                with self._lock:
                    made = self._calls[number, call.subject]
                    self._calls[number, call.subject] += 1
                fault = self._fault_for(number, rule, call, made)
                if fault is not None:
                    with self._lock:
                        self.injected[f"{call.name} {_describe(fault)}"] += 1
                return fault
        return None

    def times(self, number: int, subject: str) -> int:
        """How many calls in a row fail for a subject by rule `number`."""
        rule, rng = self.rules[number], random.Random(f"{self.seed}/{number}/{subject}")
        return rng.choice(rule.times) if rng.random() < rule.probability else 0

    def _fault_for(self, number: int, rule: Rule, call: Call, made: int) -> Fault | None:
        subject = call.subject or str(made)
        if (0 if not call.subject else made) >= self.times(number, subject):
            return None
        return random.Random(f"{self.seed}/{number}/{subject}/{made}").choice(rule.kinds)


def read_call(method: str, path: str, target: str | None, body: bytes) -> Call:
    """Parse a boto3 request."""
    if target is None:
        return Call(method, "s3", unquote(path.partition("?")[0]).lstrip("/"), body)
    service, _, name = target.rpartition(".")
    request: dict[str, Any] = json.loads(body)
    if service.startswith("DynamoDB"):
        # The first ticket of a batch read; FaultPlan looks at the others too.
        read = [key for table in request.get("RequestItems", {}).values() for key in table["Keys"]]
        key: dict[str, Any] = request.get("Key") or request.get("Item") or next(iter(read), {})
        return Call(name, "dynamodb", key.get("ticket_id", {}).get("S", ""), body)
    text = request.get("MessageBody", "")
    return Call(name, "sqs", hashlib.sha256(text.encode()).hexdigest()[:16] if text else "", body)


def _calls_in(call: Call) -> list[Call]:
    """A call for each subject: a batch read asks for the items of several tickets, and for their tombstones."""
    if call.name != "BatchGetItem" or not call.body:
        return [call]
    keys = [key for table in json.loads(call.body)["RequestItems"].values() for key in table["Keys"]]
    return [replace(call, subject=key["ticket_id"]["S"]) for key in keys]


def _describe(fault: Fault) -> str:
    match fault:
        case ErrorResponse(code=code):
            return f"refused ({code})"
        case Disconnect(delivered=False):
            return "reset"
        case Disconnect(share=0):
            return "response lost"
        case Disconnect():
            return "response truncated"
        case Stall():
            return "stalled"
        case PartialFailure():
            return "half failed"
