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
from enrichment.encoder import Encoder
from enrichment.export import compact
from enrichment.export.__main__ import app
from enrichment.export.adapter import HIDDEN, LAYERS, PARTS, Adapter
from enrichment.export.corpus import OPINIONS, TAXONOMY, TICKETS, Labelled, Taxonomy, read_labelled
from enrichment.export.datasets import BANKING77, read_banking77, read_senti4sd, read_sst2
from enrichment.export.graph import Graph, canonical_model
from enrichment.export.heads import FOLDS, FittedHead, Shipped, accepted_matrix, features, fit_head, folds_of
from enrichment.export.quantize import Calibration, columns, products, quantize_products, smoothing_exponents
from enrichment.export.sources import MINILM, ExportError, Source, find_model
from enrichment.features import SURFACE, LexicalFeatures

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
phrases = ["parcel", "deliver*"]
[intent.labels.refund]
examples = ["I want my money back."]
phrases = ["refund*", "money back"]
[intent.labels.other]
examples = ["What are your opening hours?"]

[urgency]
fallback = "medium"
[urgency.labels.critical]
phrases = ["outage"]
[urgency.labels.high]
phrases = ["today"]
[urgency.labels.medium]
[urgency.labels.low]
phrases = ["no rush"]

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
    assert Labelled("The parcel is lost.", {"intent": ["parcel"]}) in taxonomy.examples
    assert taxonomy.phrases["intent.parcel"] == ["parcel", "deliver*"]
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
        ('["outage"]', "[5]", r"\[urgency\.labels\.critical\] must be a table whose phrases are a list of texts"),
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
        '{"subject": "Parcel", "body": "Where is it?", "intent": ["parcel", "other"], "urgency": "low", '
        '"author": "r1"}\n\n'
        '{"text": "Lovely!", "sentiment": "POSITIVE", "note": "kept apart"}\n'
    )
    assert read_labelled(path, Taxonomy.read(taxonomy_file)) == [
        Labelled("Parcel. Where is it?", {"intent": ["parcel", "other"], "urgency": ["low"]}, "r1"),
        Labelled("Lovely!", {"sentiment": ["POSITIVE"]}),
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
        ('{"text": "x", "intent": ["parcel", "parcels"]}', "intent 'parcels' is not in the taxonomy"),
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


def test_public_data_sets_are_read_and_a_wrong_line_is_refused_by_number(tmp_path: Path) -> None:
    path = tmp_path / "sst2.tsv"
    path.write_text("a fine film\t1\na bad film\t0")
    assert [item.labels["sentiment"] for item in read_sst2(path)] == [["POSITIVE"], ["NEGATIVE"]]
    for line in ("no label", "\t1", "text\t2"):
        path.write_text(f"fine\t1\n{line}\n")
        with pytest.raises(ExportError, match=r"sst2\.tsv, line 2: expected a text, a tab, and 0 or 1"):
            read_sst2(path)
    path.write_text("t1;negative;It is broken; sadly.\nt2;neutral;See above.\n")
    assert read_senti4sd(path)[0] == Labelled("It is broken; sadly.", {"sentiment": ["NEGATIVE"]})
    path.write_text("t1;angry;It is broken.\n")
    with pytest.raises(ExportError, match="line 1: expected id;polarity;text"):
        read_senti4sd(path)
    path.write_text('text,category\n"My card, again?",card_arrival\nTop it up?,verify_top_up\n')
    assert read_banking77(path) == [Labelled("My card, again?", {"intent": BANKING77["card_arrival"]})]
    path.write_text("words,category\n")
    path.write_text("words,category\nHi,card_arrival\n")
    with pytest.raises(ExportError, match="expected a CSV file with the columns text and category"):
        read_banking77(path)


def test_banking77_maps_to_labels_of_the_taxonomy() -> None:
    assert {label for labels in BANKING77.values() for label in labels} <= set(Taxonomy.read(TAXONOMY).labels["intent"])


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
    assert len(weights) == (6 + LAYERS) * 4  # per layer: query with key and value, output, up, down
    assert max(_pairs(matrix).max() for matrix in weights) <= 128
    assert not [n for n in model.graph.node if n.op_type in {"DynamicQuantizeLinear", "DynamicQuantizeMatMul"}]


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


def _target(labels: list[str]) -> tuple[Any, list[str]]:
    names = sorted(set(labels))
    return accepted_matrix([Labelled("", {"intent": [label]}) for label in labels], "intent", names), names


def _fit(matrix: Any, labels: list[str], *regularization: float, start: FittedHead | None = None) -> FittedHead:
    target, names = _target(labels)
    folds = folds_of([Labelled("", {})] * len(labels), target)
    return fit_head(matrix, target, names, folds, regularization=regularization, start=start)


def test_training_a_head_is_repeatable_and_calibrated() -> None:
    matrix, labels = _clouds()
    # So strongly regularized that the probabilities alone would be far too low: the temperature corrects that.
    first, second = (_fit(matrix, labels, 0.3, 0.1) for _ in range(2))
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
    # On samples that it never saw, it is right as often as it says.
    more, truth = _clouds(3000)
    logits = more @ first.weights + first.bias
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    right = np.asarray([first.labels[i] for i in shares.argmax(1)]) == np.asarray(truth)
    assert shares.max(1).mean() == pytest.approx(right.mean(), abs=0.06)


def test_harder_samples_make_a_less_confident_head() -> None:
    easy, hard = (_fit(*_clouds(300, width), 0.01) for width in (0.5, 2.0))
    assert easy.training["cross_validated"]["accuracy"] > hard.training["cross_validated"]["accuracy"] + 0.2
    assert np.abs(easy.weights[:2]).max() > 2 * np.abs(hard.weights[:2]).max()


def test_training_starts_from_the_columns_of_equal_labels() -> None:
    matrix, labels = _clouds()
    good = _fit(matrix, labels, 0.01)
    few, names = matrix[:12], labels[:12]
    assert len(set(names)) == 3
    alone, started = _fit(few, names, 1.0), _fit(few, names, 1.0, start=good)

    def accuracy(head: FittedHead) -> float:
        found = (matrix @ head.weights + head.bias).argmax(1)
        return float(np.mean([head.labels[i] == label for i, label in zip(found, labels, strict=True)]))

    assert accuracy(started) > accuracy(alone)
    assert accuracy(started) == pytest.approx(accuracy(good), abs=0.05)


def test_folds_keep_authors_together() -> None:
    texts = [Labelled("", {}, f"author {i % 13}") for i in range(260)]
    folds = folds_of(texts, np.zeros((260, 1)))
    assert set(folds) == set(range(FOLDS))
    assert all(len({folds[i] for i in range(260) if i % 13 == author}) == 1 for author in range(13))


def test_features_are_the_encoders_and_lexical_ones(bundle: Path) -> None:
    encoder, lexical = Encoder.open(Bundle.open(bundle)), LexicalFeatures.from_file(bundle / "features.json")
    texts = ["I cannot log in!", "", "Where is my parcel? " * 30, "   "]
    matrix = features(encoder, lexical, texts)
    assert matrix.shape == (4, encoder.features + len(lexical.names))
    assert not matrix[[1, 3]].any()
    np.testing.assert_allclose(matrix[2, -len(lexical.names) :], lexical.features(texts[2]))
    assert np.abs(matrix[0, : encoder.features]).max() > 0


# -- the shipped classifiers -------------------------------------------------------------------------------------------


def _lexical(groups: Mapping[str, list[str]]) -> LexicalFeatures:
    return LexicalFeatures({name: ["word"] for name in ("positive", "negative", "negators", "intensifiers")}, groups)


def test_a_shipped_head_refuses_features_that_it_has_never_seen() -> None:
    committed = Shipped.read()
    without = replace(committed, lexical=[name for name in committed.lexical if name != SURFACE[0]])
    with pytest.raises(ExportError, match="trained on other lexical features; train them again"):
        without.head("intent", _lexical({}))


def test_a_shipped_head_follows_the_names_of_the_lexical_features() -> None:
    committed = Shipped.read()
    groups = [name for name in committed.lexical if name not in SURFACE]
    weights = committed.heads["intent"].weights
    first = len(weights) - len(committed.lexical)
    same = committed.head("intent", _lexical({name: ["x"] for name in groups}))
    np.testing.assert_array_equal(same.weights, weights)
    kept, gone = groups[0], groups[1]
    lexical = _lexical({kept: ["x"], "intent.aaa": ["y"]})
    fitted = committed.head("intent", lexical)
    assert fitted.weights.shape == (first + len(SURFACE) + 2, 10)
    assert gone not in lexical.names
    assert not fitted.weights[first + lexical.names.index("intent.aaa")].any()
    np.testing.assert_array_equal(
        fitted.weights[first + lexical.names.index(kept)], weights[first + list(committed.lexical).index(kept)]
    )


def test_the_shipped_classifiers_are_small_and_survive_their_files(tmp_path: Path) -> None:
    committed = Shipped.read()
    paths = tmp_path / "classifiers.npz", tmp_path / "classifiers.json"
    committed.write(*paths)
    assert sum(path.stat().st_size for path in paths) < 1_000_000
    again = Shipped.read(*paths)
    for task in TASKS:
        np.testing.assert_array_equal(again.heads[task].weights, committed.heads[task].weights)
    for name, (down, up) in committed.adapter.factors.items():
        np.testing.assert_array_equal(again.adapter.factors[name][0], down)
        np.testing.assert_array_equal(again.adapter.factors[name][1], up)
    assert (again.recipe, again.lexical) == (committed.recipe, committed.lexical)


def test_the_recipe_names_the_committed_training_data() -> None:
    recorded = Shipped.read().recipe["sha256"]
    for path in (TICKETS, OPINIONS, TAXONOMY):
        assert recorded[path.name] == hashlib.sha256(path.read_bytes()).hexdigest(), path.name


def test_merging_adds_the_products_of_the_factors() -> None:
    numbers = np.random.default_rng(5)
    shapes = {"up": (4 * HIDDEN, HIDDEN), "down": (HIDDEN, 4 * HIDDEN)}
    state, factors = {}, {}
    for layer in range(LAYERS):
        for part, name in PARTS.items():
            outputs, inputs = shapes.get(part, (HIDDEN, HIDDEN))
            state[f"encoder.layer.{3 + layer}.{name}.weight"] = numbers.normal(size=(outputs, inputs)).astype("f4")
            factors[f"{layer}.{part}"] = (numbers.normal(size=(2, inputs)), numbers.normal(size=(outputs, 2)))
    merged = Adapter(factors, np.zeros((3, HIDDEN), np.float32)).merged(state)
    assert merged.keys() == state.keys()
    down, up = factors["1.up"]
    name = "encoder.layer.4.intermediate.dense.weight"
    np.testing.assert_allclose(merged[name], state[name] + up @ down, atol=1e-4)


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


def test_a_label_with_too_few_texts_is_named(bundle: Path, taxonomy_file: Path) -> None:
    encoder, lexical = Encoder.open(Bundle.open(bundle)), LexicalFeatures.from_file(bundle / "features.json")
    taxonomy = Taxonomy.read(taxonomy_file)
    tickets = [Labelled(f"Parcel {i}", {"intent": ["parcel"]}) for i in range(FOLDS)]
    with pytest.raises(
        ExportError, match="fewer than 5 labelled texts have the intent other, refund; add some, or drop"
    ):
        compact.train_heads(encoder, lexical, Shipped.read(), taxonomy, tickets, TASKS, lambda _: None)
