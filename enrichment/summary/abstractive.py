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
from enrichment.summary.beam import BeamSearch, Booleans, Generation

__all__ = ["Generator"]

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
        outputs = encoder.session.get_outputs()
        self._names = [output.name for output in outputs]
        self._shape = outputs[0].shape[1], outputs[0].shape[3]

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
        """Keys and values of the decoder's cross-attention, each (texts, 1, heads, length, head size), and the mask."""
        lengths = [len(text) for text in texts]
        longest = max(lengths)
        heads, size = self._shape
        # One array, because Linux gives large ones huge pages, which take less time to fill.
        joined = np.empty((len(self._names), len(texts), heads, whole(longest), size), np.float32)

        def run(part: slice, options: ort.RunOptions | None) -> Floats:
            feeds = packed(texts[part], longest)
            binding = self._encoder.session.io_binding()
            for name, value in feeds.items():
                binding.bind_cpu_input(name, value)
            for name, array in zip(self._names, joined, strict=True):  # written directly, without a copy
                binding.bind_ortvalue_output(name, _value(array[part]))
            self._encoder.session.run_with_iobinding(binding, options)
            return np.asarray(feeds["mask"], np.float32)

        masks = self._encoder.each(lengths, run)
        return dict(zip(self._names, joined[:, :, None], strict=True)), np.concatenate(masks)[:, None]


class _Decoding:
    """The decoder's state: caches, and which of their slots are ancestors of which beam.

    A step writes each beam's keys and values into the first slots that are not an ancestor of any beam. Except for the
    number of empty slots at the end, a text's slots therefore do not depend on the other texts.
    """

    def __init__(
        self, session: ort.InferenceSession, cross: dict[str, Floats], cross_mask: Floats, settings: Generation
    ) -> None:
        self._session = session
        self._beams = settings.num_beams
        texts, _, heads, _, size = cross["cross_k0"].shape
        self._cross = {**cross, "cross_mask": cross_mask}
        self._names = [i.name for i in session.get_inputs() if i.name.startswith("past_")]
        # With one beam all texts have the same number of slots, so none is padded.
        self._group = GROUP if self._beams > 1 else _SLOTS
        self._cache = np.zeros((len(self._names), texts, 1, heads, self._group, size), np.float32)
        self._seen = np.zeros((texts, self._beams, self._group), np.bool_)
        # With one beam only the order of candidates matters.
        options = {"count": np.asarray([settings.candidates]), "probable": np.asarray(self._beams > 1)}
        self._options = {name: _value(array) for name, array in options.items()}
        self._held: dict[str, ort.OrtValue] = {}
        self._binding: ort.IOBinding | None = None
        self._logits: ort.OrtValue | None = None
        self._prefix = 0

    def begin(self, prefix: list[int]) -> tuple[Floats, Integers]:
        """Reads the tokens that all sequences start with; the candidates are the same for all beams."""
        texts, length = len(self._seen), len(prefix)
        ids = np.broadcast_to(np.asarray(prefix), (texts, length))
        slots = np.broadcast_to(np.arange(length), ids.shape)
        seen = np.broadcast_to(
            np.tri(length, self._seen.shape[2], dtype=np.bool_), (texts, length, self._seen.shape[2])
        )
        # Once per batch: releasing memory at every step costs more time than it is worth.
        scores, tokens = self._run(ids, slots, slots, seen, tidy_run())
        self._seen[:, :, :length] = True
        self._prefix = length
        shape = (texts, self._beams, scores.shape[-1])
        return np.broadcast_to(scores[:, -1:], shape), np.broadcast_to(tokens[:, -1:], shape)

    def step(self, ids: Integers, position: int) -> tuple[Floats, Integers]:
        """Reads one more token per beam, ids (texts, beams); returns candidates (texts, beams, count)."""
        self._prefix = 0
        slots = self._free()
        texts, beams = slots.shape
        self._seen[np.arange(texts)[:, None], np.arange(beams), slots] = True
        return self._run(ids, np.full_like(ids, position), slots, self._seen)

    def reorder(self, kept: Integers, parents: Integers) -> None:
        """Removes finished texts, and gives every beam the ancestors of its parent."""
        if len(kept) < len(self._seen):
            # take() returns a contiguous array, unlike indexing; the cache is written in place.
            self._cache = np.take(self._cache, kept, 1)
            self._cross = {name: value[kept] for name, value in self._cross.items()}
            self._binding = None
        self._seen = self._seen[kept[:, None], parents]

    def rows(self, numbers: Integers) -> Floats:
        """The scores of all tokens, in the given rows of the last step."""
        assert self._logits is not None
        if self._prefix:  # all beams of a text share one row
            numbers = numbers // self._beams * self._prefix + self._prefix - 1
        logits: Floats = self._logits.numpy()[numbers]
        if self._beams == 1:
            return logits
        logits -= logits.max(1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        return logits

    def _free(self) -> Integers:
        """A free slot for each beam (texts, beams); if there are too few, empty ones are appended."""
        live = self._seen.any(1)
        if live.sum(1).max() + self._beams > live.shape[1]:
            self._cache = np.concatenate([self._cache, np.zeros_like(self._cache[:, :, :, :, : self._group])], 4)
            self._seen = np.concatenate([self._seen, np.zeros_like(self._seen[:, :, : self._group])], 2)
            self._binding = None
            live = self._seen.any(1)
        return np.argsort(live, axis=1, kind="stable")[:, : self._beams]

    def _run(
        self, ids: Integers, positions: Integers, slots: Integers, seen: Booleans, options: ort.RunOptions | None = None
    ) -> tuple[Floats, Integers]:
        binding = self._binding = self._binding or self._bind()
        mask = np.where(seen, np.float32(0), HIDDEN)[:, :, None, None]
        feeds = {"ids": ids, "positions": positions, "places": self._places(slots), "mask": mask}
        values = {name: _value(array) for name, array in feeds.items()}  # also keeps them alive
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in ("scores", "tokens", "logits"):
            binding.bind_output(name)
        self._session.run_with_iobinding(binding, options)
        scores, tokens, self._logits = binding.get_outputs()[-3:]
        return scores.numpy().reshape(*ids.shape, -1), tokens.numpy().reshape(*ids.shape, -1)

    def _bind(self) -> ort.IOBinding:
        """A binding of what all steps share. They update the cache in place: it is both an input and an output.

        A binding does not keep arrays alive.
        """
        binding = self._session.io_binding()
        past = {name: _value(array) for name, array in zip(self._names, self._cache, strict=True)}
        self._held = {name: _value(array) for name, array in self._cross.items()} | self._options | past
        for name, value in self._held.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in past.items():
            binding.bind_ortvalue_output(name.replace("past", "present"), value)
        return binding

    def _places(self, slots: Integers) -> Integers:
        """Where each head's numbers go in the cache (texts, 1, heads, slots, head size), for slots (texts, beams)."""
        texts, beams = slots.shape
        heads = self._cache.shape[3]
        places = np.zeros((texts, beams, heads, 4), np.int64)
        places[..., 0] = np.arange(texts)[:, None, None]
        places[..., 2] = np.arange(heads)
        places[..., 3] = slots[:, :, None]
        return places


def _only(token: int, shape: tuple[int, ...]) -> tuple[Floats, Integers]:
    """Candidates with only one possible token."""
    beams = shape[1]
    scores = np.full((*shape, 2 * beams), -np.inf, np.float32)
    scores[:, :, 0] = 0
    return scores, np.full((*shape, 2 * beams), token, np.int64)


def _value(array: Floats | Integers | Booleans) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
