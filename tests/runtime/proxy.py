"""An HTTP endpoint that invokes a function as Lambda does, in front of a pool of execution environments.

    with LambdaProxy(lambda: LambdaContainer(function, rie=rie, environment=...), size=2) as proxy:
        os.environ["MINISTACK_LAMBDA_PROXY_ticket-enrichment"] = proxy.url
        ...
        proxy.invocations          # every finished Invocation, in order

A POST to any path is an invocation. The response is 200 with the payload, or, if the function raised, timed out or
crashed, 500 with the error's payload and the header X-Amz-Function-Error. (AWS's Invoke would return 200 with this
header, but MiniStack takes any 2xx for a success.) Invocations wait while all environments are busy.
Only the standard library is needed.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.runtime.container import LambdaContainer
from tests.runtime.invocation import Invocation

Make = Callable[[], LambdaContainer]


class LambdaPool:
    """A pool of execution environments: a context manager, or `start` and `stop`.

    Environments are started on demand. One that crashed or is gone is removed and replaced on demand, as on Lambda.
    """

    def __init__(self, make: Make, size: int) -> None:
        self.invocations: list[Invocation] = []
        self.started = 0  # environments so far
        self._make = make
        self._idle: queue.LifoQueue[LambdaContainer | None] = (
            queue.LifoQueue()
        )  # most recently used first, as on Lambda
        self._all: set[LambdaContainer] = set()
        self._lock = threading.Lock()
        self._size = size

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Open the pool; each environment is started by the first invocation that needs it."""
        for _ in range(self._size):
            self._idle.put(None)

    def stop(self) -> None:
        """Remove all environments; running invocations end as crashes."""
        with self._lock:
            everyone, self._all = self._all, set()
        for container in everyone:
            container.stop()

    @property
    def containers(self) -> list[LambdaContainer]:
        """The current environments."""
        with self._lock:
            return list(self._all)

    def invoke(self, event: Any) -> Invocation:
        """Invoke the function in a free environment; wait if there is none.

        Raises ContainerError if a new environment does not start.
        """
        container = self._idle.get()
        try:
            if container is None or not container.is_running:
                self._forget(container)
                container = None
                container = self._started()
            invocation = container.invoke(event)
            if invocation.crashed:
                self._forget(container)
                container = None
        finally:
            self._idle.put(container)
        with self._lock:
            self.invocations.append(invocation)
        return invocation

    def _started(self) -> LambdaContainer:
        container = self._make()
        container.start()
        with self._lock:
            self.started += 1
            self._all.add(container)
        return container

    def _forget(self, container: LambdaContainer | None) -> None:
        if container is not None:
            with self._lock:
                self._all.discard(container)
            container.stop()


class LambdaProxy(LambdaPool):
    """A pool behind HTTP, at `url`."""

    def __init__(self, make: Make, size: int, port: int = 0) -> None:
        super().__init__(make, size)
        self._server = _Server(("127.0.0.1", port), _handler(self))

    @property
    def url(self) -> str:
        """The address to POST events to."""
        return f"http://127.0.0.1:{self._server.server_port}/"

    def start(self) -> None:
        """As LambdaPool.start; also start the HTTP server."""
        super().start()
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """As LambdaPool.stop; also stop the HTTP server."""
        self._server.shutdown()
        self._server.server_close()
        super().stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True


def _handler(pool: LambdaPool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            invocation = pool.invoke(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            with suppress(OSError):  # the caller may have disconnected
                self.send_response(500 if invocation.failed else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(invocation.payload)))
                if invocation.failed:
                    self.send_header("X-Amz-Function-Error", "Unhandled")
                self.end_headers()
                self.wfile.write(invocation.payload)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    return Handler
