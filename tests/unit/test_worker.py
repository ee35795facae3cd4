"""Startup errors of `ticket-processor`: missing or invalid settings, and a worker that cannot start."""

from __future__ import annotations

import io
import json
import re
import socket
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from enrichment.session import available_cores
from handler.cli.shutdown import Shutdown
from handler.settings import WorkerSettings
from handler.worker import processor
from handler.worker.command import app
from handler.worker.processor import process
from handler.worker.reports import Reporter, WorkerOptions

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

REQUIRED = ("MODEL_BUNDLE", "RAW_BUCKET", "ENRICHED_BUCKET", "TABLE_NAME", "QUEUE_URL", "DLQ_URL")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str | None]:
    """All settings, none of which points to an existing resource, without the caller's AWS profile."""
    return {
        **dict.fromkeys(REQUIRED, "nowhere"),
        **dict.fromkeys(("NUM_WORKERS", "BATCH_SIZE", "HEALTH_PORT", "AWS_ENDPOINT_URL", "AWS_REGION")),
        "DLQ_URL": "nowhere-dlq",
        "MODEL_BUNDLE": "file:///nowhere",
        "BUNDLE_CACHE_DIR": str(tmp_path),
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }


def run(environment: dict[str, str | None], *arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env=environment)


def test_missing_settings_are_named_in_one_line(environment: dict[str, str | None]) -> None:
    result = run({**environment, **dict.fromkeys(REQUIRED)})
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == f"ticket-processor: set {' and '.join(REQUIRED)} in the environment\n"


def test_missing_and_invalid_settings_are_named_together(environment: dict[str, str | None]) -> None:
    result = run({**environment, "QUEUE_URL": "", "BATCH_SIZE": "11", "MODEL_BUNDLE": "/folder"})
    assert result.exit_code == 2
    assert re.fullmatch(
        r"ticket-processor: set QUEUE_URL in the environment; MODEL_BUNDLE: .*; BATCH_SIZE: .*\n", result.stderr
    )


def test_option_out_of_range_exits_2(environment: dict[str, str | None]) -> None:
    assert run(environment, "--wait", "21").exit_code == 2


def test_port_in_use_exits_1_before_loading(environment: dict[str, str | None]) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        result = run({**environment, "HEALTH_PORT": str(port)})
    assert result.exit_code == 1
    assert result.stderr.startswith(f"ticket-processor: HEALTH_PORT {port}: ")
    assert result.stderr.count("\n") == 1


def test_missing_bundle_exits_1(environment: dict[str, str | None]) -> None:
    result = run({**environment, "NUM_WORKERS": "3"})
    assert result.exit_code == 1
    assert result.stderr.startswith("ticket-processor: MODEL_BUNDLE names /nowhere, where bundle.json cannot be read")
    assert result.stderr.count("\n") == 1


def test_missing_region_exits_1(environment: dict[str, str | None], bundle: Path) -> None:
    result = run({**environment, "AWS_DEFAULT_REGION": None, "MODEL_BUNDLE": bundle.as_uri()})
    assert result.exit_code == 1
    assert result.stderr == "ticket-processor: no AWS region is configured; set AWS_DEFAULT_REGION\n"


def test_process_reports_why_it_cannot_start(
    environment: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    stream = io.BytesIO()
    assert process(WorkerSettings.read(), WorkerOptions(), Shutdown(1), Reporter(stream)) == 1
    (report,) = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert report["fatal"].startswith("MODEL_BUNDLE names /nowhere")


@pytest.mark.parametrize(
    ("threads", "workers", "each"),
    [(None, 1, available_cores()), (None, 64, max(1, available_cores() // 64)), (3, 2, 3)],
)
def test_processes_share_the_cores(threads: int | None, workers: int, each: int) -> None:
    given = {name.lower(): name for name in REQUIRED} | {"model_bundle": "file:///x"}
    settings = WorkerSettings.model_validate(given | {"intra_op_threads": threads, "num_workers": workers})
    assert processor._with_shared_cores(settings).intra_op_threads == each


@pytest.mark.parametrize(("limit", "expected"), [("536870912\n", 512), ("max\n", None), (None, None)])
def test_memory_is_container_limit_or_machine_memory(tmp_path: Path, limit: str | None, expected: int | None) -> None:
    file = tmp_path / "memory.max"
    if limit is not None:
        file.write_text(limit)
    machine = processor._memory_mb(tmp_path / "none")
    assert machine > 512
    assert processor._memory_mb(file) == (expected or machine)
