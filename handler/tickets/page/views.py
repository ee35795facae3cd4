"""What the pages show. Starlette runs these functions in threads, because boto3 blocks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import chain, islice
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from handler.aws.corrections import TASKS
from handler.tickets.corrections import Corrections
from handler.tickets.page.chart import draw
from handler.tickets.page.export import FORMATS, csv_lines, json_lines, parquet_file
from handler.tickets.page.feed import LiveList, events
from handler.tickets.page.filters import Filters
from handler.tickets.page.passages import Passage, passages
from handler.tickets.page.rendering import known_labels, page, ticket_link
from handler.tickets.repository import Item, ObjectUnreadable, RepositoryError, TicketRepository
from handler.tickets.search.query import Search

__all__ = ["Stores", "Views"]

_SIZE: Final = 50  # tickets of a list
_SIMILAR: Final = 6
_SHOWN_CHARACTERS: Final = 30_000  # of a ticket's text; the download has all of it
_CHART_DAYS: Final = 30
_DAY: Final = 86400  # seconds
_CHUNK: Final = 1 << 16  # bytes


@dataclass(frozen=True)
class Stores:
    """What the page reads and writes."""

    repository: TicketRepository
    corrections: Corrections
    search: Search


class Views:
    """The pages. `stopping` says whether the server is about to end. Methods raise what `app` reports."""

    def __init__(self, stores: Stores, stopping: Callable[[], bool]) -> None:
        self._stores = stores
        self._stopping = stopping

    def tickets(self, request: Request) -> Response:
        """The list, or the results of a search by meaning."""
        filters = Filters.read(request.query_params)
        problems, following = list(filters.problems), None
        rows: list[tuple[float | None, Item]] = []
        if filters.words:
            try:
                rows = [*self._stores.search.words(filters.words, _SIZE, filters.selection)]
            except RepositoryError as error:
                problems.append(str(error))
        else:
            found = self._stores.repository.page(filters.selection, _SIZE, filters.after or None)
            rows, following = [(None, item) for item in found.items], found.next
        return page(
            "tickets.html",
            filters=filters,
            following=following,
            intents=_options("intent", filters.intent, (item.intent for _, item in rows)),
            live=not (filters.words or filters.after),
            problems=problems,
            rows=rows,
        )

    async def feed(self, request: Request) -> Response:
        """The live list's events."""
        filters = Filters.read(request.query_params)
        live = LiveList(self._stores.repository, filters.selection, _SIZE)
        return StreamingResponse(events(live, filters, self._stopping), media_type="text/event-stream")

    def ticket(self, request: Request) -> Response:
        """One ticket with everything that is known of it."""
        filters, item = Filters.read(request.query_params), self._item(request)
        problems: list[str] = []
        whole: dict[str, Any] = {}
        similar: list[tuple[float, Item]] = []
        try:
            whole = self._stores.repository.whole(item)
        except ObjectUnreadable as error:
            problems.append(str(error))
        no_search = ""
        try:
            similar = [*self._stores.search.like(item, _SIMILAR)]
        except RepositoryError as error:
            no_search = str(error)
        enrichment = whole.get("enrichment", {})
        body = str(whole.get("body", ""))
        read = passages(str(whole.get("subject", "")), body, item.summary)
        return page(
            "ticket.html",
            body=body[:_SHOWN_CHARACTERS],
            enrichment=enrichment,
            filters=filters,
            history=self._stores.corrections.of(item),
            is_cut=len(body) > _SHOWN_CHARACTERS,
            item=item,
            no_search=no_search,
            passages=_beginning(read),
            problems=problems,
            # Whitespace aside: is there anything that the models did not see?
            read_all=" ".join(body.split()) == " ".join("".join(part.text for part in read).split()),
            similar=similar,
            ticket=whole,
        )

    def choice(self, request: Request) -> Response:
        """The labels of one task to choose from; with `fragment` only the form, for the script."""
        filters, item, task = Filters.read(request.query_params), self._item(request), _task(request)
        scores = self._stores.repository.whole(item)["enrichment"].get("scores", {}).get(task, {})
        known = known_labels(task)
        rank = {label: place for place, label in enumerate(known)}
        labels = sorted(scores, key=lambda label: (rank.get(label, len(rank)), label))
        back = "ticket" if request.query_params.get("back") == "ticket" else "list"
        return page(
            "choice_form.html" if "fragment" in request.query_params else "choice.html",
            action=ticket_link(item, filters, "/correct", task=task, back=back),
            back=_back(item, filters, back),
            filters=filters,
            form_token=request.state.form_token,
            item=item,
            labels=labels,
            predicted=item.corrections[task].predicted if task in item.corrections else getattr(item, task),
            scores=scores,
            task=task,
        )

    async def correct(self, request: Request) -> Response:
        """Stores a correction and goes back to where it was made."""
        async with request.form() as form:
            if form.get("form_token") != request.state.form_token:
                raise HTTPException(403, "The form is out of date; reload the page and try again.")
            label = str(form.get("label", ""))
        filters, task = Filters.read(request.query_params), _task(request)
        item = await run_in_threadpool(self._item, request)
        await run_in_threadpool(self._stores.corrections.correct, item, {task: label})
        return RedirectResponse(_back(item, filters, request.query_params.get("back", "")), 303)

    def download(self, request: Request) -> Response:
        """The enriched object as it is stored."""
        item = self._item(request)
        text = json.dumps(self._stores.repository.whole(item), ensure_ascii=False, indent=2)
        name = re.sub(r"[^\w.-]+", "-", item.ticket_id, flags=re.ASCII)[:100]
        return Response(
            text.encode("utf-8", "replace"), headers=_attachment(f"{name}.json"), media_type="application/json"
        )

    def chart(self, request: Request) -> Response:
        """The labels of one task per day, of the last 30 days unless the filters say otherwise."""
        filters = Filters.read(request.query_params)
        task = request.query_params.get("task", "urgency")
        if task not in TASKS:
            task = "urgency"
        last = _day(filters.selection.until) or datetime.now(UTC).date()
        first = _day(filters.selection.since) or last - timedelta(days=_CHART_DAYS - 1)
        selection = replace(filters.selection, since=_begin(first), until=_begin(last) + _DAY - 1)
        counts = self._stores.repository.by_day(selection)
        drawn = draw({day: tasks[task] for day, tasks in counts.items()}, first, last, known_labels(task))
        return page(
            "chart.html",
            chart=drawn,
            filters=filters,
            intents=_options("intent", filters.intent, ()),
            # A label keeps its colour, whatever else is selected.
            numbers={label: place for place, label in enumerate(_options(task, "", drawn.totals))},
            problems=filters.problems,
            task=task,
        )

    def export(self, request: Request) -> Response:
        """The selected tickets as a file."""
        filters, form = Filters.read(request.query_params), request.query_params.get("format", "")
        if form not in FORMATS:
            raise HTTPException(400, f"The format must be one of: {', '.join(FORMATS)}.")
        if filters.problems:
            raise HTTPException(400, "; ".join(filters.problems))
        items = self._stores.repository.newest(filters.selection)
        first = list(islice(items, 1))  # an error of the first read becomes a page, not a broken file
        items = chain(first, items)
        if form == "parquet":
            content: Iterable[bytes] = _chunks(parquet_file(items))
        else:
            content = csv_lines(items) if form == "csv" else json_lines(items)
        name = f"tickets-{datetime.now(UTC):%Y%m%d-%H%M%S}.{form}"
        return StreamingResponse(content, headers=_attachment(name), media_type=FORMATS[form])

    def _item(self, request: Request) -> Item:
        ticket_id, created_at = request.query_params.get("id", ""), request.query_params.get("created_at", "")
        items = self._stores.repository.with_id(ticket_id) if ticket_id else []
        for item in items:
            if created_at in ("", str(item.created_at)):
                return item
        raise HTTPException(404, "There is no such ticket; it may have been forgotten.")


def _options(task: str, chosen: str, seen: Iterable[str]) -> list[str]:
    known = known_labels(task)
    return [*known, *sorted({label for label in (chosen, *seen) if label} - set(known))]


def _task(request: Request) -> str:
    task = request.query_params.get("task", "")
    if task not in TASKS:
        raise HTTPException(400, f"The task must be one of: {', '.join(TASKS)}.")
    return task


def _back(item: Item, filters: Filters, where: str) -> str:
    return ticket_link(item, filters) if where == "ticket" else f"/{filters.query()}"


def _beginning(parts: list[Passage]) -> list[Passage]:
    """As much of the text as a page shows."""
    found, left = [], _SHOWN_CHARACTERS
    for part in parts:
        found.append(replace(part, text=part.text[:left]))
        left -= len(part.text)
        if left <= 0:
            break
    return found


def _attachment(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _chunks(file: Any) -> Iterator[bytes]:
    with closing(file):
        while chunk := file.read(_CHUNK):
            yield chunk


def _day(seconds: int | None) -> date | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).date()


def _begin(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
