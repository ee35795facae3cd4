"""AWS services in this process (moto), for code that makes its own clients from the environment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from moto import mock_aws
from moto.core.botocore_stubber import BotocoreStubber

__all__ = ["mocked_aws"]


def _one_at_a_time(process: Callable[..., Any]) -> Callable[..., Any]:
    # moto's services are dicts without locks: a list while another thread deletes raised a TypeError now and then.
    lock = threading.RLock()

    def process_request(*arguments: Any) -> Any:
        with lock:
            return process(*arguments)

    return process_request


@contextmanager
def mocked_aws() -> Iterator[pytest.MonkeyPatch]:
    """Replaces AWS, with credentials that reach nothing else. Yields what restores the environment at the end."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setattr(BotocoreStubber, "process_request", _one_at_a_time(BotocoreStubber.process_request))
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield patch
