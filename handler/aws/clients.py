"""Creates all AWS clients: those of the function, the worker and the commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import boto3
from botocore.config import Config
from pydantic import HttpUrl

__all__ = ["client_factory"]


def client_factory(endpoint_url: HttpUrl | str | None) -> Callable[..., Any]:
    """Returns `client(service, *, connections, read_timeout, connect_timeout, attempts)`, on one boto3 session.

    All clients share one session, which parses each service description only once. boto3 sessions are not thread-safe:
    call the factory from one thread at a time; the clients themselves are thread-safe. `connections` is the size of
    the HTTP pool, timeouts are in seconds, and `attempts` includes the first call.
    """
    session: list[boto3.session.Session] = []

    def client(
        service: str,
        *,
        connections: int = 10,
        connect_timeout: float = 2,
        read_timeout: float = 10,
        attempts: int = 4,
    ) -> Any:
        if not session:
            session.append(boto3.session.Session())
        make: Any = session[0].client
        return make(
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
