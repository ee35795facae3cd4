"""Second bundles for tests: copies of the compact bundle that favour one label, and one with another encoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from enrichment import Bundle
from enrichment.classify import TASKS
from enrichment.export.assembly import write_manifest
from enrichment.features import LexicalFeatures
from enrichment.manifest import HeadSpec

__all__ = ["FAVOURED", "write_foreign", "write_shadow"]

FAVOURED = "feature_request"


def write_shadow(folder: Path, bundle: Path, *, favour: float = 10.0, own_encoder: bool = False) -> Path:
    """A bundle whose intent is often FAVOURED: its logit is `favour` higher. It shares all other results with `bundle`.

    With `own_encoder`, the encoder's graph is another file that computes the same.
    """
    opened = Bundle.open(bundle)
    models = opened.manifest.models
    folder.mkdir(parents=True)
    for name in opened.manifest.files:
        shutil.copyfile(bundle / name, folder / name)
    with np.load(bundle / models.intent.file) as arrays:
        heads = dict(arrays)
    heads["intent.bias"][models.intent.labels.index(FAVOURED)] += favour
    np.savez(folder / models.intent.file, **heads)
    if own_encoder:
        graph = onnx.load(bundle / models.encoder.file)
        graph.doc_string = "another file"
        onnx.save(graph, folder / models.encoder.file)
    _finish(folder, bundle, {})
    return folder


def write_foreign(folder: Path, bundle: Path, texts: Sequence[str]) -> Path:
    """A bundle of another encoder with its own tokenizer, of the words of `texts`; encoder and heads are random."""
    from enrichment.export.compact import custom_graph  # these import torch
    from enrichment.export.encoders import HIDDEN, find_encoder
    from tests.support.random_encoders import write_encoder

    folder.mkdir(parents=True)
    encoder = find_encoder(str(write_encoder(folder.with_name("weights"), "bert", texts)), None)
    (folder / "encoder.onnx").write_bytes(custom_graph(encoder, "fp32", texts))
    shutil.copyfile(encoder.folder / "tokenizer.json", folder / "tokenizer.json")
    models = Bundle.open(bundle).manifest.models
    shutil.copyfile(bundle / models.features, folder / models.features)
    random = np.random.default_rng(1)
    lexical = len(LexicalFeatures.from_file(folder / models.features).names)
    features = lexical + HIDDEN * len(encoder.shape.pooled)
    heads: dict[str, Any] = {}
    for task in TASKS:
        spec = models.of(task)
        assert isinstance(spec, HeadSpec)
        heads[f"{task}.weights"] = random.normal(0, 0.5, (features, len(spec.labels))).astype(np.float32)
        heads[f"{task}.bias"] = np.zeros(len(spec.labels), np.float32)
    np.savez(folder / "heads.npz", **heads)
    _finish(folder, bundle, {"max_tokens": encoder.shape.max_tokens, "source": "random", "precision": "fp32"})
    return folder


def _finish(folder: Path, bundle: Path, encoder: dict[str, object]) -> None:
    """Writes the manifest: that of `bundle` with another name, these settings of the encoder, and these files."""
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    manifest["models"]["encoder"] |= encoder
    write_manifest(
        folder,
        name="candidate",
        profile=manifest["profile"],
        models=manifest["models"],
        verification=manifest["verification"],
        languages=manifest["languages"],
        reference=manifest["reference"],
    )
