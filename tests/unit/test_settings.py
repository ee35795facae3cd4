"""Each setting is in Settings, in the documentation's table and, if the function needs it, in template.yaml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from samtranslator.yaml_helper import yaml_parse

from handler.settings import Settings, WorkerSettings
from tests.support.fakes import SETTINGS

REPOSITORY = Path(__file__).resolve().parents[2]
OF_THE_FUNCTION = {name.upper() for name in Settings.model_fields}
ALL = {name.upper() for name in WorkerSettings.model_fields}
TABLE = next(path for path in (REPOSITORY / "docs" / "settings.md", REPOSITORY / "README.md") if path.is_file())
# On AWS, the function uses all cores, and Lambda sets the version.
NOT_IN_THE_TEMPLATE = {"INTRA_OP_THREADS", "AWS_LAMBDA_FUNCTION_VERSION"}
NOT_OURS = {"HOME", "MALLOC_ARENA_MAX"}


TEMPLATE: dict[str, Any] = yaml_parse((REPOSITORY / "template.yaml").read_text(encoding="utf-8"))


def function_environment() -> dict[str, Any]:
    (function,) = (r for r in TEMPLATE["Resources"].values() if r["Type"] == "AWS::Serverless::Function")
    return dict(function["Properties"]["Environment"]["Variables"])


def test_documentation_has_a_row_with_the_default_of_each_setting() -> None:
    rows = re.findall(r"^\| `([A-Z][A-Z0-9_]+)` \|([^|]*)\|", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {name: default.strip().strip("`") for name, default in rows}
    assert len(documented) == len(rows)
    assert documented.keys() == ALL
    fields = {name.upper(): field for name, field in WorkerSettings.model_fields.items()}
    # A required setting has no default; None stands for a value that is found out, which the table describes in words.
    literal = {name for name in ALL if not fields[name].is_required() and fields[name].default is not None}
    assert {name: documented[name] for name in literal} == {name: str(fields[name].default) for name in literal}
    assert {name for name in ALL if not documented[name]} == {
        *(name for name in ALL if fields[name].is_required()),
        "AWS_ENDPOINT_URL",
        "MODEL_BUNDLE_DIGEST",
    }


def test_template_gives_the_function_each_setting_that_it_needs() -> None:
    assert set(function_environment()) - NOT_OURS == OF_THE_FUNCTION - NOT_IN_THE_TEMPLATE


def test_template_has_the_same_defaults() -> None:
    parameters = {name: value.get("Ref") for name, value in function_environment().items() if isinstance(value, dict)}
    defaults = {
        name: TEMPLATE["Parameters"][parameter]["Default"]
        for name, parameter in parameters.items()
        if parameter in TEMPLATE["Parameters"]
    }
    assert defaults.keys() == {"MODEL_BUNDLE_DIGEST", "MAX_RECEIVE_COUNT", "MAX_TICKET_BYTES", "LOG_LEVEL"}
    # An empty variable counts as unset.
    assert defaults == {name: Settings.model_fields[name.lower()].default or "" for name in defaults}
    assert function_environment()["BUNDLE_CACHE_DIR"] == Settings.model_fields["bundle_cache_dir"].default
    assert function_environment()["SERVICE_NAME"]["Fn::If"][-1] == Settings.model_fields["service_name"].default


def test_the_settings_are_those_of_the_contract() -> None:
    assert {
        "MODEL_BUNDLE",
        "MODEL_BUNDLE_DIGEST",
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


def test_older_name_of_the_cache_directory_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {name: value for name, value in SETTINGS.items() if name != "bundle_cache_dir"}
    monkeypatch.setenv("MODEL_CACHE_DIR", "/older")
    assert Settings(**given).bundle_cache_dir == "/older"
    monkeypatch.setenv("BUNDLE_CACHE_DIR", "")  # as a template passes on what was left empty
    assert Settings(**given).bundle_cache_dir == "/older"
    monkeypatch.setenv("BUNDLE_CACHE_DIR", "/newer")
    assert Settings(**given).bundle_cache_dir == "/newer"
    assert Settings(**given, bundle_cache_dir="/given").bundle_cache_dir == "/given"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_bundle", "/folder"),
        ("model_bundle", "https://elsewhere/bundle"),
        ("model_bundle_digest", "0123456789ab"),
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
