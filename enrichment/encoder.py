"""The sentence encoder: tokenise, run, mean-pool, normalise.

Reference: all-MiniLM-L6-v2 as sentence-transformers runs it (256 tokens, mean over the unmasked tokens, unit length).
The exported graph gives, in one pass, the last hidden state and the means of several layers (`pooled`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from enrichment.bundle import Bundle
from enrichment.errors import BundleInvalid
from enrichment.session import make_session, ort, tidy_run
from enrichment.text import MAX_CHARACTERS, Sentence

__all__ = ["Encoded", "Encoder", "Floats", "Integers", "Tokens"]

Floats: TypeAlias = npt.NDArray[np.float32]
Integers: TypeAlias = npt.NDArray[np.int64]

_EMPTY: Final = np.zeros((0, 2), np.int64)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenised text: `ids` (n,), their character spans `offsets` (n, 2), without special tokens.

    `cut` says that the text went on beyond what is read at all, `windows` how many rows of the encoder it fills.
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
    """What the encoder says of a text.

    embedding: (dimensions,), unit length. pooled: (layers * dimensions,), means over the first window, the last layer
    last. sentences: (number of sentences, dimensions), unit length, zero where a sentence lies beyond the windows.
    """

    embedding: Floats
    pooled: Floats
    sentences: Floats


class Encoder:
    """MiniLM over ONNX Runtime; safe for use by several threads."""

    def __init__(self, session: ort.InferenceSession, tokenizer: Tokenizer, max_tokens: int, max_windows: int) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self._window = max_tokens - 2  # the rest is [CLS] and [SEP]
        self._max_windows = max_windows
        self._cls, self._sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
        # A batch of long tickets must not set the memory for good.
        self._run_options = tidy_run()

    @classmethod
    def open(cls, bundle: Bundle, *, threads: int | None = None) -> Encoder:
        """Opens the encoder of a bundle. Raises BundleInvalid where graph or tokenizer do not fit the manifest."""
        spec = bundle.manifest.models.encoder
        with bundle.opening("the encoder"):
            session = make_session(bundle.path(spec.file), threads=threads)
            tokenizer = Tokenizer.from_file(str(bundle.path(spec.tokenizer)))
        outputs = {output.name: output.shape for output in session.get_outputs()}
        if outputs.get("last_hidden_state", [0])[-1] != spec.dimensions or "pooled" not in outputs:
            raise BundleInvalid(
                f"{bundle.path(spec.file)} lacks the outputs that the manifest names; rebuild the bundle"
            )
        if tokenizer.token_to_id("[CLS]") is None or tokenizer.token_to_id("[SEP]") is None:
            raise BundleInvalid(f"{bundle.path(spec.tokenizer)} knows no [CLS] or no [SEP]; rebuild the bundle")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(session, tokenizer, spec.max_tokens, spec.max_windows)

    @property
    def features(self) -> int:
        """Length of `Encoded.pooled`."""
        return int(next(o.shape[-1] for o in self._session.get_outputs() if o.name == "pooled"))

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokenises; what lies beyond `max_windows` windows is cut and reported."""
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
        """Number of tokens of a text, without special ones."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def is_beyond_first_window(self, tokens: Tokens) -> bool:
        """Whether the embedding and the classifiers saw only the beginning of this text."""
        return tokens.cut or len(tokens.ids) > self._window

    def encode(self, batch: Sequence[Tokens], spans: Sequence[Sequence[Sentence]]) -> list[Encoded]:
        """Runs the encoder once over all windows of all texts; `spans[i]` are the sentences of text i.

        Every text must have at least one token. A text's result does not depend on its neighbours, but for rounding
        in the last digits: the int8 graph scales activations by row of tokens.
        """
        rows = [(text, begin) for text, tokens in enumerate(batch) for begin in range(0, len(tokens.ids), self._window)]
        longest = max(tokens.longest for tokens in batch)
        ids = np.zeros((len(rows), longest), np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for row, (text, begin) in enumerate(rows):
            piece = batch[text].ids[begin : begin + self._window]
            ids[row, 0], ids[row, len(piece) + 1] = self._cls, self._sep
            ids[row, 1 : len(piece) + 1] = piece
            mask[row, : len(piece) + 2] = 1
        hidden, pooled = self._session.run(
            ["last_hidden_state", "pooled"], {"input_ids": ids, "attention_mask": mask}, self._run_options
        )
        dimensions = hidden.shape[-1]
        result: list[Encoded] = []
        for row, (text, begin) in enumerate(rows):
            if begin:
                continue  # a further window: read below, with its text's first
            tokens = batch[text]
            states = np.concatenate(
                [
                    hidden[row + window, 1 : 1 + min(self._window, len(tokens.ids) - window * self._window)]
                    for window in range(tokens.windows)
                ]
            )
            result.append(
                Encoded(
                    _unit(pooled[row, -dimensions:]),
                    pooled[row],
                    _sentence_means(states, tokens.offsets, spans[text]),
                )
            )
        return result


def _sentence_means(states: Floats, offsets: Integers, spans: Sequence[Sentence]) -> Floats:
    """Unit means of the token states within each span: the same numbers that the embedding is the mean of."""
    means = np.zeros((len(spans), states.shape[-1]), np.float32)
    starts = offsets[:, 0]
    for index, span in enumerate(spans):
        first, last = np.searchsorted(starts, (span.start, span.end))
        if last > first:
            means[index] = _unit(states[first:last].mean(axis=0))
    return means


def _unit(vector: Floats) -> Floats:
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm > 0 else vector
