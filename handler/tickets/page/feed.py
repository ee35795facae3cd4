"""The live list: a stream of server-sent events that says which rows there are, with the HTML of new and changed ones.

event: rows
data: {"keys": ["1790000000/T-1", ...], "html": {"1790000000/T-1": "<tr ...>"}}

event: problem
data: "Query: ThrottlingException: ..."
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import islice
from typing import Any, Final

import anyio
from anyio.to_thread import run_sync

from handler.tickets.access import READ_ERRORS, problem_line
from handler.tickets.page.filters import Filters
from handler.tickets.page.rendering import ROW_ATTRIBUTES, row, row_key, row_mark
from handler.tickets.repository import Item, Selection, TicketRepository

__all__ = ["LiveList", "events"]

_PAUSE: Final = 1.0  # seconds between two reads: a new ticket must be visible within two
_READS: Final = 600  # then the browser connects again, and the window below moves on
_REMEMBERED: Final = 200  # newest tickets that are read again each time, whatever the filter


class LiveList:
    """The newest `size` selected tickets, read again and again.

    A filter that few tickets meet would make every read go through the whole table. So only the first read does that;
    later ones read the tickets since the oldest row or, if there are fewer rows, since the 200th newest ticket of all.
    Older rows stay as they are.
    """

    def __init__(self, repository: TicketRepository, selection: Selection, size: int) -> None:
        self._repository = repository
        self._selection = selection
        self._size = size
        self._floor: int | None = None  # created_at from which tickets are read again
        self._items: list[Item] = []

    def read(self) -> list[Item]:
        """The tickets, newest first. Raises botocore's errors and RepositoryError."""
        if self._floor is None:
            self._items, floor = self._newest(self._selection), self._oldest_remembered()
        else:
            floor = self._floor
            since = max(floor, self._selection.since or 0)
            old = [item for item in self._items if item.created_at < floor]
            self._items = [*self._newest(replace(self._selection, since=since)), *old][: self._size]
        full = len(self._items) == self._size
        self._floor = max(floor, self._items[-1].created_at) if full else floor
        return self._items

    def _newest(self, selection: Selection) -> list[Item]:
        return list(islice(self._repository.newest(selection, self._size, ROW_ATTRIBUTES), self._size))

    def _oldest_remembered(self) -> int:
        newest = self._repository.newest(Selection(), _REMEMBERED, shown=("ticket_id", "created_at"))
        times = [item.created_at for item in islice(newest, _REMEMBERED)]
        return times[-1] if len(times) == _REMEMBERED else 0


async def events(live: LiveList, filters: Filters, stopping: Callable[[], bool]) -> AsyncIterator[str]:
    """The events of one browser tab, until `stopping` says so or the tab is closed."""
    sent: dict[str, str] | None = None  # keys and marks of the rows; None: the browser waits for an event
    yield "retry: 2000\n\n"
    for _ in range(_READS):
        try:
            items = await run_sync(live.read)
        except READ_ERRORS as error:
            sent = None
            yield _event("problem", problem_line(error))
        else:
            marks = {row_key(item): row_mark(item) for item in items}
            if sent is None or list(marks.items()) != list(sent.items()):
                changed = [item for item in items if (sent or {}).get(row_key(item)) != marks[row_key(item)]]
                html = {row_key(item): row(item, filters) for item in changed}
                yield _event("rows", {"keys": list(marks), "html": html})
                sent = marks
            else:
                yield ": unchanged\n\n"  # so that a closed connection is noticed
        if stopping():
            return
        await anyio.sleep(_PAUSE)


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
