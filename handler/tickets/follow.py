"""Follows a list of tickets: what is new since the last read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from handler.tickets.repository import Item, Selection, TicketRepository

__all__ = ["follow_tickets"]

_REMEMBERED: Final = 200  # tickets that are remembered: a ticket may be stored after newer ones


def follow_tickets(
    repository: TicketRepository, selection: Selection, first: list[Item], limit: int
) -> Iterator[list[Item]]:
    """Yields the tickets that are new since the last read, oldest first; starts with `first` (newest first).

    A ticket that was enriched again or corrected is yielded again. Tickets older than the oldest remembered one are not
    read.
    """
    items, seen, reach = first, set[tuple[str, int, str, str]](), limit
    while True:
        marks = {(item.ticket_id, item.created_at, item.s3_version_id, item.corrected_at): item for item in items}
        yield [item for mark, item in reversed(marks.items()) if mark not in seen]
        if len(items) >= reach:
            selection = replace(selection, since=items[reach - 1].created_at)
        seen, reach = set(marks), max(limit, _REMEMBERED)
        items = list(repository.newest(selection))
