"""Groups of nearly equal tickets, by the cosines of their embeddings.

In the given order, each ticket joins the nearest of the groups whose first ticket is at least that similar to it, or
begins one. All are compared with all first tickets, exactly and in blocks: the time grows with the square of their
number, but a product of matrices compares some hundred million pairs per second. (Hashes that pass over pairs which are
not similar were slower at 100,000 tickets: they cannot tell a cosine of 0.9, of which there are many, from 0.95.)
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from handler.tickets.repository import Item, TicketRepository
from handler.tickets.search.index import Key, VectorIndex

__all__ = ["duplicate_tickets", "duplicates"]

_BLOCK: Final = 1024  # rows that are compared at once with
_FIRSTS: Final = 8192  # so many first rows of groups: 32 MB of cosines
_ROUNDING: Final = 1e-6  # so that equal texts are duplicates at the threshold 1


def duplicate_tickets(
    repository: TicketRepository,
    index: VectorIndex,
    threshold: float,
    since: int,
    advance: Callable[[int], object] = lambda _tickets: None,
) -> list[list[tuple[float, Item]]]:
    """The groups of tickets created since then (Unix seconds), each ticket with its cosine to the group's oldest one.

    The group with the newest ticket comes first. Tickets of different models are never compared, and an entry whose
    item is gone or has changed is left out. `advance` is called with numbers of tickets. Raises RepositoryError and
    botocore's errors.
    """
    found: list[list[tuple[float, Item]]] = []
    for model in index.models():
        entries: list[tuple[int, Key, str, int]] = []
        numbers = array("f")
        for entry in index.entries(model, since):
            entries.append((entry.key.created_at, entry.key, entry.version_id, len(entries)))
            numbers.extend(entry.vector)
        if not entries:
            continue
        entries.sort()
        vectors = np.frombuffer(numbers, np.float32).reshape(len(entries), -1)[[place for *_, place in entries]]
        groups = duplicates(vectors, threshold, advance)
        current = repository.current([entries[row][1] for group in groups for row, _ in group])
        for group in groups:
            items = {row: current.get(entries[row][1]) for row, _ in group}
            kept = [row for row, item in items.items() if item is not None and item.s3_version_id == entries[row][2]]
            # The group's first ticket may be one of those left out, so the others are compared once more.
            if len(kept) == len(group):
                found.append([(cosine, current[entries[row][1]]) for row, cosine in group])
                continue
            found += [
                [(cosine, current[entries[kept[place]][1]]) for place, cosine in smaller]
                for smaller in duplicates(vectors[kept], threshold)
            ]
    return sorted(found, key=lambda group: -max(item.created_at for _, item in group))


def duplicates(
    vectors: npt.NDArray[np.float32], threshold: float, advance: Callable[[int], object] = lambda _rows: None
) -> list[list[tuple[int, float]]]:
    """The groups of at least two vectors: rows of `vectors` (n, dimensions), each with its cosine to the group's first.

    The vectors have unit length. Groups are in the order of their first vectors. `advance` is called with the number of
    rows after each block.
    """
    groups: dict[int, list[tuple[int, float]]] = {}
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        firsts, cosines = _nearest_firsts(block, vectors, list(groups))
        within = block @ block.T
        new: list[int] = []  # rows of the block that began a group
        for row in range(len(block)):
            first, cosine = int(firsts[row]), float(cosines[row])
            if new:
                best = new[int(within[row, new].argmax())]
                if within[row, best] > cosine:
                    first, cosine = start + best, float(within[row, best])
            if cosine >= threshold - _ROUNDING:
                groups[first].append((start + row, cosine))
            else:
                groups[start + row] = [(start + row, 1.0)]
                new.append(row)
        advance(len(block))
    return [group for group in groups.values() if len(group) > 1]


def _nearest_firsts(
    block: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], firsts: list[int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """For each row of the block the nearest of some rows of `vectors`, and its cosine; -2 if there are none."""
    nearest = np.zeros(len(block), np.int64)
    cosines = np.full(len(block), -2, np.float32)
    for start in range(0, len(firsts), _FIRSTS):
        part = np.array(firsts[start : start + _FIRSTS])
        found = block @ vectors[part].T
        best = found.argmax(axis=1)
        highest = found[np.arange(len(block)), best]
        is_nearer = highest > cosines
        nearest[is_nearer], cosines[is_nearer] = part[best[is_nearer]], highest[is_nearer]
    return nearest, cosines
