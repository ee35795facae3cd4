"""Builds the `compact` bundle: one MiniLM encoder with a classification branch, three heads, an extractive summary.

By default nothing is trained: the adapter and the heads are committed, and the bundle's bytes are the same on every
CPU. Heads are trained only on a user's own taxonomy or tickets.
"""

from __future__ import annotations

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
from enrichment.encoder import Encoder
from enrichment.export.adapter import FIRST_LAYER, LAYERS, Adapter, add_branch
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
from enrichment.export.heads import (
    FOLDS,
    FittedHead,
    Shipped,
    accepted_matrix,
    features,
    fit_head,
    folds_of,
    write_npz,
)
from enrichment.export.quantize import Calibration, quantize_products, quantize_words
from enrichment.export.reference import reference_of, shipped_reference
from enrichment.export.sources import MINILM, ExportError, find_model
from enrichment.export.weights import Precision
from enrichment.features import LexicalFeatures
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
    "reference",
    "train_heads",
    "write_models",
]


MAX_TOKENS: Final = 256  # the limit that sentence-transformers gives this model
MAX_WINDOWS: Final = 4
_POOLED: Final = (1, 2, 3, 4, 5)  # layers, of 0 to 5: sentiment shows best in the middle ones, topics in the last
_HEADS, _HIDDEN = 12, 384
_REGULARIZATION: Final = (0.02, 0.07, 0.2)  # tried for heads that are trained on a user's own texts
# Worst cosine against sentence-transformers over the sample texts that a build may have.
_TOLERANCE: Final[Mapping[Precision, float]] = {"fp32": 0.99999, "int8": 0.99}


@dataclass(frozen=True)
class Recipe:
    """What a bundle is made from."""

    source: str = "package"
    precision: Precision = "int8"
    taxonomy: Path = TAXONOMY
    tickets: Path = TICKETS

    @property
    def trains(self) -> bool:
        """Whether the heads are trained, on a user's own taxonomy or tickets."""
        return (self.taxonomy, self.tickets) != (TAXONOMY, TICKETS)


def build(recipe: Recipe, out: Path, say: Say) -> Bundle:
    """Builds, verifies, and only then moves the bundle to `out`. Raises ExportError."""
    weights = find_model(MINILM, recipe.source)
    with placed(out) as folder:
        models, verification = write_models(folder, weights, recipe, TASKS, say)
        models["summary"] = {"kind": "extractive", "max_tokens": 50, "min_words": 20}
        write_manifest(
            folder,
            name=f"compact-{recipe.precision}",
            profile="compact",
            models=models,
            verification=verification,
            reference=reference(folder, recipe),
        )
    return Bundle.open(out)


def write_models(
    folder: Path, weights: Path, recipe: Recipe, tasks: Sequence[Task], say: Say
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes the encoder and its heads; returns their entries in the manifest, and how well the encoder was met."""
    taxonomy = Taxonomy.read(recipe.taxonomy)
    tickets = read_labelled(recipe.tickets, taxonomy)
    shipped = Shipped.read()
    say(f"encoder: exporting {MINILM.repository} ({recipe.precision})")
    (folder / "encoder.onnx").write_bytes(encoder_graph(weights, recipe.precision, shipped.adapter))
    shutil.copyfile(weights / "tokenizer.json", folder / "tokenizer.json")
    words = {"lexicon": dict(taxonomy.lexicon), "groups": dict(taxonomy.phrases)}
    (folder / "features.json").write_bytes(canonical(words))
    if recipe.trains:
        heads = train_heads(folder, shipped, taxonomy, [*tickets, *taxonomy.examples], tasks, say)
    else:
        lexical = LexicalFeatures.from_file(folder / "features.json")
        heads = {task: shipped.head(task, lexical) for task in tasks}
    arrays = {f"{task}.{part}": getattr(heads[task], part) for task in tasks for part in ("weights", "bias")}
    write_npz(folder / "heads.npz", arrays)
    say("verifying against sentence-transformers")
    verification = _verify(folder, weights, recipe.precision, [item.text for item in tickets], say)
    return _entries(recipe, taxonomy, heads), verification


def reference(folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    """The distribution of the labelled tickets that the heads are trained on; None if there are none."""
    if not recipe.trains:
        return shipped_reference()
    tickets = read_labelled(recipe.tickets, Taxonomy.read(recipe.taxonomy))
    return reference_of(tickets, open_encoder(folder)) if tickets else None


def encoder_graph(weights: Path, precision: Precision, adapter: Adapter | None) -> bytes:
    """The encoder's ONNX graph, serialised; equal weights, adapter and precision give equal bytes.

    Without an adapter it has no classification branch.
    """
    graph = exported_graph(weights, adapter)
    if precision == "int8":
        exponents = dict(Calibration.read().exponents)
        for layer in range(FIRST_LAYER, FIRST_LAYER + LAYERS):  # the branch's layers count on behind the encoder's
            for kind in ("qkv", "output", "up"):
                exponents[f"{layer + LAYERS}.{kind}"] = exponents[f"{layer}.{kind}"]
        quantize_products(graph, exponents)
        quantize_words(graph)
    serialized: bytes = canonical_model(graph, "encoder").SerializeToString(deterministic=True)
    return serialized


def open_encoder(folder: Path) -> Encoder:
    """The encoder of a bundle that has no manifest yet."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Encoder(ParallelSession(folder / "encoder.onnx"), tokenizer, MAX_TOKENS, MAX_WINDOWS)


def exported_graph(weights: Path, adapter: Adapter | None = None) -> Graph:
    """The encoder in fp32, fused, with our inputs and outputs, not yet spelled canonically; a branch for an adapter."""
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
    pool_layers(graph, _POOLED)
    if adapter is not None:
        add_branch(graph, adapter, weights)
    spell_out_normalisation(graph)
    return graph


def train_heads(
    folder: Path, shipped: Shipped, taxonomy: Taxonomy, texts: Sequence[Labelled], tasks: Sequence[Task], say: Say
) -> dict[Task, FittedHead]:
    """Trains heads on a user's labelled texts, starting from the shipped ones where labels are the same.

    A task whose labels are all shipped ones, and for which there are too few texts, keeps the shipped head. Raises
    ExportError where a label of the user's own has fewer than FOLDS texts.
    """
    encoder, lexical = open_encoder(folder), LexicalFeatures.from_file(folder / "features.json")
    say(f"heads: reading {len(texts)} labelled texts")
    matrix = features(encoder, lexical, [item.text for item in texts])
    heads: dict[Task, FittedHead] = {}
    for task in tasks:
        start = shipped.head(task, lexical)
        rows = [i for i, item in enumerate(texts) if task in item.labels]
        chosen = [texts[i] for i in rows]
        labels = taxonomy.labels[task]
        first = [item.labels[task][0] for item in chosen]
        if few := [label for label in labels if first.count(label) < FOLDS]:
            if set(labels) == set(start.labels):
                say(f"heads: {task:9s} as shipped: fewer than {FOLDS} texts have the label {', '.join(few)}")
                heads[task] = start
                continue
            raise ExportError(
                f"fewer than {FOLDS} labelled texts have the {task} {', '.join(few)}; add some, or drop the label"
            )
        target = accepted_matrix(chosen, task, labels)
        heads[task] = fit_head(
            matrix[rows], target, labels, folds_of(chosen, target), regularization=_REGULARIZATION, start=start
        )
        scores = heads[task].training["cross_validated"]
        say(f"heads: {task:9s} " + ", ".join(f"{name} {value}" for name, value in scores.items()))
    return heads


def _verify(folder: Path, weights: Path, precision: Precision, texts: Sequence[str], say: Say) -> dict[str, Any]:
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
    say(f"cosine to sentence-transformers: {cosines.min():.4f} at worst, {cosines.mean():.4f} on average")
    # What was required, not what was found: that differs between CPUs, and the manifest's hash is the bundle's name.
    return {"texts": len(sample), "cosine_at_least": _TOLERANCE[precision]}


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
        "features": "features.json",
        **{
            str(task): {
                "file": "heads.npz",
                "labels": [*head.labels],
                "fallback": taxonomy.fallbacks[task],
                "threshold": head.threshold,
                "training": {**head.training},
            }
            for task, head in heads.items()
        },
    }
