"""MiniStack as a child process: S3, SQS, DynamoDB, Lambda, CloudFormation and IAM on one port of 127.0.0.1.

It keeps everything in memory, works in its own scratch directory, and ends with its parent, even if that is killed. It
enforces roles and policies as AWS does. handler.local.stack creates the template's resources in it.
"""

from __future__ import annotations

import http.client
import importlib
import importlib.util
import inspect
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

HOST = "127.0.0.1"
REGION = "us-east-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}  # MiniStack's root user
_NEEDED = {"ministack": "ministack", "samtranslator": "aws-sam-translator"}  # module -> package
# Only these variables: AWS_*, PERSIST_STATE or SERVICES from a user's shell would change the emulator's behaviour.
_INHERITED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH")
_SECONDS_TO_START = 30.0
_ATTEMPTS = 3
_SECONDS_TO_STOP = 3.0


class StackError(Exception):
    """The embedded stack did not start, or ended; the message is one line with the remedy."""


def _serve(parent: int, scratch: str) -> None:  # pragma: no cover - its source runs in the child
    def end_with_parent() -> None:
        # Not PR_SET_PDEATHSIG, which follows the thread that started the child and exists only on Linux.
        while os.getppid() == parent:
            time.sleep(0.25)
        shutil.rmtree(scratch, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    server: Any = importlib.import_module("ministack.app")
    service = server.app

    async def behind_tls(scope: Any, receive: Any, send: Any) -> None:
        # The template's policies deny plain HTTP. Requests stay on this machine, so they are treated as TLS.
        if scope["type"] == "http":
            scope = {**scope, "headers": [*scope["headers"], (b"x-forwarded-proto", b"https")]}
        await service(scope, receive, send)

    server.app = behind_tls
    sys.argv = ["ministack"]
    server.main()


def _program() -> str:
    # A bare interpreter starts faster than one that imports boto3 and typer first.
    imports = "from __future__ import annotations\nimport importlib, os, shutil, signal, sys, threading, time\n"
    return f"{imports}{inspect.getsource(_serve)}_serve(int(sys.argv[1]), sys.argv[2])\n"


class Emulator:
    """A MiniStack process from `start` to `stop`; `settings` are additional environment variables for it."""

    def __init__(self, port: int = 0, settings: Mapping[str, str] | None = None) -> None:
        self.port = port
        self._settings = dict(settings or {})
        self._child: subprocess.Popen[bytes] | None = None
        self._scratch: Path | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, once it has been started."""
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Start the child and wait until it answers; port 0 takes a free one. Raises StackError; `stop` then too."""
        for module, package in _NEEDED.items():
            if importlib.util.find_spec(module) is None:
                raise StackError(f"{package} is not installed: pip install '.[local]'")
        self._scratch = Path(tempfile.mkdtemp(prefix="ticket-stack-"))
        chosen = self.port
        for attempt in range(1, _ATTEMPTS + 1):
            self.port = _usable_port(chosen)
            child = self._child = self._run(mark := secrets.token_hex(8))
            deadline = time.monotonic() + _SECONDS_TO_START
            while child.poll() is None and time.monotonic() < deadline:
                if self._is_healthy(mark):
                    return
                time.sleep(0.02)
            # A free port may be taken by another process before the child listens there.
            if chosen or child.poll() is None or attempt == _ATTEMPTS:
                raise StackError(f"the embedded stack did not start: {self.last_error() or 'try again'}")

    def _run(self, mark: str) -> subprocess.Popen[bytes]:
        assert self._scratch is not None
        with (self._scratch / "log").open("wb") as log:
            return subprocess.Popen(  # noqa: S603 - our own interpreter and our own text
                [sys.executable, "-c", _program(), str(os.getpid()), str(self._scratch)],
                env=self._environment(mark),
                cwd=self._scratch,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for the parent, which then ends the child
            )

    def stop(self) -> None:
        """Stop the child and delete its data; may be called twice."""
        if self._child is not None:
            self._child.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(_SECONDS_TO_STOP)
            self._child.kill()
            self._child.wait()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def wait(self) -> None:
        """Block until the child ends, which is always an error. Raises StackError."""
        if self._child is not None:
            self._child.wait()
        raise StackError(f"the embedded stack ended: {self.last_error() or 'start it again'}")

    def last_error(self) -> str:
        """Return the last error in the child's log, or an empty string."""
        log = self._scratch / "log" if self._scratch else None
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log and log.is_file() else []
        # Its warnings mention errors of features that are not used here.
        return next((line for line in reversed(lines) if "error" in line.lower() and "WARNING" not in line), "").strip()

    def _environment(self, mark: str) -> dict[str, str]:
        scratch = str(self._scratch)
        return {
            **{name: os.environ[name] for name in _INHERITED if name in os.environ},
            **CREDENTIALS,
            "HOME": scratch,
            "TMPDIR": scratch,
            "BIND_HOST": HOST,
            "GATEWAY_PORT": str(self.port),
            "MINISTACK_HOST": HOST,
            "MINISTACK_REGION": REGION,
            "MINISTACK_EDITION": mark,  # its health check returns it: our child answers, not another process
            "AUTH": "true",
            "LAMBDA_STRICT": "1",
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "LOG_LEVEL": "WARNING",
            "DOCKER_HOST": f"unix://{scratch}/none",  # a real one would let it remove other MiniStacks' containers
            **self._settings,
        }

    def _is_healthy(self, mark: str) -> bool:
        with closing(http.client.HTTPConnection(HOST, self.port, timeout=2)) as connection:
            try:
                connection.request("GET", "/_ministack/health")
                answer = json.load(connection.getresponse())
            except (OSError, http.client.HTTPException, ValueError):
                return False
        return isinstance(answer, dict) and answer.get("edition") == mark


def _usable_port(port: int) -> int:
    with socket.socket() as probe:
        # As the server does: a port with connections in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise StackError(f"port {port}: {error}; stop what listens there, or choose another port") from error
        return int(probe.getsockname()[1])
