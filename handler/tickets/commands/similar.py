"""`tickets similar`."""

from __future__ import annotations

from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from handler.cli.output import echo, form_of, moment, write
from handler.tickets.access import opened_to_search
from handler.tickets.options import CreatedOption, IdArgument, JsonOption, find_ticket
from handler.tickets.repository import Item, TicketRepository
from handler.tickets.rows import ticket_row
from handler.tickets.similarity import Similarity, similar

__all__ = ["resemble"]

_AMONG: Final = 1000


def resemble(
    ticket_id: IdArgument,
    *,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of tickets.")] = 10,
    among: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Compare with this many of the newest tickets, without the vector index; default: {_AMONG}."
        ),
    ] = None,
    created_at: CreatedOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the tickets most similar to a ticket, by cosine similarity of their embeddings.

    All tickets in the vector index that `tickets index` builds are compared. Without it, or with --among, only the
    newest ones are, and each comparison reads one object from S3.

    Columns in a pipe: the cosine, then those of `tickets show`.
    """
    with opened_to_search() as search:
        item, form = find_ticket(search.repository, ticket_id, created_at), form_of(as_json=as_json)
        if among is None and search.model_of(item) is not None:
            matches, note = search.like(item, limit), f"found in the vector index {search.index.place}"
        else:
            found = _compare(search.repository, item, limit, among or _AMONG)
            matches, note = found.matches, _caveats(found)
        write([ticket_row(other, cosine) for cosine, other in matches], form)
        echo(note, err=True)


def _compare(repository: TicketRepository, item: Item, limit: int, among: int) -> Similarity:
    console = Console(stderr=True)
    columns = (TextColumn("reading"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None)
        return similar(
            repository,
            item,
            limit=limit,
            among=among,
            begin=lambda total: bar.update(task, total=total),
            advance=lambda: bar.advance(task),
        )


def _caveats(found: Similarity) -> str:
    parts = [f"compared with {found.compared} tickets"]
    if found.oldest is not None:
        parts.append(f"tickets older than {moment(found.oldest)} were not compared (raise --among)")
    if found.unreadable:
        parts.append(f"{found.unreadable} of them have no readable object")
    if found.foreign:
        parts.append(f"{found.foreign} come from another model version, so their cosines are less meaningful")
    return "; ".join(parts)
