"""Errors of dlq-replay: one line on standard error, and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer
from botocore.exceptions import BotoCoreError, ClientError

from handler.cli.errors import error_line
from handler.errors import MessageError

__all__ = ["DlqError", "RequestInvalid", "describe", "reported", "warn"]

_PERMISSIONS: Final = (
    "the role needs sqs:GetQueueAttributes on both queues, sqs:ReceiveMessage, sqs:DeleteMessage and "
    "sqs:ChangeMessageVisibility on the source, and sqs:SendMessage on the destination"
)
_QUEUE: Final = "check the queue's name, AWS_DEFAULT_REGION and the credentials"
# In addition to those of handler.cli.errors.
_REMEDIES: Final = {
    "AWS.SimpleQueueService.NonExistentQueue": _QUEUE,
    "AccessDenied": _PERMISSIONS,
    "AccessDeniedException": _PERMISSIONS,
    "InvalidAddress": _QUEUE,
    "NoSuchBucket": "check the bucket's name and the credentials",
    "OverLimit": "too many messages are in flight; process fewer with --limit, or wait for other consumers",
    "QueueDoesNotExist": _QUEUE,
}


class DlqError(Exception):
    """The command cannot continue."""

    exit_code = 1


class RequestInvalid(DlqError):
    """The command did not start: options, settings or files are wrong."""

    exit_code = 2


def describe(error: MessageError) -> str:
    """An error of handler.aws in one line: the call, AWS's message, and the remedy if one is known."""
    cause = error.__cause__
    if not isinstance(cause, ClientError | BotoCoreError):
        return str(error)
    operation = str(error).partition(":")[0]  # from_aws puts it first
    return error_line(cause, _REMEDIES, operation)


@contextmanager
def reported() -> Iterator[None]:
    """Turn errors into one line on standard error and an exit code: 2 if nothing was started, otherwise 1."""
    try:
        yield
    except DlqError as error:
        warn(str(error))
        raise typer.Exit(error.exit_code) from error
    except MessageError as error:
        warn(describe(error))
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        warn("stopped immediately; messages in flight become visible when their visibility timeout ends")
        raise typer.Exit(1) from error


def warn(text: str) -> None:
    """Print a line to standard error, without characters that could control the terminal."""
    typer.echo(f"dlq-replay: {''.join(character for character in text if character.isprintable())}", err=True)
