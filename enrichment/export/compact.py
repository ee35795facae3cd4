"""Builds the `compact` bundle: one MiniLM encoder with a classification branch, three heads, an extractive summary.

By default nothing is trained: the adapter and the heads are committed, and the bundle's bytes are the same on every
CPU. Heads are trained only on a user's own taxonomy or tickets. Another encoder has no branch, and its heads are
trained on the user's tickets alone.
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
from enrichment.export.encoders import (
    HIDDEN,
    MINILM_SHAPE,
    EncoderFiles,
    Shape,
    find_encoder,
    minilm,
    write_as_bert,
)
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
from enrichment.export.quantize import (
    Calibration,
    Exponents,
    calibrated_exponents,
    quantize_products,
    quantize_words,
    token_ids,
)
from enrichment.export.reference import reference_of, shipped_reference
from enrichment.export.sources import ExportError
from enrichment.export.weights import Precision
from enrichment.features import LexicalFeatures
from enrichment.manifest import canonical
from enrichment.session import ParallelSession

__all__ = [
    "MAX_TOKENS",
    "MAX_WINDOWS",
    "Custom",
    "Precision",
    "Recipe",
    "build",
    "custom_graph",
    "encoder_graph",
    "exported_graph",
    "open_encoder",
    "reference",
    "train_heads",
    "write_models",
]


MAX_TOKENS: Final = MINILM_SHAPE.max_tokens
MAX_WINDOWS: Final = 4
_SAMPLE: Final = 200  # texts, for verification and for calibration
_REGULARIZATION: Final = (0.02, 0.07, 0.2)  # tried for heads that are trained on a user's own texts
# Worst cosine against sentence-transformers over the sample texts that a build may have.
_TOLERANCE: Final[Mapping[Precision, float]] = {"fp32": 0.99999, "int8": 0.99}


@dataclass(frozen=True)
class Custom:
    """Another encoder than MiniLM: its directory or repository, that one's commit, and the languages it is used for."""

    encoder: str
    revision: str | None
    languages: Sequence[str]


@dataclass(frozen=True)
class Recipe:
    """What a bundle is made from."""

    source: str = "package"
    precision: Precision = "int8"
    taxonomy: Path = TAXONOMY
    tickets: Path = TICKETS
    custom: Custom | None = None

    @property
    def trains(self) -> bool:
        """Whether the heads are trained, on a user's own taxonomy or tickets."""
        return (self.taxonomy, self.tickets) != (TAXONOMY, TICKETS)


def build(recipe: Recipe, out: Path, say: Say) -> Bundle:
    """Builds, verifies, and only then moves the bundle to `out`. Raises ExportError."""
    custom = recipe.custom
    if custom is not None and recipe.tickets == TICKETS:
        raise ExportError("--encoder needs --tickets FILE: its classifiers are trained on your own labelled tickets")
    encoder = find_encoder(custom.encoder, custom.revision) if custom else minilm(recipe.source)
    with placed(out) as folder:
        models, verification = write_models(folder, encoder, recipe, TASKS, say)
        models["summary"] = {"kind": "extractive", "max_tokens": 50, "min_words": 20}
        if not recipe.trains:
            models["review"] = Shipped.read().review
        write_manifest(
            folder,
            name=f"compact-{recipe.precision}",
            profile="compact",
            models=models,
            verification=verification,
            languages=custom.languages if custom else ("en",),
            reference=reference(folder, recipe, encoder.shape.max_tokens),
        )
    return Bundle.open(out)


def write_models(
    folder: Path, encoder: EncoderFiles, recipe: Recipe, tasks: Sequence[Task], say: Say
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes the encoder and its heads; returns their entries in the manifest, and how well the encoder was met."""
    taxonomy = Taxonomy.read(recipe.taxonomy)
    tickets = read_labelled(recipe.tickets, taxonomy)
    texts = [item.text for item in tickets if item.text.strip()]
    sample = texts[:: max(1, len(texts) // _SAMPLE)]
    shipped = None if recipe.custom else Shipped.read()
    # The shipped taxonomy's examples are English, and not the user's.
    examples = taxonomy.examples if shipped or recipe.taxonomy != TAXONOMY else []
    labelled = [*tickets, *examples]
    for task in tasks if shipped is None else ():  # before minutes of work
        if few := _few(taxonomy, labelled, task):
            raise _too_few(task, few)
    say(f"encoder: exporting {encoder.source} ({recipe.precision})")
    if shipped:
        graph = encoder_graph(encoder.folder, recipe.precision, shipped.adapter)
    else:
        graph = custom_graph(encoder, recipe.precision, sample)
    (folder / "encoder.onnx").write_bytes(graph)
    shutil.copyfile(encoder.folder / "tokenizer.json", folder / "tokenizer.json")
    words = {"lexicon": dict(taxonomy.lexicon), "groups": dict(taxonomy.phrases)}
    (folder / "features.json").write_bytes(canonical(words))
    lexical = LexicalFeatures.from_file(folder / "features.json")
    if shipped is None or recipe.trains:
        reader = open_encoder(folder, encoder.shape.max_tokens)
        heads = train_heads(reader, lexical, shipped, taxonomy, labelled, tasks, say)
    else:
        heads = {task: shipped.head(task, lexical) for task in tasks}
    arrays = {f"{task}.{part}": getattr(heads[task], part) for task in tasks for part in ("weights", "bias")}
    write_npz(folder / "heads.npz", arrays)
    say("verifying against sentence-transformers")
    verification = _verify(folder, encoder, recipe.precision, sample, say)
    return _entries(encoder, recipe, taxonomy, heads), verification


def reference(folder: Path, recipe: Recipe, max_tokens: int = MAX_TOKENS) -> dict[str, Any] | None:
    """The distribution of the labelled tickets that the heads are trained on; None if there are none."""
    if not recipe.trains:
        return shipped_reference()
    tickets = read_labelled(recipe.tickets, Taxonomy.read(recipe.taxonomy))
    return reference_of(tickets, open_encoder(folder, max_tokens)) if tickets else None


def encoder_graph(weights: Path, precision: Precision, adapter: Adapter | None) -> bytes:
    """MiniLM's ONNX graph, serialised; equal weights, adapter and precision give equal bytes.

    Without an adapter it has no classification branch.
    """
    exponents = dict(Calibration.read().exponents)
    for layer in range(FIRST_LAYER, FIRST_LAYER + LAYERS):  # the branch's layers count on behind the encoder's
        for kind in ("qkv", "output", "up"):
            exponents[f"{layer + LAYERS}.{kind}"] = exponents[f"{layer}.{kind}"]
    return _serialized(exported_graph(weights, adapter), precision, exponents)


def custom_graph(encoder: EncoderFiles, precision: Precision, texts: Sequence[str]) -> bytes:
    """Another encoder's ONNX graph, serialised; in int8 it is calibrated on these texts."""
    graph = exported_graph(encoder.folder, shape=encoder.shape)
    exponents: Exponents = {}
    if precision == "int8":
        ids = token_ids(encoder.folder / "tokenizer.json", texts, encoder.shape.max_tokens)
        exponents = calibrated_exponents(graph, ids)
    return _serialized(graph, precision, exponents)


def _serialized(graph: Graph, precision: Precision, exponents: Exponents) -> bytes:
    if precision == "int8":
        quantize_products(graph, exponents)
        quantize_words(graph)
    serialized: bytes = canonical_model(graph, "encoder").SerializeToString(deterministic=True)
    return serialized


def open_encoder(folder: Path, max_tokens: int = MAX_TOKENS) -> Encoder:
    """The encoder of a bundle that has no manifest yet."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Encoder(ParallelSession(folder / "encoder.onnx"), tokenizer, max_tokens, MAX_WINDOWS)


def exported_graph(weights: Path, adapter: Adapter | None = None, *, shape: Shape = MINILM_SHAPE) -> Graph:
    """The encoder in fp32, fused, with our inputs and outputs, not yet spelled canonically; a branch for an adapter."""
    with tempfile.TemporaryDirectory() as scratch, quiet():
        from optimum.exporters.onnx import main_export

        write_as_bert(weights, Path(scratch) / "bert")
        main_export(
            f"{scratch}/bert",
            output=scratch,
            task="feature-extraction",
            library_name="transformers",
            opset=17,
            do_validation=False,  # verified below, on real texts and against sentence-transformers
        )
        graph = load_fused_bert(Path(scratch) / "model.onnx", heads=shape.heads, hidden=HIDDEN)
    spell_out_embeddings(graph, max_tokens=shape.max_tokens)
    pool_layers(graph, shape.pooled)
    if adapter is not None:
        add_branch(graph, adapter, weights)
    spell_out_normalisation(graph)
    return graph


def train_heads(
    encoder: Encoder,
    lexical: LexicalFeatures,
    shipped: Shipped | None,
    taxonomy: Taxonomy,
    texts: Sequence[Labelled],
    tasks: Sequence[Task],
    say: Say,
) -> dict[Task, FittedHead]:
    """Trains heads on a user's labelled texts, starting from the shipped ones, if given, where labels are the same.

    A task whose labels are all shipped ones, and for which there are too few texts, keeps the shipped head. Raises
    ExportError where another label has fewer than FOLDS texts.
    """
    say(f"heads: reading {len(texts)} labelled texts")
    matrix = features(encoder, lexical, [item.text for item in texts])
    heads: dict[Task, FittedHead] = {}
    for task in tasks:
        start = shipped.head(task, lexical) if shipped else None
        rows = [i for i, item in enumerate(texts) if task in item.labels]
        chosen = [texts[i] for i in rows]
        labels = taxonomy.labels[task]
        if few := _few(taxonomy, texts, task):
            if start is not None and set(labels) == set(start.labels):
                say(f"heads: {task:9s} as shipped: fewer than {FOLDS} texts have the label {', '.join(few)}")
                heads[task] = start
                continue
            raise _too_few(task, few)
        target = accepted_matrix(chosen, task, labels)
        heads[task] = fit_head(
            matrix[rows], target, labels, folds_of(chosen, target), regularization=_REGULARIZATION, start=start
        )
        scores = heads[task].training["cross_validated"]
        say(f"heads: {task:9s} " + ", ".join(f"{name} {value}" for name, value in scores.items()))
    return heads


def _few(taxonomy: Taxonomy, texts: Sequence[Labelled], task: Task) -> list[str]:
    """The labels of a task that too few texts have for training."""
    first = [item.labels[task][0] for item in texts if task in item.labels]
    return [label for label in taxonomy.labels[task] if first.count(label) < FOLDS]


def _too_few(task: Task, labels: Sequence[str]) -> ExportError:
    remedy = "add some, or drop the label" if task == "intent" else "add some"  # the other labels are fixed
    return ExportError(f"fewer than {FOLDS} labelled texts have the {task} {', '.join(labels)}; {remedy}")


def _verify(
    folder: Path, encoder: EncoderFiles, precision: Precision, sample: Sequence[str], say: Say
) -> dict[str, Any]:
    with quiet():
        from sentence_transformers import SentenceTransformer

        wanted = SentenceTransformer(str(encoder.folder), device="cpu").encode(sample, normalize_embeddings=True)
    ours = open_encoder(folder, encoder.shape.max_tokens)
    found = np.asarray([ours.encode([tokens], [[]])[0].embedding for tokens in ours.tokenize(sample)])
    cosines = (np.asarray(wanted) * found).sum(1)
    if cosines.min() < _TOLERANCE[precision]:
        raise ExportError(
            f"the exported encoder differs from sentence-transformers: worst cosine {cosines.min():.5f}, "
            f"allowed is {_TOLERANCE[precision]}; nothing was written{'; try --precision fp32' * (precision == 'int8')}"
        )
    say(f"cosine to sentence-transformers: {cosines.min():.4f} at worst, {cosines.mean():.4f} on average")
    # What was required, not what was found: that differs between CPUs, and the manifest's hash is the bundle's name.
    return {"texts": len(sample), "cosine_at_least": _TOLERANCE[precision]}


def _entries(
    encoder: EncoderFiles, recipe: Recipe, taxonomy: Taxonomy, heads: Mapping[Task, FittedHead]
) -> dict[str, Any]:
    return {
        "encoder": {
            "file": "encoder.onnx",
            "tokenizer": "tokenizer.json",
            "source": encoder.source,
            "revision": encoder.revision,
            "source_sha256": encoder.sha256,
            "license": encoder.license,
            "precision": recipe.precision,
            "pooling": "mean",
            "dimensions": HIDDEN,
            "max_tokens": encoder.shape.max_tokens,
            "max_windows": MAX_WINDOWS,
        },
        "features": "features.json",
        **{
            str(task): {
                "file": "heads.npz",
                "labels": [*head.labels],
                "fallback": taxonomy.fallbacks[task],
                "threshold": head.threshold,
                **({"calibration": [*head.calibration]} if head.calibration else {}),
                "training": {**head.training},
            }
            for task, head in heads.items()
        },
    }
