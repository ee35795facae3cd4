"""Brings a vector index up to date with the table, outside the function and without a stream.

A pass lists tickets by the time they were created, oldest first, and compares each with its entry. Of those that differ
it reads the current item (consistently) and the object version that it names. Entries are stored in batches together
with the mark, the time up to which tickets have been read, so that a pass that was killed goes on where it stopped.

- `follow` begins a while (the overlap) before the mark. A ticket that was stored later than that after it was created,
  or was enriched again or removed since, is found by `reconcile`, which lists all tickets and all entries.
- A ticket can change while it is read, so each batch is compared with the items once more after it was stored: either
  this finds that a ticket was forgotten, or `tickets forget` finds its entry, which it removes after the item.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, TypeVar

from handler.tickets.repository import Item, ObjectUnreadable, Selection, TicketRepository
from handler.tickets.search.index import DIMENSIONS, Entry, Key, Stored, VectorIndex
from handler.tickets.similarity import read_objects, vector_of

__all__ = ["Indexed", "Indexer", "key_of"]

_T = TypeVar("_T")

_BATCH: Final = 200  # tickets that are read before they are stored
_ROUNDS: Final = 3  # in which tickets that change while they are read are read again
_LISTED: Final = ("ticket_id", "created_at", "s3_version_id")
_TOLERANCE: Final = 0.01  # of a vector's length
_NO_TEXT: Final = "without text"
_NO_OBJECT: Final = "without a readable object"


@dataclass
class Indexed:
    """What a pass has done: entries stored and removed, tickets that needed nothing, and why others have no entry."""

    stored: int = 0
    removed: int = 0
    unchanged: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def key_of(item: Item) -> Key:
    """The key of a ticket's entry."""
    return Key(item.ticket_id, item.created_at)


class Indexer:
    """Updates one index. Methods raise RepositoryError and botocore's errors; what was stored until then stays.

    `models` has the embedding models of bundles by their model_version, for tickets whose items do not name one: those
    that were enriched before December 2026. `advance` is called with a number of tickets after each batch; once
    `is_stopped()`, a pass ends after its batch.
    """

    def __init__(
        self,
        repository: TicketRepository,
        index: VectorIndex,
        models: Mapping[str, str],
        *,
        advance: Callable[[int], object] = lambda _number: None,
        is_stopped: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._repository = repository
        self._index = index
        self._models = models
        self._advance = advance
        self._is_stopped = is_stopped
        self._clock = clock

    def follow(self, overlap: float) -> Indexed:
        """Reads the tickets created since `overlap` seconds before the mark; without a mark, all of them."""
        mark = self._index.mark()
        done = Indexed()
        self._list(None if mark is None else max(0, math.floor(mark - overlap)), done)
        return done

    def reconcile(self) -> Indexed:
        """Compares all tickets with all entries: stores what is missing or superseded, removes what has no ticket."""
        done = Indexed()
        listed = self._list(None, done)
        for keys in _batches(key for key in self._index.all_keys() if key not in listed):
            if self._is_stopped():
                break
            # Not listed is not gone: the ticket may be newer than the list, or have changed its urgency meanwhile.
            self._update(keys, self._index.stored(keys), done)
            self._advance(len(keys))
        return done

    def _list(self, since: int | None, done: Indexed) -> set[Key]:
        """Updates the entries of the tickets created since then; returns the keys of those listed."""
        listed: set[Key] = set()
        mark = self._index.mark() or 0
        for items in _batches(self._repository.oldest(Selection(since=since), _LISTED)):
            if self._is_stopped():
                break
            stored = self._index.stored([key_of(item) for item in items])
            changed = [key_of(item) for item in items if not _is_current(item, stored)]
            # created_at is the sender's, and may be in the future.
            mark = max(mark, min(items[-1].created_at, math.floor(self._clock())))
            done.unchanged += len(items) - len(changed)
            self._update(changed, stored, done, mark)
            listed.update(map(key_of, items))
            self._advance(len(items))
        return listed

    def _update(
        self, keys: Sequence[Key], stored: Mapping[Key, Stored], done: Indexed, mark: int | None = None
    ) -> None:
        """Makes the entries of some tickets what their items say now; `stored` are their entries until then."""
        for _ in range(_ROUNDS):
            current = self._repository.current(keys)
            right = {key for key, item in current.items() if _is_current(item, stored)}
            entries = self._read([item for key, item in current.items() if key not in right], done)
            right |= {entry.key for entry in entries}
            self._index.put(entries, mark)
            gone = [key for key in keys if key in stored and key not in right]
            if gone:
                self._index.remove(gone)
            done.stored += len(entries)
            done.removed += len(gone)

            stored = {entry.key: Stored(entry.version_id, entry.model) for entry in entries}
            now = self._repository.current(list(stored))
            keys = [key for key in stored if key not in now or not _is_current(now[key], stored)]
            if not keys:
                return
        # They keep changing: the entries stay as they were read last, but not those of tickets that are gone.
        gone = [key for key in keys if key not in now]
        self._index.remove(gone)
        done.removed += len(gone)

    def _read(self, items: Sequence[Item], done: Indexed) -> list[Entry]:
        """The entries of tickets, from the object versions that their items name."""
        known = []
        for item in items:
            model = item.embedding_model or self._models.get(item.model_version)
            if model is None:
                done.left_out[f"of {item.model_version} (name its bundle with --bundle)"] += 1
            else:
                known.append((item, model))
        vectors = read_objects(self._repository, [item for item, _ in known], _unit_vector, lambda: None)
        entries = []
        for (item, model), vector in zip(known, vectors, strict=True):
            if vector:
                entries.append(Entry(key_of(item), item.s3_version_id, model, vector))
            else:
                done.left_out[_NO_OBJECT if vector is None else _NO_TEXT] += 1
        return entries


def _is_current(item: Item, stored: Mapping[Key, Stored]) -> bool:
    entry = stored.get(key_of(item))
    return entry is not None and entry.version_id == item.s3_version_id


def _unit_vector(ticket: Mapping[str, Any]) -> list[float]:
    """The embedding of an enriched ticket; empty if it is zero, because the ticket has no text."""
    vector = vector_of(ticket)
    if not any(vector):
        return []
    if len(vector) != DIMENSIONS or abs(math.hypot(*vector) - 1) > _TOLERANCE:
        raise ObjectUnreadable(f"the embedding of ticket {ticket.get('ticket_id')} is not valid; enrich it again")
    return vector


def _batches(values: Iterable[_T]) -> Iterator[list[_T]]:
    left = iter(values)
    while batch := list(islice(left, _BATCH)):
        yield batch
