"""A local model hub: the part of its protocol that is needed to download a revision."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

__all__ = ["Hub", "serve"]


class Hub(ThreadingHTTPServer):
    """Serves the repositories of a folder, each under the last part of its name, for any revision.

    `asked` are the requested paths; downloads of files in `truncated` break off in the middle.
    """

    daemon_threads = True

    def __init__(self, folder: Path, truncated: frozenset[str] = frozenset()) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.folder = folder
        self.truncated = truncated
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve(folder: Path, *truncated: str) -> Iterator[Hub]:
    """Run a hub for the duration of the block."""
    with Hub(folder, frozenset(truncated)) as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(whole=False)

    def do_GET(self) -> None:
        self._answer(whole=True)

    def _answer(self, *, whole: bool) -> None:
        self.server.asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        # /api/models/OWNER/NAME/revision/REVISION, or /OWNER/NAME/resolve/REVISION/PATH
        if parts[:2] == ["api", "models"]:
            self._reply(self._listing(parts[2], parts[3], parts[-1]), "application/json", parts[-1], whole=whole)
        elif (path := self.server.folder / parts[1] / "/".join(parts[4:])).is_file():
            self._reply(path.read_bytes(), "application/octet-stream", parts[3], whole=whole)
        else:
            self.send_error(404)

    def _listing(self, owner: str, name: str, revision: str) -> bytes:
        root = self.server.folder / name
        files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        return json.dumps(
            {"id": f"{owner}/{name}", "sha": revision, "siblings": [{"rfilename": file} for file in files]}
        ).encode()

    def _reply(self, content: bytes, kind: str, revision: str, *, whole: bool) -> None:
        begin = 0
        if wanted := self.headers.get("Range"):  # "bytes=17-": the rest of a file that broke off
            begin = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if begin else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) - begin))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", revision)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if whole:
            broken = self.path.rsplit("/", 1)[-1] in self.server.truncated
            self.wfile.write(content[begin : begin + (len(content) - begin) // 2] if broken else content[begin:])
            self.close_connection = broken

    def log_message(self, *_: object) -> None:
        """Log nothing."""
