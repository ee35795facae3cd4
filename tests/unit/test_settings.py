"""Each setting stands in Settings, in the README's table and, where the function needs it, in template.yaml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from handler.settings import Settings, WorkerSettings
from tests.support.fakes import SETTINGS

REPOSITORY = Path(__file__).resolve().parents[2]
OF_THE_FUNCTION = {name.upper() for name in Settings.model_fields}
ALL = {name.upper() for name in WorkerSettings.model_fields}
# Read where they are set, but a function on AWS takes the cores there are, and Lambda sets its version.
NOT_IN_THE_TEMPLATE = {"INTRA_OP_THREADS", "AWS_LAMBDA_FUNCTION_VERSION"}
NOT_OURS = {"HOME", "MALLOC_ARENA_MAX"}


class Loader(yaml.SafeLoader):
    """Reads CloudFormation's tags as what they hold."""


Loader.add_multi_constructor("!", lambda _loader, _tag, node: node.value)


def function_environment() -> dict[str, Any]:
    template = yaml.load((REPOSITORY / "template.yaml").read_text(encoding="utf-8"), Loader)
    (function,) = (r for r in template["Resources"].values() if r["Type"] == "AWS::Serverless::Function")
    return dict(function["Properties"]["Environment"]["Variables"])


def test_the_readme_has_a_row_for_each_setting() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([A-Z][A-Z0-9_]+)` \|", readme, re.MULTILINE)) == ALL


def test_the_template_gives_the_function_each_setting_that_it_needs() -> None:
    assert set(function_environment()) - NOT_OURS == OF_THE_FUNCTION - NOT_IN_THE_TEMPLATE


def test_the_settings_are_those_of_the_contract() -> None:
    assert {
        "MODEL_BUNDLE",
        "BUNDLE_CACHE_DIR",
        "RAW_BUCKET",
        "ENRICHED_BUCKET",
        "TABLE_NAME",
        "QUEUE_URL",
        "DLQ_URL",
        "MAX_RECEIVE_COUNT",
        "MAX_TICKET_BYTES",
        "INTRA_OP_THREADS",
        "LOG_LEVEL",
        "SERVICE_NAME",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_ENDPOINT_URL",
    } == OF_THE_FUNCTION
    assert {"BATCH_SIZE", "NUM_WORKERS", "HEALTH_PORT"} == ALL - OF_THE_FUNCTION


def test_each_setting_says_what_it_is() -> None:
    assert [name for name, field in WorkerSettings.model_fields.items() if not field.description] == []


def test_they_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name.upper(), str(value))
    monkeypatch.setenv("MAX_RECEIVE_COUNT", "7")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:4566")
    monkeypatch.setenv("INTRA_OP_THREADS", "")  # as a template passes on what was left empty
    settings = Settings()
    assert settings.model_dump(include=set(SETTINGS)) == SETTINGS
    assert (settings.max_receive_count, settings.intra_op_threads) == (7, None)
    assert (settings.max_ticket_bytes, settings.bundle_cache_dir, settings.log_level) == (1024 * 1024, "/tmp", "INFO")
    assert str(settings.aws_endpoint_url).rstrip("/") == "http://127.0.0.1:4566"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_bundle", "/folder"),
        ("model_bundle", "https://elsewhere/bundle"),
        ("raw_bucket", ""),
        ("max_receive_count", 0),
        ("max_ticket_bytes", 0),
        ("intra_op_threads", 0),
        ("log_level", "LOUD"),
        ("service_name", ""),
        ("aws_endpoint_url", "127.0.0.1"),
        ("batch_size", 11),
        ("num_workers", 0),
        ("health_port", 65536),
    ],
)
def test_a_wrong_one_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        WorkerSettings(**{**SETTINGS, name: value})


def test_they_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Settings(**SETTINGS), "raw_bucket", "another")  # noqa: B010 - mypy knows that this fails
