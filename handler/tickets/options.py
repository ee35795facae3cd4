"""The options that the commands of `tickets` share."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from enrichment.ticket import Priority, Sentiment

__all__ = [
    "CreatedOption",
    "IdArgument",
    "IntentOption",
    "JsonOption",
    "ReviewOption",
    "SentimentOption",
    "SinceOption",
    "UrgencyOption",
    "UrgentOption",
    "WatchOption",
    "WatchingCommand",
    "since_seconds",
]

_PAUSE: Final = 2.0  # seconds between two looks of --watch
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class WatchingCommand(TyperCommand):
    """A command whose --watch may stand alone: typer's options always take a value, or never."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As the base's; a --watch that no number follows gets the usual one."""
        following = [*args[1:], ""]
        for place, arg in enumerate(args):
            if arg == "--watch" and not re.fullmatch(r"-?[0-9.]+", following[place]):
                args[place] = f"--watch={_PAUSE}"
        return super().parse_args(ctx, args)


def since_seconds(text: str) -> int:
    """Unix seconds of `2h`, `3d` (ago) or of an ISO 8601 date or time, UTC where it names no zone.

    Raises typer.BadParameter for anything else.
    """
    if ago := re.fullmatch(r"([0-9]{1,6})([smhdw])", text):
        return int(time.time()) - int(ago[1]) * _SECONDS[ago[2]]
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is neither like 90s, 30m, 2h, 3d or 1w nor an ISO 8601 time") from error
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())


UrgentOption = Annotated[bool, typer.Option("--urgent", help="Only critical and high.")]
UrgencyOption = Annotated[Priority | None, typer.Option(case_sensitive=False, help="Only this level.")]
IntentOption = Annotated[str | None, typer.Option(help="Only this intent; `tickets count` lists them.")]
SentimentOption = Annotated[Sentiment | None, typer.Option(case_sensitive=False, help="Only this sentiment.")]
ReviewOption = Annotated[bool, typer.Option("--needs-review", help="Only those whose labels are unsure.")]
SinceOption = Annotated[
    int | None,
    typer.Option(parser=since_seconds, metavar="2h|3d|TIME", help="Only created since; TIME is ISO 8601, in UTC."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, with all that is known.")]
WatchOption = Annotated[
    float | None,
    typer.Option(min=0.1, metavar="[SECONDS]", help=f"Look again, every {_PAUSE:g} s by default, until Ctrl-C."),
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The ticket_id.")]
CreatedOption = Annotated[
    int | None, typer.Option("--created-at", metavar="UNIX_SECONDS", help="Which one, where several have this id.")
]
