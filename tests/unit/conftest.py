"""Shared fixtures: SQS behind botocore's Stubber, for requests and responses that no emulator produces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber


@pytest.fixture
def sqs() -> Iterator[Any]:
    """An SQS client without a network."""
    client: Any = boto3.session.Session().client(
        "sqs", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    yield client
    client.close()


@pytest.fixture
def stub(sqs: Any) -> Iterator[Stubber]:
    """The client's responses; all of them must have been used at the end of the test."""
    with Stubber(sqs) as stub:
        yield stub
        stub.assert_no_pending_responses()
