"""How well corrections teach a company's own convention, on public tickets by authors who corrected nothing.

    python -m tests.bench.corrections tickets_public.jsonl .bundles/compact

Each convention gives all tickets that a pattern finds one label. Half of the authors correct: 300 tickets that they
reviewed, or only those whose label was wrong, or the reviewed ones with shuffled labels. The tickets of the other
authors are the measure: F1 of the convention's label before and after, and the largest fall of another label that at
least ten of them have. The bundle was trained on these tickets, with their usual labels, so that `before` is better
than it would be for new ones.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from enrichment import Bundle
from enrichment.classify import Task
from enrichment.encoder import Encoder, Floats
from enrichment.export.corpus import TAXONOMY, TICKETS, Labelled, Taxonomy, read_labelled
from enrichment.export.corrections import _comparison, _directions, _Head, _heads, _move, _Texts
from enrichment.export.heads import features, one_thread
from enrichment.features import LexicalFeatures

REVIEWED: Final = 300
COMMON: Final = 10  # tickets of a label whose fall is shown


@dataclass(frozen=True)
class Convention:
    """All tickets that the pattern finds have this label of the task."""

    name: str
    task: Task
    pattern: str
    label: str


CONVENTIONS: Final = (
    Convention("money is critical", "urgency", r"refund|charge|invoice|payment|billing|paid", "critical"),
    Convention("login is critical", "urgency", r"log ?in|password|locked|sign in|access", "critical"),
    Convention("refunds are questions", "intent", r"refund|money back|charged twice|double charge", "general_inquiry"),
    Convention("passwords are accounts", "intent", r"password|reset link|2fa|verification code", "account_management"),
    Convention(
        "deliveries are data",
        "intent",
        r"deliver|shipp|tracking|parcel|package|courier|order status|where is my order|order (number|#)",
        "data_request",
    ),
    Convention("leaving is negative", "sentiment", r"cancel|refund|unsubscribe|close my account", "NEGATIVE"),
)


@dataclass(frozen=True)
class Material:
    """The public tickets and the repository's own, with what the heads read of them."""

    public: Sequence[Labelled]
    own: Sequence[Labelled]
    matrix: Floats
    own_matrix: Floats

    @classmethod
    def read(cls, file: Path, bundle: Bundle) -> Material:
        """Runs the encoder over all texts."""
        taxonomy = Taxonomy.read(TAXONOMY)
        public, own = read_labelled(file, taxonomy), read_labelled(TICKETS, taxonomy)
        encoder = Encoder.open(bundle)
        lexical = LexicalFeatures.from_file(bundle.path(bundle.manifest.models.features))
        matrices = [features(encoder, lexical, [item.text for item in items]) for items in (public, own)]
        return cls(public, own, *matrices)


def measure(convention: Convention, head: _Head, material: Material, kind: str) -> str:
    """A row of the table."""
    pattern, public, labels = re.compile(convention.pattern, re.IGNORECASE), material.public, head.spec.labels
    said = [labels[i] for i in head.logits(material.matrix).argmax(1)]
    wanted = [[convention.label] if pattern.search(item.text) else item.labels[convention.task] for item in public]
    authors = np.random.default_rng(0).permutation(sorted({str(item.author) for item in public}))
    correcting = set(authors[: len(authors) // 2].tolist())
    chosen = [i for i, item in enumerate(public) if item.author in correcting]
    unseen = [i for i, item in enumerate(public) if item.author not in correcting]
    if kind == "only wrong":
        chosen = [i for i in chosen if said[i] not in wanted[i]]
    chosen = chosen[:REVIEWED]
    decided = [[said[i]] if said[i] in wanted[i] else [wanted[i][0]] for i in chosen]
    changed = sum(said[i] not in wanted[i] for i in chosen)
    if kind == "shuffled":
        decided = [decided[i] for i in np.random.default_rng(1).permutation(len(decided))]
    moved = _move(
        head,
        _Texts(material.matrix[chosen], decided),
        _Texts(material.own_matrix, [item.labels[convention.task] for item in material.own]),
        _directions(np.concatenate([material.matrix[chosen], material.own_matrix]), material.own_matrix),
        [str(public[i].author) for i in chosen],
    )
    accepted = [wanted[i] for i in unseen]
    outputs = [one.logits(material.matrix[unseen]) for one in (head, moved.head)]
    found = _comparison(head, accepted, accepted, *outputs)
    common = {label for label in labels if sum(labels_[0] == label for labels_ in accepted) >= COMMON}
    fall, other = max((fall, name) for name, fall in found.falls().items() if name in common - {convention.label})
    before, after = found.f1(0)[convention.label], found.f1(1)[convention.label]
    return (
        f"{convention.name:24s} {kind:10s} {len(chosen):4d} {changed:4d}  "
        f"{before:.3f} -> {after:.3f} ({100 * (after - before):+.1f})  {-100 * fall:+.1f} {other:20s} "
        f"{moved.refusal or 'accepted'}"
    )


def main(file: Path, folder: Path) -> None:
    """Measures all conventions."""
    bundle = Bundle.open(folder)
    material, heads = Material.read(file, bundle), _heads(bundle)
    say = sys.stdout.write
    say("convention, corrections, of them wrong before; F1 of its label; the worst other; what the command does\n")
    for kind in ("reviewed", "only wrong", "shuffled"):
        for convention in CONVENTIONS:
            with one_thread():
                say(f"{measure(convention, heads[convention.task], material, kind)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
