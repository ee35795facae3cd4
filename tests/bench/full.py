"""The full profile on models of the true size with random weights: `python -m tests.bench.full`.

Its bundles are built once, into .bundles: all summaries are forced to 50 tokens, with 4 beams and greedily. Each figure
is a ratio within one run, interleaved. CTranslate2 is compared with where it is installed (`pip install ctranslate2`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from enrichment import Bundle, Enricher
from enrichment.encoder import Encoder
from enrichment.manifest import AbstractiveSpec
from enrichment.summary.summarizer import Summarizer
from enrichment.text import ticket_text
from tests.bench.__main__ import REPOSITORY, interleaved, say, tickets_of_eighty_tokens
from tests.bench.baseline import SUMMARY, Demo
from tests.bench.baseline import prepare as prepare_models

FORCED = {"min_length": 50}
BUDGET = {4: 15, 1: 18}


def prepare(models: Path) -> dict[int, Path]:
    """The bundles, by their number of beams."""
    folders = {4: REPOSITORY / ".bundles" / "bench-full", 1: REPOSITORY / ".bundles" / "bench-full-greedy"}
    if not (folders[4] / "bundle.json").exists():
        from enrichment.export.compact import Recipe
        from enrichment.export.full import FullRecipe, build

        recipe = FullRecipe(Recipe(str(models)), allow_unpinned=True, generation=FORCED)
        build(recipe, folders[4], lambda line: sys.stderr.write(f"{line}\n") and None)
    if not (folders[1] / "bundle.json").exists():
        shutil.rmtree(folders[1], ignore_errors=True)
        shutil.copytree(folders[4], folders[1], copy_function=os.link)
        manifest = json.loads((folders[4] / "bundle.json").read_text())
        manifest["models"]["summary"]["generation"]["num_beams"] = 1
        (folders[1] / "bundle.json").unlink()
        (folders[1] / "bundle.json").write_text(json.dumps(manifest))
    return folders


def against_torch(folders: dict[int, Path], models: Path, rounds: int) -> None:
    """Tickets per second, all three models, against torch with one ticket at a time."""
    import torch

    torch.set_num_threads(2)
    demo = Demo(models)
    for beams, folder in folders.items():
        enricher = Enricher.open(folder, threads=2)
        batch = tickets_of_eighty_tokens(Encoder.open(Bundle.open(folder)), 10)
        text = ticket_text(batch[0].subject, batch[0].body)[0]
        stages: dict[str, float] = {}
        ours, theirs = interleaved(
            partial(enricher.enrich, batch, observe=partial(_note, stages)),
            partial(demo.enrich, text, beams),
            rounds=rounds,
        )
        ratio = theirs / (ours / 10)
        name = f"full, {beams} beams, tickets per second, against torch one at a time"
        say(name, f"{ratio:.1f} times", f"at least {BUDGET[beams]}", ratio >= BUDGET[beams])
        sys.stdout.write(f"        {ours * 100:.0f} ms a ticket against {theirs * 1000:.0f}; ")
        sys.stdout.write(", ".join(f"{stage} {seconds * 100:.0f}" for stage, seconds in stages.items()) + "\n")


def _note(stages: dict[str, float], stage: str, seconds: float, _tickets: int) -> None:
    stages[stage] = seconds


def against_ctranslate2(folders: dict[int, Path], models: Path, rounds: int) -> None:
    """Summaries alone, of equal lengths and beams."""
    if importlib.util.find_spec("ctranslate2") is None:
        sys.stdout.write("        CTranslate2 is not installed: not compared with\n")
        return
    from tests.bench.peer import translator

    peer = translator(models / SUMMARY, REPOSITORY / ".bundles" / "ctranslate2")
    for beams, folder in folders.items():
        bundle = Bundle.open(folder)
        spec = bundle.manifest.models.summary
        assert isinstance(spec, AbstractiveSpec)
        summarizer = Summarizer.open(bundle, spec, threads=2)
        tickets = tickets_of_eighty_tokens(Encoder.open(bundle), 10)
        texts = [ticket_text(t.subject, t.body)[0] for t in tickets]
        for size in (1, 10):
            batch = texts[:size]
            tokens: list[list[str]] = [[f"t{id_}" for id_ in np.maximum(summarizer.ids(text), 3)] for text in batch]
            options: dict[str, Any] = {
                "beam_size": beams,
                "length_penalty": 2.0,
                "no_repeat_ngram_size": 3,
                "min_decoding_length": 48,
                "max_decoding_length": 48,
                "target_prefix": [["<s>"]] * size,
            }
            ours, theirs = interleaved(
                partial(summarizer.read, batch), partial(peer.translate_batch, tokens, **options), rounds=rounds
            )
            ratio = theirs / ours
            say(
                f"summaries, {beams} beams, batch of {size}, against CTranslate2 int8",
                f"{ratio:.2f} times",
                "over 1",
                ratio > 1,
            )


if __name__ == "__main__":
    place = REPOSITORY / ".bundles" / "baseline"
    place.mkdir(parents=True, exist_ok=True)
    prepare_models(place)
    bundles = prepare(place)
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    against_ctranslate2(bundles, place, turns)
    against_torch(bundles, place, turns)
