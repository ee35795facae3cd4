"""The sentence encoder on real weights: batches, windows, sentences, and bundles that do not fit."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrichment import Bundle, BundleInvalid
from enrichment.encoder import Encoded, Encoder, _sentence_means
from enrichment.text import MAX_CHARACTERS, Sentence, sentences

WINDOW = 254  # of 256 tokens two are special
TEXTS = [
    "x",
    "😀",
    "Refund, please.",
    "Ich kann mich nicht anmelden, weil der Code nie ankommt.",
    "发票有误，请更正。",
    "The export button does nothing. " * 3,
    "HTTP 500 at /api/v2/orders?id=17&retry=true after 30,000 ms -- again!",
    "We moved the whole office to the new options on Monday and since then nobody can print. " * 8,
    "A long story about a parcel that went to Norway instead of Graz. " * 24,
    "word " * 300,
]


@pytest.fixture(scope="module")
def encoder(bundle: Path) -> Encoder:
    """The shipped encoder."""
    return Encoder.open(Bundle.open(bundle))


def _encode(encoder: Encoder, texts: list[str]) -> list[Encoded]:
    return encoder.encode(encoder.tokenize(texts), [sentences(text) for text in texts])


@pytest.fixture(scope="module")
def alone(encoder: Encoder) -> list[Encoded]:
    """Each text encoded by itself."""
    return [_encode(encoder, [text])[0] for text in TEXTS]


@settings(max_examples=6)
@given(order=st.permutations(range(len(TEXTS))), size=st.integers(1, len(TEXTS)))
def test_neighbours_change_nothing(encoder: Encoder, alone: list[Encoded], order: list[int], size: int) -> None:
    chosen = order[:size]
    for i, found in zip(chosen, _encode(encoder, [TEXTS[i] for i in chosen]), strict=True):
        for name in ("embedding", "pooled", "adapted", "sentences"):
            np.testing.assert_array_equal(getattr(found, name), getattr(alone[i], name))


def test_several_threads_may_encode_at_once(encoder: Encoder, alone: list[Encoded]) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: _encode(encoder, TEXTS[:7]), range(8)))
    for result in results:
        for found, expected in zip(result, alone, strict=False):
            assert float(found.embedding @ expected.embedding) > 0.99999


def test_what_comes_out_has_its_shapes_and_unit_length(encoder: Encoder) -> None:
    [found] = _encode(encoder, ["The first one. The second one."])
    assert found.embedding.shape == (384,)
    assert found.pooled.shape == (5 * 384,)
    assert found.adapted.shape == (encoder.features - 5 * 384,)
    assert found.sentences.shape == (2, 384)
    assert found.embedding.dtype == found.pooled.dtype == found.sentences.dtype == np.float32
    assert np.linalg.norm(found.embedding) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(found.sentences, axis=1) == pytest.approx(1, abs=1e-5)


def test_meaning_is_near_where_words_differ(encoder: Encoder) -> None:
    lost, forgot, parcel = _encode(encoder, ["I lost my password.", "How can I reset my login?", "Where is my parcel?"])
    assert lost.embedding @ forgot.embedding > lost.embedding @ parcel.embedding + 0.1


# -- tokens and windows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "windows", "longest", "beyond"),
    [
        (0, 0, 0, False),
        (1, 1, 3, False),
        (WINDOW, 1, 256, False),
        (WINDOW + 1, 2, 256, True),
        (4 * WINDOW, 4, 256, True),
    ],
)
def test_a_long_text_fills_windows(encoder: Encoder, words: int, windows: int, longest: int, *, beyond: bool) -> None:
    [tokens] = encoder.tokenize(["word " * words])
    assert len(tokens.ids) == len(tokens.offsets) == words
    assert (tokens.windows, tokens.longest, tokens.cut) == (windows, longest, False)
    assert tokens.cost == windows * longest
    assert encoder.is_beyond_first_window(tokens) == beyond


def test_what_lies_beyond_the_windows_is_cut_and_reported(encoder: Encoder) -> None:
    [tokens] = encoder.tokenize(["word " * (4 * WINDOW + 1)])
    assert (len(tokens.ids), tokens.windows, tokens.cut) == (4 * WINDOW, 4, True)


@pytest.mark.parametrize(("length", "cut"), [(MAX_CHARACTERS, False), (MAX_CHARACTERS + 1, True)])
def test_the_tokenizer_sees_no_more_than_the_first_characters(encoder: Encoder, length: int, *, cut: bool) -> None:
    [tokens] = encoder.tokenize(["a" + " " * (length - 2) + "b"])
    assert tokens.cut == cut
    assert len(tokens.ids) == (1 if cut else 2)


def test_tokens_know_where_they_stand(encoder: Encoder) -> None:
    text = "Ünlü 😀 don't 4.99 unaffable"
    [tokens] = encoder.tokenize([text])
    pieces = [text[begin:end] for begin, end in tokens.offsets]
    assert "".join(pieces) == "".join(text.split())
    assert encoder.count_tokens(text) == len(tokens.ids)


def test_the_first_window_decides_the_embedding(encoder: Encoder) -> None:
    head, tail = "refund " * WINDOW, "password " * WINDOW
    short, long = _encode(encoder, [head, head + tail])
    assert float(short.embedding @ long.embedding) > 0.99999


def test_sentences_of_all_windows_have_vectors(encoder: Encoder) -> None:
    text = "The parcel is lost. " * 300  # 1,500 tokens; four windows hold 1,016
    [tokens] = encoder.tokenize([text])
    spans = sentences(text)
    [found] = encoder.encode([tokens], [spans])
    norms = np.linalg.norm(found.sentences, axis=1)
    read = [span.start < tokens.offsets[-1, 1] for span in spans]
    assert norms[read] == pytest.approx(1, abs=1e-5)
    assert not norms[[not r for r in read]].any()
    assert 200 < sum(read) < 210
    # A sentence is the same one in the first window and in the third.
    assert float(found.sentences[0] @ found.sentences[120]) > 0.7


def test_a_span_without_tokens_has_no_vector(encoder: Encoder) -> None:
    [tokens] = encoder.tokenize(["a     b"])
    [found] = encoder.encode([tokens], [[Sentence(2, 4), Sentence(0, 1)]])
    assert not found.sentences[0].any()
    assert found.sentences[1].any()


def test_a_token_that_begins_with_a_space_belongs_to_the_sentence_of_its_word() -> None:
    # "Geht nicht. Hilfe!", as a SentencePiece tokenizer splits it: the space is part of the third token.
    offsets = np.asarray([[0, 4], [4, 11], [11, 17], [17, 18]])
    first, second = _sentence_means(np.eye(4, dtype=np.float32), offsets, [Sentence(0, 11), Sentence(12, 18)])
    assert first.nonzero()[0].tolist() == [0, 1]
    assert second.nonzero()[0].tolist() == [2, 3]


@settings(max_examples=25)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_any_text_can_be_encoded(encoder: Encoder, texts: list[str]) -> None:
    tokens = [t for t in encoder.tokenize(texts) if len(t.ids)]
    if tokens:
        for found in encoder.encode(tokens, [[]] * len(tokens)):
            assert np.linalg.norm(found.embedding) == pytest.approx(1, abs=1e-4)
            assert np.isfinite(found.pooled).all()


# -- bundles that do not fit -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose files may be replaced."""
    for path in bundle.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def _replace(folder: Path, name: str, content: bytes) -> None:
    (folder / name).unlink()
    (folder / name).write_bytes(content)


def _open(folder: Path, **encoder: Any) -> Encoder:
    manifest = json.loads((folder / "bundle.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name]["size"] = (folder / name).stat().st_size
    manifest["models"]["encoder"].update(encoder)
    _replace(folder, "bundle.json", json.dumps(manifest).encode())
    return Encoder.open(Bundle.open(folder), threads=1)


@pytest.mark.parametrize("name", ["encoder.onnx", "tokenizer.json"])
@pytest.mark.parametrize(
    "content", [b"", b"nonsense", random.Random(1).randbytes(1000)], ids=["empty", "text", "noise"]
)
def test_a_damaged_file_is_no_encoder(folder: Path, name: str, content: bytes) -> None:
    _replace(folder, name, content)
    with pytest.raises(BundleInvalid, match=r"the encoder cannot be opened: .*; rebuild the bundle"):
        _open(folder)


def test_a_graph_of_other_dimensions_is_refused(folder: Path) -> None:
    with pytest.raises(BundleInvalid, match=r"encoder\.onnx lacks the outputs that the manifest names; rebuild"):
        _open(folder, dimensions=768)


def test_a_file_that_is_not_listed_is_refused(folder: Path) -> None:
    with pytest.raises(BundleInvalid, match=r"uses the file other\.onnx, but does not list it"):
        _open(folder, file="other.onnx")


def test_a_tokenizer_of_another_kind_is_refused(folder: Path) -> None:
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    }
    _replace(folder, "tokenizer.json", json.dumps(tokenizer).encode())
    with pytest.raises(
        BundleInvalid, match=r"tokenizer\.json does not put one token before a text and one behind; rebuild"
    ):
        _open(folder)


def test_the_manifest_sets_the_limits(folder: Path) -> None:
    encoder = _open(folder, max_tokens=10, max_windows=2)
    [tokens] = encoder.tokenize(["word " * 20])
    assert (len(tokens.ids), tokens.windows, tokens.longest, tokens.cut) == (16, 2, 10, True)
