"""Serves the page on 127.0.0.1 until Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from types import FrameType
from typing import Final

import uvicorn

from handler.cli.shutdown import on_shutdown_signal
from handler.tickets.page.app import create_app
from handler.tickets.page.views import Stores
from handler.tickets.repository import RepositoryError

__all__ = ["serve"]

_HOST: Final = "127.0.0.1"
_GRACE: Final = 3  # seconds for requests in progress


def serve(stores: Stores, port: int, announce: Callable[[str], None]) -> None:
    """Serves until a signal; port 0 takes a free one. `announce` gets each link that opens the page, once per link.

    Raises RepositoryError if the port cannot be used.
    """
    with _listening(port) as listener:
        port = listener.getsockname()[1]
        config = uvicorn.Config(
            "",  # see below
            access_log=False,  # its lines contain tokens and filters
            lifespan="off",
            log_level="error",
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
            ws="none",
        )
        server = _Server(config)
        # uvicorn handles signals only while it serves, and at its end raises them again for the handler before. The
        # first link is announced when a signal is no longer lost.
        with on_shutdown_signal(server.stop):
            config.app = create_app(
                stores,
                port=port,
                announce=lambda path: announce(f"http://{_HOST}:{port}{path}"),
                stopping=lambda: server.should_exit,
            )
            asyncio.run(server.serve(sockets=[listener]))


class _Server(uvicorn.Server):
    def stop(self) -> None:
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A request that is cut off now is no error.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        super().handle_exit(sig, frame)


def _listening(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        # As servers do: a port with connections in TIME_WAIT is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOST, port))
        # On Linux, another server may listen although the address could be bound.
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise RepositoryError(f"port {port} is in use; end what uses it, or take a free one: --port 0") from error
        raise RepositoryError(f"port {port}: {error.strerror}; choose another one: --port 0") from error
    return listener
