"""The options that the commands of `tickets` share, and what they select."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from enrichment.ticket import Priority, Sentiment
from handler.cli.options import WHEN, unix_time
from handler.cli.output import echo
from handler.tickets.repository import URGENCIES, Item, RepositoryError, Selection, TicketRepository

__all__ = [
    "BaselineOption",
    "BundleOption",
    "CreatedOption",
    "IdArgument",
    "IntentOption",
    "JsonOption",
    "Period",
    "ReviewOption",
    "SentimentOption",
    "SinceOption",
    "StartOption",
    "UrgencyOption",
    "UrgentOption",
    "WatchOption",
    "WatchingCommand",
    "find_ticket",
    "selection_of",
    "since_seconds",
]

_PAUSE: Final = 2.0  # default seconds between two reads of --watch


class WatchingCommand(TyperCommand):
    """A command whose --watch takes an optional value, which typer's own options cannot."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As in the base class; a --watch without a number gets the default."""
        following = [*args[1:], ""]
        for place, arg in enumerate(args):
            if arg == "--watch" and not re.fullmatch(r"-?[0-9.]+", following[place]):
                args[place] = f"--watch={_PAUSE}"
        return super().parse_args(ctx, args)


def since_seconds(text: str) -> int:
    """As handler.cli.options.unix_time, in whole seconds. Raises typer.BadParameter."""
    try:
        return int(unix_time(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@dataclass(frozen=True)
class Period:
    """From `begin` until before `end`, in Unix seconds."""

    begin: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Period:
        """Reads FROM..TO. Raises typer.BadParameter."""
        begin, dots, end = text.partition("..")
        if not dots:
            raise typer.BadParameter(f"{text!r} is not FROM..TO, such as 8w..4w or 2026-10-01..2026-11-01")
        period = cls(since_seconds(begin), since_seconds(end))
        if period.begin >= period.end:
            raise typer.BadParameter(f"{text!r} ends before it begins")
        return period


UrgentOption = Annotated[bool, typer.Option("--urgent", help="Only critical and high tickets.")]
UrgencyOption = Annotated[Priority | None, typer.Option(case_sensitive=False, help="Only tickets with this urgency.")]
IntentOption = Annotated[
    str | None, typer.Option(help="Only tickets with this intent; `tickets count` lists the intents.")
]
SentimentOption = Annotated[
    Sentiment | None, typer.Option(case_sensitive=False, help="Only tickets with this sentiment.")
]
ReviewOption = Annotated[bool, typer.Option("--needs-review", help="Only tickets that need review.")]
SinceOption = Annotated[
    int | None,
    typer.Option(
        parser=since_seconds,
        metavar=WHEN,
        help="Only tickets created since this time: an age, or a TIME in ISO 8601 (UTC).",
    ),
]
StartOption = Annotated[
    int,
    typer.Option("--since", parser=since_seconds, metavar=WHEN, help="Compare the tickets created since this time."),
]
BaselineOption = Annotated[
    Period | None,
    typer.Option(
        parser=Period.parse,
        metavar="FROM..TO",
        help="Compare with the tickets created in this period, such as 8w..4w; default: the bundle's training texts.",
    ),
]
BundleOption = Annotated[
    str, typer.Option(envvar="MODEL_BUNDLE", metavar="URI", help="file:///directory or s3://bucket/prefix.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line, with all fields.")]
WatchOption = Annotated[
    float | None,
    typer.Option(min=0.1, metavar="[SECONDS]", help=f"Refresh until Ctrl-C; default interval: {_PAUSE:g} s."),
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The ticket_id.")]
CreatedOption = Annotated[
    int | None,
    typer.Option("--created-at", metavar="UNIX_SECONDS", help="created_at of the ticket, if several have this id."),
]


def selection_of(  # the six options in their order
    urgent: bool,  # noqa: FBT001 - the options of the command line
    urgency: Priority | None,
    intent: str | None,
    sentiment: Sentiment | None,
    needs_review: bool,  # noqa: FBT001
    since: int | None,
) -> Selection:
    """The tickets that the options of a list select. Raises typer.BadParameter."""
    if urgent and urgency:
        raise typer.BadParameter("give --urgent or --urgency, not both")
    levels = ("critical", "high") if urgent else (urgency,) if urgency else URGENCIES
    return Selection(levels, intent, sentiment, needs_review or None, since=since)


def find_ticket(repository: TicketRepository, ticket_id: str, created_at: int | None) -> Item:
    """The ticket with an id; the newest one if several have it. Raises RepositoryError."""
    items = repository.with_id(ticket_id)
    wanted = [item for item in items if created_at in (None, item.created_at)]
    if not wanted:
        times = ", ".join(str(item.created_at) for item in items)
        raise RepositoryError(f"no ticket {ticket_id}" + (f" of {created_at}, but of {times}" if times else ""))
    if len(wanted) > 1:
        times = ", ".join(str(item.created_at) for item in wanted[1:])
        echo(f"the newest of {len(wanted)}; --created-at shows the others: {times}", err=True)
    return wanted[0]
