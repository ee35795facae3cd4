"""`tickets index`, `tickets search` and `tickets duplicates`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from handler.cli.output import echo, form_of, write
from handler.cli.shutdown import stopping_on_signals
from handler.tickets.access import SearchSettings, opened_to_search
from handler.tickets.options import (
    BundleOption,
    IntentOption,
    JsonOption,
    ReviewOption,
    SentimentOption,
    SinceOption,
    UrgencyOption,
    UrgentOption,
    WatchOption,
    selection_of,
)
from handler.tickets.repository import RepositoryError
from handler.tickets.rows import duplicate_row, indexed_row, ticket_row
from handler.tickets.search.indexer import Indexed, Indexer
from handler.tickets.search.query import NOT_BUILT, Search

__all__ = ["find_duplicates", "search", "update_index"]

_RECONCILE_EVERY: Final = 3600.0  # seconds


def update_index(
    *,
    reconcile: Annotated[
        bool, typer.Option("--reconcile", help="Compare all tickets and all entries, and repair what differs.")
    ] = False,
    overlap: Annotated[
        float, typer.Option(min=0, metavar="HOURS", help="Read again the tickets created so long before the last run.")
    ] = 2.0,
    bundle: Annotated[
        list[str] | None,
        typer.Option(metavar="URI", help="A bundle that enriched tickets before December 2026. Can be repeated."),
    ] = None,
    as_json: JsonOption = False,
    watch: WatchOption = None,
) -> None:
    """Bring the vector index up to date with the table; the first run reads all tickets.

    Each ticket that is new or was enriched again costs one object read from S3. A run that was interrupted goes on
    where it stopped. With --watch it is repeated until Ctrl-C, and once per hour all tickets are compared.

    Columns in a pipe, separated by tabs: entries stored, entries removed, unchanged tickets, tickets without an entry.
    """
    form = form_of(as_json=as_json)
    with opened_to_search() as found, stopping_on_signals() as shutdown:
        models = _models_of(found, bundle or [])
        due = 0.0 if reconcile else time.monotonic() + _RECONCILE_EVERY
        while True:
            begin = time.monotonic()
            with _progress("comparing" if begin >= due else "reading") as advance:
                indexer = Indexer(
                    found.repository, found.index, models, advance=advance, is_stopped=lambda: shutdown.is_requested
                )
                done = indexer.reconcile() if begin >= due else indexer.follow(3600 * overlap)
            if begin >= due:
                due = begin + _RECONCILE_EVERY
            if watch is None or done.stored or done.removed:
                write([indexed_row(done)], form)
                _explain(done)
            if watch is None or shutdown.is_requested:
                break
            shutdown.pause(watch)
    if shutdown.is_requested and watch is None:
        echo("interrupted; run the command again", err=True)
        raise typer.Exit(1)


def search(
    words: Annotated[str, typer.Argument(metavar="WORDS", help="What the tickets are about, in your own words.")],
    *,
    urgent: UrgentOption = False,
    urgency: UrgencyOption = None,
    intent: IntentOption = None,
    sentiment: SentimentOption = None,
    needs_review: ReviewOption = False,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of tickets.")] = 10,
    bundle: BundleOption = "",
    as_json: JsonOption = False,
) -> None:
    """List the tickets whose meaning is nearest to some words, best first. `tickets index` builds the index.

    Columns in a pipe, separated by tabs: the cosine, then those of `tickets show`.
    """
    selection, form = selection_of(urgent, urgency, intent, sentiment, needs_review, since), form_of(as_json=as_json)
    with opened_to_search(bundle) as found:
        matches = found.words(words, limit, selection)
        write([ticket_row(item, cosine) for cosine, item in matches], form)
        if not matches and form == "table":
            echo("no such tickets", err=True)


def find_duplicates(
    *,
    threshold: Annotated[
        float, typer.Option(min=0.5, max=1, help="Least cosine between a ticket and the first one of its group.")
    ] = 0.95,
    since: SinceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List groups of nearly equal tickets: the group with the newest ticket first, in each the oldest ticket first.

    Columns in a pipe, separated by tabs: number of the group, the cosine to the first ticket of the group, then the
    columns of `tickets show`. Tickets of different encoders are never compared. All are compared with all, so a
    hundred thousand tickets take minutes; --since reduces the time.
    """
    from handler.tickets.search.duplicates import duplicate_tickets  # only here: it imports numpy

    form = form_of(as_json=as_json)
    with opened_to_search() as found:
        if not found.index.models():
            raise RepositoryError(NOT_BUILT)
        with _progress("comparing") as advance:
            groups = duplicate_tickets(found.repository, found.index, threshold, since or 0, advance)
        rows = [duplicate_row(number, *member) for number, group in enumerate(groups, 1) for member in group]
        write(rows, form)
    echo(f"{len(rows)} tickets in {len(groups)} groups" if groups else "no duplicates", err=True)


def _models_of(found: Search, bundles: list[str]) -> dict[str, str]:
    """The embedding models of the given bundles and of MODEL_BUNDLE, by model_version."""
    uris = dict.fromkeys([*bundles, SearchSettings.read().model_bundle])
    return dict(found.repository.models_of(uri) for uri in uris if uri)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int], object]]:
    """Shows the number of tickets on a terminal; yields a function that takes how many more there are."""
    console = Console(stderr=True)
    columns = (TextColumn(what), TextColumn("{task.completed} tickets"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda number: bar.advance(task, number)


def _explain(done: Indexed) -> None:
    for reason, number in sorted(done.left_out.items()):
        echo(f"not in the index: {number} ticket{'s' * (number != 1)} {reason}", err=True)
