"""Each setting is in Settings, in the documentation's table and, if the function needs it, in template.yaml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from samtranslator.yaml_helper import yaml_parse

from handler.cli.errors import settings_line
from handler.settings import Lane, Settings, WorkerSettings
from tests.support.fakes import SETTINGS

REPOSITORY = Path(__file__).resolve().parents[2]
FUNCTION_SETTINGS = {name.upper() for name in Settings.model_fields}
ALL_SETTINGS = {name.upper() for name in WorkerSettings.model_fields}
TABLE = next(path for path in (REPOSITORY / "docs" / "settings.md", REPOSITORY / "README.md") if path.is_file())
# On AWS, the function uses all cores, and Lambda sets the version.
NOT_IN_TEMPLATE = {"INTRA_OP_THREADS", "AWS_LAMBDA_FUNCTION_VERSION"}
OTHER_VARIABLES = {"HOME", "MALLOC_ARENA_MAX"}


TEMPLATE: dict[str, Any] = yaml_parse((REPOSITORY / "template.yaml").read_text(encoding="utf-8"))


def function_environment() -> dict[str, Any]:
    (function,) = (r for r in TEMPLATE["Resources"].values() if r["Type"] == "AWS::Serverless::Function")
    return dict(function["Properties"]["Environment"]["Variables"])


def test_documentation_lists_each_setting_with_its_default() -> None:
    rows = re.findall(r"^\| `([A-Z][A-Z0-9_]+)` \|([^|]*)\|", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {name: default.strip().strip("`") for name, default in rows}
    assert len(documented) == len(rows)
    assert documented.keys() == ALL_SETTINGS
    fields = {name.upper(): field for name, field in WorkerSettings.model_fields.items()}
    # A required setting has no default; None means that the value is detected, which the table describes in words.
    literal = {name for name in ALL_SETTINGS if not fields[name].is_required() and fields[name].default is not None}
    assert {name: documented[name] for name in literal} == {name: str(fields[name].default) for name in literal}
    assert {name for name in ALL_SETTINGS if not documented[name]} == {
        *(name for name in ALL_SETTINGS if fields[name].is_required()),
        "AWS_ENDPOINT_URL",
        "MODEL_BUNDLE_DIGEST",
        "SHADOW_BUNDLE",
        "RESULT_WEBHOOK",
        "RESULT_WEBHOOK_SECRET",
    }


def test_template_passes_each_setting_to_the_function() -> None:
    assert set(function_environment()) - OTHER_VARIABLES == FUNCTION_SETTINGS - NOT_IN_TEMPLATE


def test_template_has_the_same_defaults() -> None:
    parameters = {name: value.get("Ref") for name, value in function_environment().items() if isinstance(value, dict)}
    defaults = {
        name: TEMPLATE["Parameters"][parameter]["Default"]
        for name, parameter in parameters.items()
        if parameter in TEMPLATE["Parameters"]
    }
    assert defaults.keys() == {
        "MODEL_BUNDLE_DIGEST",
        "MAX_RECEIVE_COUNT",
        "MAX_TICKET_BYTES",
        "ITEM_RETENTION_DAYS",
        "REDACT",
        "ENRICHED_OBJECTS",
        "LOG_LEVEL",
    }
    # An empty variable counts as unset.
    assert defaults == {
        name: "" if (value := Settings.model_fields[name.lower()].default) is None else value for name in defaults
    }
    assert function_environment()["BUNDLE_CACHE_DIR"] == Settings.model_fields["bundle_cache_dir"].default
    assert function_environment()["SERVICE_NAME"]["Fn::If"][-1] == Settings.model_fields["service_name"].default


def test_setting_names_are_stable() -> None:
    assert {
        "MODEL_BUNDLE",
        "MODEL_BUNDLE_DIGEST",
        "SHADOW_BUNDLE",
        "BUNDLE_CACHE_DIR",
        "RAW_BUCKET",
        "ENRICHED_BUCKET",
        "TABLE_NAME",
        "QUEUE_URL",
        "DLQ_URL",
        "MAX_RECEIVE_COUNT",
        "MAX_TICKET_BYTES",
        "ITEM_RETENTION_DAYS",
        "REDACT",
        "ENRICHED_OBJECTS",
        "INTRA_OP_THREADS",
        "LOG_LEVEL",
        "SERVICE_NAME",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_ENDPOINT_URL",
    } == FUNCTION_SETTINGS
    own = {"BATCH_SIZE", "NUM_WORKERS", "HEALTH_PORT", "RESULT_WEBHOOK", "RESULT_WEBHOOK_SECRET"}
    assert own == ALL_SETTINGS - FUNCTION_SETTINGS


def test_each_setting_has_a_description() -> None:
    assert [name for name, field in WorkerSettings.model_fields.items() if not field.description] == []


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name.upper(), str(value))
    monkeypatch.setenv("MAX_RECEIVE_COUNT", "7")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:4566")
    monkeypatch.setenv("INTRA_OP_THREADS", "")  # as a template passes a parameter that was left empty
    settings = Settings.read()
    assert settings.model_dump(include=set(SETTINGS)) == SETTINGS
    assert (settings.max_receive_count, settings.intra_op_threads) == (7, None)
    assert (settings.max_ticket_bytes, settings.bundle_cache_dir, settings.log_level) == (1024 * 1024, "/tmp", "INFO")
    assert str(settings.aws_endpoint_url).rstrip("/") == "http://127.0.0.1:4566"


def test_model_cache_dir_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {name: value for name, value in SETTINGS.items() if name != "bundle_cache_dir"}
    monkeypatch.setenv("MODEL_CACHE_DIR", "/older")
    assert Settings.read(**given).bundle_cache_dir == "/older"
    monkeypatch.setenv("BUNDLE_CACHE_DIR", "")  # as a template passes a parameter that was left empty
    assert Settings.read(**given).bundle_cache_dir == "/older"
    monkeypatch.setenv("BUNDLE_CACHE_DIR", "/newer")
    assert Settings.read(**given).bundle_cache_dir == "/newer"
    assert Settings.read(**given, bundle_cache_dir="/given").bundle_cache_dir == "/given"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_bundle", "/folder"),
        ("model_bundle", "https://elsewhere/bundle"),
        ("shadow_bundle", "/folder"),
        ("model_bundle_digest", "0123456789ab"),
        ("raw_bucket", ""),
        ("max_receive_count", 0),
        ("max_ticket_bytes", 0),
        ("item_retention_days", -1),
        ("intra_op_threads", 0),
        ("log_level", "LOUD"),
        ("redact", "everything"),
        ("service_name", ""),
        ("aws_endpoint_url", "127.0.0.1"),
        ("queue_url", "https://sqs.invalid/1/live,"),
        ("queue_url", "https://sqs.invalid/1/live,https://sqs.invalid/1/live"),
        ("dlq_url", "https://sqs.invalid/1/dlq,https://sqs.invalid/1/bulk-dlq"),
        ("dlq_url", SETTINGS["queue_url"]),
        ("raw_bucket", "raw,,bulk"),
        ("batch_size", 11),
        ("num_workers", 0),
        ("health_port", 65536),
        ("result_webhook", "ftp://helpdesk.example.com/"),
        ("result_webhook", "file:///etc/passwd"),
        ("result_webhook_secret", "hunter2"),
        ("result_webhook_secret", "whsec_c2hvcnQ="),
    ],
)
def test_invalid_setting_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        WorkerSettings(**{**SETTINGS, name: value})


def test_webhook_needs_its_secret_and_an_error_does_not_quote_it() -> None:
    with pytest.raises(ValidationError) as caught:
        WorkerSettings(**SETTINGS, result_webhook="https://helpdesk.example.com/hook")
    assert settings_line(caught.value).startswith("RESULT_WEBHOOK_SECRET: set it too")
    with pytest.raises(ValidationError) as caught:
        WorkerSettings(**SETTINGS, result_webhook_secret="whsec_secret-canary")
    assert "canary" not in settings_line(caught.value)


def test_queues_are_listed_in_order_of_priority() -> None:
    (only,) = Settings(**SETTINGS).lanes
    assert only == Lane(SETTINGS["queue_url"], SETTINGS["dlq_url"])
    urls = {"queue_url": "https://sqs.invalid/1/live, https://sqs.invalid/1/bulk", "dlq_url": "dlq,bulk-dlq"}
    settings = Settings(**{**SETTINGS, **urls, "raw_bucket": "raw,raw-bulk"})
    assert settings.lanes == (Lane("https://sqs.invalid/1/live", "dlq"), Lane("https://sqs.invalid/1/bulk", "bulk-dlq"))
    assert [lane.name for lane in settings.lanes] == ["live", "bulk"]
    assert settings.raw_buckets == ("raw", "raw-bulk")


def test_each_queue_needs_its_dead_letter_queue() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(**{**SETTINGS, "queue_url": "https://sqs.invalid/1/live,https://sqs.invalid/1/bulk"})
    assert settings_line(caught.value) == (
        "DLQ_URL: it has 1 entries and QUEUE_URL has 2; name one dead-letter queue for each queue"
    )


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Settings(**SETTINGS), "raw_bucket", "another")  # noqa: B010 - mypy knows that this fails
