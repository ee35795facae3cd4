"""A relay for containers, from the Docker bridge's address to a port of 127.0.0.1."""

from __future__ import annotations

import ipaddress
import json
import socket
import socketserver
import subprocess
import threading
from contextlib import suppress
from typing import Any, Self


def bridge_address() -> str:
    """This machine's address on Docker's bridge network; containers cannot reach 127.0.0.1 in any other way."""
    asked = subprocess.run(["docker", "network", "inspect", "bridge"], check=True, capture_output=True, text=True)
    network = json.loads(asked.stdout)[0]["IPAM"]["Config"][0]
    return str(network.get("Gateway") or ipaddress.ip_network(network["Subnet"])[1])


class Relay:
    """A context manager that serves at `url` and forwards to a port of 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self._server = _Server((bridge_address(), 0), _connection(port))

    @property
    def url(self) -> str:
        """The address to give to containers."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Ignore errors from removed containers; the test detects everything else."""


def _connection(port: int) -> type[socketserver.BaseRequestHandler]:
    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as service:
                back = threading.Thread(target=_pump, args=(service, self.request), daemon=True)
                back.start()
                _pump(self.request, service)
                back.join()

    return Connection


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):  # either side may have disconnected
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
