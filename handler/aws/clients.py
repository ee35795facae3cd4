"""Creates all AWS clients: those of the function, the worker and the commands."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from botocore.config import Config
from botocore.exceptions import DataNotFoundError, UnknownServiceError
from botocore.loaders import JSONFileLoader, Loader, instance_cache
from botocore.session import Session
from pydantic import HttpUrl
from pydantic_core import from_json

__all__ = ["client_factory"]

# Users may have descriptions of their own below HOME, which on Lambda may be missing or forbidden.
_NO_FILE: Final = (FileNotFoundError, NotADirectoryError, PermissionError)


class _FileLoader(JSONFileLoader):
    """Reads a file of a description with pydantic's JSON parser, which takes a third of the time of botocore's."""

    def load_file(self, file_path: str) -> Any:
        """The content of `file_path`.json or .json.gz; None if there is neither."""
        for suffix, open_file in ((".json", open), (".json.gz", gzip.open)):
            with suppress(*_NO_FILE), open_file(file_path + suffix, "rb") as file:
                return from_json(file.read())
        return None


class _ServiceLoader(Loader):
    """Finds botocore's descriptions of the services.

    To learn whether a service exists, botocore lists the directories of all 400, for each kind of description. That
    takes a third of the time to create the first client, and longer on a disk that is not cached yet.
    """

    FILE_LOADER_CLASS = _FileLoader

    @instance_cache
    def list_available_services(self, type_name: str) -> list[str]:  # noqa: ARG002 - botocore's signature
        """The services of which there is any description."""
        found: set[str] = set()
        for path in self.search_paths:
            with suppress(*_NO_FILE):
                found.update(os.listdir(path))  # noqa: PTH208 - Path.iterdir makes a path of each
        return sorted(found)

    def load_service_model(self, service_name: str, type_name: str, api_version: str | None = None) -> Any:
        """As Loader.load_service_model. Raises UnknownServiceError if the service has no description of this kind."""
        try:
            return super().load_service_model(service_name, type_name, api_version)
        except DataNotFoundError as error:
            known = ", ".join(self.list_available_services(type_name))
            raise UnknownServiceError(service_name=service_name, known_service_names=known) from error


def client_factory(endpoint_url: HttpUrl | str | None) -> Callable[..., Any]:
    """Returns `client(service, *, connections, read_timeout, connect_timeout, attempts)`, on one botocore session.

    All clients share one session, which parses each service description only once. Sessions are not thread-safe: call
    the factory from one thread at a time; the clients themselves are thread-safe. `connections` is the size of the HTTP
    pool, timeouts are in seconds, and `attempts` includes the first call. boto3's clients are the same, with transfers
    of large files in addition, whose modules take longer to import.
    """
    session: list[Session] = []

    def client(
        service: str,
        *,
        connections: int = 10,
        connect_timeout: float = 2,
        read_timeout: float = 10,
        attempts: int = 4,
    ) -> Any:
        if not session:
            session.append(Session())
            data_path = session[0].get_config_variable("data_path")
            extra = data_path.split(os.pathsep) if data_path else []
            session[0].register_component("data_loader", _ServiceLoader(extra_search_paths=extra))
        return session[0].create_client(
            service,
            endpoint_url=str(endpoint_url) if endpoint_url else None,
            config=Config(
                connect_timeout=connect_timeout,
                read_timeout=read_timeout,
                retries={"mode": "standard", "total_max_attempts": attempts},
                max_pool_connections=connections,
            ),
        )

    return client
