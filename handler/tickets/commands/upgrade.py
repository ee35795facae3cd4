"""`tickets upgrade`."""

from __future__ import annotations

import typer

from handler.cli.output import echo
from handler.cli.shutdown import stopping_on_signals
from handler.dlq.output import progress
from handler.tickets.access import opened_to_upgrade
from handler.tickets.upgrade import upgrade

__all__ = ["upgrade_items"]


def upgrade_items() -> None:
    """Put the tickets that an earlier version stored into the table's index by day.

    Run it once: after an update from 0.1, when the new function and all workers are deployed, or on a new table, where
    it ends at once. Before that, counts by day (`tickets serve`) need four times as many queries. Run it again after a
    return to 0.1 and back. A run that was interrupted can be repeated.
    """
    read = changed = 0
    with opened_to_upgrade() as (client, table), stopping_on_signals() as shutdown:
        with progress("reading", None) as advance:

            def on_progress(more_read: int, more_changed: int) -> None:
                nonlocal read, changed
                read, changed = read + more_read, changed + more_changed
                advance(read)

            is_complete = upgrade(client, table, shutdown, on_progress)
        echo(f"{changed} of {read} tickets were put into the index", err=True)
    if not is_complete:
        echo("interrupted; run the command again", err=True)
        raise typer.Exit(1)
