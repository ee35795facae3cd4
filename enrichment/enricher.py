"""The library's entry point: tickets in, enrichments out.

    enricher = Enricher.open("path/to/bundle")
    for ticket, result in zip(tickets, enricher.enrich(tickets)):
        ...                      # EnrichmentData, or the EnrichmentError of this ticket

The models process tickets in micro-batches of similar length, distributed over the cores. A ticket's result does not
depend on the other tickets, and an error of one ticket does not affect them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from enrichment.bundle import Bundle
from enrichment.classify import TASKS, Classified, Classifiers, Labelled
from enrichment.encoder import Encoded, Encoder, Floats, Tokens, encode_all
from enrichment.errors import EnrichmentError, OutOfTime
from enrichment.manifest import AbstractiveSpec
from enrichment.micro_batches import WARM_UP, MicroBatches, TimeLeft, failed
from enrichment.summary.extractive import Outline, Summary, outline, summarize
from enrichment.text.language import detect
from enrichment.ticket import EnrichmentData, RawTicket

if TYPE_CHECKING:
    from enrichment.shadow import Shadow
    from enrichment.summary.summarizer import Summarizer

__all__ = ["Enricher", "Observe", "ShadowFailed", "TimeLeft", "open_once"]

Observe = Callable[[str, float, int], None]
"""Called with a stage (tokenize, encode, classify, summarize, shadow), its seconds and its number of tickets."""
ShadowFailed = Callable[[EnrichmentError], None]
"""Called with the error of each ticket that the models labelled and the shadow did not."""

_SUMMARIZER_ROW: Final = 12.0  # cost of its row in encoder rows, by number of weights: 135 to 11 million


@dataclass(frozen=True, slots=True)
class _Item:
    ticket: RawTicket
    outline: Outline
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class _Watch:
    time_left: TimeLeft
    observe: Observe


class Enricher:
    """Enriches tickets with the models of one bundle; `enrich` is thread-safe."""

    def __init__(
        self, bundle: Bundle, encoder: Encoder, classifiers: Classifiers, summarizer: Summarizer | None = None
    ) -> None:
        self.bundle = bundle
        self.version = bundle.version
        self._embedding_model = bundle.manifest.embedding_model
        self._encoder = encoder
        self._classifiers = classifiers
        self._summarizer = summarizer
        self._shadow: Shadow | None = None
        self._nothing: Floats = np.zeros(bundle.manifest.models.encoder.dimensions, np.float32)
        # A generated summary is computed in token rows, too.
        self._batches = MicroBatches(self._warm_up(), extra=summarizer.rows if summarizer else 0)

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        encoder: Encoder | None = None,
        shadow: Path | str | None = None,
        verify: bool = False,
        threads: int | None = None,
    ) -> Enricher:
        """Opens a bundle; `verify` checks every file's hash, `threads` limits the cores used (None: all).

        `encoder` is the bundle's, if it is open already. `shadow` is the folder of a second bundle, which labels the
        same tickets. Raises BundleError.
        """
        bundle = Bundle.open(folder, verify=verify)
        spec = bundle.manifest.models.summary
        with ThreadPoolExecutor(1) as beside:
            summarizer = None
            if isinstance(spec, AbstractiveSpec):
                from enrichment.summary.summarizer import Summarizer  # only for bundles that generate summaries

                summarizer = beside.submit(Summarizer.open, bundle, spec, threads=threads)
            encoder = encoder or Encoder.open(bundle, threads=threads)
            classifiers = Classifiers.open(bundle, encoder, threads=threads)
        enricher = cls(bundle, encoder, classifiers, summarizer.result() if summarizer else None)
        if shadow is not None:
            enricher.open_shadow(shadow, verify=verify, threads=threads)
        return enricher

    def open_shadow(self, folder: Path | str, *, verify: bool = False, threads: int | None = None) -> None:
        """Opens a second bundle, which labels the same tickets from now on (enrichment.shadow). Raises BundleError."""
        from enrichment.shadow import Shadow  # not part of a start without one

        self._shadow = Shadow.open(folder, self.bundle, self._encoder, verify=verify, threads=threads)

    def enrich(
        self,
        tickets: Sequence[RawTicket],
        *,
        time_left: TimeLeft | None = None,
        observe: Observe | None = None,
        with_shadow: bool = True,
        shadow_failed: ShadowFailed | None = None,
    ) -> list[EnrichmentData | EnrichmentError]:
        """One result or one error per ticket, in order; never raises for a bad ticket.

        `time_left` returns the seconds left: a ticket that would not fit is not started and returned as OutOfTime. A
        micro-batch that raises is rerun ticket by ticket; a ticket that raises again is returned as ModelFailed, with
        the exception as its cause. Nothing is logged, because an exception's message may quote the ticket.

        A shadow labels the tickets once all of them have their results, in the time that is still left. Where it fails,
        the result has no `shadow`, and `shadow_failed` is called. `with_shadow=False` leaves it out.
        """
        watch = _Watch(time_left or _forever, observe or _nobody)
        begin = time.perf_counter()
        items = self._read(tickets, watch)
        watch.observe("tokenize", time.perf_counter() - begin, len(tickets))
        results: dict[int, EnrichmentData | EnrichmentError] = {}
        good: list[tuple[int, _Item]] = []
        for i, item in enumerate(items):
            if isinstance(item, _Item):
                good.append((i, item))
            else:
                results[i] = item
        shadow = self._shadow if with_shadow else None
        labelled: list[Labelled] = []
        found = self._batches.run(
            [item for _, item in good],
            partial(self._models, observe=watch.observe, labelled=None if shadow is None else labelled),
            watch.time_left,
        )
        results.update(zip((i for i, _ in good), found, strict=True))
        if shadow is not None:
            begin = time.perf_counter()
            shadow.label(labelled, watch.time_left, shadow_failed or _ignore)
            watch.observe("shadow", time.perf_counter() - begin, len(labelled))
        return [results[i] for i in range(len(tickets))]

    def _read(self, tickets: Sequence[RawTicket], watch: _Watch) -> list[_Item | EnrichmentError]:
        """Outline and tokens of each ticket, computed before the models run.

        A ticket that raises, or for which no time is left, does not affect the others.
        """
        results: dict[int, _Item | EnrichmentError] = {}
        outlines: dict[int, Outline] = {}
        for i, ticket in enumerate(tickets):
            left = watch.time_left()
            if left < 0:
                results[i] = OutOfTime(f"not started: {left:.1f} s left", ticket_id=ticket.ticket_id)
                continue
            try:
                outlines[i] = outline(ticket.subject, ticket.body)
            except Exception as error:  # an isolation boundary, like that around the models
                results[i] = failed(ticket, error)
        for i, tokens in zip(outlines, self._tokenize(list(outlines.values())), strict=True):
            if isinstance(tokens, Exception):
                results[i] = failed(tickets[i], tokens)
            else:
                results[i] = _Item(tickets[i], outlines[i], tokens)
        return [results[i] for i in range(len(tickets))]

    def _tokenize(self, outlines: Sequence[Outline]) -> Sequence[Tokens | Exception]:
        """Tokens or the exception per text: all in one call, or one by one if that call raises."""
        try:
            return self._encoder.tokenize([o.text for o in outlines])
        except Exception as error:  # an isolation boundary, as above
            return [error] if len(outlines) == 1 else [r for o in outlines for r in self._tokenize([o])]

    def _models(
        self, part: Sequence[_Item], *, observe: Observe, labelled: list[Labelled] | None
    ) -> list[EnrichmentData]:
        """The results of a micro-batch. What the shadow reads is added to `labelled`, if there is a list."""
        times = [time.perf_counter()]
        found = encode_all(self._encoder, [item.tokens for item in part], [item.outline.sentences for item in part])
        times.append(time.perf_counter())
        classified = self._classifiers.classify([item.outline.text for item in part], found)
        times.append(time.perf_counter())
        summaries = self._summarize(part, found)
        times.append(time.perf_counter())
        for stage, begin, end in zip(("encode", "classify", "summarize"), times, times[1:], strict=False):
            observe(stage, end - begin, len(part))
        results = [self._result(*parts) for parts in zip(part, found, classified, summaries, strict=True)]
        if labelled is not None:
            for item, encoded, labels, result in zip(part, found, classified, results, strict=True):
                kept = None if encoded is None else replace(encoded, sentences=encoded.sentences[:0].copy())
                labelled.append(Labelled(item.ticket, item.outline.text, item.tokens, kept, labels, result))
        return results

    def _summarize(self, part: Sequence[_Item], encoded: Sequence[Encoded | None]) -> list[Summary]:
        if self._summarizer is not None:
            return self._summarizer.summarize([item.outline for item in part])
        return [Summary(self._extract(item.outline, e), item.tokens.cut) for item, e in zip(part, encoded, strict=True)]

    def _extract(self, outline: Outline, encoded: Encoded | None) -> str:
        spec = self.bundle.manifest.models.summary
        return summarize(
            outline,
            encoded.embedding if encoded else self._nothing,
            encoded.sentences if encoded else np.zeros((len(outline.sentences), len(self._nothing)), np.float32),
            max_tokens=spec.max_tokens,
            min_words=spec.min_words,
            count_tokens=self._encoder.count_tokens,
        )

    def _result(self, item: _Item, encoded: Encoded | None, classified: Classified, summary: Summary) -> EnrichmentData:
        labels, confidence = classified.decided(item.ticket.priority)
        cut = {task: self._encoder.is_beyond_first_window(item.tokens) for task in ("embedding", *TASKS)}
        if classified.truncated is not None:
            cut["sentiment"] = classified.truncated
        cut["summary"] = summary.truncated
        cut = {task: was_cut or item.outline.cut for task, was_cut in cut.items()}
        embedding = encoded.embedding if encoded else self._nothing
        language = detect(item.outline.text)
        reasons: list[str] = [*self._classifiers.uncertain(confidence)]
        if language is not None and language not in self.bundle.manifest.languages:
            reasons = ["language"]  # the cause; uncertain labels only follow from it
        return EnrichmentData.model_validate(
            {
                "embedding": [round(value, 7) for value in embedding.tolist()],
                **labels,
                **{f"{task}_confidence": value for task, value in confidence.items()},
                "summary": summary.text,
                "processed_at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "model_version": self.version,
                "embedding_model": self._embedding_model,
                "scores": classified.scores,
                "needs_review": bool(reasons),
                "review_reasons": reasons,
                "language": language,
                "truncated": [task for task, was_cut in cut.items() if was_cut],
            }
        )

    def _warm_up(self) -> float:
        # The very first run is slow, whatever it reads; only the second is measured.
        short, tokens = self._encoder.tokenize([WARM_UP[:20], WARM_UP])
        self._encoder.encode([short], [[]])
        self._classifiers.warm_up(WARM_UP)
        begin = time.perf_counter()
        self._encoder.encode([tokens], [[]])
        seconds = (time.perf_counter() - begin) / tokens.cost
        if self._summarizer is not None:
            self._summarizer.warm_up(WARM_UP)
            # A row of the summariser costs about ten times a row of the encoder; the first batch corrects this.
            seconds *= _SUMMARIZER_ROW
        return seconds


def open_once(folder: Path | str, *, threads: int | None = None) -> Enricher:
    """As `Enricher.open`, but a bundle is opened only once per process. Raises BundleError."""
    # With the process: the threads of an enricher that was opened before a fork do not exist after it.
    key = (os.fspath(Path(folder).resolve()), threads, os.getpid())
    with _opening:
        if key not in _opened:
            _opened[key] = Enricher.open(folder, threads=threads)
        return _opened[key]


_opened: dict[tuple[str, int | None, int], Enricher] = {}
_opening = threading.Lock()


def _forever() -> float:
    return float("inf")


def _nobody(_stage: str, _seconds: float, _tickets: int) -> None:
    return


def _ignore(_error: EnrichmentError) -> None:
    return
