"""Small random torch models, and our models exported from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from enrichment.export.bart import Bart, decoder_graph, encoder_graph
from enrichment.export.weights import Precision, Shared, word_arrays
from enrichment.session import ParallelSession, make_session
from enrichment.summary.abstractive import Generator
from enrichment.summary.beam import Generation


@dataclass(frozen=True)
class Shape:
    """A model's size."""

    vocabulary: int
    width: int
    heads: int
    encoder_layers: int
    decoder_layers: int


SHAPES = (Shape(97, 32, 4, 1, 2), Shape(300, 64, 2, 2, 3), Shape(40, 48, 3, 2, 1))


def bart(shape: Shape, seed: int, **more: Any) -> Any:
    """A model with weights large enough that its texts differ and end."""
    torch.manual_seed(seed)
    config = BartConfig(
        vocab_size=shape.vocabulary,
        d_model=shape.width,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=2 * shape.width,
        decoder_ffn_dim=3 * shape.width,
        **{"max_position_embeddings": 128, "init_std": 0.3, **more},
    )
    return uneven(BartForConditionalGeneration(config).eval(), seed)


def distilbert(seed: int, *, width: int = 32, heads: int = 4, layers: int = 2, **more: Any) -> Any:
    """A small random classifier."""
    torch.manual_seed(seed)
    sizes = {"dim": width, "n_heads": heads, "n_layers": layers, "hidden_dim": 2 * width, "initializer_range": 0.3}
    labels = {0: "NEGATIVE", 1: "POSITIVE"}
    config = DistilBertConfig(**{"max_position_embeddings": 256, "id2label": labels, **sizes, **more})
    return uneven(DistilBertForSequenceClassification(config).eval(), seed)


def uneven(model: Any, seed: int) -> Any:
    """Randomize biases and scales: the initial zeros and ones would hide missing operations."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name.lower():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def generator(
    model: Any, folder: Path, precision: Precision, settings: Generation, *, halves: bool = True
) -> Generator:
    """Our generator for a model; it decodes a batch in two halves or as a whole."""
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    ours = Bart(state, model.config.to_dict())
    words = Shared.write(folder, "words.bin", word_arrays(ours.words, precision))
    for name, graph in (("encoder", encoder_graph), ("decoder", decoder_graph)):
        (folder / name).write_bytes(graph(ours, precision, words).SerializeToString())
    encoder, decoder = ParallelSession(folder / "encoder", threads=2), make_session(folder / "decoder", threads=1)
    return Generator(encoder, decoder, settings, decoder if halves else None)


def texts(shape: Shape, seed: int, count: int = 10) -> list[np.typing.NDArray[np.int64]]:
    """Random texts of different lengths."""
    random = np.random.default_rng(seed)
    return [random.integers(3, shape.vocabulary, int(length)) for length in random.integers(3, 60, count)]
