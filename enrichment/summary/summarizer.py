"""Abstractive summaries of tickets: tokens in and out of the generator, and the rules for short texts."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from tokenizers import Tokenizer

from enrichment.bundle import Bundle
from enrichment.errors import BundleInvalid
from enrichment.manifest import AbstractiveSpec
from enrichment.memory import give_back
from enrichment.packing import check_inputs
from enrichment.session import ParallelSession, available_cores, make_session, ort
from enrichment.summary.abstractive import Generator
from enrichment.summary.beam import Generation
from enrichment.summary.extractive import Outline, Summary, beginning, closed
from enrichment.text import MAX_CHARACTERS

__all__ = ["Summarizer"]

_WARM_UP_LENGTH: Final = 6  # tokens: enough for every operator to have run once


class Summarizer:
    """DistilBART with its tokenizer. Thread-safe."""

    def __init__(self, generator: Generator, tokenizer: Tokenizer, spec: AbstractiveSpec) -> None:
        self._generator = generator
        self._tokenizer = tokenizer
        self._spec = spec

    @classmethod
    def open(cls, bundle: Bundle, spec: AbstractiveSpec, *, threads: int | None = None) -> Summarizer:
        """Opens the summariser of a bundle. Raises BundleInvalid if its files do not match the manifest."""
        bundle.path(spec.words)
        threads = threads or available_cores()
        with bundle.opening("the summariser"), ThreadPoolExecutor(1) as beside:
            # A decoder takes longest to open, because it packs the weights of the whole vocabulary.
            halves = beside.submit(_half, bundle.path(spec.decoder), spec.generation.num_beams, threads)
            decoder = make_session(bundle.path(spec.decoder), threads=threads)
            encoder = ParallelSession(bundle.path(spec.encoder), threads=threads)
            tokenizer = Tokenizer.from_file(str(bundle.path(spec.tokenizer)))
            half = halves.result()
        check_inputs(encoder.session, bundle.path(spec.encoder))
        given, taken = {o.name for o in encoder.session.get_outputs()}, {i.name for i in decoder.get_inputs()}
        if not given or given != {name for name in taken if name.startswith(("cross_k", "cross_v"))}:
            raise BundleInvalid(
                f"{bundle.path(spec.decoder)} does not take what {spec.encoder} gives; rebuild the bundle"
            )
        tokenizer.enable_truncation(spec.max_source_tokens)
        tokenizer.no_padding()
        settings = Generation(**spec.generation.model_dump())
        return cls(Generator(encoder, decoder, settings, half), tokenizer, spec)

    @property
    def rows(self) -> int:
        """Token rows that a summary costs, in addition to those of its source."""
        settings = self._generator.settings
        return settings.num_beams * settings.max_length

    def summarize(self, tickets: Sequence[Outline]) -> list[Summary]:
        """A summary of each ticket.

        A body under `min_words` words is summarised by its subject, or by itself if there is no subject. If the
        writer's own words above a quoted mail are so few, they are the summary.
        """
        long = [i for i, t in enumerate(tickets) if t.own_words >= self._spec.min_words]
        generated = dict(zip(long, self.read([tickets[i].text for i in long]), strict=True)) if long else {}
        return [generated.get(i) or Summary(self._short(ticket), truncated=False) for i, ticket in enumerate(tickets)]

    def shortened(self, length: int) -> Summarizer:
        """The same summariser for summaries of at most `length` tokens."""
        settings = self._generator.settings
        longest = min(length, settings.max_length)
        settings = replace(settings, max_length=longest, min_length=min(settings.min_length, longest))
        return Summarizer(self._generator.with_settings(settings), self._tokenizer, self._spec)

    def warm_up(self, text: str) -> None:
        """Runs every session once: with one text, and with two if several texts use another session."""
        for count in (1, 2) if self._generator.has_halves else (1,):
            self.shortened(_WARM_UP_LENGTH).read([text] * count)

    def read(self, texts: Sequence[str]) -> list[Summary]:
        """A generated summary of each text, even of a short one; no text may be empty."""
        encodings = self._tokenizer.encode_batch([text[:MAX_CHARACTERS] for text in texts])
        tokens = self._generator.generate([np.asarray(encoding.ids, np.int64) for encoding in encodings])
        give_back()  # caches of many sizes have been allocated and freed
        cut = [bool(e.overflowing) or len(text) > MAX_CHARACTERS for e, text in zip(encodings, texts, strict=True)]
        return [
            Summary(_ended(self._tokenizer.decode(ids, skip_special_tokens=True)), c)
            for ids, c in zip(tokens, cut, strict=True)
        ]

    def ids(self, text: str) -> np.typing.NDArray[np.int64]:
        """A text as token ids, cut at the maximum source length."""
        return np.asarray(self._tokenizer.encode(text).ids, np.int64)

    def _short(self, ticket: Outline) -> str:
        subject_first = ticket.words < self._spec.min_words
        return closed(beginning(ticket, self._spec.max_tokens, self._count, subject_first=subject_first))

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _half(decoder: Path, beams: int, threads: int) -> ort.InferenceSession | None:
    """A session for halves of a batch, or None: with one thread or one beam, halves are not faster.

    Two halves run at a time, each on its own thread; further threads are shared.
    """
    return make_session(decoder, threads=threads - 1) if threads > 1 and beams > 1 else None


def _ended(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else text + "."
