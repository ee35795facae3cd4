"""Second bundles for tests: copies of the compact bundle that favour one label."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx

from enrichment import Bundle
from enrichment.export.assembly import write_manifest

__all__ = ["FAVOURED", "write_shadow"]

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
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    write_manifest(
        folder,
        name="candidate",
        profile=manifest["profile"],
        models=manifest["models"],
        verification=manifest["verification"],
        languages=manifest["languages"],
        reference=manifest["reference"],
    )
    return folder
