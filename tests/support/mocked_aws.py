"""AWS services in this process (moto), for code that makes its own clients from the environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto import mock_aws

__all__ = ["mocked_aws"]


@contextmanager
def mocked_aws() -> Iterator[pytest.MonkeyPatch]:
    """Replaces AWS, with credentials that reach nothing else. Yields what restores the environment at the end."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield patch
