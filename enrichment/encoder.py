"""The sentence encoder: tokenise, run, mean-pool, normalise.

Reference: all-MiniLM-L6-v2 as sentence-transformers runs it (256 tokens, mean over the unmasked tokens, unit length).
In one pass, the exported graph returns the last hidden state, the means of several layers (`pooled`) and another vector
(`adapted`) from a second branch of its upper layers, which is trained only for classification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from enrichment.bundle import Bundle
from enrichment.errors import BundleInvalid
from enrichment.session import ParallelSession, ort

if TYPE_CHECKING:
    from enrichment.text import Sentence

__all__ = ["Encoded", "Encoder", "Floats", "Integers", "Tokens", "encode_all"]

Floats: TypeAlias = npt.NDArray[np.float32]
Integers: TypeAlias = npt.NDArray[np.int64]

_EMPTY: Final = np.zeros((0, 2), np.int64)
_NO_BRANCH: Final = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenised text: `ids` (n,) and their character spans `offsets` (n, 2), without special tokens.

    `windows` is the number of encoder rows it fills, `cut` whether the text was longer than the maximum.
    """

    ids: Integers
    offsets: Integers
    windows: int
    longest: int
    cut: bool

    @property
    def cost(self) -> int:
        """Tokens that the encoder computes for this text."""
        return self.windows * self.longest


@dataclass(frozen=True, slots=True)
class Encoded:
    """The encoder's output for a text.

    embedding: (dimensions,), unit length. pooled: (layers * dimensions,), means over the first window, the last layer
    last. adapted: the classification branch's vector, of length 0 in bundles without one. sentences: (number of
    sentences, dimensions), unit length, zero for a sentence beyond the windows.
    """

    embedding: Floats
    pooled: Floats
    adapted: Floats
    sentences: Floats

    @property
    def features(self) -> Floats:
        """The part that the classifiers read: pooled, then adapted."""
        return np.concatenate([self.pooled, self.adapted])


class Encoder:
    """MiniLM, or another BERT, on ONNX Runtime. Thread-safe."""

    def __init__(self, texts: ParallelSession, tokenizer: Tokenizer, max_tokens: int, max_windows: int) -> None:
        self._texts = texts
        self._tokenizer = tokenizer
        self._window = max_tokens - 2  # the rest is the special tokens
        self._max_windows = max_windows
        # What the tokenizer puts around a text: [CLS] and [SEP], or <s> and </s>.
        self._first, self._last = tokenizer.encode("").ids
        self._widths = {output.name: output.shape[-1] for output in texts.session.get_outputs()}
        # Bundles that were built before November 2026 have no classification branch.
        self._outputs = ["last_hidden_state", "pooled", *(["adapted"] if "adapted" in self._widths else [])]

    @classmethod
    def open(cls, bundle: Bundle, *, threads: int | None = None) -> Encoder:
        """Opens the encoder of a bundle. Raises BundleInvalid if graph or tokenizer do not match the manifest."""
        spec = bundle.manifest.models.encoder
        with bundle.opening("the encoder"):
            texts = ParallelSession(bundle.path(spec.file), threads=threads)
            tokenizer = Tokenizer.from_file(str(bundle.path(spec.tokenizer)))
        outputs = {output.name: output.shape for output in texts.session.get_outputs()}
        if outputs.get("last_hidden_state", [0])[-1] != spec.dimensions or "pooled" not in outputs:
            raise BundleInvalid(
                f"{bundle.path(spec.file)} lacks the outputs that the manifest names; rebuild the bundle"
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if len(tokenizer.encode("").ids) != 2:
            raise BundleInvalid(
                f"{bundle.path(spec.tokenizer)} does not put one token before a text and one behind; rebuild the bundle"
            )
        return cls(texts, tokenizer, spec.max_tokens, spec.max_windows)

    @property
    def features(self) -> int:
        """Length of `Encoded.features`."""
        return int(self._widths["pooled"]) + int(self._widths.get("adapted", 0))

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokenises texts; a text longer than `max_windows` windows is cut."""
        from enrichment.text import MAX_CHARACTERS  # here, so that an encoder can be opened without it

        limit = self._window * self._max_windows
        result = []
        for text, encoding in zip(
            texts,
            self._tokenizer.encode_batch([t[:MAX_CHARACTERS] for t in texts], add_special_tokens=False),
            strict=True,
        ):
            count = min(len(encoding.ids), limit)
            ids = np.asarray(encoding.ids[:count], np.int64)
            offsets = np.asarray(encoding.offsets[:count], np.int64) if count else _EMPTY
            windows = -(-count // self._window)
            longest = min(count, self._window) + 2 if count else 0
            result.append(
                Tokens(ids, offsets, windows, longest, len(encoding.ids) > limit or len(text) > MAX_CHARACTERS)
            )
        return result

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, without special tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def is_beyond_first_window(self, tokens: Tokens) -> bool:
        """Whether the embedding and the classifiers saw only the beginning of this text."""
        return tokens.cut or len(tokens.ids) > self._window

    def encode(self, batch: Sequence[Tokens], spans: Sequence[Sequence[Sentence]]) -> list[Encoded]:
        """Runs the encoder over all windows of all texts; `spans[i]` are the sentences of text i.

        Every text must have at least one token. A text's result does not depend on the other texts: the int8 graph
        scales activations per token row, and no text is padded.
        """
        size = self._window
        pieces = [tokens.ids[at : at + size] for tokens in batch for at in range(0, len(tokens.ids), size)]
        hidden: list[Floats] = []
        pooled: list[Floats] = []
        adapted: list[Floats] = []
        for outputs in self._texts.each([len(piece) + 2 for piece in pieces], partial(self._run, pieces)):
            hidden += list(outputs[0])
            pooled += list(outputs[1])
            adapted += list(outputs[2]) if len(outputs) > 2 else [_NO_BRANCH] * len(outputs[1])
        result: list[Encoded] = []
        row = 0
        for tokens, sentences in zip(batch, spans, strict=True):
            windows = range(row, row + tokens.windows)
            states = np.concatenate([hidden[window][1 : len(pieces[window]) + 1] for window in windows])
            result.append(
                Encoded(
                    _unit(pooled[row][-states.shape[-1] :]),
                    pooled[row],
                    adapted[row],
                    _sentence_means(states, tokens.offsets, sentences),
                )
            )
            row += tokens.windows
        return result

    def _run(self, pieces: Sequence[Integers], part: slice, options: ort.RunOptions | None) -> list[Floats]:
        """The graph's outputs for some windows: (rows, tokens, dimensions), then one or two of (rows, features)."""
        chosen = pieces[part]
        ids = np.empty((len(chosen), len(chosen[0]) + 2), np.int64)  # they all have the same length
        ids[:, 0], ids[:, 1:-1], ids[:, -1] = self._first, chosen, self._last
        mask = np.ones_like(ids)
        outputs: list[Floats] = self._texts.session.run(
            self._outputs, {"input_ids": ids, "attention_mask": mask}, options
        )
        return outputs


def encode_all(encoder: Encoder, batch: Sequence[Tokens], spans: Sequence[Sequence[Sentence]]) -> list[Encoded | None]:
    """As Encoder.encode, with None for each text that has no tokens."""
    full = [i for i, tokens in enumerate(batch) if len(tokens.ids)]
    found: list[Encoded | None] = [None] * len(batch)
    if full:
        for i, encoded in zip(full, encoder.encode([batch[i] for i in full], [spans[i] for i in full]), strict=True):
            found[i] = encoded
    return found


def _sentence_means(states: Floats, offsets: Integers, spans: Sequence[Sentence]) -> Floats:
    """Mean of the token states within each span, scaled to unit length."""
    means = np.zeros((len(spans), states.shape[-1]), np.float32)
    starts, ends = offsets[:, 0], offsets[:, 1]
    for index, span in enumerate(spans):
        # A token may begin with the space before its word, so its end tells where it belongs.
        first, last = np.searchsorted(ends, span.start, "right"), np.searchsorted(starts, span.end)
        if last > first:
            means[index] = _unit(states[first:last].mean(axis=0))
    return means


def _unit(vector: Floats) -> Floats:
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm > 0 else vector
