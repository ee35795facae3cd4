"""`tickets`: lists, shows, searches, corrects and forgets enriched tickets.

    tickets show --urgent --since 2h       newest first; --watch refreshes the list
    tickets get ID                         all fields of one ticket
    tickets similar ID                     the most similar tickets
    tickets search "WORDS"                 the tickets nearest in meaning; `tickets index` builds the index
    tickets duplicates                     groups of nearly equal tickets
    tickets count                          number of tickets per label
    tickets serve                          the triage page, in a browser on this machine
    tickets drift --since 7d               whether labels and texts differ from those of the training texts
    tickets correct ID --intent X          a person's label instead of the model's
    tickets corrections FILE               the corrected tickets as labelled tickets
    tickets upgrade                        once, after an update from 0.1
    tickets compare --since 7d             where two bundles differ, and which one is right
    tickets forget ID                      remove everything that is stored of a ticket; a dry run without --yes

The output is a table on a terminal, tab-separated lines in a pipe, and one JSON object per line with --json. Each group
of commands is a module of handler.tickets.commands.
"""

from __future__ import annotations

import typer

from handler.cli.output import replace_unprintable
from handler.tickets.commands.compare import compare
from handler.tickets.commands.correct import correct, corrections
from handler.tickets.commands.drift import detect_drift
from handler.tickets.commands.forget import forget
from handler.tickets.commands.lists import count, get, show
from handler.tickets.commands.search import find_duplicates, search, update_index
from handler.tickets.commands.serve import serve
from handler.tickets.commands.similar import resemble
from handler.tickets.commands.upgrade import upgrade_items
from handler.tickets.options import WatchingCommand

__all__ = ["app", "main"]


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="List, show, search, correct and forget enriched tickets.",
)
app.command(cls=WatchingCommand)(show)
app.command(cls=WatchingCommand)(count)
app.command()(get)
app.command("similar")(resemble)
app.command()(search)
app.command("duplicates")(find_duplicates)
app.command("index", cls=WatchingCommand)(update_index)
app.command()(serve)
app.command("drift")(detect_drift)
app.command()(correct)
app.command()(corrections)
app.command("upgrade")(upgrade_items)
app.command()(compare)
app.command()(forget)


def main() -> None:
    """Run `tickets`."""
    replace_unprintable()
    app()
