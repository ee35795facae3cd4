"""Two bundles side by side on the embedded stack: from SHADOW_BUNDLE to `tickets compare`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner, Result

import enrichment
from enrichment import Enricher, EnrichmentData, parse_ticket
from enrichment.text import model_text
from handler.app import build
from handler.local import EmbeddedStack
from handler.settings import Settings
from handler.tickets.command import app
from tests.support.fakes import event, record, ticket
from tests.support.shadow_bundles import FAVOURED, write_foreign
from tests.support.stack_harness import StackHarness

SCHEMA = json.loads(Path(enrichment.__file__).with_name("enriched_ticket.schema.json").read_text(encoding="utf-8"))
ROWS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "parity" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
][:10]
TASKS = ("intent", "urgency", "sentiment")


def raw(prefix: str) -> list[dict[str, Any]]:
    return [ticket(f"{prefix}-{i}", subject=row["subject"], body=row["body"]) for i, row in enumerate(ROWS)]


@contextmanager
def function(stack: EmbeddedStack, **environment: str) -> Iterator[StackHarness]:
    """The function with these variables in addition to those of the deployed one."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (stack.environment() | environment).items():
            patch.setenv(name, value)
        yield StackHarness(stack, build(Settings.read()))


def enrich(harness: StackHarness, tickets: list[dict[str, Any]]) -> str:
    """Passes tickets to the function as one batch; returns its log."""
    answer = harness.invoke(event(*(record(each, each["ticket_id"]) for each in tickets)))
    assert answer.response == {"batchItemFailures": []}
    return answer.log


def stored(harness: StackHarness, name: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """A ticket's item and the object version that it names."""
    item = harness.item(name, ticket()["created_at"])
    assert item is not None
    return item, json.loads(harness.object(item["s3_key"], item["s3_version_id"]))


@pytest.fixture(scope="module")
def stack() -> Iterator[EmbeddedStack]:
    """A separate stack, so that `tickets compare` reads these tests' tickets only."""
    with EmbeddedStack() as embedded:
        yield embedded


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    """A bundle with another encoder and another tokenizer."""
    texts = [model_text(row["subject"], row["body"]) for row in ROWS]
    return write_foreign(tmp_path_factory.mktemp("foreign") / "candidate", bundle, texts)


@pytest.fixture
def run(stack: EmbeddedStack, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `tickets` on the stack."""
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("kind", ["same encoder", "other encoder"])
def test_objects_and_items_have_what_the_second_bundle_says(
    kind: str, stack: EmbeddedStack, bundle: Path, shadow_bundle: Path, foreign: Path, tmp_path: Path
) -> None:
    second = shadow_bundle if kind == "same encoder" else foreign
    tickets = raw(f"two-{kind.partition(' ')[0]}")
    expected = Enricher.open(second).enrich([parse_ticket(json.dumps(each)) for each in tickets])
    places = {"MODEL_BUNDLE": bundle.as_uri(), "SHADOW_BUNDLE": second.as_uri(), "BUNDLE_CACHE_DIR": str(tmp_path)}
    with function(stack, **places) as harness:
        log = enrich(harness, tickets)
    differences = 0
    for each, alone in zip(tickets, expected, strict=True):
        item, whole = stored(harness, each["ticket_id"])
        Draft202012Validator(SCHEMA).validate(whole)
        found = whole["enrichment"]["shadow"]
        assert isinstance(alone, EnrichmentData)
        assert {task: found[task] for task in TASKS} == {task: getattr(alone, task) for task in TASKS}
        assert found["differs"] == [task for task in TASKS if found[task] != whole["enrichment"][task]]
        assert item["shadow"] == {
            "model_version": alone.model_version,
            **{task: found[task] for task in found["differs"]},
        }
        assert item["model_version"] == whole["enrichment"]["model_version"] != alone.model_version
        differences += "intent" in found["differs"]
    assert differences > 0
    (metrics,) = [line for line in map(json.loads, log.splitlines()) if "IntentDiffers" in line]
    assert sorted(metrics["IntentDiffers"]) == [0.0] * (10 - differences) + [1.0] * differences
    assert "ShadowFailures" not in metrics
    assert not [row for row in ROWS if row["body"] in log]


def test_shadow_comes_from_s3_and_a_missing_one_stops_nothing(
    stack: EmbeddedStack, bundle: Path, shadow_bundle: Path, tmp_path: Path
) -> None:
    s3 = stack.client("s3")
    s3.create_bucket(Bucket="shadow-models")
    for file in shadow_bundle.iterdir():
        s3.upload_file(str(file), "shadow-models", f"candidate/{file.name}")
    places = {"MODEL_BUNDLE": bundle.as_uri(), "BUNDLE_CACHE_DIR": str(tmp_path)}
    with function(stack, **places, SHADOW_BUNDLE="s3://shadow-models/candidate") as harness:
        enrich(harness, [ticket("from-s3")])
    assert stored(harness, "from-s3")[0]["shadow"]["model_version"].startswith("candidate@")
    with function(stack, **places, SHADOW_BUNDLE="s3://shadow-models/none") as harness:
        log = enrich(harness, [ticket("from-nowhere")])
    item, whole = stored(harness, "from-nowhere")
    assert "shadow" not in item
    assert "shadow" not in whole["enrichment"]
    (metrics,) = [line for line in map(json.loads, log.splitlines()) if "ShadowFailures" in line]
    assert metrics["ShadowFailures"] == [1.0]


def test_corrections_decide_between_the_bundles(
    stack: EmbeddedStack, bundle: Path, shadow_bundle: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    tickets = raw("decided")
    places = {
        "MODEL_BUNDLE": bundle.as_uri(),
        "SHADOW_BUNDLE": shadow_bundle.as_uri(),
        "BUNDLE_CACHE_DIR": str(tmp_path),
    }
    with function(stack, **places) as harness:
        enrich(harness, tickets)
        differing = [
            name
            for each in tickets
            if "intent" in stored(harness, name := each["ticket_id"])[1]["enrichment"]["shadow"]["differs"]
        ]
        assert len(differing) >= 3
        assert run("correct", differing[0], "--intent", FAVOURED).exit_code == 0
        assert run("correct", differing[1], "--confirm").exit_code == 0
        # Enriched again, because its text changed: the correction stays in force, and in the comparison.
        again = next(each for each in tickets if each["ticket_id"] == differing[0])
        enrich(harness, [{**again, "metadata": {"tags": ["again"]}}])
    item, whole = stored(harness, differing[0])
    assert (item["intent"], item["shadow"]["intent"]) == (FAVOURED, FAVOURED)
    assert whole["enrichment"]["intent"] != FAVOURED
    result = run("compare", "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    (intent,) = [row for row in rows if row["measure"] == "same" and row["task"] == "intent"]
    assert (intent["primary_right"], intent["shadow_right"], intent["neither_right"]) == (1, 1, 0)
    assert {row["shadow"] for row in rows if row["measure"] == "differs" and row["task"] == "intent"} == {FAVOURED}
    assert "right in 1 of 2 disagreements that people decided" in result.stderr
