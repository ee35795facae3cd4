"""`tickets`: lists, shows and forgets enriched tickets.

    tickets show --urgent --since 2h       newest first; --watch refreshes the list
    tickets get ID                         all fields of one ticket
    tickets similar ID                     the most similar tickets
    tickets count                          number of tickets per label
    tickets drift --since 7d               whether labels and texts differ from those of the training texts
    tickets forget ID                      remove everything that is stored of a ticket; a dry run without --yes

The output is a table on a terminal, tab-separated lines in a pipe, and one JSON object per line with --json.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from enrichment.ticket import Priority, Sentiment
from handler.cli.output import Row, echo, form_of, keep_showing, moment, replace_unprintable, write, write_whole
from handler.cli.shutdown import stopping_on_signals
from handler.dlq.options import Options
from handler.tickets.access import opened, opened_to_forget
from handler.tickets.audit import append
from handler.tickets.drift import (
    DRIFT_ATTRIBUTES,
    FEWEST,
    Distribution,
    compare,
    distribution,
    training_distribution,
)
from handler.tickets.forgetting import Erased, Forgetting, Found, Target
from handler.tickets.options import (
    BaselineOption,
    BundleOption,
    CreatedOption,
    IdArgument,
    IntentOption,
    JsonOption,
    ReviewOption,
    SentimentOption,
    SinceOption,
    StartOption,
    UrgencyOption,
    UrgentOption,
    WatchingCommand,
    WatchOption,
)
from handler.tickets.repository import URGENCIES, Item, RepositoryError, Selection, TicketRepository
from handler.tickets.rows import count_rows, drift_row, place_row, ticket_row
from handler.tickets.similarity import Similarity, read_objects, similar, vector_of

__all__ = ["app", "follow_tickets", "main"]

AUDIT_FILE: Final = Path("forgotten.jsonl")
_REMEMBERED: Final = 200  # tickets that --watch remembers: a ticket may be stored after newer ones


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="List, show and forget enriched tickets.",
)


@app.command(cls=WatchingCommand)
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
    selection, form = _selection(urgent, urgency, intent, sentiment, needs_review, since), form_of(as_json=as_json)
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


@app.command(cls=WatchingCommand)
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
    selection, form = _selection(urgent, urgency, intent, sentiment, needs_review, since), form_of(as_json=as_json)
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


@app.command()
def get(ticket_id: IdArgument, *, created_at: CreatedOption = None, as_json: JsonOption = False) -> None:
    """Show all fields of one ticket, from its enriched object in S3.

    Columns in a pipe, separated by tabs: name, value. --json prints the object as stored, with the embedding.
    """
    with opened() as repository:
        item = _find(repository, ticket_id, created_at)
        place = {"s3_key": item.s3_key, "s3_version_id": item.s3_version_id}
        write_whole(repository.whole(item), place, form_of(as_json=as_json))


@app.command("similar")
def resemble(
    ticket_id: IdArgument,
    *,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of tickets.")] = 10,
    among: Annotated[int, typer.Option(min=1, help="Number of newest tickets to compare with.")] = 1000,
    created_at: CreatedOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the tickets most similar to a ticket, by cosine similarity of their embeddings.

    Columns in a pipe: the cosine, then those of `tickets show`. Each comparison reads one object from S3.
    """
    with opened() as repository:
        item, form = _find(repository, ticket_id, created_at), form_of(as_json=as_json)
        console = Console(stderr=True)
        columns = (TextColumn("reading"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
            task = bar.add_task("", total=None)
            found = similar(
                repository,
                item,
                limit=limit,
                among=among,
                begin=lambda total: bar.update(task, total=total),
                advance=lambda: bar.advance(task),
            )
        write([ticket_row(other, cosine) for cosine, other in found.matches], form)
        echo(_caveats(found), err=True)


@app.command("drift")
def detect_drift(
    *,
    since: StartOption,
    baseline: BaselineOption = None,
    bundle: BundleOption = "",
    limit: Annotated[int, typer.Option(min=FEWEST, help="Maximum number of tickets per period.")] = 20_000,
    sample: Annotated[int, typer.Option(min=0, help="Number of embeddings to read per period.")] = 300,
    as_json: JsonOption = False,
) -> None:
    """Compare recent tickets with the bundle's training texts, or with an earlier period.

    Columns in a pipe, separated by tabs: measure (psi, share, confidence, language, review, embedding), label,
    baseline, recent, value, limit, drift. A measure whose value exceeds its limit is marked `drift`, and then the exit
    code is 3. This queries the urgency index for each period; each embedding reads one object from S3.
    """
    if baseline is not None and baseline.end > since:
        raise typer.BadParameter("--baseline ends after --since begins")
    form = form_of(as_json=as_json)
    with opened() as repository:
        if baseline is None:
            before = _training(repository, bundle)
        else:
            before = _period(repository, Selection(since=baseline.begin, until=baseline.end - 1), limit, sample)
        measures = compare(before, _period(repository, Selection(since=since), limit, sample))
        write(map(drift_row, measures), form)
    if any(measure.drifted for measure in measures):
        raise typer.Exit(3)


@app.command()
def forget(
    ticket_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="The ticket_id.", show_default=False)] = None,
    *,
    customer: Annotated[
        str | None, typer.Option(metavar="ID", help="Forget all tickets of this customer_id; scans the table.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="Key of a raw object that neither the table nor the DLQ names. Can be repeated."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed, which cannot be undone.")] = False,
    audit: Annotated[Path, typer.Option(metavar="FILE", help="File that a line is added to with --yes.")] = AUDIT_FILE,
    as_json: JsonOption = False,
    wait: Annotated[int, typer.Option(min=1, max=20, help="Length of a long poll of the DLQ, in seconds.")] = 5,
    empty_polls: Annotated[
        int, typer.Option(min=1, help="Number of empty receives after which the DLQ is considered empty.")
    ] = 3,
) -> None:
    """Remove everything that is stored of a ticket or of a customer's tickets. Without --yes, only list it.

    That is: every version of the raw and of the enriched objects, the items in the table, and DLQ messages. Later
    deliveries, replays and backfills of the tickets are skipped. docs/privacy.md says what this cannot reach. A run
    that was interrupted can be repeated.

    Columns in a pipe, separated by tabs: kind (raw, enriched, dlq, item), place, number of versions. --json also prints
    the totals, on the last line. The DLQ's messages are invisible to other consumers until the command ends.

    Exit code 0: nothing is left (without --yes: it was listed); 1: something is left; 2: the command did not start.
    """
    if (ticket_id is None) == (customer is None):
        raise typer.BadParameter("give the ID of a ticket, or --customer")
    target = Target("customer", customer) if ticket_id is None and customer else Target("ticket", ticket_id or "")
    if not target.name:
        raise typer.BadParameter("the ID is empty")
    with opened_to_forget() as (stores, by), stopping_on_signals() as shutdown:
        polls = Options(wait=wait, empty_polls=empty_polls)
        entry = {"target": target.kind, "sha256": target.hash, "by": by}
        if yes:
            _append_audit(audit, "begin", entry)
        found, erased = Forgetting(target, stores, polls, shutdown).run(key or [], dry_run=not yes)
        write(map(place_row, erased.places), form_of(as_json=as_json))
        complete = not (shutdown.is_requested or erased.failed_messages or found.other_customers)
        totals = {kind: erased.count(kind) for kind in ("raw", "enriched", "item", "dlq")} | {"complete": complete}
        if yes:
            _append_audit(audit, "end", {**entry, **totals})
    if as_json:
        more = {"kept_versions": erased.kept_versions, "shared_messages": found.shared_messages}
        numbers = {"dry_run": not yes, "tickets": len(found.keys), **totals, **more}
        echo(json.dumps({**numbers, "other_customers": sorted(found.other_customers)}))
    _report(found, erased, yes=yes, interrupted=shutdown.is_requested)
    if not complete:
        raise typer.Exit(1)


def _report(found: Found, erased: Erased, *, yes: bool, interrupted: bool) -> None:
    tickets = f"{len(found.keys)} ticket{'s' * (len(found.keys) != 1)}"
    if not erased.places:
        echo(f"nothing is stored of {tickets}{'; later deliveries will be skipped' if yes else ''}", err=True)
    elif not yes:
        echo(f"this is stored of {tickets}; nothing was removed: repeat with --yes", err=True)
    if erased.kept_versions:
        echo(f"{erased.kept_versions} versions under the same keys hold other tickets and stay", err=True)
    if found.shared_messages:
        echo(f"{found.shared_messages} DLQ messages also name other objects and stay; they hold keys only", err=True)
    for ticket_id in sorted(found.other_customers):
        echo(f"ticket {ticket_id} stays: another customer has a ticket with the same id; forget it by its ID", err=True)
    if erased.failed_messages:
        echo(f"SQS did not delete {erased.failed_messages} DLQ messages; run the command again", err=True)
    if interrupted:
        echo("interrupted; run the command again", err=True)


def _append_audit(path: Path, event: str, fields: dict[str, Any]) -> None:
    try:
        append(path, event, fields)
    except OSError as error:
        echo(f"tickets: {path}: {error.strerror}; choose another --audit", err=True)
        raise typer.Exit(2 if event == "begin" else 1) from error


def follow_tickets(
    repository: TicketRepository, selection: Selection, first: list[Item], limit: int
) -> Iterator[list[Item]]:
    """Yields the tickets that are new since the last read, oldest first; starts with `first` (newest first).

    A ticket that was enriched again is yielded again. Tickets older than the oldest remembered one are not read.
    """
    items, seen, reach = first, set[tuple[str, int, str]](), limit
    while True:
        marks = {(item.ticket_id, item.created_at, item.s3_version_id): item for item in items}
        yield [item for mark, item in reversed(marks.items()) if mark not in seen]
        if len(items) >= reach:
            selection = replace(selection, since=items[reach - 1].created_at)
        seen, reach = set(marks), max(limit, _REMEMBERED)
        items = list(repository.newest(selection))


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


def _selection(  # the six options in their order
    urgent: bool,  # noqa: FBT001 - the options of the command line
    urgency: Priority | None,
    intent: str | None,
    sentiment: Sentiment | None,
    needs_review: bool,  # noqa: FBT001
    since: int | None,
) -> Selection:
    if urgent and urgency:
        raise typer.BadParameter("give --urgent or --urgency, not both")
    levels = ("critical", "high") if urgent else (urgency,) if urgency else URGENCIES
    return Selection(levels, intent, sentiment, needs_review, since)


def _find(repository: TicketRepository, ticket_id: str, created_at: int | None) -> Item:
    items = repository.with_id(ticket_id)
    wanted = [item for item in items if created_at in (None, item.created_at)]
    if not wanted:
        times = ", ".join(str(item.created_at) for item in items)
        raise RepositoryError(f"no ticket {ticket_id}" + (f" of {created_at}, but of {times}" if times else ""))
    if len(wanted) > 1:
        times = ", ".join(str(item.created_at) for item in wanted[1:])
        echo(f"the newest of {len(wanted)}; --created-at shows the others: {times}", err=True)
    return wanted[0]


def _training(repository: TicketRepository, bundle: str) -> Distribution:
    if not bundle:
        raise RepositoryError("set MODEL_BUNDLE, give --bundle, or compare with an earlier period: --baseline 8w..4w")
    reference = repository.manifest(bundle).reference
    if reference is None:
        raise RepositoryError(
            f"the bundle {bundle} does not have the distribution of its training texts; build it with this version, or "
            "compare with an earlier period: --baseline 8w..4w"
        )
    return training_distribution(reference)


def _period(repository: TicketRepository, selection: Selection, limit: int, sample: int) -> Distribution:
    """The distribution of the tickets of a period, of at most the `limit` newest ones."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("tickets", total=None)
        items = []
        for item in islice(repository.newest(selection, shown=DRIFT_ATTRIBUTES), limit):
            items.append(item)
            bar.advance(task)
        if len(items) < FEWEST:
            begin = moment(selection.since or 0)
            raise RepositoryError(f"only {len(items)} tickets since {begin}; a comparison needs at least {FEWEST}")
        chosen = items[:: max(1, len(items) // sample)][:sample] if sample else []
        bar.update(task, description="embeddings", completed=0, total=len(chosen))
        vectors = [v for v in read_objects(repository, chosen, vector_of, lambda: bar.advance(task)) if v is not None]
    versions = ", ".join(sorted({item.model_version for item in items}))
    cut = f"; older tickets were not read (raise --limit {limit})" if len(items) == limit else ""
    period = f"{moment(items[-1].created_at)} to {moment(items[0].created_at)}"
    echo(f"{len(items)} tickets from {period}, {len(vectors)} embeddings, of {versions}{cut}", err=True)
    return distribution(items, vectors)


def _caveats(found: Similarity) -> str:
    parts = [f"compared with {found.compared} tickets"]
    if found.oldest is not None:
        parts.append(f"tickets older than {moment(found.oldest)} were not compared (raise --among)")
    if found.unreadable:
        parts.append(f"{found.unreadable} of them have no readable object")
    if found.foreign:
        parts.append(f"{found.foreign} come from another model version, so their cosines are less meaningful")
    return "; ".join(parts)


def main() -> None:
    """Run `tickets`."""
    replace_unprintable()
    app()
