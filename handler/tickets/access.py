"""The way of `tickets` to AWS: its settings, its clients, and what goes wrong with either, in one line for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any, Final

import boto3
import typer
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import Field, HttpUrl, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from handler.command_line import error_line
from handler.tickets.catalogue import Catalogue, CatalogueError
from handler.tickets.likeness import READERS

__all__ = ["AccessSettings", "opened"]

_RIGHTS: Final = "the role needs dynamodb:Query on the table and its index, and s3:GetObjectVersion on the objects"
# Beside those of handler.command_line.
_REMEDIES: Final = {
    "AccessDenied": _RIGHTS,
    "AccessDeniedException": _RIGHTS,
    "NoSuchBucket": "check ENRICHED_BUCKET",
    "ResourceNotFoundException": "check TABLE_NAME, AWS_DEFAULT_REGION and the credentials",
}


class AccessSettings(BaseSettings):
    """What `tickets` reads from the environment: names of the function's own settings, but fewer of them."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    table_name: Annotated[str, Field(min_length=1)]
    enriched_bucket: Annotated[str, Field(min_length=1)]
    aws_endpoint_url: HttpUrl | None = None


@contextmanager
def opened() -> Iterator[Catalogue]:
    """Yields the catalogue that the environment names.

    Whatever is missing there, and whatever AWS refuses until the block ends, becomes one line on standard error, and
    typer.Exit with code 2 for settings and 1 for the rest.
    """
    try:
        settings = AccessSettings()
    except ValidationError as error:
        typer.echo(f"tickets: {_settings_line(error)}", err=True)
        raise typer.Exit(2) from error
    try:
        client = _clients(settings)
        yield Catalogue(
            client("dynamodb"), lambda: client("s3"), table=settings.table_name, bucket=settings.enriched_bucket
        )
    except CatalogueError as error:
        typer.echo(f"tickets: {error}", err=True)
        raise typer.Exit(1) from error
    except (BotoCoreError, ClientError) as error:
        typer.echo(f"tickets: {error_line(error, _REMEDIES)}", err=True)
        raise typer.Exit(1) from error


def _clients(settings: AccessSettings) -> Callable[[str], Any]:
    make: Any = boto3.session.Session().client
    config = Config(
        connect_timeout=5,
        read_timeout=20,
        retries={"mode": "standard", "total_max_attempts": 3},
        max_pool_connections=READERS,
    )
    url = str(settings.aws_endpoint_url) if settings.aws_endpoint_url else None
    return cache(lambda service: make(service, endpoint_url=url, config=config))


def _settings_line(error: ValidationError) -> str:
    """Names every variable that is missing, and every one that is wrong."""
    found = error.errors(include_url=False, include_input=False)
    missing = [str(item["loc"][0]).upper() for item in found if item["type"] == "missing"]
    wrong = [f"{str(item['loc'][0]).upper()}: {item['msg']}" for item in found if item["type"] != "missing"]
    return "; ".join([*([f"set {' and '.join(missing)} in the environment"] if missing else []), *wrong])
