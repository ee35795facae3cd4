"""The shadow: a second bundle that labels the tickets of the first one, so that people can compare the two.

It writes no summary. What both bundles would compute the same way is computed once: if encoder and tokenizer are the
same files, only the classifiers run twice; lexical features from the same word lists are computed once, and a separate
sentiment model that is the same in both runs once.

The shadow changes nothing about a result but its `shadow`. It runs when all tickets have their results, in the time
that is left, and its errors are reported, not raised. It shares the process, though: its memory, and a crash in native
code (handler.crashes).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from enrichment.bundle import Bundle
from enrichment.classify import TASKS, Classified, Classifiers, Labelled
from enrichment.encoder import Encoder, encode_all
from enrichment.errors import EnrichmentError
from enrichment.manifest import ClassifierSpec
from enrichment.micro_batches import WARM_UP, MicroBatches, TimeLeft, failed
from enrichment.ticket import ShadowLabels

__all__ = ["Shadow"]

# Where a model comes from, and the threshold of reviews, do not change what it computes.
_NO_INFLUENCE: Final = {"source", "revision", "source_sha256", "license", "precision", "pinned", "threshold"}


class Shadow:
    """A second bundle next to a first one. Thread-safe.

    `encoder` is its own, or None if it reads the output of the first bundle's, `primary`. With `same_words`, the first
    bundle's lexical features are its own too, and with `same_sentiment`, the sentiment.
    """

    def __init__(
        self,
        bundle: Bundle,
        classifiers: Classifiers,
        primary: Encoder,
        encoder: Encoder | None,
        *,
        same_words: bool,
        same_sentiment: bool,
    ) -> None:
        self.version = bundle.version
        self._classifiers = classifiers
        self._encoder = encoder
        self._same_words = same_words
        self._same_sentiment = same_sentiment
        self._batches = MicroBatches(self._warm_up(encoder or primary))

    @property
    def shares_encoder(self) -> bool:
        """Whether the first bundle's encoder pass serves both."""
        return self._encoder is None

    @classmethod
    def open(
        cls, folder: Path | str, first: Bundle, primary: Encoder, *, verify: bool = False, threads: int | None = None
    ) -> Shadow:
        """Opens a bundle as the shadow of `first`, whose encoder is `primary`. Raises BundleError."""
        bundle = Bundle.open(folder, verify=verify)
        own, others = bundle.manifest.models, first.manifest.models
        is_same = _depends_on(bundle, own.encoder) == _depends_on(first, others.encoder)
        encoder = None if is_same else Encoder.open(bundle, threads=threads)
        same_sentiment = isinstance(own.sentiment, ClassifierSpec) and (
            _depends_on(bundle, own.sentiment) == _depends_on(first, others.sentiment)
        )
        classifiers = Classifiers.open(bundle, encoder or primary, threads=threads, only_heads=same_sentiment)
        same_words = bundle.manifest.files[own.features] == first.manifest.files[others.features]
        return cls(bundle, classifiers, primary, encoder, same_words=same_words, same_sentiment=same_sentiment)

    def label(
        self, tickets: Sequence[Labelled], time_left: TimeLeft, on_failure: Callable[[EnrichmentError], None]
    ) -> None:
        """Sets `shadow` in each ticket's result, or calls `on_failure` with the reason why there is none."""
        try:
            found = self._batches.run(self._tokenized(tickets), self._labels, time_left)
        except Exception as error:  # an isolation boundary: the tickets have their results already
            found = [failed(each.ticket, error) for each in tickets]
        for each, labels in zip(tickets, found, strict=True):
            if isinstance(labels, EnrichmentError):
                on_failure(labels)
            else:
                each.result.shadow = labels

    def _tokenized(self, tickets: Sequence[Labelled]) -> list[Labelled]:
        """The tickets with the tokens that the shadow's encoder reads."""
        if self._encoder is None:
            return list(tickets)
        tokens = self._encoder.tokenize([each.text for each in tickets])
        return [replace(each, tokens=own, encoded=None) for each, own in zip(tickets, tokens, strict=True)]

    def _labels(self, part: Sequence[Labelled]) -> list[ShadowLabels]:
        encoded = [each.encoded for each in part]
        if self._encoder is not None:
            encoded = encode_all(self._encoder, [each.tokens for each in part], [[]] * len(part))
        lexical = [each.classified.lexical for each in part] if self._same_words else None
        classified = self._classifiers.classify([each.text for each in part], encoded, lexical)
        return [self._result(each, found) for each, found in zip(part, classified, strict=True)]

    def _result(self, ticket: Labelled, found: Classified) -> ShadowLabels:
        if self._same_sentiment:
            found.scores["sentiment"] = ticket.classified.scores["sentiment"]
            found.labels["sentiment"] = ticket.classified.labels["sentiment"]
        labels, confidence = found.decided(ticket.ticket.priority)
        return ShadowLabels.model_validate(
            {
                "model_version": self.version,
                **labels,
                **{f"{task}_confidence": value for task, value in confidence.items()},
                "differs": [task for task in TASKS if labels[task] != getattr(ticket.result, task)],
            }
        )

    def _warm_up(self, encoder: Encoder) -> float:
        """Seconds per token, of the second run. The first one is slower."""
        [tokens] = encoder.tokenize([WARM_UP])
        encoded = encoder.encode([tokens], [[]])
        self._classifiers.classify([WARM_UP], encoded)
        begin = time.perf_counter()
        if self._encoder is not None:
            encoded = encoder.encode([tokens], [[]])
        self._classifiers.classify([WARM_UP], encoded)
        return (time.perf_counter() - begin) / tokens.cost


def _depends_on(bundle: Bundle, model: BaseModel) -> dict[str, Any]:
    """What a model's results depend on: its settings and, instead of the names of its files, their hashes."""
    files = bundle.manifest.files
    settings = model.model_dump(exclude=_NO_INFLUENCE)
    return {
        name: files[value].sha256 if isinstance(value, str) and value in files else value
        for name, value in settings.items()
    }
