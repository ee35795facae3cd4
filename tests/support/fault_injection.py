"""What may befall a call on its way to AWS: a refusal, a connection that breaks, silence, half of a batch."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import unquote


@dataclass(frozen=True, slots=True)
class Call:
    """A call as the wire shows it.

    `name` is the operation as SQS and DynamoDB name it, for S3 the HTTP method; `subject` is what it is about: the
    object's bucket and key, the ticket's id, a hash of the message's body, nothing for what speaks of many.
    """

    name: str
    service: str
    subject: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: status, headers, body."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """AWS answers, but with an error of that code; the call has no effect."""

    status: int
    code: str

    def reply(self, call: Call) -> Reply:
        """The error as the service of the call words it."""
        if call.service == "s3":
            text = f"<Error><Code>{self.code}</Code><Message>made up by a test</Message></Error>"
            return Reply(self.status, {"Content-Type": "application/xml"}, text.encode())
        error = {"__type": f"com.amazonaws.{call.service}#{self.code}", "message": "made up by a test"}
        headers = {"Content-Type": "application/x-amz-json-1.0", "x-amzn-errortype": self.code}
        return Reply(self.status, headers, json.dumps(error).encode())


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection breaks: before the call is `heard` by AWS, or after, when that `share` of the answer was sent."""

    heard: bool
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Stall:
    """Silence for so many seconds, then the connection breaks.

    AWS may have `heard` the call all the same, and that `share` of its answer may have come before.
    """

    seconds: float
    heard: bool
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Share:
    """Of a batch of SQS every entry whose number leaves `rest` when divided by `by` fails, the others succeed."""

    by: int = 2
    rest: int = 1

    def split(self, call: Call) -> tuple[bytes, list[str]]:
        """The request with what SQS shall hear of (nothing: all fails), and the ids of the other entries."""
        request = json.loads(call.body)
        kept = [entry for number, entry in enumerate(request["Entries"]) if number % self.by != self.rest]
        refused = [entry["Id"] for number, entry in enumerate(request["Entries"]) if number % self.by == self.rest]
        return (json.dumps({**request, "Entries": kept}).encode() if kept else b""), refused

    def join(self, reply: Reply | None, refused: Sequence[str]) -> Reply:
        """The answer, with the refused entries among the failed ones."""
        answer = json.loads(reply.content) if reply else {}
        made_up = {"Code": "InternalError", "Message": "made up by a test", "SenderFault": False}
        failed = [*answer.get("Failed", []), *({"Id": name, **made_up} for name in refused)]
        content = json.dumps({"Successful": [], **answer, "Failed": failed}).encode()
        return Reply(200, {"Content-Type": "application/x-amz-json-1.0"}, content)


Fault: TypeAlias = Refusal | Cut | Stall | Share


@dataclass(frozen=True, slots=True)
class Rule:
    """What may befall the calls that `fits` accepts.

    Of their subjects a share of `odds` is struck, each as often in a row as `times` says (drawn once per subject; the
    calls after that succeed), by one of `kinds` each time. Where calls have no subject, every call is one.
    """

    fits: Callable[[Call], bool]
    odds: float
    times: tuple[int, ...]
    kinds: tuple[Fault, ...]


@dataclass
class FaultPlan:
    """Decides by its seed what befalls each call, however the calls of several threads follow each other.

    What strikes a subject depends only on the seed, the rule, the subject and how often the call was made before.
    """

    seed: int
    rules: Sequence[Rule]
    struck: Counter[str] = field(default_factory=Counter)
    _calls: Counter[tuple[int, str]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, call: Call) -> Fault | None:
        """What befalls this call, if anything."""
        for number, rule in enumerate(self.rules):
            if rule.fits(call):
                with self._lock:
                    made = self._calls[number, call.subject]
                    self._calls[number, call.subject] += 1
                fault = self._strikes(number, rule, call, made)
                if fault is not None:
                    with self._lock:
                        self.struck[f"{call.name} {_word(fault)}"] += 1
                return fault
        return None

    def times(self, number: int, subject: str) -> int:
        """How often in a row rule `number` strikes the calls about a subject."""
        rule, chance = self.rules[number], random.Random(f"{self.seed}/{number}/{subject}")
        return chance.choice(rule.times) if chance.random() < rule.odds else 0

    def _strikes(self, number: int, rule: Rule, call: Call, made: int) -> Fault | None:
        subject = call.subject or str(made)
        if (0 if not call.subject else made) >= self.times(number, subject):
            return None
        return random.Random(f"{self.seed}/{number}/{subject}/{made}").choice(rule.kinds)


def read_call(method: str, path: str, target: str | None, body: bytes) -> Call:
    """What a request of boto3 asks for."""
    if target is None:
        return Call(method, "s3", unquote(path.partition("?")[0]).lstrip("/"), body)
    service, _, name = target.rpartition(".")
    request: dict[str, Any] = json.loads(body)
    if service.startswith("DynamoDB"):
        named = request.get("Key") or request.get("Item") or {}
        return Call(name, "dynamodb", named.get("ticket_id", {}).get("S", ""), body)
    text = request.get("MessageBody", "")
    return Call(name, "sqs", hashlib.sha256(text.encode()).hexdigest()[:16] if text else "", body)


def _word(fault: Fault) -> str:
    match fault:
        case Refusal(code=code):
            return f"refused ({code})"
        case Cut(heard=False):
            return "reset"
        case Cut(share=0):
            return "answer lost"
        case Cut():
            return "answer cut"
        case Stall():
            return "stalled"
        case Share():
            return "half failed"
