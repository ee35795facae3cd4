"""Fixtures of several unit tests: SQS as botocore's Stubber, for calls and answers that no emulator gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber


@pytest.fixture
def sqs() -> Iterator[Any]:
    """A client of SQS that reaches nobody."""
    made: Any = boto3.session.Session().client(
        "sqs", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    yield made
    made.close()


@pytest.fixture
def stub(sqs: Any) -> Iterator[Stubber]:
    """The answers that the client gets, all of which must have been asked for in the end."""
    with Stubber(sqs) as stub:
        yield stub
        stub.assert_no_pending_responses()
