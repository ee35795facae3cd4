"""The worker's health over HTTP: /livez, /startupz, /readyz and /metrics."""

from __future__ import annotations

import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from handler.worker.prometheus import CONTENT_TYPE

__all__ = ["PortTaken", "serve_health"]

_TEXT: Final = "text/plain; charset=utf-8"
_MAX_CONNECTIONS: Final = 32  # at the same time; a probe and a scraper need two
_BUSY: Final = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


class PortTaken(Exception):
    """The port is not available; the message is one line that names the remedy."""


@contextmanager
def serve_health(
    port: int,
    not_ready: Callable[[], str | None],
    metrics: Callable[[], bytes],
    not_started: Callable[[], str | None] | None = None,
) -> Iterator[None]:
    """Serves the port on all addresses of the machine inside the block; port 0 disables the server.

    `not_ready()` returns why the worker is not ready, or None; `not_started()` the same until it has started (default:
    the same function); `metrics()` returns the text for Prometheus. All are called in other threads. Raises PortTaken.
    """
    if port == 0:
        yield
        return

    reasons = {"/startupz": not_started or not_ready, "/readyz": not_ready}

    class Health(BaseHTTPRequestHandler):
        timeout = 5  # seconds; a silent client must not occupy a thread
        server_version = "ticket-processor"
        sys_version = ""

        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/livez":
                    self._answer(HTTPStatus.OK, b"alive\n")
                case "/startupz" | "/readyz" as probe:
                    reason = reasons[probe]()
                    status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
                    self._answer(status, f"{reason or 'ready'}\n".encode())
                case "/metrics":
                    self._answer(HTTPStatus.OK, metrics(), CONTENT_TYPE)
                case _:
                    self._answer(HTTPStatus.NOT_FOUND, b"there is /livez, /startupz, /readyz and /metrics\n")

        def do_HEAD(self) -> None:
            self.do_GET()

        def _answer(self, status: HTTPStatus, body: bytes, kind: str = _TEXT) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Logs nothing: probes come every few seconds."""

    with _listen(port, Health) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


class _Server(ThreadingHTTPServer):
    """Answers 503 when _MAX_CONNECTIONS are open, so that silent clients cannot start threads without end."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        request.settimeout(0)  # nobody else waits for this client
        with suppress(OSError):
            request.sendall(_BUSY)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def server_bind(self) -> None:
        # HTTPServer's own version looks up this machine's name on the network.
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """Does not log clients that disconnect."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _DualStack(_Server):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def _listen(port: int, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    # Probes come from the node to the pod's address, which is IPv6 in some clusters.
    try:
        return _DualStack(("::", port), handler)
    except OSError:
        pass
    try:
        return _Server(("0.0.0.0", port), handler)  # noqa: S104 - probes come from outside; nothing here is secret
    except OSError as error:
        raise PortTaken(
            f"HEALTH_PORT {port}: {error.strerror}; stop what listens there, or choose another port"
        ) from error
