"""Where the vector index is: VECTOR_INDEX, or a file in the user's cache directory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlparse

from handler.tickets.repository import RepositoryError
from handler.tickets.search.index import VectorIndex
from handler.tickets.search.s3vectors import S3VectorsIndex
from handler.tickets.search.sqlite import SqliteIndex

__all__ = ["index_at"]

_PREFIX: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,49}")  # the index's name adds 13 characters to it, up to 63


def index_at(
    location: str | None, *, bucket: str, table: str, endpoint: str | None, s3vectors: Callable[[], Any]
) -> VectorIndex:
    """The index at `sqlite:///directory` or `s3vectors://bucket/prefix`; None: in the user's cache directory.

    The file in a directory is named after the enriched bucket, the table and the emulator's endpoint if there is one,
    so that tickets of different tables are never mixed. `s3vectors()` returns a client. Raises RepositoryError.
    """
    parts = urlparse(location or "")
    if parts.scheme == "s3vectors" and parts.netloc and _PREFIX.fullmatch(parts.path.strip("/")):
        return S3VectorsIndex(s3vectors(), parts.netloc, parts.path.strip("/"))
    if location and (parts.scheme != "sqlite" or parts.netloc or len(parts.path) < 2):
        raise RepositoryError(
            f"VECTOR_INDEX is {location!r}; it must be sqlite:///directory or s3vectors://bucket/prefix, with a prefix "
            "of at most 50 lower-case letters, digits, dots and hyphens"
        )
    folder = Path(unquote(parts.path)) if location else _cache_directory()
    emulator = "" if endpoint is None else "." + re.sub(r"[^A-Za-z0-9.]+", "-", urlparse(endpoint).netloc)
    return SqliteIndex(folder / f"{bucket}.{table}{emulator}.sqlite")


def _cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ticket-enrichment" / "vectors"
