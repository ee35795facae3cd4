"""Builds the `compact` bundle: one MiniLM encoder, three linear heads, an extractive summary."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer

from enrichment.bundle import Bundle
from enrichment.classify import TASKS, Task
from enrichment.cues import Cues
from enrichment.encoder import Encoder
from enrichment.export.assembly import Say, placed, quiet, write_manifest
from enrichment.export.corpus import TAXONOMY, TICKETS, Labelled, Taxonomy, read_labelled
from enrichment.export.graph import (
    Graph,
    canonical_model,
    load_fused_bert,
    pool_layers,
    spell_out_embeddings,
    spell_out_normalisation,
)
from enrichment.export.heads import FOLDS, FittedHead, features, fit_head
from enrichment.export.quantize import quantize_products, quantize_words
from enrichment.export.sentiment import Calibration, SentimentHead
from enrichment.export.sources import MINILM, ExportError, find_model
from enrichment.export.weights import Precision
from enrichment.manifest import canonical
from enrichment.session import ParallelSession

__all__ = [
    "MAX_TOKENS",
    "MAX_WINDOWS",
    "Precision",
    "Recipe",
    "build",
    "encoder_graph",
    "exported_graph",
    "open_encoder",
    "write_models",
]


MAX_TOKENS: Final = 256  # the limit that sentence-transformers gives this model
MAX_WINDOWS: Final = 4
_LAYERS: Final = (1, 2, 3, 4, 5)  # of 0 to 5; what a feeling is made of stands in the middle, the topic at the end
_HEADS, _HIDDEN = 12, 384
_STRENGTHS: Final = (0.001, 0.003)
# Worst cosine against sentence-transformers over the sample texts that a build may have.
_TOLERANCE: Final[Mapping[Precision, float]] = {"fp32": 0.99999, "int8": 0.99}


@dataclass(frozen=True)
class Recipe:
    """What a bundle is made from."""

    source: str = "package"
    precision: Precision = "int8"
    taxonomy: Path = TAXONOMY
    tickets: Path = TICKETS


def build(recipe: Recipe, out: Path, say: Say) -> Bundle:
    """Builds, verifies, and only then moves the bundle to `out`. Raises ExportError."""
    weights = find_model(MINILM, recipe.source)
    with placed(out) as folder:
        models, verification = write_models(folder, weights, recipe, TASKS, say)
        models["summary"] = {"kind": "extractive", "max_tokens": 50, "min_words": 20}
        write_manifest(
            folder, name=f"compact-{recipe.precision}", profile="compact", models=models, verification=verification
        )
    return Bundle.open(out)


def write_models(
    folder: Path, weights: Path, recipe: Recipe, tasks: Sequence[Task], say: Say
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes the encoder and its heads; returns their entries in the manifest, and how well the encoder was met."""
    taxonomy = Taxonomy.read(recipe.taxonomy)
    tickets = read_labelled(recipe.tickets, taxonomy)
    say(f"encoder: exporting {MINILM.repository} ({recipe.precision})")
    (folder / "encoder.onnx").write_bytes(encoder_graph(weights, recipe.precision))
    shutil.copyfile(weights / "tokenizer.json", folder / "tokenizer.json")
    cues = {"lexicon": dict(taxonomy.lexicon), "groups": dict(taxonomy.cues)}
    (folder / "cues.json").write_bytes(canonical(cues))
    heads = _heads(folder, taxonomy, tickets, tasks, say)
    with (folder / "heads.npz").open("wb") as file:
        arrays = {f"{task}.{part}": getattr(heads[task], part) for task in tasks for part in ("weights", "bias")}
        np.savez(file, **arrays)
    say("verifying against sentence-transformers")
    verification = _verify(folder, weights, recipe.precision, [item.text for item in tickets])
    return _entries(recipe, taxonomy, heads), verification


def encoder_graph(weights: Path, precision: Precision) -> bytes:
    """The encoder's ONNX graph, serialised; equal weights and precision give equal bytes."""
    graph = exported_graph(weights)
    if precision == "int8":
        quantize_products(graph, Calibration.read().exponents)
        quantize_words(graph)
    serialized: bytes = canonical_model(graph, "encoder").SerializeToString(deterministic=True)
    return serialized


def open_encoder(folder: Path) -> Encoder:
    """The encoder of a bundle that has no manifest yet."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Encoder(ParallelSession(folder / "encoder.onnx"), tokenizer, MAX_TOKENS, MAX_WINDOWS)


def exported_graph(weights: Path) -> Graph:
    """The encoder in fp32, fused, with our inputs and outputs, not yet spelled canonically."""
    with tempfile.TemporaryDirectory() as scratch, quiet():
        from optimum.exporters.onnx import main_export

        main_export(
            str(weights),
            output=scratch,
            task="feature-extraction",
            library_name="transformers",
            opset=17,
            do_validation=False,  # verified below, on real texts and against sentence-transformers
        )
        graph = load_fused_bert(Path(scratch) / "model.onnx", heads=_HEADS, hidden=_HIDDEN)
    spell_out_embeddings(graph, max_tokens=MAX_TOKENS)
    pool_layers(graph, _LAYERS)
    spell_out_normalisation(graph)
    return graph


def _heads(
    folder: Path, taxonomy: Taxonomy, tickets: Sequence[Labelled], tasks: Sequence[Task], say: Say
) -> dict[Task, FittedHead]:
    encoder, cues = open_encoder(folder), Cues.from_file(folder / "cues.json")
    texts = [*tickets, *taxonomy.examples]
    say(f"heads: reading {len(texts)} labelled texts")
    matrix = features(encoder, cues, [item.text for item in texts])
    heads: dict[Task, FittedHead] = {}
    for task in tasks:
        if task == "sentiment":
            encoder_sha256 = hashlib.sha256((folder / "encoder.onnx").read_bytes()).hexdigest()
            heads[task] = SentimentHead.read().fitted(encoder_sha256, cues)
        else:
            rows = [i for i, item in enumerate(texts) if task in item.labels]
            labels = [texts[i].labels[task] for i in rows]
            if few := [label for label in taxonomy.labels[task] if labels.count(label) < FOLDS]:
                raise ExportError(
                    f"fewer than {FOLDS} labelled texts have the {task} {', '.join(few)}; add some, or drop the label"
                )
            heads[task] = fit_head(matrix[rows], labels, strengths=_STRENGTHS)
        scores = heads[task].training["cross_validated"]
        say(f"heads: {task:9s} " + ", ".join(f"{name} {value}" for name, value in scores.items()))
    return heads


def _verify(folder: Path, weights: Path, precision: Precision, texts: Sequence[str]) -> dict[str, Any]:
    with quiet():
        from sentence_transformers import SentenceTransformer

        sample = [text for text in texts[:: max(1, len(texts) // 200)] if text.strip()]
        wanted = SentenceTransformer(str(weights), device="cpu").encode(sample, normalize_embeddings=True)
    encoder = open_encoder(folder)
    tokens = encoder.tokenize(sample)
    found = np.asarray([encoder.encode([t], [[]])[0].embedding for t in tokens])
    cosines = (np.asarray(wanted) * found).sum(1)
    if cosines.min() < _TOLERANCE[precision]:
        raise ExportError(
            f"the exported encoder differs from sentence-transformers: worst cosine {cosines.min():.5f}, "
            f"allowed is {_TOLERANCE[precision]}; nothing was written"
        )
    # Rounded, because the last digits differ between CPUs and the manifest's hash is the bundle's name.
    return {
        "texts": len(sample),
        "cosine_min": round(float(cosines.min()), 3),
        "cosine_mean": round(float(cosines.mean()), 3),
    }


def _entries(recipe: Recipe, taxonomy: Taxonomy, heads: Mapping[Task, FittedHead]) -> dict[str, Any]:
    return {
        "encoder": {
            "file": "encoder.onnx",
            "tokenizer": "tokenizer.json",
            "source": MINILM.repository,
            "revision": MINILM.revision,
            "source_sha256": MINILM.sha256["model.safetensors"],
            "license": MINILM.license,
            "precision": recipe.precision,
            "pooling": "mean",
            "dimensions": _HIDDEN,
            "max_tokens": MAX_TOKENS,
            "max_windows": MAX_WINDOWS,
        },
        "cues": "cues.json",
        **{
            str(task): {
                "file": "heads.npz",
                "labels": head.labels,
                "fallback": taxonomy.fallbacks[task],
                "threshold": head.threshold,
                "training": head.training,
            }
            for task, head in heads.items()
        },
    }
