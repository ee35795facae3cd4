"""The linear heads: probabilities, fallbacks, and arrays that do not fit the manifest."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from enrichment import Bundle, BundleInvalid
from enrichment.classify import TASKS, Classifiers, Head, Task, open_heads
from enrichment.features import LexicalFeatures

HEAD = Head(["a", "b", "c"], "b", 0.5, np.eye(3, dtype=np.float32), np.asarray([0, 0, 1], np.float32))


@given(arrays(np.float32, 3, elements=st.floats(-1e4, 1e4, width=32)))
def test_probabilities_are_some_and_sum_to_one(features: Any) -> None:
    found = HEAD.probabilities(features)
    assert list(found) == ["a", "b", "c"]
    assert all(0 <= value <= 1 for value in found.values())
    assert sum(found.values()) == pytest.approx(1, abs=1e-6)
    logits = features + np.asarray([0, 0, 1], np.float32)
    assert found["abc"[int(logits.argmax())]] == max(found.values())


def test_probabilities_are_a_softmax() -> None:
    found = HEAD.probabilities(np.asarray([1, 0, 0], np.float32))
    e = float(np.e)
    assert found == pytest.approx({"a": e / (2 * e + 1), "b": 1 / (2 * e + 1), "c": e / (2 * e + 1)})


def test_review_is_decided_by_the_product_of_the_confidences() -> None:
    heads = dict.fromkeys(TASKS, HEAD)
    lexical = LexicalFeatures(dict.fromkeys(("positive", "negative", "negators", "intensifiers"), ()), {})
    confidence: dict[Task, float] = {"intent": 0.95, "urgency": 0.8, "sentiment": 0.45}
    assert Classifiers(lexical, heads).uncertain(confidence) == ["sentiment"]  # each task's threshold is 0.5
    assert Classifiers(lexical, heads, review=0.3).uncertain(confidence) == []
    assert Classifiers(lexical, heads, review=0.5).uncertain(confidence) == ["sentiment"]
    assert Classifiers(lexical, heads, review=0.7).uncertain(confidence) == ["urgency", "sentiment"]


def test_of_nothing_every_label_is_as_likely() -> None:
    assert HEAD.unknown() == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle without its graph, which the heads do not need."""
    for name in ("bundle.json", "features.json", "heads.npz"):
        shutil.copyfile(bundle / name, tmp_path / name)
    return tmp_path


def _open(folder: Path, features: int | None = None) -> Any:
    manifest = json.loads((folder / "bundle.json").read_text())
    for name in [*manifest["files"]]:
        if (folder / name).exists():
            manifest["files"][name]["size"] = (folder / name).stat().st_size
        else:
            del manifest["files"][name]
    (folder / "bundle.json").write_text(json.dumps(manifest))
    size = 5 * 384 + 4 * 384 + len(LexicalFeatures.from_file(folder / "features.json").names)
    return open_heads(Bundle.open(folder), size if features is None else features)


def _edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    edit(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


def test_the_bundles_heads_fit_the_encoder_and_the_lexical_features(copy: Path) -> None:
    heads = _open(copy)
    assert set(heads) == set(TASKS)
    assert len(heads["intent"].labels) == 10
    assert (heads["intent"].fallback, heads["sentiment"].fallback) == ("general_inquiry", "NEUTRAL")
    assert all(0 < head.threshold < 1 for head in heads.values())


def test_another_number_of_features_is_refused(copy: Path) -> None:
    with pytest.raises(
        BundleInvalid, match=r"the intent classifier has the shape .*the encoder ask.* rebuild the bundle"
    ):
        _open(copy, 384)


def test_another_number_of_labels_is_refused(copy: Path) -> None:
    _edit_manifest(copy, lambda manifest: manifest["models"]["intent"]["labels"].append("new_label"))
    with pytest.raises(BundleInvalid, match="intent classifier has the shape"):
        _open(copy)


def test_a_fallback_that_is_no_label_is_refused(copy: Path) -> None:
    _edit_manifest(copy, lambda manifest: manifest["models"]["urgency"].update(fallback="asap"))
    with pytest.raises(BundleInvalid, match="urgency falls back to 'asap', which is no label"):
        _open(copy)


def test_a_file_that_the_manifest_does_not_list_is_refused(copy: Path) -> None:
    _edit_manifest(copy, lambda manifest: manifest["models"]["urgency"].update(file="other.npz"))
    with pytest.raises(BundleInvalid, match=r"uses the file other\.npz, but does not list it"):
        _open(copy)


def test_a_bias_of_another_length_is_refused(copy: Path) -> None:
    with np.load(copy / "heads.npz") as found:
        parts = dict(found)
    parts["sentiment.bias"] = parts["sentiment.bias"][:-1]
    np.savez(copy / "heads.npz", **parts)
    with pytest.raises(BundleInvalid, match="sentiment classifier has the shape"):
        _open(copy)


def _objects(_raw: bytes, path: Path) -> None:
    parts: dict[str, Any] = {"intent.weights": np.asarray([{}]), "intent.bias": np.zeros(1)}
    np.savez(path, **parts)


def _drop_urgency(raw: bytes, path: Path) -> None:
    path.write_bytes(raw)
    with np.load(path) as found:
        parts: dict[str, Any] = {name: value for name, value in found.items() if not name.startswith("urgency")}
    np.savez(path, **parts)


@pytest.mark.parametrize(
    ("spoil", "task"),
    [
        (lambda raw, path: path.write_bytes(b""), "intent"),
        (lambda raw, path: path.write_bytes(b"no archive"), "intent"),
        (lambda raw, path: path.write_bytes(b"PK\x03\x04" + raw[4:200]), "intent"),
        (lambda raw, path: path.write_bytes(raw[:1000] + b"\0" * 500 + raw[1500:]), "intent"),
        (_objects, "intent"),
        (_drop_urgency, "urgency"),
    ],
    ids=["empty", "text", "short", "damaged", "objects", "without urgency"],
)
def test_a_file_without_classifiers_is_refused(copy: Path, spoil: Callable[[bytes, Path], object], task: str) -> None:
    path = copy / "heads.npz"
    spoil(path.read_bytes(), path)
    with pytest.raises(BundleInvalid, match=rf"heads\.npz holds no classifier for {task} .*; rebuild the bundle"):
        _open(copy)
