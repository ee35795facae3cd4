"""The port of a vector index: what it stores, and what the adapters do.

An index has one entry per ticket: the embedding of the object version that the ticket's item named when it was read.
Entries are kept apart by the model that computed them (`embedding_model`), so that vectors of two models are never
compared. Results name the object version: the caller compares it with the item, which may have changed since.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

__all__ = ["DIMENSIONS", "Entry", "Key", "Neighbour", "Stored", "VectorIndex"]

DIMENSIONS: Final = 384  # of every embedding: the schema of an enriched ticket allows no other number


class Key(NamedTuple):
    """The key of a ticket, in the table and in the index."""

    ticket_id: str
    created_at: int


@dataclass(frozen=True, slots=True)
class Entry:
    """The embedding of a ticket: `vector` (DIMENSIONS,), unit length."""

    key: Key
    version_id: str
    model: str
    vector: Sequence[float]


@dataclass(frozen=True, slots=True)
class Stored:
    """The object version and the model of an entry."""

    version_id: str
    model: str


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry that a query found, with its cosine."""

    key: Key
    version_id: str
    cosine: float


class VectorIndex(Protocol):
    """Stores the entries. Methods raise RepositoryError or botocore's errors; an index that does not exist is empty."""

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        ...

    @property
    def most(self) -> int:
        """The largest number of neighbours that one query returns."""
        ...

    def put(self, entries: Sequence[Entry], mark: int | None = None) -> None:
        """Stores entries in the place of those with the same keys, whatever their model, and then the mark.

        The first call creates the index.
        """
        ...

    def remove(self, keys: Sequence[Key]) -> None:
        """Removes entries; those that do not exist are ignored."""
        ...

    def mark(self) -> int | None:
        """The last mark stored: tickets created until then (Unix seconds) have been read once. None without one."""
        ...

    def stored(self, keys: Sequence[Key]) -> dict[Key, Stored]:
        """What is stored under the keys, without those that are not."""
        ...

    def all_keys(self) -> Iterator[Key]:
        """All keys, in no order."""
        ...

    def models(self) -> list[str]:
        """The models of which there is anything, as far as they are known: an adapter may know only their digests."""
        ...

    def has(self, model: str) -> bool:
        """Whether there is anything of a model."""
        ...

    def entries(self, model: str, since: int = 0) -> Iterator[Entry]:
        """The entries of a model whose tickets were created since then (Unix seconds), in no order."""
        ...

    def nearest(
        self, model: str, vector: Sequence[float], limit: int, *, since: int | None = None, until: int | None = None
    ) -> list[Neighbour]:
        """The entries of a model nearest to a vector that is not zero, best first; `limit` is at most `most`.

        With `since` and `until`, only tickets created in between (Unix seconds, both inclusive).
        """
        ...
