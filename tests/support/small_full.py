"""A small full profile: random models in the layout of the published repositories, and a bundle built from them.

The bundle reuses MiniLM and its heads from the compact bundle, so that it is built in a second.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer

from enrichment import Bundle
from enrichment.export.assembly import quiet, write_manifest
from enrichment.export.full import write_sentiment, write_summary
from enrichment.export.sources import DISTILBART, DISTILBERT, MINILM, find_model
from enrichment.export.weights import Precision
from tests.parity.small import Shape, bart, distilbert

__all__ = ["SHAPE", "write_bundle", "write_source"]

SHAPE = Shape(vocabulary=600, width=32, heads=4, encoder_layers=2, decoder_layers=2)
_HELDOUT = Path(__file__).parents[1] / "parity" / "heldout.jsonl"
_OF_COMPACT = ("encoder.onnx", "tokenizer.json", "features.json", "heads.npz")


def write_source(folder: Path, **of_bart: Any) -> Path:
    """The three models in the layout that `--source PATH` expects: the real MiniLM, the others small and random.

    As published, DistilBERT has safetensors and a vocabulary; DistilBART has torch's format and no tokenizer.json.
    """
    minilm = find_model(MINILM, "package")
    shutil.copytree(minilm, folder / MINILM.name, copy_function=_linked)
    with quiet():
        place = folder / DISTILBERT.name
        distilbert(1).save_pretrained(place)
        shutil.copyfile(minilm / "vocab.txt", place / "vocab.txt")
        (place / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 256}))
        place = folder / DISTILBART.name
        model = bart(SHAPE, 2, **{"max_position_embeddings": 256, **of_bart})
        model.config.save_pretrained(place)
        torch.save(model.state_dict(), place / "pytorch_model.bin")
        tokenizer = ByteLevelBPETokenizer()
        texts = [json.loads(line)["body"] for line in _HELDOUT.read_text(encoding="utf-8").splitlines()]
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        tokenizer.train_from_iterator(texts, vocab_size=SHAPE.vocabulary, special_tokens=special, show_progress=False)
        tokenizer.save_model(str(place))
    return folder


def write_bundle(
    folder: Path,
    compact: Path,
    source: Path,
    precision: Precision = "int8",
    change: Callable[[dict[str, Any]], object] = lambda _: None,
    **generation: Any,
) -> Path:
    """A full bundle of a source's small models; `change` may modify the models' section of its manifest."""
    folder.mkdir()
    of_compact = Bundle.open(compact).manifest.models.model_dump()
    models = {name: of_compact[name] for name in ("encoder", "features", "intent", "urgency")}
    for name in _OF_COMPACT:
        (folder / name).symlink_to(compact.absolute() / name)
    origin = {"source": "random", "revision": "none", "source_sha256": "0" * 64, "pinned": False, "license": "none"}
    with quiet():
        models["sentiment"] = write_sentiment(folder, source / DISTILBERT.name, precision) | origin
        models["summary"] = write_summary(folder, source / DISTILBART.name, precision, generation) | origin
    change(models)
    write_manifest(folder, name=f"full-{precision}", profile="full", models=models, verification={})
    return folder


def _linked(source: str, target: str) -> None:
    Path(target).symlink_to(source)
