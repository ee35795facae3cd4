"""Similar tickets: the cosine of a ticket's embedding with those of the newest others, read from S3 concurrently."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from operator import mul
from typing import Any, TypeVar

from handler.tickets.repository import READERS, Item, ObjectUnreadable, RepositoryError, Selection, TicketRepository

__all__ = ["Similarity", "read_objects", "similar", "vector_of"]

_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Similarity:
    """The most similar tickets with their cosines, best first, and what the comparison left out.

    `compared` is the number of tickets compared. If older tickets were left out, `oldest` is the `created_at` (Unix
    seconds) of the oldest one compared, otherwise None. `unreadable` tickets had no usable object; `foreign` ones come
    from another model version.
    """

    matches: list[tuple[float, Item]]
    compared: int
    oldest: int | None
    unreadable: int
    foreign: int


def similar(
    repository: TicketRepository,
    item: Item,
    *,
    limit: int,
    among: int,
    begin: Callable[[int], object],
    advance: Callable[[], object],
) -> Similarity:
    """The `limit` tickets most similar to `item` among the `among` newest others.

    For progress, `begin` is called with the number of objects to read and `advance` after each. Raises ObjectUnreadable
    if this ticket's own object cannot be used, RepositoryError if it has no text, and botocore's errors.
    """
    target = vector_of(repository.whole(item))
    if not any(target):
        raise RepositoryError(f"ticket {item.ticket_id} has no text, so there are no similar tickets")
    # One more than `among` shows whether older tickets exist, and one of them may be the ticket itself.
    newest = islice(repository.newest(Selection()), among + 2)
    others = [other for other in newest if (other.ticket_id, other.created_at) != (item.ticket_id, item.created_at)]
    compared = others[:among]

    begin(len(compared))
    cosines = read_objects(repository, compared, lambda ticket: _cosine(target, vector_of(ticket)), advance)
    pairs = [(value, other) for value, other in zip(cosines, compared, strict=True) if value is not None]
    return Similarity(
        matches=sorted(pairs, key=lambda pair: -pair[0])[:limit],
        compared=len(compared),
        oldest=compared[-1].created_at if len(others) > among else None,
        unreadable=len(compared) - len(pairs),
        foreign=sum(other.model_version != item.model_version for _, other in pairs),
    )


def read_objects(
    repository: TicketRepository,
    items: Sequence[Item],
    compute: Callable[[Mapping[str, Any]], _R],
    advance: Callable[[], object],
) -> Iterator[_R | None]:
    """The results of `compute` for the objects of tickets, read concurrently; None for an unreadable one."""

    def read(item: Item) -> _R | None:
        try:
            return compute(repository.whole(item))
        except ObjectUnreadable:
            return None

    pool = ThreadPoolExecutor(READERS)
    try:
        for result in pool.map(read, items):
            yield result
            advance()
    finally:  # not `with`, which would read all remaining objects after an error or Ctrl-C
        pool.shutdown(cancel_futures=True)


def vector_of(ticket: Mapping[str, Any]) -> list[float]:
    """The embedding of an enriched ticket. Raises ObjectUnreadable if it has none."""
    vector = ticket["enrichment"].get("embedding")
    if not isinstance(vector, list) or not vector or not all(isinstance(number, int | float) for number in vector):
        raise ObjectUnreadable(f"the object of ticket {ticket.get('ticket_id')} has no embedding; enrich it again")
    return vector


def _cosine(one: Sequence[float], other: Sequence[float]) -> float | None:
    """The cosine; 0 for a zero vector, None if the lengths differ."""
    if len(one) != len(other):
        return None
    # Plain Python: the network read takes a hundred times as long, and importing numpy 0.1 s.
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(map(mul, one, other)) / lengths if lengths else 0.0
