"""`tickets similar`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from handler.cli.output import echo, form_of, moment, write
from handler.tickets.access import opened
from handler.tickets.options import CreatedOption, IdArgument, JsonOption, find_ticket
from handler.tickets.rows import ticket_row
from handler.tickets.similarity import Similarity, similar

__all__ = ["resemble"]


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
        item, form = find_ticket(repository, ticket_id, created_at), form_of(as_json=as_json)
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


def _caveats(found: Similarity) -> str:
    parts = [f"compared with {found.compared} tickets"]
    if found.oldest is not None:
        parts.append(f"tickets older than {moment(found.oldest)} were not compared (raise --among)")
    if found.unreadable:
        parts.append(f"{found.unreadable} of them have no readable object")
    if found.foreign:
        parts.append(f"{found.foreign} come from another model version, so their cosines are less meaningful")
    return "; ".join(parts)
