"""A vector index in an SQLite file, with the distance functions of sqlite-vec.

A query compares the signs of the 384 numbers (48 bytes) of every entry, and then the whole vectors of the nearest 500.
Of 100,000 tickets that finds 98 % of the ten nearest of short queries, and nearly all of those of whole tickets. The
functions are used on plain tables: at this recall they are more than twice as fast as sqlite-vec's own table vec0, the
time of which grows with the number of candidates, and where the place of a deleted row stays in the file.

APSW brings its own SQLite, because Python's is often built without support for extensions.
"""

from __future__ import annotations

import os
import tempfile
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from enrichment.ticket import MAX_CREATED_AT
from handler.tickets.repository import RepositoryError
from handler.tickets.search.index import Entry, Key, Neighbour, Stored

if TYPE_CHECKING:
    import apsw

__all__ = ["SqliteIndex"]

_MISSING: Final = "the vector index needs more packages: pip install 'ticket-enrichment[search]'"
_FORMAT: Final = 1
_CANDIDATES: Final = 500  # entries whose whole vectors are compared
_PER_RESULT: Final = 10  # and at least so many per result
_AT_ONCE: Final = 1000  # rows
_PATIENCE: Final = 30_000  # milliseconds to wait for another process that writes
_SCHEMA: Final = f"""
CREATE TABLE marks (id INTEGER PRIMARY KEY CHECK (id = 1), mark INTEGER NOT NULL);
CREATE TABLE models (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
-- Narrow, because a query reads all of it: the vectors are in a table of their own.
CREATE TABLE entries (
    id INTEGER PRIMARY KEY, ticket_id TEXT NOT NULL, created_at INTEGER NOT NULL, version_id TEXT NOT NULL,
    model INTEGER NOT NULL, signs BLOB NOT NULL, UNIQUE (ticket_id, created_at)
);
CREATE TABLE vectors (id INTEGER PRIMARY KEY, vector BLOB NOT NULL);
PRAGMA user_version = {_FORMAT};
"""
_PUT: Final = """
INSERT INTO entries (ticket_id, created_at, version_id, model, signs)
VALUES (?, ?, ?, (SELECT id FROM models WHERE name = ?), vec_quantize_binary(?))
ON CONFLICT (ticket_id, created_at)
DO UPDATE SET version_id = excluded.version_id, model = excluded.model, signs = excluded.signs
RETURNING id
"""
_NEAREST: Final = """
WITH candidates AS MATERIALIZED (
    SELECT id FROM entries
    WHERE model = (SELECT id FROM models WHERE name = :model) AND created_at BETWEEN :since AND :until
    ORDER BY vec_distance_hamming(vec_bit(signs), vec_quantize_binary(:vector)) LIMIT :candidates
)
SELECT ticket_id, created_at, version_id, 1 - vec_distance_cosine(vector, :vector) AS cosine
FROM candidates JOIN entries USING (id) JOIN vectors USING (id)
ORDER BY cosine DESC, created_at DESC, ticket_id LIMIT :limit
"""


class SqliteIndex:
    """The index in the file `path`, which only its owner can read. As VectorIndex; thread-safe.

    Entries and mark are written in one transaction; other processes can read meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._opened: apsw.Connection | None = None

    @property
    def place(self) -> str:
        """As in VectorIndex."""
        return str(self._path)

    @property
    def most(self) -> int:
        """As in VectorIndex."""
        return 10_000

    def put(self, entries: Sequence[Entry], mark: int | None = None) -> None:
        """As in VectorIndex."""
        with self._transaction(create=True) as database:
            for entry in entries:
                vector = _blob(entry.vector)
                database.execute("INSERT OR IGNORE INTO models (name) VALUES (?)", (entry.model,))
                values = (*entry.key, entry.version_id, entry.model, vector)
                [(row,)] = database.execute(_PUT, values).fetchall()
                database.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?)", (row, vector))
            if mark is not None:
                database.execute("INSERT OR REPLACE INTO marks VALUES (1, ?)", (mark,))

    def remove(self, keys: Sequence[Key]) -> None:
        """As in VectorIndex. What is removed is overwritten in the file, also in its log."""
        with self._transaction() as database:
            if database is None:
                return
            for key in keys:
                found = database.execute("DELETE FROM entries WHERE (ticket_id, created_at) = (?, ?) RETURNING id", key)
                for row in found.fetchall():
                    database.execute("DELETE FROM vectors WHERE id = ?", row)
        self._rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def mark(self) -> int | None:
        """As in VectorIndex."""
        return next((int(row[0]) for row in self._rows("SELECT mark FROM marks")), None)

    def stored(self, keys: Sequence[Key]) -> dict[Key, Stored]:
        """As in VectorIndex."""
        query = (
            "SELECT version_id, name FROM entries JOIN models ON models.id = entries.model"
            " WHERE (ticket_id, created_at) = (?, ?)"
        )
        return {key: Stored(*row) for key in keys for row in self._rows(query, key)}

    def all_keys(self) -> Iterator[Key]:
        """As in VectorIndex."""
        for row in self._paged("SELECT id, ticket_id, created_at FROM entries WHERE id > :after", {}):
            yield Key(*row[1:])

    def models(self) -> list[str]:
        """As in VectorIndex."""
        query = "SELECT name FROM models WHERE EXISTS (SELECT 1 FROM entries WHERE model = models.id) ORDER BY name"
        return [row[0] for row in self._rows(query)]

    def has(self, model: str) -> bool:
        """As in VectorIndex."""
        return model in self.models()

    def entries(self, model: str, since: int = 0) -> Iterator[Entry]:
        """As in VectorIndex."""
        query = (
            "SELECT id, ticket_id, created_at, version_id, vector FROM entries JOIN vectors USING (id)"
            " WHERE id > :after AND model = (SELECT id FROM models WHERE name = :model) AND created_at >= :since"
        )
        for _, ticket_id, created_at, version_id, vector in self._paged(query, {"model": model, "since": since}):
            yield Entry(Key(ticket_id, created_at), version_id, model, array("f", vector))

    def nearest(
        self, model: str, vector: Sequence[float], limit: int, *, since: int | None = None, until: int | None = None
    ) -> list[Neighbour]:
        """As in VectorIndex."""
        values = {
            "model": model,
            "vector": _blob(vector),
            "since": 0 if since is None else since,
            "until": MAX_CREATED_AT if until is None else until,
            "limit": limit,
            "candidates": max(_CANDIDATES, _PER_RESULT * limit),
        }
        return [Neighbour(Key(*row[:2]), *row[2:]) for row in self._rows(_NEAREST, values)]

    def _paged(self, query: str, values: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
        """The rows of a query by id, some at a time, so that no lock is held while they are used."""
        after = 0
        while True:
            rows = self._rows(f"{query} ORDER BY id LIMIT {_AT_ONCE}", {**values, "after": after})
            yield from rows
            if len(rows) < _AT_ONCE:
                return
            after = rows[-1][0]

    def _rows(self, query: str, values: Any = ()) -> list[tuple[Any, ...]]:
        with self._using() as database:
            return [] if database is None else database.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self, *, create: bool = False) -> Iterator[Any]:
        """Yields the connection in a transaction, or None if there is no file."""
        with self._using(create=create) as database:
            if database is None:
                yield None
                return
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    @contextmanager
    def _using(self, *, create: bool = False) -> Iterator[apsw.Connection | None]:
        """Yields the connection, for one thread at a time, or None if there is no file and none is to be created."""
        with self._lock:
            if self._opened is None and (create or self._path.exists()):
                self._opened = _open(self._path)
            if self._opened is None:
                yield None
                return
            import apsw

            try:
                yield self._opened
            except apsw.Error as error:
                raise RepositoryError(_unusable(self._path, error)) from error


def _open(path: Path) -> apsw.Connection:
    """Opens the file, or creates it. Raises RepositoryError."""
    try:
        import apsw
        import sqlite_vec
    except ImportError as error:
        raise RepositoryError(_MISSING) from error
    try:
        if not path.exists():
            _create(path)
        database = apsw.Connection(str(path), apsw.SQLITE_OPEN_READWRITE)
        database.set_busy_timeout(_PATIENCE)
        database.enable_load_extension(enable=True)
        database.load_extension(sqlite_vec.loadable_path())
        database.enable_load_extension(enable=False)
        database.pragma("secure_delete", "on")  # an embedding says what a text is about
        if database.pragma("user_version") != _FORMAT:
            raise RepositoryError(f"{path} is of another version; remove the file and run `tickets index`")
    except (OSError, apsw.Error) as error:
        raise RepositoryError(_unusable(path, error)) from error
    return database


def _create(path: Path) -> None:
    """Creates the file under another name and links it into place, so that no process opens it half made."""
    import apsw

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # which only its owner can read
    os.close(handle)
    try:
        database = apsw.Connection(name)
        database.pragma("journal_mode", "wal")  # others read while one writes
        database.execute(_SCHEMA)
        database.close()
        with suppress(FileExistsError):  # another process was faster
            os.link(name, path)
    finally:
        Path(name).unlink()


def _unusable(path: Path, error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) else str(error)
    return f"{path}: {why}; choose another VECTOR_INDEX, or remove the file and run `tickets index`"


def _blob(vector: Sequence[float]) -> bytes:
    return array("f", vector).tobytes()
