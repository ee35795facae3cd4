"""A helpdesk's endpoint for result events: an HTTP server that keeps what it accepts, and answers as it is told."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

SECRET = "whsec_" + "c2VjcmV0IG9mIHRoZSB3ZWJob29rIHRlc3Rz"


@dataclass
class Receiver:
    """A context manager that serves at `url`.

    `answer(number, event)` returns the status of the answer to each POST; 0 closes the connection without one. An event
    that is answered with 2xx is accepted.
    """

    answer: Callable[[int, dict[str, Any]], int] = lambda number, event: 204
    posts: list[tuple[Message, bytes]] = field(default_factory=list)
    accepted: Counter[str] = field(default_factory=Counter)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __enter__(self) -> Self:
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The address to give as RESULT_WEBHOOK."""
        return f"http://127.0.0.1:{self._server.server_port}/hooks/tickets?team=1"

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of all POSTs."""
        return [json.loads(body) for _, body in self.posts]

    def wait_for(self, done: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until `done()`, which is asked after each POST. Raises AssertionError if that takes too long."""
        with self.changed:
            assert self.changed.wait_for(done, seconds), f"{len(self.posts)} POSTs, {self.accepted.total()} accepted"

    def receive(self, headers: Message, body: bytes) -> int:
        """The answer to a POST."""
        with self.changed:
            event = json.loads(body)
            status = self.answer(len(self.posts), event)
            self.posts.append((headers, body))
            if 200 <= status < 300:
                self.accepted[event["event_id"]] += 1
            self.changed.notify_all()
        return status


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, receiver: Receiver) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.receiver = receiver

    def handle_error(self, *_: Any) -> None:
        """Ignore errors from killed senders."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.server.receiver.receive(self.headers, body)
        if status == 0:
            self.close_connection = True
            with suppress(OSError):
                self.connection.close()
            return
        self.send_response(status)
        if status // 100 == 3:
            self.send_header("Location", self.server.receiver.url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""
