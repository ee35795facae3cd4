"""The deployed handler in this process: real clients, real models, and the embedded stack's stores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

import pytest
from boto3.dynamodb.types import TypeDeserializer

from handler.app import Handler, build
from handler.local import EmbeddedStack
from handler.settings import Settings
from tests.support.cases import Answer, RejectedMessage
from tests.support.fakes import context, written_to


class DeployedStack(Protocol):
    """The part of a stack that a harness uses: the embedded one, or one that is deployed elsewhere."""

    @property
    def outputs(self) -> dict[str, str]:
        """The template's outputs."""
        ...

    def client(self, service: str) -> Any:
        """A client of one of its services."""
        ...


class StackHarness:
    """`tests.support.cases.Harness` on the embedded stack, with a handler that uses it."""

    def __init__(self, stack: DeployedStack, handler: Handler) -> None:
        self.raw_bucket: str = stack.outputs["RawBucket"]
        self.handler = handler
        self._outputs = stack.outputs
        self._s3, self._sqs, self._dynamodb = (stack.client(name) for name in ("s3", "sqs", "dynamodb"))

    def invoke(self, event: Any) -> Answer:
        """Pass an event to the handler; the log is everything that it writes: log lines, metrics, stdout and stderr."""
        log = StringIO()
        with written_to(log), redirect_stdout(log), redirect_stderr(log):
            response = self.handler(event, context())
        return Answer(response, log.getvalue())

    def put_object(self, key: str, body: bytes) -> None:
        """As Harness.put_object."""
        self._s3.put_object(Bucket=self.raw_bucket, Key=key, Body=body)

    def item(self, ticket_id: str, created_at: int) -> Mapping[str, Any] | None:
        """As Harness.item."""
        found = self._dynamodb.get_item(
            TableName=self._outputs["TableName"], Key=_key(ticket_id, created_at), ConsistentRead=True
        )
        if "Item" not in found:
            return None
        read = TypeDeserializer().deserialize
        return {name: read(value) for name, value in found["Item"].items()}

    def object(self, key: str, version_id: str) -> bytes:
        """As Harness.object."""
        found = self._s3.get_object(Bucket=self._outputs["EnrichedBucket"], Key=key, VersionId=version_id)
        with found["Body"] as stream:
            return bytes(stream.read())

    def forget(self, ticket_id: str, created_at: int) -> None:
        """As Harness.forget."""
        self._dynamodb.delete_item(TableName=self._outputs["TableName"], Key=_key(ticket_id, created_at))

    def rejected_messages(self) -> list[RejectedMessage]:
        """As Harness.rejected_messages."""
        return RejectedMessage.receive_all(self._sqs, self._outputs["DlqUrl"])


@contextmanager
def deployed(stack: EmbeddedStack, bundle: Path, cache: Path) -> Iterator[StackHarness]:
    """A handler built only from the environment of the deployed function."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.environment().items():
            patch.setenv(name, value)
        patch.setenv("MODEL_BUNDLE", bundle.as_uri())
        patch.setenv("BUNDLE_CACHE_DIR", str(cache))
        yield StackHarness(stack, build(Settings.read()))


def _key(ticket_id: str, created_at: int) -> dict[str, dict[str, str]]:
    return {"ticket_id": {"S": ticket_id}, "created_at": {"N": str(created_at)}}
