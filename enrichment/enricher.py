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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from enrichment.bundle import Bundle
from enrichment.classify import TASKS, Classified, Classifiers
from enrichment.encoder import Encoded, Encoder, Floats, Tokens
from enrichment.errors import EnrichmentError, ModelFailed, OutOfTime
from enrichment.manifest import AbstractiveSpec
from enrichment.summary.extractive import Outline, outline, summarize
from enrichment.summary.summarizer import Summarizer, Summary
from enrichment.text.language import detect
from enrichment.ticket import EnrichmentData, RawTicket

__all__ = ["Enricher", "Observe", "TimeLeft", "micro_batches", "open_once"]

TimeLeft = Callable[[], float]
"""Returns the seconds left; called before each ticket's text is processed, and before each micro-batch."""
Observe = Callable[[str, float, int], None]
"""Called with a stage ("tokenize", "encode", "classify", "summarize"), its seconds and its number of tickets."""

_BUDGET: Final = 1024  # tokens of a micro-batch: more would need more memory without being faster
_HEADROOM: Final = 1.5  # safety factor of time estimates
_FEWEST_TO_LEARN_FROM: Final = 64  # tokens
_SUMMARIZER_ROW: Final = 12.0  # cost of its row in encoder rows, by number of weights: 135 to 11 million
_WARM_UP: Final = (
    "The first run of a session is slower than the others, so it is made before a ticket waits for it. " * 3
)


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
        self._encoder = encoder
        self._classifiers = classifiers
        self._summarizer = summarizer
        # The cost of a ticket in addition to its tokens: a generated summary is computed in token rows, too.
        self._extra = summarizer.rows if summarizer else 0
        self._nothing: Floats = np.zeros(bundle.manifest.models.encoder.dimensions, np.float32)
        self._seconds_per_token = self._warm_up()

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = False, threads: int | None = None) -> Enricher:
        """Opens a bundle; `verify` checks every file's hash, `threads` limits the cores used (None: all).

        Raises BundleError.
        """
        bundle = Bundle.open(folder, verify=verify)
        spec = bundle.manifest.models.summary
        with ThreadPoolExecutor(1) as beside:
            summarizer = None
            if isinstance(spec, AbstractiveSpec):
                summarizer = beside.submit(Summarizer.open, bundle, spec, threads=threads)
            encoder = Encoder.open(bundle, threads=threads)
            classifiers = Classifiers.open(bundle, encoder, threads=threads)
        return cls(bundle, encoder, classifiers, summarizer.result() if summarizer else None)

    def enrich(
        self, tickets: Sequence[RawTicket], *, time_left: TimeLeft | None = None, observe: Observe | None = None
    ) -> list[EnrichmentData | EnrichmentError]:
        """One result or one error per ticket, in order; never raises for a bad ticket.

        `time_left` returns the seconds left: a ticket that would not fit is not started and returned as OutOfTime. A
        micro-batch that raises is rerun ticket by ticket; a ticket that raises again is returned as ModelFailed, with
        the exception as its cause. Nothing is logged, because an exception's message may quote the ticket.
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
        sizes = [item.tokens for _, item in good]
        for batch in micro_batches([t.longest for t in sizes], [t.windows for t in sizes], _BUDGET):
            part = self._micro_batch([good[k][1] for k in batch], watch)
            results.update(zip((good[k][0] for k in batch), part, strict=True))
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
                results[i] = _failed(ticket, error)
        for i, tokens in zip(outlines, self._tokenize(list(outlines.values())), strict=True):
            if isinstance(tokens, Exception):
                results[i] = _failed(tickets[i], tokens)
            else:
                results[i] = _Item(tickets[i], outlines[i], tokens)
        return [results[i] for i in range(len(tickets))]

    def _tokenize(self, outlines: Sequence[Outline]) -> Sequence[Tokens | Exception]:
        """Tokens or the exception per text: all in one call, or one by one if that call raises."""
        try:
            return self._encoder.tokenize([o.text for o in outlines])
        except Exception as error:  # an isolation boundary, as above
            return [error] if len(outlines) == 1 else [r for o in outlines for r in self._tokenize([o])]

    def _micro_batch(self, part: Sequence[_Item], watch: _Watch) -> list[EnrichmentData | EnrichmentError]:
        cost = sum(item.tokens.windows for item in part) * max(item.tokens.longest for item in part)
        cost += self._extra * len(part)
        left = watch.time_left()
        if self._expected_seconds(cost) > left:
            if len(part) > 1:  # half of it may still fit
                half = len(part) // 2
                return [*self._micro_batch(part[:half], watch), *self._micro_batch(part[half:], watch)]
            return [OutOfTime(f"not started: {left:.1f} s left", ticket_id=part[0].ticket.ticket_id)]
        try:
            return [*self._models(part, cost, watch)]
        except Exception as error:  # an isolation boundary: one ticket must not fail the others
            if len(part) > 1:
                return [result for item in part for result in self._micro_batch([item], watch)]
            return [_failed(part[0].ticket, error)]

    def _models(self, part: Sequence[_Item], cost: int, watch: _Watch) -> list[EnrichmentData]:
        times = [time.perf_counter()]
        full = [item for item in part if len(item.tokens.ids)]
        encoded: dict[int, Encoded] = {}
        if full:
            results = self._encoder.encode([item.tokens for item in full], [item.outline.sentences for item in full])
            encoded = {id(item): result for item, result in zip(full, results, strict=True)}
        times.append(time.perf_counter())
        found = [encoded.get(id(item)) for item in part]
        classified = self._classifiers.classify([item.outline.text for item in part], found)
        times.append(time.perf_counter())
        summaries = self._summarize(part, found)
        times.append(time.perf_counter())
        if full:
            self._learn(cost, times[-1] - times[0])
        for stage, begin, end in zip(("encode", "classify", "summarize"), times, times[1:], strict=False):
            watch.observe(stage, end - begin, len(part))
        return [self._result(*parts) for parts in zip(part, found, classified, summaries, strict=True)]

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
        labels = dict(classified.labels)
        # NEUTRAL may not be a label of the model; its confidence is then that of the most probable label.
        confidence = {
            task: classified.scores[task].get(labels[task], max(classified.scores[task].values())) for task in TASKS
        }
        if item.ticket.priority is not None:
            labels["urgency"], confidence["urgency"] = item.ticket.priority, 1.0
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
                "scores": classified.scores,
                "needs_review": bool(reasons),
                "review_reasons": reasons,
                "language": language,
                "truncated": [task for task, was_cut in cut.items() if was_cut],
            }
        )

    def _expected_seconds(self, tokens: int) -> float:
        return tokens * self._seconds_per_token * _HEADROOM

    def _learn(self, tokens: int, seconds: float) -> None:
        """Updates the estimate: quickly if a run was slower than expected, slowly if it was faster."""
        # A short run says little about the time per token: one pause of a busy machine, attributed to nine tokens,
        # would prevent the next long ticket from being started although there is time.
        seen = seconds / max(tokens, _FEWEST_TO_LEARN_FROM)
        if seen > self._seconds_per_token:
            self._seconds_per_token += 0.5 * (seen - self._seconds_per_token)
        elif tokens >= _FEWEST_TO_LEARN_FROM:
            self._seconds_per_token += 0.1 * (seen - self._seconds_per_token)

    def _warm_up(self) -> float:
        [tokens] = self._encoder.tokenize([_WARM_UP])
        self._encoder.encode([tokens], [[]])
        self._classifiers.warm_up(_WARM_UP)
        begin = time.perf_counter()
        self._encoder.encode([tokens], [[]])
        seconds = (time.perf_counter() - begin) / tokens.cost
        if self._summarizer is not None:
            self._summarizer.warm_up(_WARM_UP)
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


def micro_batches(lengths: Sequence[int], rows: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Groups indices by length so that rows times the longest length stays within `budget` tokens.

    `lengths[i]` is the length of item i's longest row, `rows[i]` its number of rows. An item that exceeds the budget
    gets its own batch. Longest first, so that the memory arena reaches its final size immediately instead of growing
    (https://github.com/microsoft/onnxruntime/issues/11627).
    """
    batch: list[int] = []
    longest = count = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = max(longest, lengths[index])
        if batch and (count + rows[index]) * longest > budget:
            yield batch
            batch, longest, count = [], lengths[index], 0
        batch.append(index)
        count += rows[index]
    if batch:
        yield batch


_opened: dict[tuple[str, int | None, int], Enricher] = {}
_opening = threading.Lock()


def _failed(ticket: RawTicket, error: Exception) -> ModelFailed:
    failure = ModelFailed(f"a model raised {type(error).__name__}", ticket_id=ticket.ticket_id)
    failure.__cause__ = error
    return failure


def _forever() -> float:
    return float("inf")


def _nobody(_stage: str, _seconds: float, _tickets: int) -> None:
    return
