"""What surrounds a replay: the clients of AWS, asking and being asked to end, and errors in one line for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import boto3
import typer
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from handler.cli.shutdown import Shutdown, on_shutdown_signal
from handler.replay.choice import ExpressionInvalid
from handler.replay.queue import QueueFacts, ReplayError, ReplayRefused, error_line

__all__ = ["check_pair", "client", "complain", "confirm", "ending", "reported"]

_ASKED: Final = "finishing the batch in hand and giving the rest back; once more ends at once"
_GRACE: Final = 86400.0  # nobody ends the command but the user


def client(service: str) -> Any:
    """A client of AWS; region, credentials and AWS_ENDPOINT_URL come from the environment. Raises ReplayError."""
    make: Any = boto3.session.Session().client
    # Longer than the longest poll. Tries again by itself: throttled or not, a replay is in no hurry.
    config = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 5})
    try:
        return make(service, config=config)
    except BotoCoreError as error:
        raise ReplayRefused(error_line(error, "AWS")) from error
    except ValueError as error:
        raise ReplayRefused(f"AWS_ENDPOINT_URL: {error}") from error


@contextmanager
def reported() -> Iterator[None]:
    """Turns what goes wrong in the block into one line on standard error and the exit code that belongs to it."""
    try:
        yield
    except ExpressionInvalid as error:
        complain(f"--match: {error}")
        raise typer.Exit(2) from error
    except ReplayError as error:
        complain(str(error))
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        complain("ended at once; messages that were in hand come back by themselves")
        raise typer.Exit(1) from error


@contextmanager
def ending() -> Iterator[Shutdown]:
    """Yields what knows whether Ctrl-C or SIGTERM came; the second one raises KeyboardInterrupt."""
    halt = Shutdown(_GRACE)

    def ask() -> None:
        if halt.is_requested:
            raise KeyboardInterrupt
        halt.request()
        # Not by print: the signal may have come in the middle of one.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\ndlq-replay: {_ASKED}\n".encode())

    with on_shutdown_signal(ask):
        yield halt


def confirm(question: str, *, yes: bool) -> None:
    """Asks on the terminal, unless `yes` was given. Raises ReplayRefused without a terminal, ReplayError at a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ReplayRefused("there is no terminal to ask on; give --yes")
    typer.echo(f"{question} [y/N] ", nl=False, err=True)  # typer's own question would leave a space in the output
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        answer = ""
    if answer.strip().lower() not in {"y", "yes"}:
        raise ReplayError("nothing was sent")


def check_pair(source: QueueFacts, destination: QueueFacts, *, force: bool) -> None:
    """Raises ReplayRefused where the queues do not belong together, unless that is meant; warns of what is odd."""
    if source.arn == destination.arn and not force:
        raise ReplayRefused(f"source and destination are both {source.name}; name another --destination, or --force")
    if destination.dead_letter_arn != source.arn and not force:
        raise ReplayRefused(f"{source.name} is not the dead-letter queue of {destination.name}; check both, or --force")
    if source.dead_letter_arn is not None:
        complain(f"{source.name} has a dead-letter queue of its own, and each look at a message counts as a receive")


def complain(text: str) -> None:
    """Says something on standard error; what is not printable in it could steer a terminal, and is left out."""
    typer.echo(f"dlq-replay: {''.join(character for character in text if character.isprintable())}", err=True)
