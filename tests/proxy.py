"""A proxy between a program and the embedded stack: it sees every call before and after it is made, and can answer."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

Answer = Callable[[dict[str, Any]], dict[str, Any]]


class Unanswered(Exception):
    """Raised by a hook: the caller gets no answer, as when the network fails or the process is gone."""


class Proxy:
    """From `with` to its end at `url`.

    `before` and `after` hear the operation of each call (SQS's name, or the HTTP method); `answers` take the place of
    the stack for the operations of SQS that it does not know: each makes a response of a request.
    """

    def __init__(self, endpoint_url: str) -> None:
        self.calls: list[str] = []
        self.before: Callable[[str], None] = lambda operation: None
        self.after: Callable[[str], None] = lambda operation: None
        self.answers: dict[str, Answer] = {}
        target = urlsplit(endpoint_url)
        self._server = _Server(("127.0.0.1", 0), _handler(self, f"{target.hostname}:{target.port}"))

    @property
    def url(self) -> str:
        """The address to give as AWS_ENDPOINT_URL."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Says nothing of callers that were killed, or of a stack that has ended: the test sees the rest."""


def _handler(proxy: Proxy, target: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            operation = self.headers.get("X-Amz-Target", self.command).rpartition(".")[2]
            proxy.calls.append(operation)
            try:
                proxy.before(operation)
                if operation in proxy.answers:
                    status, kind = 200, "application/x-amz-json-1.0"
                    content = json.dumps(proxy.answers[operation](json.loads(body))).encode()
                else:
                    status, kind, content = self._asked(body)
                proxy.after(operation)
            except Unanswered:
                self.close_connection = True
                return
            with suppress(OSError):  # the caller may be gone, which is what some tests are about
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def _asked(self, body: bytes) -> tuple[int, str, bytes]:
            connection = http.client.HTTPConnection(target, timeout=60)
            try:
                connection.request(self.command, self.path, body, dict(self.headers))
                response = connection.getresponse()
                return response.status, response.headers.get("Content-Type", ""), response.read()
            finally:
                connection.close()

        do_GET = do_POST = do_PUT = do_HEAD = _forward  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    return Handler
