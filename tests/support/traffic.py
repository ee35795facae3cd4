"""Seeded messages for the fault suite, each with its expected outcome.

A message enters the queue in one of two ways: an object is uploaded and S3 notifies the queue, or its body is sent.
A sent message has a number as an attribute, an upload has its key: these identify it in the DLQ.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import quote_plus

from events.generator import TicketGenerator
from handler.messages import inline_key
from tests.support.fakes import notification

SEED_VARIABLE = "FAULT_SEED"
START = 1_790_000_000
TEXTS = 200


@dataclass(frozen=True, slots=True)
class ExpectedTicket:
    """A ticket as it must be stored: the raw bytes that were sent, and its key."""

    raw: bytes
    key: str

    @property
    def fields(self) -> dict[str, Any]:
        """The raw ticket."""
        return dict(json.loads(self.raw))

    @property
    def name(self) -> tuple[str, int]:
        """The item's key."""
        return self.fields["ticket_id"], self.fields["created_at"]

    @property
    def sha256(self) -> str:
        """Hash of the raw bytes."""
        return hashlib.sha256(self.raw).hexdigest()


@dataclass(frozen=True, slots=True)
class Message:
    """A message to send to the queue.

    `marker` is its number, or the key of the uploaded object; `body` is the text to send, `upload` the object to put
    (and to delete immediately if `gone`). SQS delays a sent message by `delay` seconds. In the end all tickets in
    `expected` are enriched; if there are `reasons`, the message is in the DLQ with one of them (None: moved by SQS,
    without a reason).
    """

    marker: str
    body: str | None = None
    upload: bytes | None = None
    gone: bool = False
    delay: int = 0
    expected: tuple[ExpectedTicket, ...] = ()
    reasons: tuple[str | None, ...] = ()


class Traffic:
    """Creates messages; every ticket has a unique id and one of TEXTS short texts."""

    def __init__(self, seed: int, bucket: str) -> None:
        self.rng = random.Random(f"traffic/{seed}")
        self.bucket = bucket
        self._numbers = count()
        made = TicketGenerator(seed=seed, start=START)
        self._texts = [next(made) for _ in range(TEXTS)]

    def ticket(self, **fields: Any) -> dict[str, Any]:
        """A raw ticket."""
        number = next(self._numbers)
        text = self.rng.choice(self._texts)
        return {
            **text,
            "ticket_id": f"FLT-{number:06d}",
            "body": text["body"][:160],
            "created_at": START + number,
            **fields,
        }

    def inline(self, ticket: dict[str, Any] | None = None) -> Message:
        """A ticket as a message."""
        ticket = ticket or self.ticket()
        body = json.dumps(ticket, ensure_ascii=False)
        expected = ExpectedTicket(body.encode(), inline_key(ticket["ticket_id"], ticket["created_at"]))
        return self.sent(body, expected)

    def uploaded(self, ticket: dict[str, Any] | None = None, key: str | None = None) -> Message:
        """A ticket as an object."""
        ticket = ticket or self.ticket()
        key = key or f"2026/{ticket['ticket_id']} a+b&c.json"
        raw = json.dumps(ticket, ensure_ascii=False).encode()
        return Message(key, upload=raw, expected=(ExpectedTicket(raw, key),))

    def sent(self, body: str, *expected: ExpectedTicket, reasons: Sequence[str | None] = ()) -> Message:
        """A message with this body."""
        return Message(str(next(self._numbers)), body, expected=expected, reasons=tuple(reasons))

    def mixed(self, number: int, *, uploads: float = 0.2) -> list[Message]:
        """This number of valid messages; a share of them are uploads."""
        return [self.uploaded() if self.rng.random() < uploads else self.inline() for _ in range(number)]

    def again(self, message: Message) -> Message:
        """Another message about the same tickets: the same body, or another notification of the object."""
        body = message.body or json.dumps(notification(quote_plus(message.marker), bucket=self.bucket))
        return self.sent(body, *message.expected, reasons=message.reasons)

    def poison(self) -> Iterator[Message]:
        """An endless cycle of all kinds of messages that can never be enriched or that have nothing to enrich."""
        while True:
            yield from self._unreadable()
            yield from self._invalid()
            yield from self._uploads()
            yield from self._nothing()

    def _unreadable(self) -> Iterator[Message]:
        bodies = [
            "Dear support, I lost my password",
            '{"ticket_id": "FLT',
            "[1, 2]",
            "null",
            "17",
            '"text"',
            '{"Records": []}',
            '{"Records": [{}]}',
            '{"Records": [null]}',
            '{"Records": [{"eventName": 5, "s3": {"bucket": {"name": "b"}, "object": {"key": "k"}}}]}',
            json.dumps(notification("a", event="ObjectTagging:Put", bucket=self.bucket)),
            json.dumps(notification("", bucket=self.bucket)),
            '{"source": "aws.s3", "detail-type": "Object Created", "detail": {}}',
            _sns(_sns(_sns(json.dumps(self.ticket())))),
            _sns("not JSON"),
            '{"a":' * 300 + "1" + "}" * 300,
            '{"ticket_id": "\\ud83d"}',
        ]
        for body in bodies:
            yield self.sent(body, reasons=["message_invalid"])

    def _invalid(self) -> Iterator[Message]:
        absent = self.ticket()
        del absent["customer_id"]
        for ticket in [
            absent,
            self.ticket(created_at="1790000000"),
            self.ticket(created_at=-1),
            self.ticket(created_at=2**53),
            self.ticket(created_at=True),
            self.ticket(subject=7),
            self.ticket(body=["a"]),
            self.ticket(ticket_id=""),
            self.ticket(ticket_id="x" * 257),
            self.ticket(customer_id=7),
            self.ticket(metadata="none"),
            self.ticket(score=float("nan")),
            self.ticket(score=float("inf")),
            self.ticket(created_at=10**400),
            {},
            {"hello": "harness"},
        ]:
            yield self.sent(json.dumps(ticket), reasons=["schema_violation"])
        yield self.sent(json.dumps(notification("x.json", bucket="another-bucket")), reasons=["bucket_unexpected"])
        yield self.sent(
            json.dumps(notification(f"never/{self.rng.getrandbits(40)}.json", bucket=self.bucket)),
            reasons=["object_gone"],
        )
        yield self.sent(json.dumps(self.ticket(body="long " * 20_000)), reasons=["object_too_large"])

    def _uploads(self) -> Iterator[Message]:
        for raw in (b"", b"not JSON", "{'subject': 'Grüße'}".encode("latin-1"), b"[]", json.dumps({"a": 1}).encode()):
            yield self._upload(raw, "schema_violation")
        yield self._upload(json.dumps(self.ticket(body="long " * 20_000)).encode(), "object_too_large")
        # A container may read it before it is deleted.
        yield self._upload(b"not JSON", "object_gone", "schema_violation", gone=True)
        # A valid ticket and a missing one in one message.
        good = self.uploaded()
        yield good
        keys = [quote_plus(good.marker), f"never/{self.rng.getrandbits(40)}.json"]
        yield self.sent(json.dumps(notification(*keys, bucket=self.bucket)), *good.expected, reasons=["object_gone"])

    def _upload(self, raw: bytes, *reasons: str, gone: bool = False) -> Message:
        return Message(f"bad/{self.rng.getrandbits(60)}.json", upload=raw, gone=gone, reasons=reasons)

    def _nothing(self) -> Iterator[Message]:
        yield self.sent(json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": self.bucket}))
        yield self.sent(json.dumps(notification("x", event="ObjectRemoved:Delete", bucket=self.bucket)))

    def envelopes(self) -> Iterator[Message]:
        """An endless cycle of all kinds of messages with valid tickets."""
        for number in count():
            one, two = self.uploaded(), self.uploaded(key=f"grüße/日本 {self.rng.getrandbits(40)}.json")
            yield one
            yield two
            keys = [quote_plus(message.marker) for message in (one, two)]
            yield self.sent(json.dumps(notification(*keys, bucket=self.bucket)), *one.expected, *two.expected)
            yield self.sent(_sns(json.dumps(notification(keys[0], bucket=self.bucket))), *one.expected)
            yield self.sent(_sns(_sns(json.dumps(notification(keys[1], bucket=self.bucket)))), *two.expected)
            detail = {"bucket": {"name": self.bucket}, "object": {"key": two.marker}}
            yield self.sent(
                json.dumps({"source": "aws.s3", "detail-type": "Object Created", "detail": detail}), *two.expected
            )
            for fields in (
                {"body": ""},
                {"subject": "", "body": ""},
                {"subject": "🔥🔥 לא עובד", "body": "لا أستطيع تسجيل الدخول منذ الصباح. 😡"},
                {"subject": "tabs\tand\x00nulls", "body": "bell \x07, escape \x1b[31m, nothing \u200b\ufeff."},
                {"priority": "CRITICAL", "enrichment": {"intent": "mine"}, "extra": {"kept": [1, None]}},
                {"metadata": None, "priority": "P2"},
            ):
                yield self.inline(self.ticket(**fields))
            if number % 10 == 0:  # each of these costs as much as a hundred others
                yield self.inline(self.ticket(body="word " * 3000))
                yield self.inline(self.ticket(body="x" * 30_000))


def _sns(text: str) -> str:
    return json.dumps({"Type": "Notification", "MessageId": "m", "Message": text})
