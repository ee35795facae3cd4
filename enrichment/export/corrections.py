"""Moves a bundle's classifiers towards people's corrections: `python -m enrichment.export compact --corrections FILE`.

Only the linear heads change; the encoder's files stay the same, byte for byte. The fit starts from the bundle's own
coefficients and is regularized towards them. People correct what is wrong and seldom confirm what is right, so the
corrections alone would say that every ticket is like them: half of the labelled tickets of the repository (or of
`--tickets`) are anchors, on which the head should go on to say what it says. The other half is never fitted: on it, no
label may get worse.

FILE is what `tickets corrections FILE` writes: per line `subject`, `body`, `customer_id`, `at`, and the labels that
people decided. The same file and bundle give the same bytes on one kind of CPU; the encoder's output differs in its
last digits between kinds, and so do coefficients that are fitted to it.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from enrichment.bundle import MANIFEST, Bundle
from enrichment.classify import TASKS, Task, calibrated
from enrichment.encoder import Encoder, Floats
from enrichment.export.assembly import Say, placed, write_manifest
from enrichment.export.corpus import TICKETS, Labelled, Taxonomy, read_labelled
from enrichment.export.graph import Array
from enrichment.export.heads import (
    FOLDS,
    coefficients,
    cross_entropy,
    features,
    folds_of,
    interval,
    one_thread,
    softmax,
    write_npz,
)
from enrichment.export.sources import ExportError
from enrichment.features import LexicalFeatures
from enrichment.manifest import HeadSpec
from enrichment.score import Booleans, Doubles, calibration_error, f1_by_label
from enrichment.text import model_text
from enrichment.ticket import Sentiment

__all__ = ["FEWEST", "Correction", "correct", "labels_of", "read_corrections"]

FEWEST: Final = 50  # corrections of a task
_PRIOR: Final = 2.0  # standard deviation of a logit's change, before any correction is seen
_ANCHOR: Final = 10.0  # weight of an anchor; a correction's is 1
_AXES: Final = 256  # dimensions of the fit, of the 3,489 features
_ITERATIONS: Final = 60
_REPEATS: Final = 3  # of the cross-validation, each with other folds
_FALL: Final = 0.02  # accuracy, and F1 of a label, that may be lost on the tickets that are not fitted
_REDEFINED: Final = 0.1  # gain of F1 on held-out corrections, from which on they give a label another meaning
_NEIGHBOURS: Final = 5
_ALIKE: Final = 0.95  # cosine of texts that are one text with other names and numbers
_VARIED: Final = 0.3  # probability that two corrections have different labels, from which on shuffling tells much
_AHEAD: Final = 0.05  # cross-entropy by which a head must be better than one fitted to shuffled labels
_SEED: Final = 20261126
_CHUNK: Final = 500  # texts

Integers = npt.NDArray[np.int_]


@dataclass(frozen=True)
class Correction:
    """A text, the label that people decided for each of some tasks, and the customers who wrote it."""

    text: str
    labels: Mapping[Task, str]
    customers: frozenset[str]


class _Line(BaseModel):
    """A line of the file, as far as it is read."""

    model_config = ConfigDict(hide_input_in_errors=True)

    subject: str
    body: str
    customer_id: str = ""
    at: str = ""
    intent: str | None = None
    urgency: str | None = None
    sentiment: str | None = None


def read_corrections(path: Path, labels: Mapping[Task, Collection[str]], say: Say) -> list[Correction]:
    """Reads a file of corrections; `labels` are those of the bundle. Raises ExportError, which names the line.

    Of corrections of the same text the latest one counts. Tickets without text are left out: no classifier reads them.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold other separators of lines
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    parsed = [
        (number, _parsed(line, f"{path}, line {number}", labels))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    by_text: dict[str, list[_Line]] = {}
    for _, line in sorted(parsed, key=lambda pair: (pair[1].at, pair[1].model_dump_json())):
        by_text.setdefault(model_text(line.subject, line.body).strip(), []).append(line)
    if empty := len(by_text.pop("", [])):
        say(f"corrections: {empty} without text are left out")
    corrections, overruled = [], 0
    for text in sorted(by_text):  # so that the order of lines changes nothing
        decided: dict[Task, str] = {}
        for line in by_text[text]:
            for task in TASKS:
                if label := getattr(line, task):
                    overruled += decided.get(task, label) != label
                    decided[task] = label
        corrections.append(Correction(text, decided, frozenset(line.customer_id for line in by_text[text])))
    if overruled:
        say(f"corrections: {overruled} are left out, because a later one gives the same text another label")
    return corrections


def _parsed(line: str, place: str, labels: Mapping[Task, Collection[str]]) -> _Line:
    try:
        found = _Line.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ExportError(f"{place}: {where and where + ': '}{first['msg']}; export the corrections again") from None
    chosen = {task: label for task in TASKS if (label := getattr(found, task)) is not None}
    if not chosen:
        raise ExportError(f"{place}: no intent, urgency or sentiment; export the corrections again")
    for task, label in chosen.items():
        if label not in labels[task]:
            known = ", ".join(sorted(labels[task]))
            raise ExportError(f"{place}: {task} {label!r} is not a label of the bundle; it knows {known}")
    return found


@dataclass(frozen=True)
class _Head:
    """The coefficients and settings of a bundle's head."""

    spec: HeadSpec
    weights: Floats
    bias: Floats

    def logits(self, matrix: Floats) -> Doubles:
        result: Doubles = (matrix @ self.weights + self.bias).astype(np.float64)
        return result

    def confidence(self, logits: Doubles) -> Doubles:
        """The confidence in the most probable label, (texts,)."""
        shares = softmax(logits)
        if self.spec.calibration is not None:
            shares = np.array([calibrated(row, self.spec.calibration) for row in shares]).reshape(shares.shape)
        result: Doubles = shares.max(1)
        return result


@dataclass(frozen=True)
class _Texts:
    """Texts with what the heads read of them (texts, features)."""

    matrix: Floats
    accepted: Sequence[Sequence[str]]


@dataclass(frozen=True)
class _Comparison:
    """A head before and after, on texts that the moved head has not seen."""

    labels: Sequence[str]
    accepted: tuple[Sequence[Sequence[str]], Sequence[Sequence[str]]]
    predicted: tuple[Sequence[str], Sequence[str]]
    confidence: tuple[Doubles, Doubles]

    def right(self, which: int) -> Doubles:
        """1 for each text whose label is right."""
        pairs = zip(self.predicted[which], self.accepted[which], strict=True)
        return np.array([float(label in accepted) for label, accepted in pairs])

    def f1(self, which: int) -> dict[str, float]:
        """F1 of each label that any text should have."""
        pairs = [*zip(self.predicted[which], self.accepted[which], strict=True)]
        wanted = [label if label in accepted else accepted[0] for label, accepted in pairs]
        found = f1_by_label(wanted, self.predicted[which])
        return {label: value for label, value in found.items() if label in wanted}

    def figures(self, which: int) -> dict[str, float]:
        """Accuracy, macro-F1 over the labels that any text should have, calibration error."""
        right = self.right(which)
        return {
            "accuracy": round(float(right.mean()), 4),
            "macro_f1": round(float(np.mean([*self.f1(which).values()])), 4),
            "calibration_error": round(calibration_error(self.confidence[which], right > 0), 4),
        }

    def falls(self) -> dict[str, float]:
        """How much F1 each label loses."""
        before, after = self.f1(0), self.f1(1)
        return {label: before[label] - after.get(label, 0.0) for label in before}


@dataclass(frozen=True)
class _Moved:
    """A head that was moved, and what speaks against it, if anything."""

    head: _Head
    corrections: int
    held_out: _Comparison
    kept_apart: _Comparison
    refusal: str | None
    asked_for: int


def correct(base: Bundle, corrections: Sequence[Correction], tickets: Path, out: Path, say: Say) -> Bundle:
    """Writes to `out` the bundle `base` with heads that are moved towards corrections, if it is better.

    `tickets` are labelled tickets of which half are anchors and half must not get worse. A head that does not get
    better stays as it is. Raises ExportError if none gets better, or if there are too few corrections.
    """
    heads = _heads(base)
    chosen = {task: [item for item in corrections if task in item.labels] for task in heads}
    counts = ", ".join(f"{len(items)} of {task}" for task, items in chosen.items())
    say(f"corrections: {len(corrections)} texts; {counts}")
    enough = [task for task, items in chosen.items() if len(items) >= FEWEST]
    if not enough:
        raise ExportError(f"too few corrections ({counts}): at least {FEWEST} of one task are needed; correct more")
    with placed(out) as folder, one_thread():
        labelled = _labelled(tickets, labels_of(base))
        encoder = Encoder.open(base)
        lexical = LexicalFeatures.from_file(base.path(base.manifest.models.features))
        texts = [*(item.text for item in corrections), *(item.text for item in labelled)]
        matrix = _read(encoder, lexical, texts, say)
        ours, theirs = matrix[: len(corrections)], matrix[len(corrections) :]
        scaled = _directions(matrix, theirs)
        groups = _groups(corrections, scaled[: len(corrections)], say)
        moved: dict[Task, _Moved] = {}
        for task in enough:
            rows = [i for i, item in enumerate(corrections) if task in item.labels]
            others = [i for i, item in enumerate(labelled) if item.labels.get(task)]
            say(f"{task}: fitting")
            found = _move(
                heads[task],
                _Texts(ours[rows], [[corrections[i].labels[task]] for i in rows]),
                _Texts(theirs[others], [labelled[i].labels[task] for i in others]),
                scaled[[*rows, *(len(corrections) + i for i in others)]],
                [groups[i] for i in rows],
            )
            _report(task, found, say)
            moved[task] = found
        refusals = [f"{task}: {found.refusal}" for task, found in moved.items() if found.refusal]
        better = {task: found for task, found in moved.items() if found.refusal is None}
        if not better:
            raise ExportError(f"nothing was written, {'; '.join(refusals)}")
        for task in heads:
            if task not in better:
                reason = moved[task].refusal if task in moved else f"fewer than {FEWEST} corrections"
                say(f"{task} stays as it is: {reason}")
        _write(base, better, folder)
    return Bundle.open(out)


def _heads(base: Bundle) -> dict[Task, _Head]:
    """The linear heads of a bundle; the full profile has none for sentiment."""
    heads: dict[Task, _Head] = {}
    for task in TASKS:
        spec = base.manifest.models.of(task)
        if isinstance(spec, HeadSpec):
            with np.load(base.path(spec.file), allow_pickle=False) as arrays:
                heads[task] = _Head(spec, arrays[f"{task}.weights"], arrays[f"{task}.bias"])
    return heads


def labels_of(bundle: Bundle) -> dict[Task, list[str]]:
    """The labels that a bundle gives."""
    labels: dict[Task, list[str]] = {"sentiment": [*get_args(Sentiment)]}
    return labels | {task: [*head.spec.labels] for task, head in _heads(bundle).items()}


def _labelled(path: Path, labels: Mapping[Task, list[str]]) -> list[Labelled]:
    try:
        return [item for item in read_labelled(path, Taxonomy(labels, {}, [], {}, {})) if item.text.strip()]
    except ExportError as error:
        if path != TICKETS:
            raise
        raise ExportError(
            "the bundle has other labels than the tickets of the repository: add --tickets FILE with labelled tickets "
            "on which it must not get worse"
        ) from error


def _read(encoder: Encoder, lexical: LexicalFeatures, texts: Sequence[str], say: Say) -> Floats:
    """What the heads read of texts, with progress."""
    parts = []
    for begin in range(0, len(texts), _CHUNK):
        parts.append(features(encoder, lexical, texts[begin : begin + _CHUNK]))
        say(f"texts: {min(begin + _CHUNK, len(texts))} of {len(texts)} read")
    return np.concatenate(parts)


def _directions(matrix: Floats, sample: Floats) -> Floats:
    """The features in units of their deviation over a sample, each text's vector of length 1: products are cosines."""
    centred = (matrix - sample.mean(0)) / np.maximum(sample.std(0), 1e-3)
    result: Floats = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    return result


def _groups(corrections: Sequence[Correction], scaled: Floats, say: Say) -> list[str]:
    """The group of each correction: texts of one customer, and texts that are almost the same, are held out together.

    Where nearly everything has one customer, as with an anonymous form, only the texts tell.
    """
    by_customer = [min(item.customers) for item in corrections]
    parents = [*range(len(corrections))]

    def root(i: int) -> int:
        while parents[i] != i:
            i = parents[i]
        return i

    customers = Counter(by_customer)
    if max(customers.values()) * FOLDS <= len(corrections) * 2:
        first: dict[str, int] = {}
        for i, item in enumerate(corrections):
            for customer in sorted(item.customers):
                parents[root(i)] = root(first.setdefault(customer, i))
    else:
        say("corrections: most are of one customer, so only similar texts are held out together")
    for begin in range(0, len(scaled), _CHUNK):
        for i, j in np.argwhere(scaled[begin : begin + _CHUNK] @ scaled.T >= _ALIKE).tolist():
            parents[root(begin + i)] = root(j)
    return [str(root(i)) for i in range(len(corrections))]


@dataclass(frozen=True)
class _Plane:
    """Corrections, then anchors, in the plane of the principal axes of their features: fits there take little time.

    points: (texts, axes). offset: (texts, labels), what the head says of them. axes: (features, axes), which turns a
    change of the logits in the plane into one of the head; center: (features,), the features of the plane's origin.
    """

    head: _Head
    points: Floats
    offset: Doubles
    axes: Floats
    center: Floats

    @classmethod
    def of(cls, head: _Head, matrix: Floats) -> _Plane:
        """The plane in which texts vary most; every feature counts in units of its deviation."""
        center, scale = matrix.mean(0), np.maximum(matrix.std(0), 1e-3)
        standard = (matrix - center) / scale
        variances, places = np.linalg.eigh((standard @ standard.T).astype(np.float64))
        kept = np.flatnonzero(variances > 1e-6 * variances[-1])[-_AXES:]
        axes = standard.T @ (places[:, kept] / np.sqrt(variances[kept])).astype(np.float32)
        return cls(head, standard @ axes, head.logits(matrix), axes / scale[:, None], center)

    def change(self, rows: Booleans, target: Doubles) -> Array:
        """The change (axes + 1, labels) of the logits, fitted to some rows; `target` are the corrections' labels.

        On the anchors the head should say what it says.
        """
        wanted = np.concatenate([target, softmax(self.offset[len(target) :])])
        importance = np.where(np.arange(len(wanted)) < len(target), 1.0, _ANCHOR)[rows]
        # A Gaussian prior: at an average text, a logit's change has the deviation _PRIOR before any correction.
        strength = len(self.center) / (2 * _PRIOR**2 * importance.sum())
        return coefficients(
            self.points[rows], wanted[rows], self.offset[rows], strength, importance, iterations=_ITERATIONS
        )

    def held_out(self, folds: Integers, target: Doubles) -> Doubles:
        """What heads that were fitted without its fold say of each correction, (corrections, labels)."""
        result = np.zeros(target.shape)
        for fold in np.unique(folds):
            test = np.flatnonzero(folds == fold)
            rows = np.ones(len(self.points), bool)
            rows[test] = False
            change = self.change(rows, target)
            result[test] = self.offset[test] + self.points[test] @ change[:-1] + change[-1]
        return result

    def moved(self, target: Doubles) -> _Head:
        """The head that all corrections and anchors move."""
        change = self.change(np.ones(len(self.points), bool), target)
        weights = self.axes @ change[:-1]
        bias = change[-1] - self.center @ weights
        old = self.head
        return _Head(old.spec, (old.weights + weights).astype(np.float32), (old.bias + bias).astype(np.float32))


def _move(head: _Head, corrections: _Texts, tickets: _Texts, scaled: Floats, groups: Sequence[str]) -> _Moved:
    """Moves a head, and compares it with what it was. `scaled` are the directions of corrections, then tickets."""
    labels, count = head.spec.labels, len(corrections.accepted)
    decided = [labels.index(accepted[0]) for accepted in corrections.accepted]
    target = np.eye(len(labels))[decided]
    close = _like_a_correction(scaled, decided)
    said = head.logits(tickets.matrix[0::2]).argmax(1)
    # An anchor that is like a correction to another label would hold back what is asked for.
    kept = 2 * np.flatnonzero([{*found} <= {int(i), None} for found, i in zip(close[0::2], said, strict=True)])
    names = [Labelled("", {}, group) for group in groups]
    plane = _Plane.of(head, np.concatenate([corrections.matrix, tickets.matrix[kept]]))
    folds = [folds_of(names, target, _SEED + seed) for seed in range(_REPEATS)]
    numbers = np.random.default_rng(_SEED)
    before = np.tile(plane.offset[:count], (_REPEATS, 1))
    after = np.concatenate([plane.held_out(each, target) for each in folds])
    shuffled = np.concatenate([plane.held_out(each, target[numbers.permutation(count)]) for each in folds])
    decided_again, target_again = [*corrections.accepted] * _REPEATS, np.tile(target, (_REPEATS, 1))
    held_out = _comparison(head, decided_again, decided_again, before, after)
    loss = cross_entropy(after, target_again)
    gained, ahead = cross_entropy(before, target_again) - loss, cross_entropy(shuffled, target_again) - loss
    moved = plane.moved(target)
    apart = _Texts(tickets.matrix[1::2], tickets.accepted[1::2])
    old, new = head.logits(apart.matrix), moved.logits(apart.matrix)
    accepted = [
        [labels[int(i)], *wanted] if i in found and labels[int(i)] not in wanted else wanted
        for wanted, found, i in zip(apart.accepted, close[1::2], new.argmax(1), strict=True)
    ]
    kept_apart = _comparison(head, apart.accepted, accepted, old, new)
    asked_for = sum(len(more) > len(fewer) for more, fewer in zip(accepted, apart.accepted, strict=True))
    refusal = _refusal(held_out, kept_apart, gained, ahead, target, [*groups] * _REPEATS)
    return _Moved(moved, count, held_out, kept_apart, refusal, asked_for)


def _like_a_correction(scaled: Floats, decided: Sequence[int]) -> list[list[int | None]]:
    """For each ticket the labels of the texts most like it, nearest first; None for one that is no correction.

    A convention of the company's changes what is right for a ticket that is like a correction. The texts are the
    corrections and the anchors. `scaled`: see `_move`.
    """
    tickets = scaled[len(decided) :]
    cosines = tickets @ np.concatenate([scaled[: len(decided)], tickets[0::2]]).T
    anchors = np.arange(0, len(tickets), 2)
    cosines[anchors, len(decided) + anchors // 2] = -1  # itself
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :_NEIGHBOURS]
    return [[decided[place] if place < len(decided) else None for place in places] for places in nearest.tolist()]


def _comparison(
    head: _Head, before: Sequence[Sequence[str]], after: Sequence[Sequence[str]], old: Doubles, new: Doubles
) -> _Comparison:
    names = head.spec.labels
    predicted = [names[i] for i in old.argmax(1)], [names[i] for i in new.argmax(1)]
    return _Comparison(names, (before, after), predicted, (head.confidence(old), head.confidence(new)))


def _refusal(
    held_out: _Comparison,
    kept_apart: _Comparison,
    gained: Doubles,
    ahead: Doubles,
    target: Doubles,
    groups: Sequence[str],
) -> str | None:
    """Why a moved head is worse than before; None if it is better.

    `gained` over before, and `ahead` of a head that was fitted to shuffled labels: of each held-out correction, in
    cross-entropy, which tells much more than right or wrong.
    """
    was, now = (held_out.figures(which)["macro_f1"] for which in (0, 1))
    if len(set(groups)) < FOLDS:
        return f"the corrections are of only {len(set(groups))} customers or texts; correct tickets of {FOLDS} or more"
    if now <= was or interval(gained, groups)[0] <= 0:
        return (
            f"on corrections that were held out, the labels do not get clearly better (macro-F1 {was:.3f} before, "
            f"{now:.3f} after); check that similar tickets have the same label, or correct more"
        )
    varied = 1 - float((target.mean(0) ** 2).sum()) >= _VARIED
    if interval(ahead, groups)[0] < _AHEAD if varied else ahead.mean() < 0:
        return (
            "on corrections that were held out, shuffled labels do as well, so that the labels do not follow from the "
            "texts; check that similar tickets have the same label, or correct more"
        )
    fall, what = _largest_fall(held_out, kept_apart)
    if fall > _FALL:
        return (
            f"{what} falls by {100 * fall:.1f} points on other labelled tickets (allowed are {100 * _FALL:.0f}); "
            "confirm tickets whose label is right (tickets correct ID --confirm), and export again"
        )
    return None


def _largest_fall(held_out: _Comparison, others: _Comparison) -> tuple[float, str]:
    """The largest fall on tickets that were not corrected, and of what: the accuracy, or a label's F1.

    A label that the corrections redefine is another one on these tickets; if it takes too many of them, theirs get
    worse.
    """
    falls, redefined = others.falls(), held_out.falls()
    same = [(fall, f"F1 of {label}") for label, fall in falls.items() if -redefined.get(label, 0.0) < _REDEFINED]
    return max([*same, (float(others.right(0).mean() - others.right(1).mean()), "the accuracy")])


def _report(task: Task, moved: _Moved, say: Say) -> None:
    """The table of a task: before and after."""
    others = len(moved.kept_apart.predicted[0])
    for name, counts, comparison in (
        ("held-out corrections", moved.corrections, moved.held_out),
        ("other labelled tickets", others, moved.kept_apart),
    ):
        before, after = comparison.figures(0), comparison.figures(1)
        changes = ", ".join(f"{key.replace('_', ' ')} {before[key]:.3f} -> {after[key]:.3f}" for key in before)
        say(f"{task:9s} {name:22s} {counts:5d}: {changes}")
    old, new = moved.held_out.f1(0), moved.held_out.f1(1)
    wanted = Counter(accepted[0] for accepted in moved.held_out.accepted[0])
    for label, count in wanted.most_common():
        say(f"{task:9s}   F1 of {label:20s} {count // _REPEATS:5d}: {old.get(label, 0):.3f} -> {new.get(label, 0):.3f}")
    fall, label = max((fall, label) for label, fall in moved.kept_apart.falls().items())
    say(
        f"{task:9s}   of the other tickets, {moved.asked_for} are like a correction and get its label; "
        f"the largest fall of F1 is {100 * max(fall, 0):.1f} points ({label})"
    )


def _write(base: Bundle, moved: Mapping[Task, _Moved], folder: Path) -> None:
    """Writes the bundle: the base's files, its manifest, and the moved heads."""
    for name in base.manifest.files:
        shutil.copyfile(base.path(name), folder / name)
    manifest: dict[str, Any] = json.loads((base.folder / MANIFEST).read_bytes())
    for task, found in moved.items():
        file = found.head.spec.file
        with np.load(folder / file, allow_pickle=False) as stored:
            arrays = dict(stored)
        arrays |= {f"{task}.weights": found.head.weights, f"{task}.bias": found.head.bias}
        write_npz(folder / file, arrays)
        manifest["models"][task]["training"] |= {
            "corrections": {
                "base": base.digest,
                "texts": found.corrections,
                "held_out": {"before": found.held_out.figures(0), "after": found.held_out.figures(1)},
                "other_tickets": {"before": found.kept_apart.figures(0), "after": found.kept_apart.figures(1)},
            }
        }
    write_manifest(
        folder,
        name=f"{base.manifest.name.removesuffix('-corrected')}-corrected",
        profile=manifest["profile"],
        models=manifest["models"],
        verification=manifest["verification"],
        languages=base.manifest.languages,
        reference=manifest.get("reference"),
    )
