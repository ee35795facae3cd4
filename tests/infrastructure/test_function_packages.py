"""The function's packages: botocore with the descriptions of its own services only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import botocore
import pytest

from deploy.function_packages import SERVICES, trim_botocore

# Partitions differ in their endpoints, and FIPS and dual stack are rules of their own.
FACTS = """
import json, sys
from botocore.config import Config
from handler.aws.clients import client_factory
from botocore.session import Session
import botocore
CALLS = {
    "s3": ("put_object", {"Bucket": "tickets", "Key": "a/b.json", "Body": b"{}"}),
    "dynamodb": ("get_item", {"TableName": "tickets", "Key": {"ticket_id": {"S": "T"}}}),
    "sqs": ("send_message", {"QueueUrl": "https://sqs.eu-central-1.amazonaws.com/1/tickets", "MessageBody": "{}"}),
    "sts": ("get_caller_identity", {}),
    "sso": ("get_role_credentials", {"roleName": "r", "accountId": "1", "accessToken": "t"}),
}

class Sent(Exception):
    pass

def stop(request, **_):
    raise Sent(request.method, request.url, request.body if isinstance(request.body, (bytes, str)) else "")

found, session = [botocore.__file__.startswith(sys.argv[1])], Session()  # one session reads each description once
for service in sys.argv[2:]:
    model = client_factory(None)(service).meta.service_model
    for name in model.operation_names:
        operation = model.operation_model(name)
        shapes = operation.input_shape, operation.output_shape
        found.append([service, name, operation.http, *(sorted(shape.members) if shape else None for shape in shapes)])
    for region in ("eu-central-1", "us-east-1", "cn-north-1", "us-gov-west-1", "eusc-de-east-1"):
        for options in ({}, {"use_fips_endpoint": True}, {"use_dualstack_endpoint": True}):
            client = session.create_client(service, region, config=Config(**options))
            found.append([region, client.meta.endpoint_url, client.meta.config.signature_version])
            if service in CALLS:
                operation, arguments = CALLS[service]
                client.meta.events.register("before-send", stop)
                try:
                    getattr(client, operation)(**arguments)
                except Exception as raised:  # some endpoints do not exist in every partition
                    found.append([type(raised).__name__, *map(str, raised.args)])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(Path(botocore.__file__).parent, folder / "botocore", ignore=shutil.ignore_patterns("__pycache__"))
    trim_botocore(folder)
    return folder


def facts(site: Path | None) -> str:
    path = os.pathsep.join([*([str(site)] if site else []), str(Path.cwd())])
    environment = {**os.environ, "PYTHONPATH": path, "AWS_DEFAULT_REGION": "eu-central-1"}
    environment |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    command = [sys.executable, "-c", FACTS, str(site), *SERVICES]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_clients_are_the_same(site: Path) -> None:
    trimmed, whole = facts(site), facts(None)
    assert whole.count('"Sent"') > 60, "requests are compared, too"
    assert trimmed.startswith("[true, ")
    assert whole.startswith("[false, ")
    assert trimmed.removeprefix("[true") == whole.removeprefix("[false")


def test_it_is_small_and_needs_no_decompression(site: Path) -> None:
    data = site / "botocore" / "data"
    files = [path for path in data.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".gz"]
    assert {path.name for path in data.iterdir() if path.is_dir()} == set(SERVICES)
    assert sum(path.stat().st_size for path in files) < 2_000_000


def test_other_services_are_refused_by_name(site: Path) -> None:
    code = "from botocore.session import Session; Session().create_client('ec2', 'eu-central-1')"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "UnknownServiceError" in done.stderr
