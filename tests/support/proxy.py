"""A proxy between a program and the embedded stack, with hooks before and after each call and injected faults."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.fault_injection import (
    Call,
    Disconnect,
    ErrorResponse,
    Fault,
    PartialFailure,
    Reply,
    Stall,
    read_call,
)

Answer = Callable[[dict[str, Any]], dict[str, Any]]


class Unanswered(Exception):
    """Raised by a hook: the caller gets no response, as if the network failed or the process was gone."""


class Proxy:
    """A context manager that serves at `url`.

    `before` and `after` are called with the operation of each call (its name in SQS or DynamoDB, or the HTTP method).
    `answers` replace the stack for SQS operations that it does not support: functions from a request to a response.
    `fault` returns the fault of a call, or None.
    """

    def __init__(self, endpoint_url: str, fault: Callable[[Call], Fault | None] = lambda call: None) -> None:
        self.calls: list[str] = []
        self.before: Callable[[str], None] = lambda operation: None
        self.after: Callable[[str], None] = lambda operation: None
        self.answers: dict[str, Answer] = {}
        self.fault = fault
        target = urlsplit(endpoint_url)
        self._server = _Server(self, f"{target.hostname}:{target.port}")

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
    request_queue_size = 128

    def __init__(self, proxy: Proxy, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy, self.target = proxy, target

    def handle_error(self, *_: Any) -> None:
        """Ignore errors from killed callers or a stopped stack; the test detects everything else."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # send headers and body together

    def setup(self) -> None:
        super().setup()
        self._stack = http.client.HTTPConnection(self.server.target, timeout=60)

    def finish(self) -> None:
        self._stack.close()
        with suppress(OSError):
            super().finish()

    def handle_expect_100(self) -> bool:
        answered = super().handle_expect_100()
        self.wfile.flush()  # botocore waits up to a second for it before it sends the body
        return answered

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        call = read_call(self.command, self.path, self.headers.get("X-Amz-Target"), body)
        self.server.proxy.calls.append(call.name)
        try:
            self.server.proxy.before(call.name)
            fault = self.server.proxy.fault(call)
            reply = self._reply(call, fault)
            self.server.proxy.after(call.name)
        except Unanswered:
            self.close_connection = True
            return
        with suppress(OSError):  # the caller may have been killed by the test
            self._respond(reply, fault)

    def _reply(self, call: Call, fault: Fault | None) -> Reply:
        if call.name in self.server.proxy.answers:
            answer = json.dumps(self.server.proxy.answers[call.name](json.loads(call.body))).encode()
            return Reply(200, {"Content-Type": "application/x-amz-json-1.0"}, answer)
        match fault:
            case ErrorResponse():
                return fault.reply(call)
            case Disconnect(delivered=False):
                self._reset()
            case Disconnect(share=0):
                self._forwarded(call.body)
                self._reset()
            case Stall(delivered=delivered, seconds=seconds, share=0):
                if delivered:
                    self._forwarded(call.body)
                time.sleep(seconds)
                self._reset()
            case PartialFailure():
                kept, refused = fault.split(call)
                return fault.join(self._forwarded(kept) if kept else None, refused)
            case _:
                pass
        return self._forwarded(call.body)

    def _forwarded(self, body: bytes) -> Reply:
        headers = {name: value for name, value in self.headers.items() if name != "Expect"}
        headers["Content-Length"] = str(len(body))
        try:
            self._stack.request(self.command, self.path, body, headers)
            response = self._stack.getresponse()
        except (http.client.HTTPException, ConnectionError):
            # The stack closes connections that were idle for some seconds; it has answered every call that it received.
            self._stack.close()
            self._stack.request(self.command, self.path, body, headers)
            response = self._stack.getresponse()
        content = response.read()
        kept = ("content-type", "last-modified", "etag", "x-amz-version-id")
        return Reply(response.status, {n: v for n, v in response.getheaders() if n.lower() in kept}, content)

    def _respond(self, reply: Reply, fault: Fault | None) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.content)))
        self.end_headers()
        if isinstance(fault, Disconnect | Stall):
            self.wfile.write(reply.content[: int(len(reply.content) * fault.share)])
            self.wfile.flush()
            time.sleep(fault.seconds if isinstance(fault, Stall) else 0)
            self.close_connection = True
        elif self.command != "HEAD":
            self.wfile.write(reply.content)

    def _reset(self) -> None:
        """Close the connection with a reset, as a failing network does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Unanswered

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _forward  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Log nothing."""
