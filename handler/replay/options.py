"""The options that the commands of `dlq-replay` share."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from handler.cli.options import WHEN
from handler.replay.choice import Choice, ExpressionInvalid, Match, milliseconds
from handler.replay.letter import REDRIVEN

__all__ = [
    "CommandByDefault",
    "DestinationOption",
    "EmptyPollsOption",
    "HiddenOption",
    "JsonOption",
    "MatchOption",
    "MessageIdOption",
    "NewerOption",
    "OlderOption",
    "ReasonOption",
    "SourceOption",
    "WaitOption",
    "make_choice",
]


class CommandByDefault(TyperGroup):
    """A group whose command `replay` may go unnamed: `dlq-replay --dry-run` is `dlq-replay replay --dry-run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As the base's."""
        named = bool(args) and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named else ["replay", *args])


def _expression(text: str) -> Match:
    try:
        return Match(text)
    except ExpressionInvalid as error:
        raise typer.BadParameter(str(error)) from error


def _moment(text: str) -> int:
    try:
        return milliseconds(text)
    except ExpressionInvalid as error:
        raise typer.BadParameter(str(error)) from error


def make_choice(
    reasons: list[str] | None, match: Match | None, older: int | None, newer: int | None, message_ids: list[str] | None
) -> Choice:
    """What the five options mean together: all of them must be true of a message."""
    return Choice(
        reasons=frozenset(reasons or ()),
        match=match,
        before=older,
        after=newer,
        message_ids=frozenset(message_ids or ()),
    )


SourceOption = Annotated[
    str | None, typer.Option(envvar="DLQ_URL", metavar="QUEUE", help="The dead-letter queue: URL, ARN or name.")
]
DestinationOption = Annotated[
    str | None, typer.Option(envvar="QUEUE_URL", metavar="QUEUE", help="Where messages go: URL, ARN or name.")
]
ReasonOption = Annotated[
    list[str] | None,
    typer.Option(metavar="CODE", help=f"Only with this Reason; {REDRIVEN}: those without one. May be given again."),
]
MatchOption = Annotated[
    Match | None,
    typer.Option(
        parser=_expression,
        metavar="JMESPATH",
        help="Only where this is true of {body, attributes, reason, rejection, message_id}, the body being JSON where "
        "it can: \"attributes.source == 'mail'\", \"starts_with(body.Records[0].s3.object.key, '2026/')\".",
    ),
]
OlderOption = Annotated[
    int | None, typer.Option("--older-than", parser=_moment, metavar=WHEN, help="Only sent before; TIME is ISO 8601.")
]
NewerOption = Annotated[
    int | None,
    typer.Option(
        "--newer-than",
        parser=_moment,
        metavar=WHEN,
        help="Only sent since. A redriven message keeps the time of its first sending.",
    ),
]
MessageIdOption = Annotated[
    list[str] | None,
    typer.Option(metavar="ID", help="Only this one, by its id here or where it failed. May be given again."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of tables and sentences.")]
HiddenOption = Annotated[
    int,
    typer.Option(
        min=1,
        max=43200,
        help="Seconds that a received message is hidden from others, renewed while it is held. What a killed process "
        "held comes back after them.",
    ),
]
WaitOption = Annotated[int, typer.Option(min=1, max=20, help="Seconds of one long poll.")]
EmptyPollsOption = Annotated[int, typer.Option(min=1, help="End after so many empty polls in a row.")]
