"""`tickets correct` and `tickets corrections`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from enrichment.ticket import Priority, Sentiment
from handler.aws.corrections import TASKS
from handler.cli.options import WHEN
from handler.cli.output import Row, echo, form_of, write
from handler.dlq.output import progress
from handler.tickets.access import opened_to_correct
from handler.tickets.corrections import Correction, CorrectionRefused, Corrections, labelled
from handler.tickets.options import CreatedOption, IdArgument, JsonOption, find_ticket, since_seconds
from handler.tickets.repository import Item, ObjectUnreadable, RepositoryError, TicketRepository
from handler.tickets.rows import ticket_row
from handler.tickets.similarity import read_objects

__all__ = ["correct", "corrections"]


def correct(
    ticket_id: IdArgument,
    *,
    intent: Annotated[str | None, typer.Option(help="The right intent.")] = None,
    urgency: Annotated[Priority | None, typer.Option(case_sensitive=False, help="The right urgency.")] = None,
    sentiment: Annotated[Sentiment | None, typer.Option(case_sensitive=False, help="The right sentiment.")] = None,
    confirm: Annotated[bool, typer.Option("--confirm", help="The labels that are not given are right.")] = False,
    created_at: CreatedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Correct labels of a ticket, or confirm them: lists, counts and events show the new labels at once.

    The correction is logged with your AWS identity, and stays in force when the ticket is enriched again. To take it
    back, correct it again. A command that was interrupted can be repeated. With RESULT_WEBHOOK set as for the workers,
    they also send the event of the correction.

    Columns in a pipe: those of `tickets show`.
    """
    given = {"intent": intent, "urgency": urgency, "sentiment": sentiment}
    labels = {task: label for task, label in given.items() if label}
    if not labels and not confirm:
        raise typer.BadParameter("give --intent, --urgency or --sentiment, or --confirm")
    with opened_to_correct() as (repository, log):
        item = find_ticket(repository, ticket_id, created_at)
        if confirm:
            labels = {task: getattr(item, task) for task in TASKS} | labels
        write([ticket_row(log.correct(item, labels))], form_of(as_json=as_json))


def corrections(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Write the corrected tickets to it as JSON, one per line.")
    ] = None,
    *,
    since: Annotated[
        int | None,
        typer.Option(parser=since_seconds, metavar=WHEN, help="Only tickets corrected since this time."),
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Put the logged corrections into the tickets' items where they are missing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the corrected tickets as labelled tickets.")] = False,
) -> None:
    """List the corrections, or export the corrected tickets as labelled tickets with --json or to FILE.

    A labelled ticket has ticket_id, created_at, customer_id, subject, body, the labels that people decided, `predicted`
    (what the model said), model_version and `at`. Its text is that of the enriched object that was corrected.
    `python -m enrichment score` and `python -m enrichment.export compact --corrections` read this format.

    --apply repairs items: after a `tickets correct` that was killed, after an earlier version of the function stored a
    ticket again, or after items were restored.

    Columns in a pipe, separated by tabs: at, ticket_id, created_at, task, predicted label, label, by.
    """
    if apply and (file is not None or as_json):
        raise typer.BadParameter("--apply exports nothing: give it without FILE and --json")
    with opened_to_correct() as (repository, log):
        histories = []
        with progress("reading the log", None) as advance:
            for number, history in enumerate(log.by_ticket(), 1):
                if since is None or datetime.fromisoformat(history[-1].at).timestamp() >= since:
                    histories.append(history)
                advance(number)
        if apply:
            _apply(log, histories)
        elif file is not None:
            with _replacing(file) as stream:
                number = _export(repository, histories, stream)
            echo(f"{number} tickets in {file}", err=True)
        elif as_json:
            _export(repository, histories, typer.get_text_stream("stdout"))
        else:
            form = form_of(as_json=False)
            rows = [row for history in histories for entry in history for row in _rows(entry)]
            write(sorted(rows, key=lambda row: row.cells[0]), form)
            if not rows and form == "table":
                echo("no corrections", err=True)


def _rows(entry: Correction) -> Iterator[Row]:
    for task, label in entry.labels.items():
        cells = [entry.at, entry.ticket_id, str(entry.created_at), task, entry.predicted.get(task, ""), label, entry.by]
        shown = dict(zip(("at", "ticket", "created", "task", "predicted", "label", "by"), cells, strict=True))
        yield Row(
            entry.model_dump(exclude_none=True),
            cells,
            {name: cell for name, cell in shown.items() if name != "created"},
        )


def _apply(log: Corrections, histories: Sequence[Sequence[Correction]]) -> None:
    changed, refused = 0, []
    with progress("applying", len(histories)) as advance:
        for number, history in enumerate(histories, 1):
            try:
                changed += log.apply(history) is not None
            except CorrectionRefused as error:
                refused.append(str(error))
            advance(number)
    for line in refused:
        echo(f"tickets: {line}", err=True)
    echo(f"{changed} of {len(histories)} corrected tickets were changed", err=True)
    if refused:
        raise typer.Exit(1)


def _export(repository: TicketRepository, histories: Sequence[Sequence[Correction]], stream: TextIO) -> int:
    """Writes the labelled tickets; returns their number."""
    lasts = [history[-1] for history in histories]
    versions = [
        Item(
            ticket_id=last.ticket_id,
            created_at=last.created_at,
            s3_key=last.s3_key,
            s3_version_id=last.s3_version_id,
            **({} if last.s3_batch is None else {"s3_batch": last.s3_batch}),
        )
        for last in lasts
    ]
    written = 0
    read = count(1)
    with progress("exporting", len(histories)) as advance:
        texts = read_objects(repository, versions, _without_enrichment, lambda: advance(next(read)))
        for history, text in zip(histories, texts, strict=True):
            ticket = text or _current(repository, history[-1])
            if ticket is not None:
                stream.write(json.dumps(labelled(history, ticket), ensure_ascii=False) + "\n")
                written += 1
        stream.flush()
    if written < len(histories):
        echo(f"{len(histories) - written} corrected tickets have no readable object any more", err=True)
    return written


def _without_enrichment(ticket: Mapping[str, Any]) -> dict[str, Any]:
    """All that an export needs of an enriched ticket: thousands of embeddings need not stay in memory."""
    return {name: value for name, value in ticket.items() if name != "enrichment"}


def _current(repository: TicketRepository, entry: Correction) -> dict[str, Any] | None:
    """The ticket as it is stored now, if the version that was corrected is gone."""
    for item in repository.with_id(entry.ticket_id):
        if item.created_at == entry.created_at:
            try:
                return repository.whole(item)
            except ObjectUnreadable:
                return None
    return None


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """Yields a stream whose content becomes the file at the end of the block, if nothing fails before."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            yield stream
        part.replace(path)
    except OSError as error:
        raise RepositoryError(f"{path}: {error.strerror}; choose another file") from error
    finally:
        part.unlink(missing_ok=True)
