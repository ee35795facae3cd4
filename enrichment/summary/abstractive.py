"""Abstractive summaries: DistilBART's encoder and decoder on ONNX Runtime, with beam search.

The texts of a batch are decoded together, or in two halves concurrently; finished texts are removed. A text's tokens do
not depend on the other texts: token rows are padded only within attention, and int8 scales are per token row.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import numpy as np

from enrichment.encoder import Floats, Integers
from enrichment.packing import GROUP, HIDDEN, packed, whole
from enrichment.session import ParallelSession, ort, tidy_run
from enrichment.summary.beam import BeamSearch, Generation

__all__ = ["Generator"]

_STEPS: Final = 8  # steps until unused slots of a cache with several beams are removed: a step reads all slots
_SLOTS: Final = 16  # slots by which a cache with one beam grows


class Generator:
    """Generates summaries as tokens.

    `half` is a decoder session for the halves of a batch, which are then decoded concurrently: the operators of a step
    are small, so threads that share them would spend much of their time waiting for each other.
    """

    def __init__(
        self,
        encoder: ParallelSession,
        decoder: ort.InferenceSession,
        settings: Generation,
        half: ort.InferenceSession | None = None,
    ) -> None:
        self._encoder = encoder
        self._decoder = decoder
        self._half = half
        self._pool = ThreadPoolExecutor(2, "half") if half else None
        self.settings = settings
        self._cross = {output.name: (output.shape[1], output.shape[3]) for output in encoder.session.get_outputs()}

    def with_settings(self, settings: Generation) -> Generator:
        """The same model with other settings."""
        return Generator(self._encoder, self._decoder, settings, self._half)

    @property
    def has_halves(self) -> bool:
        """Whether several texts use another decoder session than a single text."""
        return self._half is not None

    def generate(self, texts: Sequence[Integers]) -> list[list[int]]:
        """Token ids for every text (tokens,), each from the start token to the end token."""
        if self._pool is None or self._half is None or len(texts) == 1:
            return self._search(self._decoder, texts)
        middle = (len(texts) + 1) // 2
        halves = self._pool.map(partial(self._search, self._half), (texts[:middle], texts[middle:]))
        return [ids for half in halves for ids in half]

    def _search(self, decoder: ort.InferenceSession, texts: Sequence[Integers]) -> list[list[int]]:
        search = BeamSearch(len(texts), self.settings)
        decoding = _Decoding(decoder, *self._read(texts), self.settings)
        scores, tokens = decoding.begin(self.settings.prefix)
        while len(search.texts):
            if search.forced is not None:
                scores, tokens = _only(search.forced, search.sequences.shape[:2])
            elif search.length > len(self.settings.prefix):
                scores, tokens = decoding.step(search.sequences[:, :, search.length - 1], search.length - 1)
            kept, parents = search.advance(scores, tokens, decoding.rows)
            if len(kept):
                decoding.reorder(kept, parents)
        return search.results()

    def _read(self, texts: Sequence[Integers]) -> tuple[dict[str, Floats], Floats]:
        """Keys and values of the decoder's cross-attention, each (texts, heads, length, head size), and their mask."""
        lengths = [len(text) for text in texts]
        longest = max(lengths)
        cross = {
            name: np.empty((len(texts), heads, whole(longest), size), np.float32)
            for name, (heads, size) in self._cross.items()
        }

        def run(part: slice, options: ort.RunOptions | None) -> Floats:
            feeds = packed(texts[part], longest)
            binding = self._encoder.session.io_binding()
            for name, value in feeds.items():
                binding.bind_cpu_input(name, value)
            for name, array in cross.items():  # written directly, without a copy
                binding.bind_ortvalue_output(name, _value(array[part]))
            self._encoder.session.run_with_iobinding(binding, options)
            return np.asarray(feeds["mask"], np.float32)

        return cross, np.concatenate(self._encoder.each(lengths, run))


class _Decoding:
    """The decoder's state: caches, and which of their slots are ancestors of which beam.

    The first slots of a cache are written one after the other, one per beam and step. When they are full, slots that
    are still an ancestor of a beam are moved behind them, and the others are dropped. Except for the number of empty
    slots at the end, a text's slots therefore do not depend on the other texts.
    """

    def __init__(
        self, session: ort.InferenceSession, cross: dict[str, Floats], cross_mask: Floats, settings: Generation
    ) -> None:
        self._session = session
        self._beams = settings.num_beams
        self._count = settings.candidates
        texts = len(cross_mask)
        self._cross = {**cross, "cross_mask": cross_mask}
        _, heads, _, size = cross["cross_k0"].shape
        self._names = [i.name for i in session.get_inputs() if i.name.startswith("past_")]
        # With one beam all texts have the same number of slots, so none is padded.
        self._group = GROUP if self._beams > 1 else 1
        self._block = whole(_STEPS * self._beams, self._group) if self._beams > 1 else _SLOTS
        self._cache = np.zeros((len(self._names), texts, heads, self._block, size), np.float32)
        self._used = 0
        self._seen = np.full((texts, 1, self._beams, self._block), HIDDEN, np.float32)
        self._fixed: dict[str, ort.OrtValue] = {}
        self._prefix = 0
        self._log_probs: ort.OrtValue | None = None

    def begin(self, prefix: list[int]) -> tuple[Floats, Integers]:
        """Reads the tokens that all sequences start with; the candidates are the same for all beams."""
        texts, length = len(self._seen), len(prefix)
        ids = np.broadcast_to(np.asarray(prefix), (texts, length))
        order = np.where(np.tri(length, dtype=np.bool_), np.float32(0), HIDDEN)
        hidden = np.full((texts, 1, length, self._cache.shape[3]), HIDDEN, np.float32)
        mask = np.concatenate([hidden, np.broadcast_to(order, (texts, 1, length, length))], -1)
        # Once per batch: releasing memory at every step costs more time than it is worth.
        scores, tokens = self._run(ids, np.broadcast_to(np.arange(length), ids.shape), mask, tidy_run())
        self._seen[:, :, :, :length] = 0
        shape = (texts, self._beams, scores.shape[-1])
        self._prefix = length
        return np.broadcast_to(scores[:, -1:], shape), np.broadcast_to(tokens[:, -1:], shape)

    def step(self, ids: Integers, position: int) -> tuple[Floats, Integers]:
        """Reads one more token per beam, ids (texts, beams); returns candidates (texts, beams, count)."""
        self._prefix = 0
        if self._used + self._beams > self._block:
            self._forget()
        own = np.broadcast_to(
            np.where(np.eye(self._beams, dtype=np.bool_), np.float32(0), HIDDEN),
            (len(ids), 1, self._beams, self._beams),
        )
        begin = self._used
        result = self._run(ids, np.full_like(ids, position), np.concatenate([self._seen, own], -1))
        for beam in range(self._beams):
            self._seen[:, 0, beam, begin + beam] = 0
        return result

    def reorder(self, kept: Integers, parents: Integers) -> None:
        """Removes finished texts, and gives every beam the ancestors of its parent."""
        if len(kept) < len(self._seen):
            # take() returns a contiguous array, unlike indexing; the cache is written in place.
            self._cache = np.take(self._cache, kept, 1)
            self._cross = {name: value[kept] for name, value in self._cross.items()}
            self._fixed = {}
        self._seen = np.take_along_axis(self._seen[kept], parents[:, None, :, None], 2)

    def rows(self, numbers: Integers) -> Floats:
        """All log-probabilities of the given rows of the last step."""
        assert self._log_probs is not None
        everything: Floats = self._log_probs.numpy()
        if self._prefix:  # all beams of a text share one row
            return everything[numbers // self._beams * self._prefix + self._prefix - 1]
        return everything[numbers]

    def _run(
        self, ids: Integers, positions: Integers, mask: Floats, options: ort.RunOptions | None = None
    ) -> tuple[Floats, Integers]:
        if not self._fixed:
            self._fixed = {name: _value(array) for name, array in self._cross.items()}
            self._fixed |= {name: _value(array) for name, array in zip(self._names, self._cache, strict=True)}
            self._fixed["count"] = _value(np.asarray([self._count]))
        feeds = {"ids": _value(ids), "positions": _value(positions), "mask": _value(mask), **self._fixed}
        outputs = ["scores", "tokens", "fresh", "log_probs"]
        scores, tokens, fresh, self._log_probs = self._session.run_with_ort_values(outputs, feeds, options)
        end = self._used + ids.shape[1]
        self._cache[:, :, :, self._used : end] = fresh.numpy()
        self._used = end
        return scores.numpy().reshape(*ids.shape, -1), tokens.numpy().reshape(*ids.shape, -1)

    def _forget(self) -> None:
        """Frees the first slots."""
        live = (self._seen == 0).any((1, 2))
        counts = live.sum(1)
        slots = self._block + whole(int(counts.max()), self._group)
        old, seen = self._cache, self._seen
        if slots != old.shape[3]:
            self._cache = np.zeros((*old.shape[:3], slots, old.shape[4]), np.float32)
        self._seen = np.full((*seen.shape[:3], slots), HIDDEN, np.float32)
        for text, count in enumerate(counts):
            place = slice(self._block, self._block + count)
            self._cache[:, text, :, place] = old[:, text][:, :, live[text]]
            self._seen[text, :, :, place] = seen[text][:, :, live[text]]
        self._used = 0
        self._fixed = {}


def _only(token: int, shape: tuple[int, ...]) -> tuple[Floats, Integers]:
    """Candidates with only one possible token."""
    beams = shape[1]
    scores = np.full((*shape, 2 * beams), -np.inf, np.float32)
    scores[:, :, 0] = 0
    return scores, np.full((*shape, 2 * beams), token, np.int64)


def _value(array: Floats | Integers) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
