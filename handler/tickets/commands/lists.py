"""`tickets show`, `tickets count` and `tickets get`."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Annotated

import typer

from handler.cli.output import Row, echo, form_of, keep_showing, write, write_whole
from handler.result_event import batch_text
from handler.tickets.access import opened
from handler.tickets.follow import follow_tickets
from handler.tickets.options import (
    CreatedOption,
    IdArgument,
    IntentOption,
    JsonOption,
    ReviewOption,
    SentimentOption,
    SinceOption,
    UrgencyOption,
    UrgentOption,
    WatchOption,
    find_ticket,
    selection_of,
)
from handler.tickets.repository import Item
from handler.tickets.rows import count_rows, ticket_row

__all__ = ["count", "get", "show"]


def show(
    *,
    urgent: UrgentOption = False,
    urgency: UrgencyOption = None,
    intent: IntentOption = None,
    sentiment: SentimentOption = None,
    needs_review: ReviewOption = False,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of tickets.")] = 20,
    as_json: JsonOption = False,
    watch: WatchOption = None,
) -> None:
    """List tickets, newest first.

    Columns in a pipe, separated by tabs: created_at, urgency, intent, sentiment, review (yes, no), ticket_id, subject,
    summary, language. With --watch in a pipe, or as JSON, each ticket is printed once, when it appears.
    """
    selection, form = selection_of(urgent, urgency, intent, sentiment, needs_review, since), form_of(as_json=as_json)
    with opened() as repository:

        def load() -> list[Item]:
            return list(islice(repository.newest(selection, limit), limit))

        if watch is None:
            items = load()
            write(map(ticket_row, items), form)
            if not items and form == "table":
                echo("no such tickets", err=True)
            return
        with _until_stopped():
            if form == "table":
                keep_showing(lambda: [ticket_row(item) for item in load()], lambda: time.sleep(watch))
            for items in follow_tickets(repository, selection, load(), limit):
                write(map(ticket_row, items), form)
                time.sleep(watch)


def count(
    *,
    urgent: UrgentOption = False,
    urgency: UrgencyOption = None,
    intent: IntentOption = None,
    sentiment: SentimentOption = None,
    needs_review: ReviewOption = False,
    since: SinceOption = None,
    as_json: JsonOption = False,
    watch: WatchOption = None,
) -> None:
    """Count tickets by intent, urgency and sentiment. This reads the whole index; --since reduces the cost.

    Columns in a pipe, separated by tabs: task (intent, urgency, sentiment), label, number of tickets. With --watch in a
    pipe, or as JSON, a label is printed again when its number changes.
    """
    selection, form = selection_of(urgent, urgency, intent, sentiment, needs_review, since), form_of(as_json=as_json)
    with opened() as repository:

        def load() -> list[Row]:
            return count_rows(repository.count(selection))

        if watch is None:
            write(load(), form)
            return
        with _until_stopped():
            if form == "table":
                keep_showing(load, lambda: time.sleep(watch))
            before: list[Row] = []
            while True:
                rows = load()
                write([row for row in rows if row not in before], form)
                before = rows
                time.sleep(watch)


def get(ticket_id: IdArgument, *, created_at: CreatedOption = None, as_json: JsonOption = False) -> None:
    """Show all fields of one ticket, from its enriched object in S3.

    Where a person corrected a label, `enrichment` still has the model's, and `corrections` the person's.

    Columns in a pipe, separated by tabs: name, value. --json prints the object as stored, with the embedding, and
    `corrections` if there are any.
    """
    with opened() as repository:
        item = find_ticket(repository, ticket_id, created_at)
        ticket = repository.whole(item)
        if item.corrections:
            ticket["corrections"] = {task: label.model_dump() for task, label in item.corrections.items()}
        place = {"s3_key": item.s3_key, "s3_version_id": item.s3_version_id}
        if item.batch is not None:
            place["s3_batch"] = batch_text(item.batch.key, item.batch.offset, item.batch.length)
        write_whole(ticket, place, form_of(as_json=as_json))


@contextmanager
def _until_stopped() -> Iterator[None]:
    """Ctrl-C ends --watch without an error. SIGTERM is treated the same, so that the terminal is restored."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)
