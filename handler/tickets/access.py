"""AWS access for `tickets`: settings, clients, and errors as one line each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any, Final

import typer
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import Field, HttpUrl, ValidationError

from enrichment.bundle import Bundle
from enrichment.errors import BundleError
from handler.aws.bundle_source import install_bundle
from handler.aws.clients import client_factory
from handler.aws.sqs import Queue
from handler.cli.errors import error_line, settings_line
from handler.cli.output import echo
from handler.errors import MessageError
from handler.settings import EnvironmentSettings, Names, listed
from handler.tickets.audit import caller
from handler.tickets.corrections import Corrections
from handler.tickets.forgetting import CONNECTIONS, Stores
from handler.tickets.repository import READERS, RepositoryError, TicketRepository
from handler.tickets.search.index import VectorIndex
from handler.tickets.search.location import index_at
from handler.tickets.search.query import QueryEncoder, Search

__all__ = [
    "READ_ERRORS",
    "AccessSettings",
    "CorrectSettings",
    "ForgetSettings",
    "SearchSettings",
    "opened",
    "opened_to_correct",
    "opened_to_forget",
    "opened_to_search",
    "opened_to_triage",
    "opened_to_upgrade",
    "problem_line",
]

_RIGHTS: Final = (
    "the role needs dynamodb:Query on the table and its indexes, s3:GetObjectVersion on the objects, and for "
    "ENRICHED_OBJECTS=batch s3:GetObject on batches/*"
)
_RIGHTS_TO_CORRECT: Final = "the role needs the permissions that docs/corrections.md lists"
_RIGHTS_TO_FORGET: Final = "the role needs the permissions that docs/privacy.md lists"
_RIGHTS_TO_SEARCH: Final = "the role needs the permissions that docs/search.md lists"
_RIGHTS_TO_TRIAGE: Final = "the role needs the permissions that docs/triage.md lists"
_RIGHTS_TO_UPGRADE: Final = "the role needs dynamodb:Query on urgency-index, and UpdateItem and PutItem on the table"
# In addition to those in handler.cli.errors.
_REMEDIES: Final = {
    "AWS.SimpleQueueService.NonExistentQueue": "check DLQ_URL, AWS_DEFAULT_REGION and the credentials",
    "QueueDoesNotExist": "check DLQ_URL, AWS_DEFAULT_REGION and the credentials",
    "NoSuchBucket": "check ENRICHED_BUCKET and RAW_BUCKET",
    "ResourceNotFoundException": "check TABLE_NAME, AWS_DEFAULT_REGION and the credentials",
}

READ_ERRORS: Final = (RepositoryError, MessageError, BotoCoreError, ClientError)
"""What reading and changing tickets raises if a service fails, or if what was asked for is missing or invalid."""


class AccessSettings(EnvironmentSettings):
    """The settings of `tickets`: a subset of the function's."""

    table_name: Annotated[str, Field(min_length=1)]
    enriched_bucket: Annotated[str, Field(min_length=1)]
    aws_endpoint_url: HttpUrl | None = None


class CorrectSettings(AccessSettings):
    """The settings of commands that correct labels. RESULT_WEBHOOK is the workers': it says that there is an outbox."""

    result_webhook: str | None = None


class IndexSettings(AccessSettings):
    """The settings of commands that use the vector index. VECTOR_INDEX: see handler.tickets.search.location."""

    vector_index: str | None = None


class SearchSettings(IndexSettings):
    """The settings of `tickets search`."""

    model_bundle: str = ""
    bundle_cache_dir: Annotated[str, Field(default_factory=tempfile.gettempdir)]


class TriageSettings(CorrectSettings, SearchSettings):
    """The settings of `tickets serve`."""


class ForgetSettings(IndexSettings):
    """The settings of `tickets forget`."""

    raw_bucket: Names
    dlq_url: Names


@contextmanager
def opened() -> Iterator[TicketRepository]:
    """Yields the repository that the environment configures. Errors as in `_reported`."""
    with _reported(_RIGHTS):
        settings = AccessSettings.read()
        yield _repository(settings, _clients(settings, READERS))


@contextmanager
def opened_to_correct() -> Iterator[tuple[TicketRepository, Corrections]]:
    """Yields the repository and the corrections that the environment configures. Errors as in `_reported`."""
    with _reported(_RIGHTS_TO_CORRECT):
        settings = CorrectSettings.read()
        client = _clients(settings, READERS)
        repository = _repository(settings, client)
        yield repository, _corrections(settings, client, repository)


@contextmanager
def opened_to_upgrade() -> Iterator[tuple[Any, str]]:
    """Yields DynamoDB's client and the table's name. Errors as in `_reported`."""
    with _reported(_RIGHTS_TO_UPGRADE):
        settings = AccessSettings.read()
        yield _clients(settings, READERS)("dynamodb"), settings.table_name


@contextmanager
def opened_to_search(bundle: str = "") -> Iterator[Search]:
    """Yields the search that the environment configures, with its repository and its index. Errors as in `_reported`.

    `bundle` replaces MODEL_BUNDLE, whose encoder is opened when words are searched for the first time.
    """
    with _reported(_RIGHTS_TO_SEARCH):
        settings = SearchSettings.read()
        client = _clients(settings, READERS)
        client("s3")  # made now, because clients must not be made in several threads

        yield _search(settings, client, _repository(settings, client), bundle)


@contextmanager
def opened_to_triage() -> Iterator[tuple[TicketRepository, Corrections, Search]]:
    """Yields what `tickets serve` reads and writes, for several threads. Errors as in `_reported`."""
    with _reported(_RIGHTS_TO_TRIAGE):
        settings = TriageSettings.read()
        client = _clients(settings, READERS)
        for service in ("s3", "sts"):
            client(service)  # made now, as above
        repository = _repository(settings, client)
        yield repository, _corrections(settings, client, repository), _search(settings, client, repository)


@contextmanager
def opened_to_forget() -> Iterator[tuple[Stores, str | None]]:
    """Yields all stores that the environment configures, and the caller's ARN. Errors as in `_reported`."""
    with _reported(_RIGHTS_TO_FORGET):
        settings = ForgetSettings.read()
        client = _clients(settings, CONNECTIONS)
        yield (
            Stores(
                client("dynamodb"),
                client("s3"),
                [Queue.find(client("sqs"), name) for name in listed(settings.dlq_url)],
                settings.table_name,
                listed(settings.raw_bucket),
                settings.enriched_bucket,
                _index(settings, client),
            ),
            caller(client("sts")),
        )


def _repository(settings: AccessSettings, client: Callable[[str], Any]) -> TicketRepository:
    return TicketRepository(
        client("dynamodb"), lambda: client("s3"), table=settings.table_name, bucket=settings.enriched_bucket
    )


def _corrections(settings: CorrectSettings, client: Callable[[str], Any], repository: TicketRepository) -> Corrections:
    return Corrections(
        client("dynamodb"),
        lambda: client("s3"),
        repository,
        lambda: caller(client("sts")),
        table=settings.table_name,
        bucket=settings.enriched_bucket,
        outbox=settings.result_webhook is not None,
    )


def _search(
    settings: SearchSettings, client: Callable[[str], Any], repository: TicketRepository, bundle: str = ""
) -> Search:
    def open_encoder() -> QueryEncoder:
        uri = bundle or settings.model_bundle
        if not uri:
            raise RepositoryError("set MODEL_BUNDLE, or give --bundle: the words need the encoder of the tickets")
        try:
            return QueryEncoder(Bundle.open(install_bundle(uri, settings.bundle_cache_dir, lambda: client("s3"))))
        except BundleError as error:
            raise RepositoryError(str(error)) from error

    return Search(repository, _index(settings, client), open_encoder)


def _index(settings: IndexSettings, client: Callable[[str], Any]) -> VectorIndex:
    endpoint = settings.aws_endpoint_url
    return index_at(
        settings.vector_index,
        bucket=settings.enriched_bucket,
        table=settings.table_name,
        endpoint=None if endpoint is None else str(endpoint),
        s3vectors=lambda: client("s3vectors"),
    )


def _clients(settings: AccessSettings, connections: int) -> Callable[[str], Any]:
    make = client_factory(settings.aws_endpoint_url)
    # The read timeout is longer than the longest poll.
    return cache(lambda service: make(service, connections=connections, connect_timeout=5, read_timeout=30, attempts=3))


def problem_line(error: Exception, rights: str = _RIGHTS_TO_TRIAGE) -> str:
    """One of READ_ERRORS as one line with its remedy. `rights` says what the role needs."""
    remedies = _REMEDIES | dict.fromkeys(("AccessDenied", "AccessDeniedException"), rights)
    cause = error.__cause__
    if isinstance(error, MessageError) and isinstance(cause, ClientError | BotoCoreError):
        return error_line(cause, remedies, str(error).partition(":")[0])  # from_aws puts the operation first
    return error_line(error, remedies) if isinstance(error, ClientError | BotoCoreError) else str(error)


@contextmanager
def _reported(rights: str) -> Iterator[None]:
    """A missing or invalid setting becomes one line on standard error and exit code 2; an AWS error exit code 1.

    Both as typer.Exit. `rights` says what the role needs.
    """
    try:
        yield
    except ValidationError as error:
        echo(f"tickets: {settings_line(error)}", err=True)
        raise typer.Exit(2) from error
    except READ_ERRORS as error:
        echo(f"tickets: {problem_line(error, rights)}", err=True)
        raise typer.Exit(1) from error
