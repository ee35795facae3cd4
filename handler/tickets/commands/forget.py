"""`tickets forget`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from handler.cli.output import echo, form_of, write
from handler.cli.shutdown import stopping_on_signals
from handler.dlq.options import Options
from handler.tickets.access import opened_to_forget
from handler.tickets.audit import append
from handler.tickets.forgetting import Erased, Forgetting, Found, Kind, Target
from handler.tickets.options import JsonOption
from handler.tickets.rows import place_row

__all__ = ["AUDIT_FILE", "forget"]

AUDIT_FILE: Final = Path("forgotten.jsonl")
_KINDS: Final[tuple[Kind, ...]] = ("raw", "enriched", "correction", "item", "dlq", "vector")


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

    That is: every version of the raw and of the enriched objects, the corrections, the items in the table, their
    entries in the vector index, and DLQ messages. Later deliveries, replays and backfills of the tickets are skipped.
    docs/privacy.md says what this cannot reach. A run that was interrupted can be repeated.

    Columns in a pipe, separated by tabs: kind (raw, enriched, correction, dlq, vector, item), place, number of
    versions. --json also prints the totals, on the last line. The DLQ's messages are invisible to other consumers until
    the command ends.

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
        totals = {kind: erased.count(kind) for kind in _KINDS} | {"complete": complete}
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
