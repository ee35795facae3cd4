"""The full profile at run time: the enricher and the handler on a small bundle of random models."""

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest

from enrichment import BundleInvalid, Enricher, EnrichmentData, OutOfTime, RawTicket
from enrichment.export.weights import Precision
from enrichment.summary.beam import BeamSearch, Generation
from handler.app import build
from handler.settings import Settings
from tests.support.fakes import SETTINGS, FakeHarness, context, event, record
from tests.support.fakes import ticket as raw_ticket
from tests.support.small_full import write_bundle

HELDOUT = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "parity" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
]


def _ticket(subject: str, body: str, name: str = "T", **fields: Any) -> RawTicket:
    return RawTicket(ticket_id=name, customer_id="C", created_at=0, subject=subject, body=body, **fields)


LONG = [row for row in HELDOUT if len(row["body"].split()) >= 20]
TICKETS = [
    *(_ticket(row["subject"], row["body"], f"T{i}") for i, row in enumerate(LONG[:7])),
    _ticket("Parcel lost", "Where is it?", "short"),
    _ticket("", "", "empty"),
    _ticket("Parcel", "It never came, and nobody knows where it is or when it will come to us. " * 40, "long"),
]


@pytest.fixture(scope="module", params=["int8", "fp32"])
def full(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bundle: Path, full_source: Path
) -> Enricher:
    """An enricher on the small bundle, with summaries of different lengths."""
    precision: Precision = request.param
    folder = tmp_path_factory.mktemp(precision) / "full"
    return Enricher.open(
        write_bundle(folder, bundle, full_source, precision, length_penalty=-1.0, max_length=30), threads=1
    )


def _good(results: Sequence[object]) -> list[EnrichmentData]:
    assert all(isinstance(result, EnrichmentData) for result in results), results
    return [result for result in results if isinstance(result, EnrichmentData)]


def _assert_equal(found: Sequence[object], wanted: Sequence[object]) -> None:
    for one, other in zip(_good(found), _good(wanted), strict=True):
        assert one.model_copy(update={"processed_at": other.processed_at}) == other


def test_batch_of_ten_equals_ten_batches_of_one_in_any_order(full: Enricher) -> None:
    together = full.enrich(TICKETS)
    _assert_equal(together, [result for ticket in TICKETS for result in full.enrich([ticket])])
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(TICKETS))
        _assert_equal(full.enrich([TICKETS[i] for i in order]), [together[i] for i in order])
    assert len({result.summary for result in _good(together)}) == len(TICKETS)


def test_each_field_comes_from_its_model(full: Enricher) -> None:
    results = dict(zip((t.ticket_id for t in TICKETS), _good(full.enrich(TICKETS)), strict=True))
    long, short, empty = results["long"], results["short"], results["empty"]
    assert {"embedding", "sentiment", "summary"} <= set(long.truncated)
    assert results["T0"].truncated == []
    assert short.summary == "Parcel lost."
    assert (empty.intent, empty.sentiment, empty.summary) == ("general_inquiry", "NEUTRAL", "")
    assert empty.scores["sentiment"] == {"NEGATIVE": 0.5, "POSITIVE": 0.5}
    for row, result in zip(LONG[:7], results.values(), strict=False):
        assert result.summary not in {f"{row['subject']}.", row["subject"]}, "the random weights generate a text"
        assert result.summary.endswith((".", "!", "?"))
        assert set(result.scores["sentiment"]) == {"NEGATIVE", "POSITIVE"}
        assert result.sentiment_confidence == max(result.scores["sentiment"].values())


@pytest.mark.parametrize("neutral", [(0.0, 1.0), (0.5, 0.5), (0.2, 0.8)])
def test_score_between_the_bounds_is_neutral(
    tmp_path: Path, bundle: Path, full_source: Path, neutral: tuple[float, float]
) -> None:
    def change(models: dict[str, Any]) -> None:
        models["sentiment"]["neutral"] = neutral

    low, high = neutral
    made = Enricher.open(write_bundle(tmp_path / "b", bundle, full_source, change=change, num_beams=1, max_length=4))
    for result in _good(made.enrich([_ticket(row["subject"], row["body"]) for row in HELDOUT[:40]])):
        positive = result.scores["sentiment"]["POSITIVE"]
        side = "POSITIVE" if positive > 0.5 else "NEGATIVE"
        assert result.sentiment == ("NEUTRAL" if low <= positive <= high else side)


def test_default_bounds_are_045_and_055(full: Enricher) -> None:
    assert full.bundle.manifest.models.sentiment.neutral == (0.45, 0.55)  # type: ignore[union-attr]


def test_explicit_priority_wins(full: Enricher) -> None:
    [result] = _good(full.enrich([_ticket("Parcel", "No hurry at all.", priority="critical")]))
    assert (result.urgency, result.urgency_confidence) == ("critical", 1.0)


def test_tickets_out_of_time_are_not_started(full: Enricher) -> None:
    assert all(isinstance(result, OutOfTime) for result in full.enrich(TICKETS, time_left=lambda: 0.0))


def test_every_stage_is_observed(full: Enricher) -> None:
    seen: dict[str, int] = {}
    full.enrich(TICKETS, observe=lambda stage, _, count: seen.update({stage: seen.get(stage, 0) + count}))
    assert seen == dict.fromkeys(("tokenize", "encode", "classify", "summarize"), len(TICKETS))


@pytest.mark.parametrize(("threads", "beams"), [(2, 1), (2, 4), (3, 4)])
def test_result_does_not_depend_on_threads(
    full_source: Path, bundle: Path, tmp_path: Path, threads: int, beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_bundle(tmp_path / "b", bundle, full_source, num_beams=beams, max_length=20)
    tickets = [_ticket(row["subject"], row["body"] * (1 + i % 3)) for i, row in enumerate(HELDOUT[:7])]
    wanted = _good(Enricher.open(folder, threads=1).enrich(tickets))
    made = Enricher.open(folder, threads=threads)
    together: list[int] = []
    begin = BeamSearch.__init__

    def noting(search: BeamSearch, texts: int, settings: Generation) -> None:
        together.append(texts)
        begin(search, texts, settings)

    monkeypatch.setattr(BeamSearch, "__init__", noting)
    for one, other in zip(wanted, _good(made.enrich(tickets)), strict=True):
        assert (one.summary, one.sentiment) == (other.summary, other.sentiment)
        assert one.scores["sentiment"] == other.scores["sentiment"]
    assert sorted(together) == ([7] if beams == 1 else [3, 4])


def test_memory_does_not_grow_with_batches_of_all_lengths(tmp_path: Path, bundle: Path, full_source: Path) -> None:
    # `make bench-full` measures it at the real size.
    made = Enricher.open(write_bundle(tmp_path / "b", bundle, full_source, num_beams=2, max_length=12), threads=1)
    random, process = np.random.default_rng(5), psutil.Process()
    after = []
    for _ in range(24):
        rows = [HELDOUT[i] for i in random.integers(len(HELDOUT), size=random.integers(1, 7))]
        made.enrich([_ticket(row["subject"], row["body"] * int(random.integers(1, 3))) for row in rows])
        gc.collect()
        after.append(process.memory_info().rss)
    assert max(after[18:]) < 1.04 * max(after[:12])


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("sentiment.onnx", "the sentiment classifier cannot be opened"),
        ("sentiment-tokenizer.json", "the sentiment classifier cannot be opened"),
        ("summary-encoder.onnx", "the summariser cannot be opened"),
        ("summary-decoder.onnx", "the summariser cannot be opened"),
        ("summary-tokenizer.json", "the summariser cannot be opened"),
    ],
)
def test_wrong_file_type_is_reported(tmp_path: Path, bundle: Path, full_source: Path, file: str, what: str) -> None:
    folder = write_bundle(tmp_path / "b", bundle, full_source)
    (folder / file).write_bytes(b"0" * (folder / file).stat().st_size)
    with pytest.raises(BundleInvalid, match=f"{what}.*rebuild the bundle"):
        Enricher.open(folder)


@pytest.mark.parametrize(
    ("model", "part", "file", "what"),
    [
        ("sentiment", "file", "summary-encoder.onnx", "knows 0 labels, the manifest 2"),
        ("summary", "encoder", "sentiment.onnx", "does not take what sentiment.onnx gives"),
        ("summary", "decoder", "summary-encoder.onnx", "summary-encoder.onnx does not take what"),
    ],
)
def test_mismatched_graphs_are_refused(
    tmp_path: Path, bundle: Path, full_source: Path, model: str, part: str, file: str, what: str
) -> None:
    def change(models: dict[str, Any]) -> None:
        models[model][part] = file

    with pytest.raises(BundleInvalid, match=f"{what}.*rebuild the bundle"):
        Enricher.open(write_bundle(tmp_path / "b", bundle, full_source, change=change))


@pytest.mark.parametrize("file", ["sentiment.onnx", "summary-encoder.onnx"])
def test_graph_with_other_inputs_is_refused(tmp_path: Path, bundle: Path, full_source: Path, file: str) -> None:
    """As in a bundle that an older version built: it could give wrong results instead of an error."""

    def change(_models: dict[str, Any]) -> None:
        graph = onnx.load(tmp_path / "b" / file, load_external_data=False)
        for node in graph.graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = "place" if name == "rows" else name
        next(value for value in graph.graph.input if value.name == "rows").name = "place"
        (tmp_path / "b" / file).write_bytes(graph.SerializeToString())

    with pytest.raises(BundleInvalid, match=f"{file} takes other inputs than we give; rebuild the bundle"):
        Enricher.open(write_bundle(tmp_path / "b", bundle, full_source, change=change))


def test_handler_runs_the_full_bundle(full_bundle: Path, tmp_path: Path) -> None:
    harness = FakeHarness()
    settings = Settings(**{**SETTINGS, "model_bundle": full_bundle.as_uri(), "bundle_cache_dir": str(tmp_path)})
    handler = build(
        settings,
        source=harness.source,
        sink=harness.sink,
        dead_letters=harness.dead_letters,
        failure_counts=harness.failure_counts,
        metrics=harness.metrics,
    )
    records = [record(raw_ticket(f"T{i}"), f"m-{i}") for i in range(3)]
    assert handler(event(*records, record("no json", "m-3")), context()) == {"batchItemFailures": []}
    assert harness.metrics.outcomes == {"done": 3, "rejected": 1}
    stored = [json.loads(write.body) for write, _ in harness.sink.items.values()]
    assert {ticket["enrichment"]["model_version"].split("@")[0] for ticket in stored} == {"full-int8"}
    assert all(set(ticket["enrichment"]["scores"]["sentiment"]) == {"NEGATIVE", "POSITIVE"} for ticket in stored)
