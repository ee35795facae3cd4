"""The options of dlq-replay: one dataclass, whose fields are what the command line accepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_type_hints

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from handler.cli.options import WHEN, unix_time
from handler.dlq.errors import reported
from handler.dlq.filter import Expression, Filter
from handler.dlq.message import NO_REASON

__all__ = ["FILTER", "SCAN", "DlqGroup", "Lane", "Options", "command"]

_T = TypeVar("_T")
Lane = Literal["live", "bulk"]

FILTER: Final = ("reason", "match", "older_than", "newer_than", "message_id")
SCAN: Final = ("visibility_timeout", "wait", "empty_polls")


def _parser(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Show the message of a ValueError, which typer does not."""

    def parser(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return parser


_TIME: Final = _parser(lambda text: int(unix_time(text) * 1000))


@dataclass(frozen=True, kw_only=True)
class Options:
    """All options; each command accepts some of them. Times are milliseconds since 1970, durations seconds."""

    stored: Annotated[
        str, Argument(metavar="s3://BUCKET/PREFIX", help="Location of the raw tickets.", show_default=False)
    ] = ""
    source: Annotated[
        str | None, Option(envvar="DLQ_URL", metavar="QUEUE", help="Dead-letter queue: URL, ARN or name.")
    ] = None
    destination: Annotated[
        str | None, Option(envvar="QUEUE_URL", metavar="QUEUE", help="Queue to send to: URL, ARN or name.")
    ] = None
    lane: Annotated[
        Lane | None,
        Option(
            help="Which one, if DLQ_URL and QUEUE_URL list several: live, the first, or bulk, the last. Default: live; "
            "for backfill the last."
        ),
    ] = None
    reason: Annotated[
        list[str] | None,
        Option(
            metavar="CODE",
            help=f"Only messages with this Reason; {NO_REASON}: messages without one, which SQS itself moved to the "
            "DLQ. Can be repeated.",
        ),
    ] = None
    match: Annotated[
        Expression | None,
        Option(
            parser=_parser(Expression),
            metavar="JMESPATH",
            help="Only messages for which this expression is true. It reads {body, attributes, reason, rejection, "
            "message_id}, with a JSON body parsed. Examples: \"attributes.source == 'mail'\", "
            "\"starts_with(body.Records[0].s3.object.key, '2026/')\".",
        ),
    ] = None
    older_than: Annotated[
        int | None,
        Option(
            parser=_TIME,
            metavar=WHEN,
            help="Only messages sent (backfill: objects modified) before this time: an age, or a TIME in ISO 8601.",
        ),
    ] = None
    newer_than: Annotated[
        int | None,
        Option(
            parser=_TIME,
            metavar=WHEN,
            help="Only messages sent (backfill: objects modified) at or after this time. Messages that SQS moved to "
            "the DLQ keep the time of their first send.",
        ),
    ] = None
    message_id: Annotated[
        list[str] | None,
        Option(
            metavar="ID",
            help="Only the message with this id, in the DLQ or in the queue where it failed. Can be repeated.",
        ),
    ] = None
    limit: Annotated[
        int | None, Option(min=1, help="Maximum number of messages. Default: 10 for peek, otherwise no limit.")
    ] = None
    rate: Annotated[
        float | None, Option(min=0.01, help="Maximum number of messages per second. Default: no limit.")
    ] = None
    max_replays: Annotated[
        int | None, Option(min=1, help="Leave messages in the DLQ whose ReplayCount has reached this number.")
    ] = None
    dry_run: Annotated[bool, Option("--dry-run", help="Send nothing; show what would be sent.")] = False
    audit: Annotated[
        Path | None,
        Option(metavar="FILE", help="Write an audit file. A run with the same file resumes an interrupted one."),
    ] = None
    raw_bucket: Annotated[str | None, Option(envvar="RAW_BUCKET", hidden=True)] = None
    force: Annotated[
        bool,
        Option(
            "--force",
            help="Accept a source that is not the destination's DLQ (backfill: a bucket that is not RAW_BUCKET).",
        ),
    ] = False
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask for confirmation.")] = False
    as_json: Annotated[bool, Option("--json", help="Print JSON instead of text.")] = False
    visibility_timeout: Annotated[
        int,
        Option(
            min=1,
            max=43200,
            help="Visibility timeout of received messages, in seconds. It is extended while the command runs, to up to "
            "15 minutes; after a kill, messages become visible when it ends.",
        ),
    ] = 60
    wait: Annotated[int, Option(min=1, max=20, help="Length of a long poll, in seconds.")] = 5
    empty_polls: Annotated[
        int, Option(min=1, help="Number of consecutive empty receives after which the queue is considered empty.")
    ] = 3

    @cached_property
    def filter(self) -> Filter:
        """The filter that the options in FILTER describe."""
        return Filter(
            reasons=frozenset(self.reason or ()),
            expression=self.match,
            before=self.older_than,
            after=self.newer_than,
            message_ids=frozenset(self.message_id or ()),
        )


def command(app: typer.Typer, *names: str) -> Callable[[Callable[[Options], None]], Callable[[Options], None]]:
    """Register a function as a command that accepts the options `names`; its errors become one line and an exit code.

    typer reads a command's options from the signature of its function: here it is made from the fields of Options.
    """
    hints = get_type_hints(Options, include_extras=True)
    parameters = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
        for field in fields(Options)
        if field.name in names
    ]

    def register(function: Callable[[Options], None]) -> Callable[[Options], None]:
        def run(**values: Any) -> None:
            with reported():
                function(Options(**values))

        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # functions do have it
        paragraphs = [" ".join(paragraph.split()) for paragraph in (function.__doc__ or "").split("\n\n")]
        app.command(function.__name__, help="\n\n".join(paragraphs))(run)
        return function

    return register


class DlqGroup(TyperGroup):
    """The commands, of which `replay` is the default. Accepts the command lines of earlier versions.

    `--hidden` is now `--visibility-timeout`, `replay --native` is `redrive`, `replay --from-s3 URL` is `backfill URL`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Translate, then parse."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["replay", *args]
        args = [
            "--visibility-timeout" + a.removeprefix("--hidden") if a.split("=")[0] == "--hidden" else a for a in args
        ]
        if args[0] == "replay" and any(argument.split("=")[0] == "--from-s3" for argument in args):
            args = ["backfill", *(a.removeprefix("--from-s3=") for a in args[1:] if a != "--from-s3")]
        elif args[0] == "replay" and "--native" in args:
            args = ["redrive", *(a for a in args[1:] if a != "--native")]
        return super().parse_args(ctx, args)
