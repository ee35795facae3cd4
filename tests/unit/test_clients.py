"""The factory of all AWS clients."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import UnknownServiceError
from botocore.loaders import Loader

from handler.aws.clients import client_factory

REGION = "eu-central-1"


@pytest.fixture(autouse=True)
def region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)


@pytest.mark.parametrize("service", ["s3", "dynamodb", "sqs", "s3vectors", "cloudwatch"])
def test_client_is_that_of_boto3(service: str) -> None:
    make: Any = boto3.session.Session(region_name=REGION).client
    ours, theirs = client_factory(None)(service), make(service)
    assert ours.meta.service_model.api_version == theirs.meta.service_model.api_version
    assert ours.meta.endpoint_url == theirs.meta.endpoint_url
    assert ours.meta.method_to_api_mapping == theirs.meta.method_to_api_mapping


def test_service_that_does_not_exist() -> None:
    with pytest.raises(UnknownServiceError, match="s4"):
        client_factory(None)("s4")


def test_service_directories_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    # botocore's own loader looks into all 400, which takes longer than to create the client.
    seen: list[str] = []
    listed = os.listdir

    def note(path: str) -> list[str]:
        seen.append(path)
        return listed(path)

    monkeypatch.setattr(os, "listdir", note)
    client_factory(None)("sqs")
    ours = len(seen)
    Loader().list_available_services("service-2")
    assert ours < (len(seen) - ours) / 10


def test_home_may_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests run as root, whom nothing is forbidden.
    listed = os.listdir

    def refuse(path: str) -> list[str]:
        if ".aws" in Path(path).parts:
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "listdir", refuse)
    assert client_factory(None)("sqs").meta.service_model.service_name == "sqs"


def test_data_path_of_the_environment_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    folder = tmp_path / "onlyhere" / "2026-11-26"
    folder.mkdir(parents=True)
    (folder / "service-2.json").write_text(
        '{"version": "2.0", "metadata": {"apiVersion": "2026-11-26", "endpointPrefix": "onlyhere", "protocol": "json",'
        ' "serviceId": "Only Here", "serviceFullName": "Only here", "signatureVersion": "v4", "jsonVersion": "1.1",'
        ' "targetPrefix": "O"}, "operations": {}, "shapes": {}}'
    )
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    assert client_factory(None)("onlyhere").meta.service_model.service_name == "onlyhere"
