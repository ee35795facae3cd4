"""Finds tickets by meaning: the nearest entries of the index, checked against the current items.

An entry whose item is gone, or names another object version, is left out: a forgotten ticket is never shown, even if
the index still has it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

from enrichment.bundle import Bundle
from handler.tickets.repository import Item, RepositoryError, Selection, TicketRepository
from handler.tickets.search.index import Key, VectorIndex
from handler.tickets.search.indexer import key_of
from handler.tickets.similarity import vector_of

__all__ = ["NOT_BUILT", "QueryEncoder", "Search"]

NOT_BUILT: Final = "there is no vector index yet; build it with `tickets index`"

_EVERYTHING: Final = Selection()
_FEWEST: Final = 20  # neighbours that are looked at, because some may not be selected
_GROWTH: Final = 4  # how many times as many are looked at if too few of them are


class QueryEncoder:
    """The encoder of a bundle, for a user's words. Thread-safe."""

    def __init__(self, bundle: Bundle) -> None:
        from enrichment.encoder import Encoder  # only here: it imports onnxruntime

        self.model = bundle.manifest.embedding_model
        self._encoder = Encoder.open(bundle)

    def vector(self, text: str) -> list[float]:
        """The embedding of a text: (384,), unit length. Raises RepositoryError if it has no words."""
        [tokens] = self._encoder.tokenize([text])
        if not len(tokens.ids):
            raise RepositoryError("there are no words to search for")
        [encoded] = self._encoder.encode([tokens], [[]])
        return [float(number) for number in encoded.embedding]


class Search:
    """Searches the tickets of a repository. Methods raise RepositoryError and botocore's errors; thread-safe.

    `open_encoder` is called once, when words are searched for the first time.
    """

    def __init__(
        self, repository: TicketRepository, index: VectorIndex, open_encoder: Callable[[], QueryEncoder]
    ) -> None:
        self.repository = repository
        self.index = index
        self._open_encoder = open_encoder
        self._encoder: QueryEncoder | None = None
        self._lock = threading.Lock()

    def words(self, text: str, limit: int, selection: Selection = _EVERYTHING) -> list[tuple[float, Item]]:
        """The selected tickets whose meaning is nearest to a text, with their cosines, best first.

        Raises RepositoryError if there is no index of the bundle's encoder: its line says how to build it.
        """
        with self._lock:
            if self._encoder is None:
                self._encoder = self._open_encoder()
        model, encoder = self._encoder.model, self._encoder
        if not self.index.has(model):
            if not self.index.models():
                raise RepositoryError(NOT_BUILT)
            raise RepositoryError(
                f"the vector index has no tickets of the encoder {model}; run `tickets index`, or set MODEL_BUNDLE to "
                "the bundle that enriched them"
            )
        return self._nearest(model, encoder.vector(text), limit, selection)

    def like(self, item: Item, limit: int, selection: Selection = _EVERYTHING) -> list[tuple[float, Item]]:
        """The selected tickets nearest to a ticket, without itself, with their cosines, best first.

        Raises RepositoryError if there is no index of the model of its embedding, or the ticket has no text, and
        ObjectUnreadable if its object cannot be read.
        """
        model = self.model_of(item)
        if model is None:
            if not self.index.models():
                raise RepositoryError(NOT_BUILT)
            raise RepositoryError(
                f"the vector index has no tickets that can be compared with {item.ticket_id}; run `tickets index`"
            )
        vector = vector_of(self.repository.whole(item))
        if not any(vector):
            raise RepositoryError(f"ticket {item.ticket_id} has no text, so there are no similar tickets")
        return self._nearest(model, vector, limit, selection, key_of(item))

    def model_of(self, item: Item) -> str | None:
        """The model of a ticket's embedding, if the index has tickets of that model."""
        if item.embedding_model:
            return item.embedding_model if self.index.has(item.embedding_model) else None
        # Enriched before December 2026: `tickets index` knew the bundle.
        entry = self.index.stored([key_of(item)]).get(key_of(item))
        return entry.model if entry is not None and entry.version_id == item.s3_version_id else None

    def _nearest(
        self, model: str, vector: Sequence[float], limit: int, selection: Selection, without: Key | None = None
    ) -> list[tuple[float, Item]]:
        reach = min(max(_FEWEST, 2 * limit), self.index.most)
        checked: dict[Key, Item | None] = {}
        while True:
            neighbours = self.index.nearest(model, vector, reach, since=selection.since, until=selection.until)
            new = [neighbour.key for neighbour in neighbours if neighbour.key not in checked]
            current = self.repository.current(new)
            checked |= {key: current.get(key) for key in new}
            found = []
            for neighbour in neighbours:
                item = checked[neighbour.key]
                is_current = item is not None and item.s3_version_id == neighbour.version_id
                if item is not None and is_current and neighbour.key != without and selection.includes(item):
                    found.append((neighbour.cosine, item))
            if len(found) >= limit or len(neighbours) < reach or reach >= self.index.most:
                return found[:limit]
            reach = min(_GROWTH * reach, self.index.most)
