"""Beam search without a model: selects from the candidates of each step.

Gives the same tokens as `generate` in transformers 4.57 (`_beam_search` and its logits processors) for each text alone
in its batch. Greedy search is beam search with one beam. All texts advance together, as arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from enrichment.encoder import Floats, Integers

__all__ = ["BeamSearch", "Booleans", "Generation"]

Booleans: TypeAlias = npt.NDArray[np.bool_]
Rows = Callable[[Integers], Floats]
"""Returns all log-probabilities (len(rows), vocabulary) of the given rows, if their candidates are not enough."""

_NEVER: Final = np.float32(-1e9)  # the score in transformers of a sequence that must not be chosen


@dataclass(frozen=True, slots=True)
class Generation:
    """How summaries are generated; names and meaning are those of a model's generation_config.json.

    Lengths include the start token and the end token. With `early_stopping` False or "never", the search continues
    while a running beam may still exceed the finished ones, by a heuristic (False) or a guaranteed (never) estimate.
    """

    num_beams: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    no_repeat_ngram_size: int
    min_length: int
    max_length: int
    decoder_start_token_id: int
    eos_token_id: int
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None

    @property
    def prefix(self) -> list[int]:
        """The tokens that every sequence starts with."""
        forced = self.forced_bos_token_id
        start = [self.decoder_start_token_id]
        return start if forced is None or self.max_length <= 2 or forced == self.eos_token_id else [*start, forced]

    @property
    def candidates(self) -> int:
        """Candidates per row and step that are nearly always enough: twice the beams, and a few that may be banned."""
        return 2 * self.num_beams + 4


class BeamSearch:
    """The state of a search over several texts.

    sequences: (texts, beams, max_length), the running ones; length: their current length, the same for all.
    """

    def __init__(self, texts: int, settings: Generation) -> None:
        self._settings = settings
        beams, longest = settings.num_beams, settings.max_length
        self.texts: Integers = np.arange(texts)
        self.length = len(settings.prefix)
        self.sequences = np.full((texts, beams, longest), settings.eos_token_id, np.int64)
        self.sequences[:, :, : self.length] = settings.prefix
        # All beams are equal at first, so only the first one contributes candidates.
        self._scores = np.full((texts, beams), _NEVER, np.float32)
        self._scores[:, 0] = 0
        self._finished = _Finished.none(texts, beams, longest)
        self._improvable = np.ones(texts, np.bool_)
        self._results: dict[int, list[int]] = {}

    @property
    def forced(self) -> int | None:
        """The only token that may come next, or None; with one, the model need not run."""
        return self._settings.forced_eos_token_id if self.length == self._settings.max_length - 1 else None

    def advance(self, scores: Floats, tokens: Integers, rows: Rows) -> tuple[Integers, Integers]:
        """Takes one step, from candidates (texts, beams, count) in descending order of log-probability.

        Returns the texts that continue, as indices into those before the step, and the parent of each of their beams.
        """
        settings, beams = self._settings, self._settings.num_beams
        if self.forced is None:  # a forced token is allowed even if it is banned
            scores, tokens = self._allowed(scores, tokens, rows)
        texts, _, count = scores.shape
        total = (scores + self._scores[:, :, None]).reshape(texts, beams * count)
        best = np.argsort(-total, axis=1, kind="stable")[:, : 2 * beams]
        text = np.arange(texts)[:, None]  # indexing with it is faster than np.take_along_axis
        top = total[text, best]
        chosen = tokens.reshape(texts, beams * count)[text, best]
        parents = best // count
        sequences = self.sequences[text, parents]
        sequences[:, :, self.length] = chosen
        ended = chosen == settings.eos_token_id
        if self.length + 1 >= settings.max_length:
            ended[:] = True

        running = top + ended * _NEVER
        order = np.argsort(-running, axis=1, kind="stable")[:, :beams]
        if ended[:, :beams].any():  # the others only ensure that enough beams can continue
            self._finish(top, ended, sequences)
        self.sequences = sequences[text, order]
        self._scores = running[text, order]
        parents = parents[text, order]
        self.length += 1

        self._improvable &= self._may_improve()
        full = self._finished.real.all(1) & (self._early is True)
        alive = self._improvable & ~full & ~ended.all(1)
        [kept] = alive.nonzero()
        if len(kept) < texts:
            self._drop(alive)
        return kept, parents[kept]

    def results(self) -> list[list[int]]:
        """The best sequence of every text, after the search."""
        return [self._results[text] for text in sorted(self._results)]

    @property
    def _early(self) -> bool | Literal["never"]:
        return True if self._settings.num_beams == 1 else self._settings.early_stopping

    def _allowed(self, scores: Floats, tokens: Integers, rows: Rows) -> tuple[Floats, Integers]:
        """The candidates without banned ones; if too few are left, those of all log-probabilities."""
        settings = self._settings
        repeats, follows = self._repeats()
        banned = ((tokens[..., None] == follows[:, :, None, :]) & repeats[:, :, None, :]).any(-1)
        early = self.length < settings.min_length
        if early:
            banned |= tokens == settings.eos_token_id
        if not banned.any():
            return scores, tokens
        scores = np.where(banned, np.float32(-np.inf), scores)
        short = (~banned).sum(-1) < 2 * settings.num_beams
        if short.any():
            text, beam = short.nonzero()
            everything = rows(text * scores.shape[1] + beam)
            for row, (i, j) in enumerate(zip(text, beam, strict=True)):
                everything[row, follows[i, j][repeats[i, j]]] = -np.inf
            if early:
                everything[:, settings.eos_token_id] = -np.inf
            best = np.argsort(-everything, axis=1, kind="stable")[:, : scores.shape[2]]
            tokens = tokens.copy()
            scores[text, beam], tokens[text, beam] = np.take_along_axis(everything, best, 1), best
        return scores, tokens

    def _repeats(self) -> tuple[Booleans, Integers]:
        """Positions where earlier tokens equal the last ones, and the token that followed there, which is banned."""
        size = self._settings.no_repeat_ngram_size
        seen = self.sequences[:, :, : self.length]
        starts = self.length - size + 1
        if size == 0 or starts <= 0:
            return np.zeros((*seen.shape[:2], 0), np.bool_), seen[:, :, :0]
        match = np.ones((*seen.shape[:2], starts), np.bool_)
        for i in range(size - 1):
            match &= seen[:, :, i : i + starts] == seen[:, :, starts + i, None]
        return match, seen[:, :, size - 1 :]

    def _finish(self, top: Floats, ended: Booleans, sequences: Integers) -> None:
        """Adds ended sequences to the finished ones if their scores are good enough."""
        beams = self._settings.num_beams
        candidate = ended.copy()
        candidate[:, beams:] = False
        full = self._finished.real.all(1, keepdims=True) & (self._early is True)
        penalty = np.float32(float(self.length) ** self._settings.length_penalty)
        scores: Floats = top / penalty
        for hopeless in (full, ~self._improvable[:, None], ~candidate):
            scores = scores + np.where(hopeless, _NEVER, np.float32(0))
        self._finished = self._finished.merged(scores, candidate, sequences, self.length + 1)

    def _may_improve(self) -> Booleans:
        """Whether the best running beam may still exceed the worst finished one."""
        settings = self._settings
        certain = self._early == "never" and settings.length_penalty > 0
        length = (settings.max_length if certain else self.length) - 1
        best = self._scores[:, :1] / np.float32(float(length) ** settings.length_penalty)
        worst = np.where(self._finished.real, self._finished.scores.min(1, keepdims=True), _NEVER)
        return np.asarray((best > worst).any(1))

    def _drop(self, alive: Booleans) -> None:
        for i in (~alive).nonzero()[0]:
            length = int(self._finished.lengths[i, 0])
            self._results[int(self.texts[i])] = self._finished.sequences[i, 0, :length].tolist()
        self.texts, self.sequences, self._scores = self.texts[alive], self.sequences[alive], self._scores[alive]
        self._improvable = self._improvable[alive]
        self._finished = self._finished.only(alive)


@dataclass(frozen=True, slots=True)
class _Finished:
    """The best finished sequences of every text, best first; `real` is False for empty places."""

    scores: Floats
    real: Booleans
    sequences: Integers
    lengths: Integers

    @classmethod
    def none(cls, texts: int, beams: int, longest: int) -> _Finished:
        shape = (texts, beams)
        return cls(
            np.full(shape, _NEVER, np.float32),
            np.zeros(shape, np.bool_),
            np.zeros((*shape, longest), np.int64),
            np.zeros(shape, np.int64),
        )

    def merged(self, scores: Floats, real: Booleans, sequences: Integers, length: int) -> _Finished:
        """Merges new sequences and keeps the best, as many as before."""
        joined = np.concatenate([self.scores, scores], 1)
        order = np.argsort(-joined, axis=1, kind="stable")[:, : self.scores.shape[1]]

        def take(old: npt.NDArray[Any], new: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.take_along_axis(np.concatenate([old, new], 1), order, 1)

        both = np.concatenate([self.sequences, sequences], 1)
        return _Finished(
            np.take_along_axis(joined, order, 1),
            take(self.real, real),
            np.take_along_axis(both, order[:, :, None], 1),
            take(self.lengths, np.full(real.shape, length)),
        )

    def only(self, texts: Booleans) -> _Finished:
        return _Finished(self.scores[texts], self.real[texts], self.sequences[texts], self.lengths[texts])
