"""Builds the `full` bundle: the compact one's encoder and heads, DistilBERT for sentiment, DistilBART for summaries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from enrichment.bundle import Bundle
from enrichment.export.assembly import Say, placed, quiet, write_manifest
from enrichment.export.bart import Bart, decoder_graph, encoder_graph
from enrichment.export.compact import Recipe, reference, write_models
from enrichment.export.corpus import Taxonomy, read_labelled
from enrichment.export.distilbert import classifier_graph
from enrichment.export.encoders import minilm as minilm_files
from enrichment.export.graph import Array
from enrichment.export.sources import (
    DISTILBART,
    DISTILBERT,
    ExportError,
    Source,
    find_model,
    is_pinned,
    weights_file,
)
from enrichment.export.verification import verify
from enrichment.export.weights import Precision, Shared, word_arrays

__all__ = ["GENERATION", "FullRecipe", "build", "write_sentiment", "write_summary"]

# The model's own settings, spelled out: a bundle says what it does.
GENERATION: Final[Mapping[str, Any]] = {
    "num_beams": 4,
    "length_penalty": 2.0,
    "early_stopping": True,
    "no_repeat_ngram_size": 3,
    "min_length": 10,
    "max_length": 50,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "decoder_start_token_id": 2,
    "eos_token_id": 2,
}
_KINDS: Final = {DISTILBERT.name: "distilbert", DISTILBART.name: "bart"}
_NEUTRAL: Final = (0.45, 0.55)
_THRESHOLD: Final = 0.6
_MIN_WORDS: Final = 20


@dataclass(frozen=True)
class FullRecipe:
    """What a bundle is made from; `base` says where all three models come from, and the rest of the compact part."""

    base: Recipe
    allow_unpinned: bool = False
    generation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    source: Source
    weights: Path
    origin: dict[str, Any]


def build(recipe: FullRecipe, out: Path, say: Say) -> Bundle:
    """Builds, verifies, and only then moves the bundle to `out`. Raises ExportError."""
    place, precision = recipe.base.source, recipe.base.precision
    # MiniLM's heads were trained for its very weights, so that others will not do for it.
    minilm = minilm_files(place)
    parts = {}
    for kind, source in (("sentiment", DISTILBERT), ("summary", DISTILBART)):
        say(f"{kind}: looking for {source.repository}")
        weights = find_model(source, place, allow_unpinned=recipe.allow_unpinned)
        parts[kind] = _Part(source, weights, _origin(source, weights, place))
        if not parts[kind].origin["pinned"]:
            say(f"{kind}: the weights in {weights} are not of the pinned revision")
    sentiment, summary = parts["sentiment"], parts["summary"]
    with placed(out) as folder:
        # The encoder last: it takes the longest, and what may be wrong with the others' files is said before.
        say(f"sentiment: building {DISTILBERT.repository} ({precision})")
        models = {"sentiment": write_sentiment(folder, sentiment.weights, precision) | sentiment.origin}
        say(f"summary: building {DISTILBART.repository} ({precision})")
        models["summary"] = write_summary(folder, summary.weights, precision, recipe.generation) | summary.origin
        entries, cosines = write_models(folder, minilm, recipe.base, ("intent", "urgency"), say)
        models |= entries
        write_manifest(folder, name=f"full-{precision}", profile="full", models=models, verification={})
        pinned = bool(sentiment.origin["pinned"] and summary.origin["pinned"])
        texts = [item.text for item in read_labelled(recipe.base.tickets, Taxonomy.read(recipe.base.taxonomy))]
        verification = verify(Bundle.open(folder), sentiment.weights, summary.weights, texts, pinned=pinned, say=say)
        (folder / "bundle.json").unlink()
        write_manifest(
            folder,
            name=f"full-{precision}",
            profile="full",
            models=models,
            verification={"encoder": cosines, **verification},
            reference=reference(folder, recipe.base),
        )
    return Bundle.open(out)


def write_sentiment(folder: Path, weights: Path, precision: Precision) -> dict[str, Any]:
    """Writes DistilBERT's files; returns its entry in the manifest, but for where it comes from. Raises ExportError."""
    config = json.loads((weights / "config.json").read_text())
    labels = [str(config["id2label"][key]) for key in sorted(config["id2label"], key=int)]
    if labels != ["NEGATIVE", "POSITIVE"]:
        raise ExportError(f"{weights / 'config.json'} has the labels {labels}; NEGATIVE and POSITIVE are needed")
    state = _state(DISTILBERT, weights)
    table = word_arrays(state["distilbert.embeddings.word_embeddings.weight"], precision)
    words = Shared.write(folder, "sentiment-words.bin", table)
    (folder / "sentiment.onnx").write_bytes(_bytes(classifier_graph(state, config, precision, words)))
    _tokenizer(weights, folder / "sentiment-tokenizer.json")
    return {
        "kind": "sequence_classifier",
        "precision": precision,
        "file": "sentiment.onnx",
        "words": "sentiment-words.bin",
        "tokenizer": "sentiment-tokenizer.json",
        "max_tokens": int(config["max_position_embeddings"]),
        "labels": labels,
        "neutral": list(_NEUTRAL),
        "fallback": "NEUTRAL",
        "threshold": _THRESHOLD,
    }


def write_summary(folder: Path, weights: Path, precision: Precision, generation: Mapping[str, Any]) -> dict[str, Any]:
    """Writes DistilBART's files; returns its entry in the manifest, but for where it comes from."""
    config = json.loads((weights / "config.json").read_text())
    model = Bart(_state(DISTILBART, weights), config)
    words = Shared.write(folder, "summary-words.bin", word_arrays(model.words, precision))
    graphs: dict[str, Callable[..., Any]] = {"encoder": encoder_graph, "decoder": decoder_graph}
    for part, graph in graphs.items():
        (folder / f"summary-{part}.onnx").write_bytes(_bytes(graph(model, precision, words)))
    _tokenizer(weights, folder / "summary-tokenizer.json")
    generation = {**GENERATION, **generation}
    return {
        "kind": "abstractive",
        "precision": precision,
        "encoder": "summary-encoder.onnx",
        "decoder": "summary-decoder.onnx",
        "words": "summary-words.bin",
        "tokenizer": "summary-tokenizer.json",
        "max_source_tokens": int(config["max_position_embeddings"]),
        "max_tokens": generation["max_length"],
        "min_words": _MIN_WORDS,
        "generation": generation,
    }


def _origin(source: Source, folder: Path, place: str) -> dict[str, Any]:
    """What the manifest says of where weights come from. Raises ExportError where they are of another kind of model."""
    with weights_file(source, folder).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not (folder / "config.json").is_file():
        raise ExportError(f"{folder / 'config.json'} is missing; {source.repository} has it")
    found = json.loads((folder / "config.json").read_text()).get("model_type")
    if found != _KINDS[source.name]:
        raise ExportError(f"{folder / 'config.json'} is of a {found} model; a {_KINDS[source.name]} one is needed")
    return {
        "source": source.repository,
        "revision": source.revision,
        "source_sha256": digest,
        "pinned": is_pinned(source, folder, place),
        "license": source.license,
    }


def _state(source: Source, folder: Path) -> dict[str, Array]:
    """A model's weights in fp32, by their names in torch."""
    path = weights_file(source, folder)
    import torch
    from safetensors.torch import load_file

    tensors = (
        load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    )
    return {name: tensor.float().numpy() for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}


def _tokenizer(weights: Path, target: Path) -> None:
    """The tokenizer as one file; older repositories hold only its vocabulary."""
    with quiet():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(weights)).backend_tokenizer  # type: ignore[no-untyped-call] # ships none
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(target))


def _bytes(model: Any) -> bytes:
    serialized: bytes = model.SerializeToString(deterministic=True)
    return serialized
