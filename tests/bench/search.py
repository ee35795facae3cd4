"""Search among 100,000 vectors in SQLite: `python -m tests.bench.search (build|query) BUNDLE FOLDER`.

`build` makes the vectors, the index and the exact answers; `query` measures in a process that has never held them.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from enrichment import Bundle
from enrichment.encoder import Encoder
from handler.tickets.search.duplicates import duplicates
from handler.tickets.search.index import Entry, Key
from handler.tickets.search.query import QueryEncoder
from handler.tickets.search.sqlite import SqliteIndex
from tests.bench.memory import peak_mb
from tests.support.vectors import around, embed, exact_nearest, labelled_texts

TICKETS, NEAREST, PART = 100_000, 10, 5000


def build(bundle: Path, folder: Path) -> dict[str, float]:
    """Writes the index and the queries with their answers."""
    opened = Bundle.open(bundle)
    encoder, texts = Encoder.open(opened), labelled_texts(4)
    vectors = around(embed(encoder, [text for _, text in texts]), TICKETS)
    words = [words for words, _ in texts[::3]]
    queries = np.concatenate([embed(encoder, words), vectors[:: TICKETS // 200]])
    answers = [sorted(rows) for rows in exact_nearest(queries, vectors, NEAREST)]
    index, model = SqliteIndex(folder / "index.sqlite"), opened.manifest.embedding_model
    begin = time.perf_counter()
    for start in range(0, TICKETS, PART):
        rows = range(start, start + PART)
        index.put([Entry(Key(str(row), row), "v1", model, vectors[row].tolist()) for row in rows])
    seconds = time.perf_counter() - begin
    np.save(folder / "queries.npy", queries)
    (folder / "queries.json").write_text(json.dumps({"words": words, "answers": answers}))
    begin = time.perf_counter()
    groups = duplicates(vectors, 0.95)
    return {"build": seconds, "duplicates": time.perf_counter() - begin, "groups": len(groups)}


def query(bundle: Path, folder: Path) -> dict[str, float]:
    """Recall, CPU and elapsed milliseconds per query with the encoding of the words, and the process's memory in MB."""
    encoder, index = QueryEncoder(Bundle.open(bundle)), SqliteIndex(folder / "index.sqlite")
    stored = json.loads((folder / "queries.json").read_text())
    vectors, words, answers = np.load(folder / "queries.npy").tolist(), stored["words"], stored["answers"]
    seconds, elapsed, shared = [], [], []
    for number, (vector, answer) in enumerate(zip(vectors, answers, strict=True)):
        begin, wall = time.process_time(), time.perf_counter()
        asked = encoder.vector(words[number]) if number < len(words) else vector
        found = index.nearest(encoder.model, asked, NEAREST)
        seconds.append(time.process_time() - begin)
        elapsed.append(time.perf_counter() - wall)
        shared.append(len({one.key.created_at for one in found} & set(answer)) / NEAREST)
    return {
        "recall_words": statistics.mean(shared[: len(words)]),
        "recall_tickets": statistics.mean(shared[len(words) :]),
        "milliseconds": 1000 * statistics.median(seconds),
        "elapsed_milliseconds": 1000 * statistics.median(elapsed),
        "peak_mb": peak_mb(),
    }


if __name__ == "__main__":
    work = {"build": build, "query": query}[sys.argv[1]]
    sys.stdout.write(json.dumps(work(Path(sys.argv[2]), Path(sys.argv[3]))) + "\n")
