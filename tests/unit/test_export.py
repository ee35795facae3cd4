"""Building bundles: sources, training data, quantisation, heads, and the command line."""

import hashlib
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from enrichment import Bundle
from enrichment.classify import TASKS
from enrichment.cues import SURFACE, Cues
from enrichment.encoder import Encoder
from enrichment.export import compact
from enrichment.export.__main__ import app
from enrichment.export.corpus import OPINIONS, TAXONOMY, TICKETS, Labelled, Taxonomy, read_labelled
from enrichment.export.graph import Graph, canonical_model
from enrichment.export.heads import FOLDS, features, fit_head
from enrichment.export.quantize import columns, products, quantize_products, smoothing_exponents
from enrichment.export.sentiment import Calibration, SentimentHead
from enrichment.export.sources import MINILM, ExportError, Source, find_model
from enrichment.export.train import _read_sst2

ROOT = Path(__file__).parents[2]

# -- sources of weights ------------------------------------------------------------------------------------------------


def _source(content: bytes, package: str | None = None) -> Source:
    return Source(
        repository="someone/tiny-model",
        revision="0123456789abcdef",
        license="MIT",
        sha256={"config.json": hashlib.sha256(content).hexdigest()},
        package=package,
    )


def test_the_installed_package_holds_the_pinned_files() -> None:
    folder = find_model(MINILM, "package")
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= {path.name for path in folder.iterdir()}


def test_a_folder_or_the_folder_above_it_is_a_source(tmp_path: Path) -> None:
    model = tmp_path / "tiny-model"
    model.mkdir()
    (model / "config.json").write_bytes(b"{}")
    assert find_model(_source(b"{}"), str(model)) == find_model(_source(b"{}"), str(tmp_path)) == model


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"config\.json is missing; someone/tiny-model at revision 0123456789ab has it"
    ):
        find_model(_source(b"{}"), str(tmp_path))


def test_a_file_with_another_hash_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"[]")
    expected = hashlib.sha256(b"{}").hexdigest()[:12]
    with pytest.raises(
        ExportError, match=rf"config\.json has sha256 \w+, pinned is {expected}; take the file from someone"
    ):
        find_model(_source(b"{}"), str(tmp_path))


@pytest.mark.parametrize("package", [None, "no_such_package_at_all", "this"])
def test_a_missing_package_is_said_with_the_remedy(package: str | None) -> None:
    with pytest.raises(ExportError, match=r"no installed package holds someone/tiny-model; install the `export` extra"):
        find_model(_source(b"{}", package), "package")


def _fake_hub(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., str]) -> None:
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = answer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)


def test_the_hub_is_asked_for_the_pinned_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def answer(repository: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        (tmp_path / "config.json").write_bytes(b"{}")
        return str(tmp_path)

    _fake_hub(monkeypatch, answer)
    assert find_model(_source(b"{}"), "hub") == tmp_path
    assert asked == [("someone/tiny-model", "0123456789abcdef")]


def test_a_hub_that_fails_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_: object, **__: object) -> str:
        raise ConnectionError("no route\nto the host")

    _fake_hub(monkeypatch, answer)
    with pytest.raises(
        ExportError, match=r"cannot be fetched from the hub \(ConnectionError: no route\); try again, or"
    ):
        find_model(_source(b"{}"), "hub")


# -- training data -----------------------------------------------------------------------------------------------------

TAXONOMY_TOML = """
[intent]
fallback = "other"
[intent.labels.parcel]
examples = ["Where is my parcel?", "The parcel is lost."]
cues = ["parcel", "deliver*"]
[intent.labels.refund]
examples = ["I want my money back."]
cues = ["refund*", "money back"]
[intent.labels.other]
examples = ["What are your opening hours?"]

[urgency]
fallback = "medium"
[urgency.labels.critical]
cues = ["outage"]
[urgency.labels.high]
cues = ["today"]
[urgency.labels.medium]
[urgency.labels.low]
cues = ["no rush"]

[sentiment]
fallback = "NEUTRAL"
[sentiment.labels.POSITIVE]
[sentiment.labels.NEGATIVE]
[sentiment.labels.NEUTRAL]

[lexicon]
positive = "good great lovely"
negative = "bad broken lost"
negators = "not no never"
intensifiers = "very so"
"""


@pytest.fixture
def taxonomy_file(tmp_path: Path) -> Path:
    """A taxonomy of one's own: three intents."""
    path = tmp_path / "taxonomy.toml"
    path.write_text(TAXONOMY_TOML)
    return path


def test_a_taxonomy_is_read(taxonomy_file: Path) -> None:
    taxonomy = Taxonomy.read(taxonomy_file)
    assert taxonomy.labels["intent"] == ["other", "parcel", "refund"]
    assert taxonomy.fallbacks == {"intent": "other", "urgency": "medium", "sentiment": "NEUTRAL"}
    assert Labelled("The parcel is lost.", {"intent": "parcel"}) in taxonomy.examples
    assert taxonomy.cues["intent.parcel"] == ["parcel", "deliver*"]
    assert taxonomy.lexicon["negators"] == ["not", "no", "never"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("[intent", "[matter", r"the table \[intent\] is missing"),
        ("[sentiment", "[mood", r"the table \[sentiment\] is missing"),
        ("[urgency.labels", "[urgency.label", r"the table \[labels\] is missing"),
        (
            '["What are your opening hours?"]',
            '"What?"',
            r"\[intent\.labels\.other\] must be a table whose examples are",
        ),
        ('["outage"]', "[5]", r"\[urgency\.labels\.critical\] must be a table whose cues are a list of texts"),
        (
            "[intent.labels.other]",
            "[intent.labels]\nother = 5\n[x]",
            r"\[intent\.labels\.other\] must be a table whose",
        ),
        ("[lexicon]", "[words]", r"the table \[lexicon\] is missing"),
        (
            "[urgency.labels.critical]",
            "[urgency.labels.blocker]",
            "labels of urgency must be critical, high, low, medium",
        ),
        ("[sentiment.labels.NEUTRAL]", "", "the labels of sentiment must be NEGATIVE, NEUTRAL, POSITIVE"),
        ('fallback = "other"', 'fallback = "others"', r"\[intent\] fallback = 'others' is none of its labels"),
        ('fallback = "other"', "", r"\[intent\] fallback = '' is none of its labels"),
        ("[lexicon]", "[lexicon", "cannot be read as TOML"),
    ],
)
def test_a_wrong_taxonomy_is_refused_by_table(taxonomy_file: Path, old: str, new: str, reason: str) -> None:
    taxonomy_file.write_text(TAXONOMY_TOML.replace(old, new))
    with pytest.raises(ExportError, match=rf"taxonomy\.toml.*({reason})"):
        Taxonomy.read(taxonomy_file)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "data"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match="data cannot be read as TOML"):
        Taxonomy.read(path)
    with pytest.raises(ExportError, match="data cannot be read"):
        read_labelled(path, Taxonomy.read(TAXONOMY))


def test_labelled_texts_are_read(tmp_path: Path, taxonomy_file: Path) -> None:
    path = tmp_path / "tickets.jsonl"
    path.write_text(
        '{"subject": "Parcel", "body": "Where is it?", "intent": "parcel", "urgency": "low"}\n\n'
        '{"text": "Lovely!", "sentiment": "POSITIVE", "note": "kept apart"}\n'
    )
    assert read_labelled(path, Taxonomy.read(taxonomy_file)) == [
        Labelled("Parcel. Where is it?", {"intent": "parcel", "urgency": "low"}),
        Labelled("Lovely!", {"sentiment": "POSITIVE"}),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a labelled text"),
        ("[]", "not a labelled text"),
        ("5", "not a labelled text"),
        ('{"intent": "parcel"}', "not a labelled text"),
        ('{"subject": "x", "body": null}', "not a labelled text"),
        ('{"text": 5, "intent": "parcel"}', "not a labelled text"),
        ('{"text": "x", "intent": "parcels"}', "intent 'parcels' is not in the taxonomy"),
        ('{"text": "x", "urgency": null}', "urgency None is not in the taxonomy"),
        ('{"text": "x", "intent": ["parcel"]}', r"intent \['parcel'\] is not in the taxonomy"),
    ],
)
def test_a_wrong_line_is_refused_by_number(tmp_path: Path, taxonomy_file: Path, line: str, reason: str) -> None:
    path = tmp_path / "tickets.jsonl"
    path.write_text('{"text": "x", "intent": "parcel"}\n\n' + line + "\n")
    with pytest.raises(ExportError, match=rf"tickets\.jsonl, line 3: {reason}"):
        read_labelled(path, Taxonomy.read(taxonomy_file))


def test_the_committed_training_data_is_in_order() -> None:
    taxonomy = Taxonomy.read(TAXONOMY)
    tickets, opinions = read_labelled(TICKETS, taxonomy), read_labelled(OPINIONS, taxonomy)
    assert all(set(ticket.labels) == {"intent", "urgency", "sentiment"} for ticket in tickets)
    assert all(set(opinion.labels) == {"sentiment"} for opinion in opinions)
    assert len({ticket.text for ticket in tickets}) > 0.99 * len(tickets)


def test_a_wrong_line_of_sst2_is_refused_by_number(tmp_path: Path) -> None:
    path = tmp_path / "sst2.tsv"
    path.write_text("a fine film\t1\na bad film\t0\n")
    assert [item.labels["sentiment"] for item in _read_sst2(path)] == ["POSITIVE", "NEGATIVE"]
    for line in ("no label", "\t1", "text\t2"):
        path.write_text(f"fine\t1\n{line}\n")
        with pytest.raises(ExportError, match=r"sst2\.tsv, line 2: expected a text, a tab, and 0 or 1"):
            _read_sst2(path)


# -- quantisation ------------------------------------------------------------------------------------------------------

WEIGHTS = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=6).map(lambda shape: (2 * shape[0], shape[1])),
    elements=st.floats(-1e4, 1e4, width=32),
)


def _pairs(numbers: Any) -> Any:
    size = np.abs(numbers.astype(np.int64))
    return size[0::2] + size[1::2]


@given(WEIGHTS)
def test_neighbouring_weights_never_saturate_16_bits(weights: Any) -> None:
    numbers, scale = columns(weights)
    assert numbers.dtype == np.int8
    assert _pairs(numbers).max() <= 128
    assert _pairs(numbers).max() * 255 <= 32767
    # What is lost is half a step of the column's scale (float rounding aside).
    assert (np.abs(numbers * scale - weights) <= 0.5001 * scale).all()


def test_the_shipped_graph_keeps_the_bound(bundle: Path) -> None:
    model = onnx.load(str(bundle / "encoder.onnx"))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = [constants[n.input[1]] for n in model.graph.node if n.op_type == "MatMulIntegerToFloat"]
    assert len(weights) == 6 * 4  # per layer: query with key and value, output, up, down
    assert max(_pairs(matrix).max() for matrix in weights) <= 128
    assert not [n for n in model.graph.node if n.op_type in {"DynamicQuantizeLinear", "DynamicQuantizeMatMul"}]


def test_the_shipped_graph_is_the_one_the_sentiment_head_was_trained_on(bundle: Path) -> None:
    assert hashlib.sha256((bundle / "encoder.onnx").read_bytes()).hexdigest() in SentimentHead.read().encoders


def test_the_committed_exponents_are_small_whole_numbers(tmp_path: Path) -> None:
    calibration = Calibration.read()
    assert set(calibration.exponents) == {f"{layer}.{kind}" for layer in range(6) for kind in ("qkv", "output", "up")}
    rows = [list(row) for row in calibration.exponents.values()]
    assert all(len(row) == 384 and all(isinstance(e, int) and abs(e) <= 8 for e in row) for row in rows)
    calibration.write(tmp_path / "calibration.json")
    assert Calibration.read(tmp_path / "calibration.json") == calibration


def _tiny_graph(prefix: str = "", seed: int = 3) -> Graph:
    """One layer's products: three of one input, then output, up, and down behind an activation."""
    numbers = np.random.default_rng(seed)
    nodes, constants = [], []

    def product(source: str, name: str) -> str:
        constants.append(numpy_helper.from_array(numbers.normal(size=(8, 8)).astype(np.float32), f"{prefix}w_{name}"))
        nodes.append(
            helper.make_node("MatMul", [source, f"{prefix}w_{name}"], [f"{prefix}{name}"], f"{prefix}n_{name}")
        )
        return f"{prefix}{name}"

    def node(op: str, *inputs: str) -> str:
        nodes.append(helper.make_node(op, list(inputs), [f"{prefix}t{len(nodes)}"]))
        return str(nodes[-1].output[0])

    attended = node("Add", node("Add", product("x", "q"), product("x", "k")), product("x", "v"))
    lifted = node("Tanh", product(product(attended, "output"), "up"))
    last = product(node("Relu", lifted), "down")
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    shape: list[str | int | None] = ["batch", "tokens", 8]
    return Graph(
        helper.make_model(
            helper.make_graph(
                nodes,
                "tiny",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
                constants,
            )
        )
    )


def _run(graph: Graph, x: Any) -> Any:
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "tiny",
            graph.inputs,
            graph.outputs,
            [numpy_helper.from_array(value, name) for name, value in graph.constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3  # the products' former weights are still there
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


X = np.random.default_rng(1).normal(size=(3, 5, 8)).astype(np.float32)
EXPONENTS = {"0.qkv": [1, -1, 0, 1, 0, 0, -1, 0], "0.up": [0, 1, 0, 0, -1, 0, 0, 0]}


@pytest.mark.parametrize("exponents", [{}, EXPONENTS], ids=["plain", "smoothed"])
def test_quantised_products_are_close(exponents: Mapping[str, list[int]]) -> None:
    wanted, graph = _run(_tiny_graph(), X), _tiny_graph()
    assert [*products(graph)] == ["0.qkv", "0.output", "0.up", "0.down"]
    quantize_products(graph, exponents)
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in graph.nodes) == 4
    found = _run(graph, X)
    assert float((found * wanted).sum() / np.linalg.norm(found) / np.linalg.norm(wanted)) > 0.99


def test_a_row_does_not_depend_on_the_others() -> None:
    graph = _tiny_graph()
    quantize_products(graph, EXPONENTS)
    whole = _run(graph, X)
    loud = np.concatenate([X, 1000 * X[:1]])
    np.testing.assert_array_equal(_run(graph, loud)[:3], whole)
    for i in range(3):
        np.testing.assert_array_equal(_run(graph, X[i : i + 1])[0], whole[i])


def test_smoothing_is_by_powers_of_two_and_exact() -> None:
    graph = _tiny_graph()
    sizes = {name: np.exp(np.random.default_rng(5).normal(size=8)) for name in products(graph)}
    exponents = smoothing_exponents(graph, sizes)
    assert set(exponents) == {"0.qkv", "0.output", "0.up"}
    assert all(isinstance(e, int) for row in exponents.values() for e in row)
    quantize_products(graph, exponents)
    by_output = {node.output[0]: node for node in graph.nodes}
    smoothers = [
        graph.constants[node.input[1]]
        for node in by_output.values()
        if node.op_type == "Mul" and node.input[1] in graph.constants and graph.constants[node.input[1]].shape == (8,)
    ]
    assert len(smoothers) == 3
    for row, factors in zip(exponents.values(), smoothers, strict=True):
        np.testing.assert_array_equal(factors, np.exp2(-np.asarray(row, np.float64)))
        values = np.random.default_rng(7).normal(size=8).astype(np.float32)
        np.testing.assert_array_equal(values * factors / factors, values)


def test_a_louder_channel_gets_a_larger_exponent() -> None:
    graph = _tiny_graph()
    sizes = {name: np.ones(8) for name in products(graph)}
    sizes["0.qkv"][3] = 100.0
    row = smoothing_exponents(graph, sizes)["0.qkv"]
    assert max(row) == row[3] >= 3


def _integer_graph(prefix: str, order: list[int]) -> Graph:
    """ids -> a hidden state; names, and the order of the constants, are as an exporter may like them."""
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    constants = [numpy_helper.from_array(table, f"{prefix}table"), numpy_helper.from_array(table[0], f"{prefix}shift")]
    constants.append(numpy_helper.from_array(table, f"{prefix}unused"))
    nodes = [
        helper.make_node(
            "Gather", [f"{prefix}table", "input_ids"], [f"{prefix}a"], f"{prefix}gather", doc_string=prefix
        ),
        helper.make_node("Add", [f"{prefix}a", f"{prefix}shift"], ["last_hidden_state"], f"{prefix}add"),
    ]
    return Graph(
        helper.make_model(
            helper.make_graph(
                nodes,
                f"{prefix}graph",
                [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [f"{prefix}n", f"{prefix}m"])],
                [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [f"{prefix}n", "m", 4])],
                [constants[i] for i in order],
            ),
            producer_name=prefix,
        )
    )


def test_equal_graphs_have_equal_bytes() -> None:
    graphs = [_integer_graph("x", [0, 1, 2]), _integer_graph("other_", [2, 1, 0]), _integer_graph("x", [0, 1, 2])]
    first, second, third = (canonical_model(g, "encoder").SerializeToString(deterministic=True) for g in graphs)
    assert first == second == third
    session = ort.InferenceSession(first, providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"input_ids": np.asarray([[2, 0]])})
    np.testing.assert_array_equal(found, [[[8, 10, 12, 14], [0, 2, 4, 6]]])
    assert [tensor.name for tensor in onnx.load_from_string(first).graph.initializer] == ["w1", "w4"]


# -- heads -------------------------------------------------------------------------------------------------------------


def _clouds(samples: int = 600, width: float = 1.0) -> tuple[Any, list[str]]:
    numbers = np.random.default_rng(11)
    target = numbers.integers(0, 3, samples)
    centres = np.asarray([[0, 0], [2, 0], [0, 2]], np.float64)
    points = centres[target] + numbers.normal(size=(samples, 2)) * width
    noise = numbers.normal(size=(samples, 6)) * 5 + 3
    return np.concatenate([points, noise], 1).astype(np.float32), [("red", "green", "blue")[i] for i in target]


def test_training_a_head_is_repeatable_and_calibrated() -> None:
    matrix, labels = _clouds()
    # So strongly regularised that the probabilities alone would be far too humble: the temperature mends that.
    first, second = (fit_head(matrix, labels, strengths=(0.003, 0.01)) for _ in range(2))
    assert first.labels == ["blue", "green", "red"]
    assert (first.weights.tobytes(), first.bias.tobytes()) == (second.weights.tobytes(), second.bias.tobytes())
    assert first.training == second.training
    assert (first.weights.shape, first.bias.shape) == ((8, 3), (3,))
    assert first.weights.dtype == np.float32
    scores = first.training["cross_validated"]
    assert scores["accuracy"] > 0.72
    assert scores["calibration_error"] < 0.08
    assert 0 < first.threshold < 1
    assert scores["accuracy_without_review"] >= scores["accuracy"]
    # On samples that it never saw, it is as right as it says.
    more, truth = _clouds(3000)
    logits = more @ first.weights + first.bias
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    right = np.asarray([first.labels[i] for i in shares.argmax(1)]) == np.asarray(truth)
    assert shares.max(1).mean() == pytest.approx(right.mean(), abs=0.06)


def test_harder_samples_make_a_humbler_head() -> None:
    easy, hard = (fit_head(*_clouds(300, width), strengths=(0.1,)) for width in (0.5, 2.0))
    assert easy.training["cross_validated"]["accuracy"] > hard.training["cross_validated"]["accuracy"] + 0.2
    assert np.abs(easy.weights[:2]).max() > 2 * np.abs(hard.weights[:2]).max()


def test_weights_of_samples_pull_and_groups_are_scored_apart() -> None:
    matrix, labels = _clouds(300)
    red = np.asarray([label == "red" for label in labels])
    heavy = fit_head(matrix, labels, strengths=(0.1,), weights=np.where(red, 20.0, 1.0).tolist())
    light = fit_head(matrix, labels, strengths=(0.1,))

    def share(head: Any) -> float:
        return float(((matrix @ head.weights + head.bias).argmax(1) == head.labels.index("red")).mean())

    assert share(heavy) > share(light) + 0.1
    groups = {"all": np.ones(len(labels), bool), "without_red": ~red}
    scored = fit_head(matrix, labels, strengths=(0.1,), groups=groups).training
    assert 0.7 < scored["without_red_accuracy"] <= 1


def test_features_are_means_and_cues(bundle: Path) -> None:
    encoder, cues = Encoder.open(Bundle.open(bundle)), Cues.from_file(bundle / "cues.json")
    texts = ["I cannot log in!", "", "Where is my parcel? " * 30, "   "]
    matrix = features(encoder, cues, texts)
    assert matrix.shape == (4, encoder.features + len(cues.names))
    assert not matrix[[1, 3]].any()
    np.testing.assert_allclose(matrix[2, -len(cues.names) :], cues.features(texts[2]))
    assert np.abs(matrix[0, : encoder.features]).max() > 0


# -- the sentiment head ------------------------------------------------------------------------------------------------


def _cues(groups: Mapping[str, list[str]]) -> Cues:
    return Cues({name: ["word"] for name in ("positive", "negative", "negators", "intensifiers")}, groups)


def test_the_sentiment_head_refuses_another_encoder() -> None:
    head = SentimentHead.read()
    with pytest.raises(ExportError, match=r"trained for another encoder or other cues; train it again: python -m"):
        head.fitted("0" * 64, _cues({}))


def test_the_sentiment_head_refuses_features_it_has_never_seen() -> None:
    head = SentimentHead.read()
    without = replace(head, cues=[name for name in head.cues if name != SURFACE[0]])
    with pytest.raises(ExportError, match="trained for another encoder or other cues"):
        without.fitted(head.encoders[0], _cues({}))


def test_the_sentiment_head_follows_the_names_of_the_cues() -> None:
    committed = SentimentHead.read()
    groups = [name for name in committed.cues if name not in SURFACE]
    pooled = len(committed.head.weights) - len(committed.cues)
    same = committed.fitted(committed.encoders[0], _cues({name: ["x"] for name in groups}))
    np.testing.assert_array_equal(same.weights, committed.head.weights)
    kept, gone = groups[0], groups[1]
    fitted = committed.fitted(committed.encoders[0], _cues({kept: ["x"], "intent.aaa": ["y"]}))
    assert fitted.weights.shape == (pooled + len(SURFACE) + 2, 3)
    np.testing.assert_array_equal(
        fitted.weights[: pooled + len(SURFACE)], committed.head.weights[: pooled + len(SURFACE)]
    )
    names = _cues({kept: ["x"], "intent.aaa": ["y"]}).names
    assert gone not in names
    assert not fitted.weights[pooled + names.index("intent.aaa")].any()
    expected = committed.head.weights[pooled + list(committed.cues).index(kept)]
    np.testing.assert_array_equal(fitted.weights[pooled + names.index(kept)], expected)


def test_the_sentiment_head_survives_its_file(tmp_path: Path) -> None:
    committed = SentimentHead.read()
    committed.write(tmp_path / "sentiment.json")
    again = SentimentHead.read(tmp_path / "sentiment.json")
    np.testing.assert_array_equal(again.head.weights, committed.head.weights)
    assert (again.encoders, again.cues, again.head.labels) == (
        committed.encoders,
        committed.cues,
        committed.head.labels,
    )


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    done = CliRunner().invoke(app, ["compact", "--out", str(tmp_path)])
    assert (done.exit_code, done.stderr) == (1, f"error: {tmp_path} exists and is no bundle; choose another --out\n")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, taxonomy_file: Path) -> None:
    done = CliRunner().invoke(app, ["compact", "--out", str(tmp_path / "b"), "--source", str(tmp_path)])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "model.safetensors is missing" in done.stderr
    done = CliRunner().invoke(app, ["compact", "--out", str(tmp_path / "b"), "--taxonomy", str(taxonomy_file)])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "tickets.jsonl, line 1: intent 'login_issue' is not in the taxonomy" in done.stderr
    assert not (tmp_path / "b").exists()


def test_a_label_with_too_few_texts_is_named(bundle: Path, tmp_path: Path, taxonomy_file: Path) -> None:
    for name in ("encoder.onnx", "tokenizer.json", "cues.json"):
        (tmp_path / name).symlink_to(bundle / name)
    taxonomy = Taxonomy.read(taxonomy_file)
    tickets = [Labelled(f"Parcel {i}", {"intent": "parcel"}) for i in range(FOLDS)]
    with pytest.raises(
        ExportError, match="fewer than 5 labelled texts have the intent other, refund; add some, or drop"
    ):
        compact._heads(tmp_path, taxonomy, tickets, TASKS, lambda _: None)
