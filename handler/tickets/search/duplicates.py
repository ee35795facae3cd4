"""Groups of nearly equal tickets, by the cosines of their embeddings.

In the given order, each ticket joins the nearest of the groups whose first ticket is at least that similar to it, or
begins one. Only first tickets with an equal hash are compared: the signs of the vector's products with random vectors.
Two vectors at the threshold have no equal hash with a probability of 0.1 %, more similar ones with a lower one. So the
time grows little faster than the number of tickets.
"""

from __future__ import annotations

import math
from array import array
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from handler.tickets.repository import Item, TicketRepository
from handler.tickets.search.index import Key, VectorIndex

__all__ = ["LEAST", "duplicate_tickets", "duplicates"]

LEAST: Final = 0.8
"""The lowest threshold: below it, so many hashes would be needed that comparing all tickets is faster."""
_MISSED: Final = 0.001
_IN_BUCKET: Final = 16  # tickets that have the same hash, if all were different
_SEED: Final = 1
_ROUNDING: Final = 1e-6  # so that equal texts are duplicates at the threshold 1


def duplicate_tickets(
    repository: TicketRepository, index: VectorIndex, threshold: float, since: int
) -> list[list[tuple[float, Item]]]:
    """The groups of tickets created since then (Unix seconds), each ticket with its cosine to the group's oldest one.

    The group with the newest ticket comes first. `threshold` is at least LEAST. Tickets of different models are never
    compared, and an entry whose item is gone or has changed is left out. Raises RepositoryError and botocore's errors.
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
        groups = duplicates(vectors, threshold)
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


def duplicates(vectors: npt.NDArray[np.float32], threshold: float) -> list[list[tuple[int, float]]]:
    """The groups of at least two vectors: rows of `vectors` (n, dimensions), each with its cosine to the group's first.

    The vectors have unit length. Groups are in the order of their first vectors.
    """
    groups: dict[int, list[tuple[int, float]]] = {}
    hashes = _hashes(vectors, threshold)
    buckets: list[dict[Any, list[int]]] = [{} for _ in hashes]
    for row, vector in enumerate(vectors):
        own = [one[row] for one in hashes]
        candidates = sorted({first for bucket, one in zip(buckets, own, strict=True) for first in bucket.get(one, ())})
        if candidates:
            cosines = vectors[candidates] @ vector
            best = int(cosines.argmax())
            if cosines[best] >= threshold - _ROUNDING:
                groups[candidates[best]].append((row, float(cosines[best])))
                continue
        groups[row] = [(row, 1.0)]
        for bucket, one in zip(buckets, own, strict=True):
            bucket.setdefault(one, []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def _hashes(vectors: npt.NDArray[np.float32], threshold: float) -> list[list[int]]:
    """Several hashes of each vector: by hash, then by vector."""
    bits = max(0, math.ceil(math.log2(max(1, len(vectors)) / _IN_BUCKET)))
    equal = (1 - math.acos(min(1.0, threshold)) / math.pi) ** bits  # the probability that one hash is equal
    number = math.ceil(math.log(_MISSED) / math.log1p(-equal)) if equal < 1 else 1
    planes = np.random.default_rng(_SEED).standard_normal((number, vectors.shape[1], bits), np.float32)
    weights = 1 << np.arange(bits, dtype=np.int64)
    return [((vectors @ plane > 0) @ weights).tolist() for plane in planes]
