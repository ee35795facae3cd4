"""Other encoders than MiniLM: their origin, their configuration, and what the command says."""

import hashlib
import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from enrichment.export.__main__ import app
from enrichment.export.encoders import EncoderFiles, Shape, find_encoder, write_as_bert
from enrichment.export.sources import ExportError
from tests.support.random_encoders import MAX_TOKENS, write_encoder

DE_FR = Path(__file__).parents[1] / "export" / "tickets_de_fr.jsonl"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/some-encoder"
TEXTS = ["Die Anmeldung geht nicht.", "La facture est fausse.", "Der Export ist leer.", "Merci beaucoup!"]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a small XLM-R; what its weights are does not matter here."""
    folder = write_encoder(tmp_path_factory.mktemp("encoder") / "mine", "xlm-roberta", TEXTS, num_hidden_layers=1)
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(written, tmp_path / "mine"))


def _change(path: Path, **changed: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **changed}), encoding="utf-8")


# -- origin ------------------------------------------------------------------------------------------------------------


def test_a_directory_is_an_encoder(folder: Path) -> None:
    sha256 = hashlib.sha256(b"weights").hexdigest()
    shape = Shape(layers=1, heads=12, max_tokens=MAX_TOKENS)
    assert find_encoder(str(folder), None) == EncoderFiles(folder, "mine", "local", sha256, "apache-2.0", shape)
    (folder / "README.md").write_text("license: in the text, not in the header\n")
    assert find_encoder(str(folder), None).license == "unknown"
    (folder / "README.md").unlink()
    assert find_encoder(str(folder), None).license == "unknown"


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:12]])
def test_a_repository_needs_a_commit(revision: str | None) -> None:
    with pytest.raises(
        ExportError, match=rf"add --revision with the 40 hexadecimal digits of a commit of {REPOSITORY}"
    ):
        find_encoder(REPOSITORY, revision)


@pytest.mark.parametrize("place", ["./nowhere", "nowhere", "/no/such/place", "a/b/c"])
def test_what_is_no_directory_and_no_repository_is_refused(place: str) -> None:
    with pytest.raises(ExportError, match=f"{place} is no directory and no repository on the hub"):
        find_encoder(place, COMMIT)


def test_a_directory_has_no_revision(folder: Path) -> None:
    with pytest.raises(ExportError, match="--revision is for repositories on the hub"):
        find_encoder(str(folder), COMMIT)


def _hub(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., str]) -> None:
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = answer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)


def test_older_repositories_have_weights_in_the_format_of_torch(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    asked = []

    def answer(repository: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, allow_patterns[-1]))
        if allow_patterns[-1] == "pytorch_model.bin":
            (folder / "pytorch_model.bin").write_bytes(b"older")
        return str(folder)

    _hub(monkeypatch, answer)
    found = find_encoder(REPOSITORY, COMMIT)
    assert (found.source, found.revision, found.sha256) == (REPOSITORY, COMMIT, hashlib.sha256(b"older").hexdigest())
    assert asked == [(REPOSITORY, COMMIT, "model.safetensors"), (REPOSITORY, COMMIT, "pytorch_model.bin")]


def test_a_hub_that_fails_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_: object, **__: object) -> str:
        raise ConnectionError("no route\nto the host")

    _hub(monkeypatch, answer)
    with pytest.raises(
        ExportError, match=rf"{REPOSITORY} cannot be fetched .*no route\); .* with --encoder DIRECTORY$"
    ):
        find_encoder(REPOSITORY, COMMIT)


# -- configuration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [
        ("config.json", "model_type", "mpnet", "model_type is 'mpnet', supported: bert and xlm-roberta"),
        ("config.json", "model_type", None, "model_type is missing"),
        ("config.json", "hidden_size", 768, "hidden_size is 768, supported: 384"),
        ("config.json", "hidden_act", "relu", "hidden_act is 'relu', supported: gelu"),
        ("config.json", "position_embedding_type", "relative_key", "position_embedding_type is 'relative_key'"),
        ("config.json", "is_decoder", True, "is_decoder is True"),
        ("config.json", "num_hidden_layers", 0, "num_hidden_layers is 0"),
        ("config.json", "num_attention_heads", 7, "num_attention_heads is 7, supported: divisors of 384"),
        ("config.json", "vocab_size", 9, r"vocab_size is 9, but tokenizer.json has the id \d+"),
        ("sentence_bert_config.json", "max_seq_length", 4, "max_seq_length is 4, supported: 8 tokens and more"),
        (
            "sentence_bert_config.json",
            "do_lower_case",
            True,
            "do_lower_case is true, but tokenizer.json keeps capitals",
        ),
        ("1_Pooling/config.json", "pooling_mode_cls_token", True, "pooling_mode is 'mean_tokens, cls_token'"),
        ("1_Pooling/config.json", "pooling_mode", "cls", "pooling_mode is 'cls', supported: mean"),
        ("tokenizer.json", "model", {"type": "BPE"}, "model.type is 'BPE', supported: WordPiece and Unigram"),
        ("tokenizer.json", "post_processor", None, r"post_processor is \[\], supported: one token before a text"),
    ],
)
def test_what_is_not_supported_is_named(folder: Path, name: str, key: str, value: object, said: str) -> None:
    _change(folder / name, **{key: value})
    with pytest.raises(ExportError, match=rf"{name.rpartition('/')[2]}: {said}"):
        find_encoder(str(folder), None)


def test_layers_behind_the_encoder_are_refused(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"path": "2_Dense", "type": "x.models.Dense"}]))
    with pytest.raises(
        ExportError, match=r"modules\.json: type is 'Dense', supported: Transformer, Pooling, Normalize"
    ):
        find_encoder(str(folder), None)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.json", r"config\.json is missing; download all files"),
        ("tokenizer.json", r"tokenizer\.json is missing; write it with AutoTokenizer"),
        ("model.safetensors", r"holds no model\.safetensors"),
        ("1_Pooling/config.json", r"1_Pooling/config\.json is missing"),
    ],
)
def test_a_missing_file_is_named(folder: Path, name: str, said: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ExportError, match=said):
        find_encoder(str(folder), None)


@pytest.mark.parametrize("name", ["config.json", "modules.json", "sentence_bert_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["{", "5"])
def test_a_damaged_file_is_named(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ExportError, match=rf"{name} (cannot be read as JSON|is not a)"):
        find_encoder(str(folder), None)


def test_weights_that_cannot_be_read_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=rf"{folder}: the weights cannot be read \(\w+: .*\); download them again"):
        write_as_bert(folder, tmp_path / "bert")


def test_the_limit_of_tokens_is_that_of_sentence_transformers(folder: Path) -> None:
    def limit() -> int:
        return find_encoder(str(folder), None).shape.max_tokens

    _change(folder / "sentence_bert_config.json", max_seq_length=None)
    assert limit() == 64  # the tokenizer's
    _change(folder / "tokenizer_config.json", model_max_length=10**30)
    assert limit() == 64  # 66 positions, of which XLM-R uses none up to the padding id, 1
    _change(folder / "config.json", model_type="bert")
    assert limit() == 66


def test_classifiers_read_five_layers_and_always_the_last() -> None:
    pooled = {layers: Shape(layers, 12, 128).pooled for layers in (1, 2, 3, 4, 6, 12)}
    assert pooled[6] == [1, 2, 3, 4, 5]
    assert pooled[12] == [2, 4, 6, 9, 11]
    assert (pooled[1], pooled[2], pooled[3], pooled[4]) == ([0], [0, 1], [0, 1, 2], [0, 1, 2, 3])


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--encoder", "DIRECTORY", "--languages", "de"], "--encoder needs --tickets FILE"),
        (["--encoder", "DIRECTORY", "--tickets", "TICKETS"], "--encoder needs --languages: ISO 639-1 codes"),
        (["--encoder", "DIRECTORY", "--tickets", "TICKETS", "--languages", "german"], "needs --languages: ISO 639-1"),
        (["--encoder", REPOSITORY, "--tickets", "TICKETS", "--languages", "de,fr"], "add --revision with the 40"),
        (["--languages", "de"], "--revision and --languages describe another encoder"),
        (["--revision", COMMIT], "--revision and --languages describe another encoder"),
    ],
)
def test_missing_options_are_said_in_one_line(folder: Path, tmp_path: Path, options: list[str], said: str) -> None:
    (tmp_path / "tickets.jsonl").write_text("")
    places = {"DIRECTORY": str(folder), "TICKETS": str(tmp_path / "tickets.jsonl")}
    arguments = [places.get(option, option) for option in options]
    done = CliRunner().invoke(app, ["compact", "--out", str(tmp_path / "b"), *arguments])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert said in done.stderr
    assert not (tmp_path / "b").exists()


def test_each_label_needs_tickets_of_the_user(folder: Path, tmp_path: Path) -> None:
    # Enough shipped tickets and examples have this label, but they do not count.
    lines = DE_FR.read_text(encoding="utf-8").replace('"critical"', '"high"')
    (tmp_path / "tickets.jsonl").write_text(lines, encoding="utf-8")
    arguments = ["--encoder", str(folder), "--tickets", str(tmp_path / "tickets.jsonl"), "--languages", "de,fr"]
    done = CliRunner().invoke(app, ["compact", "--out", str(tmp_path / "b"), *arguments])
    said = "error: fewer than 5 labelled texts have the urgency critical; add some\n"
    assert (done.exit_code, done.stderr) == (1, said)
    assert not (tmp_path / "b").exists()
