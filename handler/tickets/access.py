"""AWS access for `tickets`: settings, clients, and errors as one line each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Final

import typer
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import Field, HttpUrl, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from handler.aws.clients import client_factory
from handler.cli.errors import error_line, settings_line
from handler.tickets.repository import RepositoryError, TicketRepository
from handler.tickets.similarity import READERS

__all__ = ["AccessSettings", "opened"]

_RIGHTS: Final = "the role needs dynamodb:Query on the table and its index, and s3:GetObjectVersion on the objects"
# In addition to those in handler.cli.errors.
_REMEDIES: Final = {
    "AccessDenied": _RIGHTS,
    "AccessDeniedException": _RIGHTS,
    "NoSuchBucket": "check ENRICHED_BUCKET",
    "ResourceNotFoundException": "check TABLE_NAME, AWS_DEFAULT_REGION and the credentials",
}


class AccessSettings(BaseSettings):
    """The settings of `tickets`: a subset of the function's."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    table_name: Annotated[str, Field(min_length=1)]
    enriched_bucket: Annotated[str, Field(min_length=1)]
    aws_endpoint_url: HttpUrl | None = None


@contextmanager
def opened() -> Iterator[TicketRepository]:
    """Yields the repository that the environment configures.

    A missing or invalid setting becomes one line on standard error and exit code 2; an AWS error inside the block
    becomes one line and exit code 1 (typer.Exit).
    """
    try:
        settings = AccessSettings()
    except ValidationError as error:
        typer.echo(f"tickets: {settings_line(error)}", err=True)
        raise typer.Exit(2) from error
    try:
        make = client_factory(settings.aws_endpoint_url)
        client = cache(
            lambda service: make(service, connections=READERS, connect_timeout=5, read_timeout=20, attempts=3)
        )
        yield TicketRepository(
            client("dynamodb"), lambda: client("s3"), table=settings.table_name, bucket=settings.enriched_bucket
        )
    except RepositoryError as error:
        typer.echo(f"tickets: {error}", err=True)
        raise typer.Exit(1) from error
    except (BotoCoreError, ClientError) as error:
        typer.echo(f"tickets: {error_line(error, _REMEDIES)}", err=True)
        raise typer.Exit(1) from error
