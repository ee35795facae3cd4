"""`sam local` with the image; checks the function's responses, because sam's exit code does not reflect them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from handler.local import EmbeddedStack
from tests.sam.local import IMAGE, REPOSITORY, SAM, SamLocal, StartedSam, sam_local
from tests.support.cases import Case, load_cases, run_case
from tests.support.stack_harness import StackHarness

CASES = {case.name: case for case in load_cases()}


@pytest.fixture(scope="module")
def harness(stack: EmbeddedStack) -> StackHarness:
    return StackHarness(stack, lambda *_: {})


@pytest.fixture(scope="module")
def sam(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SamLocal]:
    with sam_local(stack, tmp_path_factory.mktemp("sam")) as found:
        yield found


@pytest.fixture(scope="module")
def warm(sam: SamLocal) -> Iterator[StartedSam]:
    """One container for all events: `sam local invoke` starts one per event, which takes seconds."""
    with sam.started() as found:
        yield found


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sample_event_in_a_warm_container(case: Case, warm: StartedSam, harness: StackHarness) -> None:
    run_case(case, warm.invoke, harness)


@pytest.mark.parametrize("name", ["mixed", "not-json"])
def test_sample_event_by_invoke(name: str, sam: SamLocal, harness: StackHarness, tmp_path: Path) -> None:
    event = tmp_path / f"{name}.json"
    event.write_text(json.dumps(CASES[name].event_for(harness.raw_bucket)))
    answer = run_case(CASES[name], lambda _: sam.invoke(event), harness)
    assert "REPORT RequestId: " in answer.log


def test_unknown_event_is_a_one_line_error(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.sam.local", "events/none.json"]
    ran = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (1, "error: events/none.json is none of events/*.json\n")


def run_sam(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "SAM_CLI_TELEMETRY": "0"}
    environment |= {"AWS_DEFAULT_REGION": "eu-central-1"}
    return subprocess.run(
        [SAM, *arguments], env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def test_template_is_valid(tmp_path: Path) -> None:
    for environment in ("default", "prod"):
        ran = run_sam(tmp_path, "validate", "--config-env", environment)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "is a valid SAM Template" in ran.stdout + ran.stderr


def test_invalid_template_is_detected(tmp_path: Path) -> None:
    text = (REPOSITORY / "template.yaml").read_text(encoding="utf-8")
    broken = tmp_path / "template.yaml"
    broken.write_text(text.replace("SqsManagedSseEnabled: true", "SqsManagedSSE: true", 1))
    ran = run_sam(tmp_path, "validate", "--lint", "--template", str(broken))
    assert ran.returncode == 1
    assert "E3002" in ran.stdout


def test_build_keeps_the_existing_image(tmp_path: Path) -> None:
    given = ["--parameter-overrides", f"ParameterKey=ImageUri,ParameterValue={IMAGE}"]
    ran = run_sam(tmp_path, "build", "--build-dir", str(tmp_path / "build"), *given)
    assert ran.returncode == 0, ran.stderr
    built = (tmp_path / "build" / "template.yaml").read_text(encoding="utf-8")
    assert "Ref: ImageUri" in built
