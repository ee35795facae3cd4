"""The encoder's files: MiniLM's, or those of another encoder, whose configuration is checked.

Another encoder is a repository of sentence-transformers with a BERT or XLM-R of 384 dimensions and mean pooling, from
the hub or a directory in the hub's layout.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer

from enrichment.export.sources import MINILM, ExportError, fetch, find_model

__all__ = ["HIDDEN", "MINILM_SHAPE", "EncoderFiles", "Shape", "find_encoder", "minilm", "write_as_bert"]

HIDDEN: Final = 384
_EXAMPLE: Final = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
_WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")
# What config.json must say. Where it says nothing, transformers assumes the first value, but for these two.
_SUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "model_type": ("bert", "xlm-roberta"),
    "hidden_size": (HIDDEN,),
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
}
_REQUIRED: Final = ("model_type", "hidden_size")
_MODULES: Final = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class Shape:
    """The size of an encoder; `max_tokens` includes the two special tokens."""

    layers: int
    heads: int
    max_tokens: int

    @property
    def pooled(self) -> list[int]:
        """The layers that the classifiers read, at most five, the last one last.

        Sentiment shows best in the middle layers, topics in the last one. For MiniLM these are 1 to 5 of 0 to 5.
        """
        return sorted({round(layer) for layer in np.linspace(self.layers // 6, self.layers - 1, 5)})


MINILM_SHAPE: Final = Shape(layers=6, heads=12, max_tokens=256)  # 256 is the limit of sentence-transformers


@dataclass(frozen=True)
class EncoderFiles:
    """An encoder's files in a directory with the hub's layout, their origin, and the encoder's shape.

    `source` is the repository, or the name of a local directory; `sha256` is that of the weights.
    """

    folder: Path
    source: str
    revision: str
    sha256: str
    license: str
    shape: Shape


def minilm(place: str) -> EncoderFiles:
    """MiniLM from the hub, a directory or the installed package, with the pinned hashes. Raises ExportError."""
    folder, sha256 = find_model(MINILM, place), MINILM.sha256["model.safetensors"]
    return EncoderFiles(folder, MINILM.repository, MINILM.revision, sha256, MINILM.license, MINILM_SHAPE)


def find_encoder(place: str, revision: str | None) -> EncoderFiles:
    """Another encoder at `place`: a directory, or a repository on the hub at a commit. Raises ExportError.

    The message names the key of the configuration that is not supported.
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ExportError(f"--revision is for repositories on the hub, and {place} is a directory")
        source, revision = folder.resolve().name, "local"
    else:
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", place):
            raise ExportError(f"{place} is no directory and no repository on the hub (OWNER/NAME)")
        if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise ExportError(
                f"a bundle names the commit of its encoder: add --revision with the 40 hexadecimal digits of a commit "
                f"of {place}; a branch or tag can change"
            )
        folder, source = _from_hub(place, revision), place
    shape = _shape(folder)
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise ExportError(f"{folder} holds no {_WEIGHTS[0]}; download all files of the repository")
    with weights.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return EncoderFiles(folder, source, revision, sha256, _license(folder), shape)


def write_as_bert(weights: Path, folder: Path) -> None:
    """Writes an encoder as a BERT, which is exported and fused in one way only.

    XLM-R's encoder is a BERT with one type of token, whose positions begin behind the padding id. (It also gives the
    padding token a position of its own; we never compute one, except for a ticket that spells it.) Raises ExportError
    if the weights cannot be read.
    """
    from transformers import AutoModel, BertConfig, BertModel

    try:
        model = AutoModel.from_pretrained(str(weights), dtype="float32", add_pooling_layer=False)
    except Exception as error:  # of several libraries: the file may be cut off, or a pointer of Git LFS
        reason = (str(error).splitlines() or [""])[0]
        raise ExportError(
            f"{weights}: the weights cannot be read ({type(error).__name__}: {reason}); download them again"
        ) from error
    config, state = model.config, dict(model.state_dict())
    positions, types = "embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"
    state[positions] = state[positions][_first_position(config.to_dict()) :]
    state[types] = state[types][:1].repeat(2, 1)  # the exporter's sample input has two types
    same = ("vocab_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps")
    bert = BertModel(  # type: ignore[no-untyped-call] # ships none
        BertConfig(  # type: ignore[no-untyped-call]
            hidden_size=HIDDEN,
            max_position_embeddings=len(state[positions]),
            **{name: getattr(config, name) for name in same},
        ),
        add_pooling_layer=False,
    )
    bert.load_state_dict(state)
    bert.save_pretrained(folder)


def _from_hub(repository: str, revision: str) -> Path:
    remedy = "--encoder DIRECTORY"
    for name in _WEIGHTS:
        # sentence-transformers' own files lie in the root and in directories like 1_Pooling.
        patterns = ["*.json", "README.md", name]
        folder = fetch(repository, revision, patterns, remedy)
        if (folder / name).is_file():
            break
    return folder


def _first_position(config: Mapping[str, Any]) -> int:
    """The row of the position embeddings that belongs to a text's first token."""
    return int(config.get("pad_token_id", 1)) + 1 if config["model_type"] == "xlm-roberta" else 0


def _shape(folder: Path) -> Shape:
    """The shape that the configuration files give. Raises ExportError for what is not supported."""
    path = folder / "config.json"
    config = _object(path)
    for key, supported in _SUPPORTED.items():
        value = config.get(key, None if key in _REQUIRED else supported[0])
        if value not in supported:
            raise _unsupported(path, key, value, " and ".join(map(str, supported)))
    layers, heads = config.get("num_hidden_layers", 12), config.get("num_attention_heads", 12)
    if not isinstance(layers, int) or layers < 1:
        raise _unsupported(path, "num_hidden_layers", layers, "positive numbers")
    if not isinstance(heads, int) or heads < 1 or HIDDEN % heads:
        raise _unsupported(path, "num_attention_heads", heads, f"divisors of {HIDDEN}")
    _check_modules(folder)
    _check_tokenizer(folder, int(config.get("vocab_size", 30522)))
    return Shape(layers, heads, _max_tokens(folder, config))


def _max_tokens(folder: Path, config: Mapping[str, Any]) -> int:
    """The limit of sentence-transformers, which is the tokenizer's if there is no other; the manifest wants 8."""
    path = folder / "sentence_bert_config.json"
    given = _object(path, {}).get("max_seq_length")
    key = "max_seq_length"
    if given is None:
        path, key = folder / "tokenizer_config.json", "model_max_length"
        given = _object(path, {}).get(key, 512)
    positions = int(config.get("max_position_embeddings", 512)) - _first_position(config)
    if not isinstance(given, int | float) or min(given, positions) < 8:
        raise _unsupported(path, key, given, "8 tokens and more")
    return int(min(given, positions))


def _check_modules(folder: Path) -> None:
    """Checks that nothing but mean pooling follows the encoder; this is also what sentence-transformers assumes."""
    path = folder / "modules.json"
    modules = _json(path, [])
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ExportError(f"{path} is not a list of modules; download the file again")
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in _MODULES:
            raise _unsupported(path, "type", kind, ", ".join(_MODULES))
        if kind == "Pooling":
            _check_pooling(folder / str(module.get("path", "")) / "config.json")


def _check_pooling(path: Path) -> None:
    pooling = _object(path)
    # Until 2026 sentence-transformers wrote one flag per mode.
    flags = [
        key.removeprefix("pooling_mode_") for key, value in pooling.items() if key[:13] == "pooling_mode_" and value
    ]
    mode = pooling.get("pooling_mode", flags or "mean")
    if mode not in ("mean", ["mean"], ["mean_tokens"]):
        raise _unsupported(path, "pooling_mode", mode if isinstance(mode, str) else ", ".join(mode), "mean")


def _check_tokenizer(folder: Path, rows: int) -> None:
    """Checks the tokenizer; `rows` is the size of the table of embeddings."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ExportError(
            f"{path} is missing; write it with AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
        )
    model = _object(path).get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind not in ("WordPiece", "Unigram"):
        raise _unsupported(path, "model.type", kind, "WordPiece and Unigram")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise ExportError(f"{path} cannot be read ({error}); download the file again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if len(tokenizer.encode("").ids) != 2:
        raise _unsupported(
            path, "post_processor", tokenizer.encode("").tokens, "one token before a text and one behind"
        )
    if (largest := max(tokenizer.get_vocab().values())) >= rows:
        raise ExportError(
            f"{folder / 'config.json'}: vocab_size is {rows}, but tokenizer.json has the id {largest}; "
            "take both files from the same revision"
        )
    lowers = tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str("A") == "a"
    settings = folder / "sentence_bert_config.json"
    if _object(settings, {}).get("do_lower_case") and not lowers:
        raise ExportError(
            f"{settings}: do_lower_case is true, but tokenizer.json keeps capitals; add a Lowercase normalizer to it"
        )


def _unsupported(path: Path, key: str, value: object, supported: str) -> ExportError:
    said = "missing" if value is None else repr(value)
    return ExportError(f"{path}: {key} is {said}, supported: {supported}; choose an encoder such as {_EXAMPLE}")


def _license(folder: Path) -> str:
    """The licence that the model card's header names, or "unknown"."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    header = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    found = re.search(r"^license:[ \t]*(\S+)", header[1], re.MULTILINE) if header else None
    return found[1].strip("\"'") if found else "unknown"


def _object(path: Path, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    found = _json(path, default)
    if not isinstance(found, Mapping):
        raise ExportError(f"{path} is not a JSON object; download the file again")
    return found


def _json(path: Path, default: object) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        if default is None:
            raise ExportError(f"{path} is missing; download all files of the repository") from None
        return default
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read as JSON ({error}); download the file again") from error
