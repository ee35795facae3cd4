"""`tickets serve`."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from handler.cli.output import echo
from handler.tickets.access import opened_to_triage
from handler.tickets.repository import RepositoryError

__all__ = ["serve"]


def serve(
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0: a free one.")] = 8700,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve the triage page on this machine, until Ctrl-C: a live list, tickets, corrections, a chart and exports.

    Prints a link that opens the page once, in one browser; when it was used, it prints another one. Nothing else can
    open the page. docs/triage.md lists the keys, the permissions, and how to use the page from another machine.
    """
    with opened_to_triage() as (repository, corrections, search):
        try:
            from handler.tickets.page import server, views
        except ImportError as error:
            raise RepositoryError(f"{error.name} is missing: pip install 'ticket-enrichment[page]'") from error
        opened: list[str] = []

        def announce(link: str) -> None:
            echo(link)
            if not opened:
                echo("Open this link; Ctrl-C stops.", err=True)
                if open_browser:
                    webbrowser.open(link)
            opened.append(link)

        server.serve(views.Stores(repository, corrections, search), port, announce)
