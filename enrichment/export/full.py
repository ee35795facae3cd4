"""Builds the `full` bundle: the compact one's encoder and heads, DistilBERT for sentiment, DistilBART for summaries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from enrichment.bundle import Bundle
from enrichment.export.assembly import placed, quiet, write_manifest
from enrichment.export.bart import Bart, decoder_graph, encoder_graph
from enrichment.export.compact import Recipe, Say, write_models
from enrichment.export.corpus import Taxonomy, read_labelled
from enrichment.export.distilbert import classifier_graph
from enrichment.export.graph import Array
from enrichment.export.sources import (
    DISTILBART,
    DISTILBERT,
    MINILM,
    ExportError,
    Source,
    find_model,
    is_pinned,
    weights_file,
)
from enrichment.export.verification import verify
from enrichment.export.weights import Shared, word_arrays

__all__ = ["GENERATION", "FullRecipe", "build"]

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
_NEUTRAL: Final = (0.45, 0.55)
_THRESHOLD: Final = 0.6
_MIN_WORDS: Final = 20


@dataclass(frozen=True)
class FullRecipe:
    """What a bundle is made from; `base` says where all three models come from, and the rest of the compact part."""

    base: Recipe
    allow_unpinned: bool = False
    generation: Mapping[str, Any] = field(default_factory=dict)


def build(recipe: FullRecipe, out: Path, say: Say) -> Bundle:
    """Builds, verifies, and only then moves the bundle to `out`. Raises ExportError."""
    place, precision = recipe.base.source, recipe.base.precision
    folders: dict[str, Path] = {}
    for source in (MINILM, DISTILBERT, DISTILBART):
        say(f"looking for {source.repository}")
        # MiniLM's heads were trained for these very weights: others will not do.
        allowed = recipe.allow_unpinned and source is not MINILM
        folders[source.name] = find_model(source, place, allow_unpinned=allowed)
        weights_file(source, folders[source.name])  # said now, not after minutes of building
    minilm, distilbert, distilbart = (folders[source.name] for source in (MINILM, DISTILBERT, DISTILBART))
    with placed(out) as folder:
        models, cosines = write_models(folder, minilm, recipe.base, ("intent", "urgency"), say)
        say(f"sentiment: building {DISTILBERT.repository} ({precision})")
        models["sentiment"] = _sentiment(folder, distilbert, recipe)
        say(f"summary: building {DISTILBART.repository} ({precision})")
        models["summary"] = _summary(folder, distilbart, recipe)
        for kind, source, where in (("sentiment", DISTILBERT, distilbert), ("summary", DISTILBART, distilbart)):
            models[kind] |= _origin(source, where, place) | {"precision": precision}
        write_manifest(folder, name=f"full-{precision}", profile="full", models=models, verification={})
        say("verifying against torch")
        pinned = bool(models["sentiment"]["pinned"] and models["summary"]["pinned"])
        texts = [item.text for item in read_labelled(recipe.base.tickets, Taxonomy.read(recipe.base.taxonomy))]
        verification = verify(Bundle.open(folder), distilbert, distilbart, texts, pinned=pinned)
        (folder / "bundle.json").unlink()
        write_manifest(
            folder,
            name=f"full-{precision}",
            profile="full",
            models=models,
            verification={"encoder": cosines, **verification},
        )
    return Bundle.open(out)


def _sentiment(folder: Path, weights: Path, recipe: FullRecipe) -> dict[str, Any]:
    config = json.loads((weights / "config.json").read_text())
    labels = [str(config["id2label"][key]) for key in sorted(config["id2label"], key=int)]
    if labels != ["NEGATIVE", "POSITIVE"]:
        raise ExportError(f"{weights / 'config.json'} has the labels {labels}; NEGATIVE and POSITIVE are needed")
    state = _state(DISTILBERT, weights)
    precision = recipe.base.precision
    table = word_arrays(state["distilbert.embeddings.word_embeddings.weight"], precision)
    words = Shared.write(folder, "sentiment-words.bin", table)
    (folder / "sentiment.onnx").write_bytes(_bytes(classifier_graph(state, config, precision, words)))
    _tokenizer(weights, folder / "sentiment-tokenizer.json")
    return {
        "kind": "sequence_classifier",
        "file": "sentiment.onnx",
        "words": "sentiment-words.bin",
        "tokenizer": "sentiment-tokenizer.json",
        "max_tokens": int(config["max_position_embeddings"]),
        "labels": labels,
        "neutral": list(_NEUTRAL),
        "fallback": "NEUTRAL",
        "threshold": _THRESHOLD,
    }


def _summary(folder: Path, weights: Path, recipe: FullRecipe) -> dict[str, Any]:
    config = json.loads((weights / "config.json").read_text())
    model = Bart(_state(DISTILBART, weights), config)
    precision = recipe.base.precision
    words = Shared.write(folder, "summary-words.bin", word_arrays(model.words, precision))
    graphs: dict[str, Callable[..., Any]] = {"encoder": encoder_graph, "decoder": decoder_graph}
    for part, graph in graphs.items():
        (folder / f"summary-{part}.onnx").write_bytes(_bytes(graph(model, precision, words)))
    _tokenizer(weights, folder / "summary-tokenizer.json")
    generation = {**GENERATION, **recipe.generation}
    return {
        "kind": "abstractive",
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
    digest = hashlib.sha256(weights_file(source, folder).read_bytes()).hexdigest()
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
