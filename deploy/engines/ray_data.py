"""Enriches a folder of tickets with Ray Data: `python deploy/engines/ray_data.py IN OUT --bundle DIR`.

IN is a file, a folder or an s3:// prefix of JSON lines, or of Parquet files with `--input parquet`; OUT is a folder or
an s3:// prefix. Every row of IN gives one row of OUT. `ray job submit` runs the same file on a cluster, where each node
needs this package with its `arrow` extra, and the bundle's folder (docs/scale.md).
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import pyarrow as pa
import ray
from ray.data.block import BlockAccessor
from ray.data.datasource import BlockBasedFileDatasink

from enrichment import columns
from enrichment.enricher import Enricher

# Shares of a core, by which Ray places tasks: beside all actors of a node with two cores there must be room for what
# reads and writes, and a whole core for Ray's own listing of Parquet files. Otherwise they would wait for each other.
ACTOR = {"num_cpus": 0.4, "scheduling_strategy": "SPREAD"}
BESIDE = {"num_cpus": 0.1}
ROWS = 128  # per call: enough to fill micro-batches, and little work to repeat if a process dies


class Enrich:
    """An actor: one process with one core, which opens the bundle once."""

    def __init__(self, bundle: str, raw: str | None, *, as_json: bool) -> None:
        self._enricher = Enricher.open(bundle, threads=1)
        self._raw = raw
        self._as_json = as_json

    def __call__(self, table: pa.Table) -> pa.Table:
        """The columns of the table and the results, or with `as_json` the enriched tickets."""
        keep = table.schema.names if not self._as_json else [self._raw] if self._raw else []
        return columns.enrich(table, self._enricher, raw=self._raw, keep=keep, as_json=self._as_json)


def lines_as_bytes(table: pa.Table) -> pa.Table:
    """The column `text` of read_text as the bytes of the file."""
    cells = [text.encode("latin-1") for text in table["text"].to_pylist()]
    return pa.table({"raw": pa.array([cell for cell in cells if cell.strip()], pa.binary())})


def enriched(rows: ray.data.Dataset, bundle: str, *, raw: str | None, as_json: bool, actors: int) -> ray.data.Dataset:
    """One row per row. `actors`: processes, each of which takes one core; one that dies is replaced by Ray."""
    return rows.map_batches(
        Enrich,
        fn_constructor_args=(bundle, raw),
        fn_constructor_kwargs={"as_json": as_json},
        batch_format="pyarrow",
        batch_size=ROWS,
        **ACTOR,
        compute=ray.data.ActorPoolStrategy(size=actors),
    )


class Lines(BlockBasedFileDatasink):
    """One line per row, as the library writes it: write_json would write its numbers anew.

    A row that failed is a line as well: its error, and the raw JSON that caused it.
    """

    def __init__(self, path: str, raw: str | None) -> None:
        super().__init__(path, file_format="jsonl")
        self._raw = raw

    def write_block_to_file(self, block: BlockAccessor, file: pa.NativeFile) -> None:
        """Write a block to its file."""
        for row in block.to_arrow().to_pylist():
            line = row["enriched"] if row["error"] is None else json.dumps(self._failed(row))
            file.write(line.encode() + b"\n")

    def _failed(self, row: dict[str, Any]) -> dict[str, str]:
        failed = {"error": row["error"], "error_message": row["error_message"]}
        if self._raw and (raw := row[self._raw]) is not None:
            failed["raw"] = raw.decode(errors="replace") if isinstance(raw, bytes) else raw
        return failed


def main() -> None:
    """Read, enrich, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN")
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("--bundle", required=True, metavar="DIR", help="folder of the model bundle on each node")
    parser.add_argument("--input", choices=("jsonl", "parquet"), default="jsonl", help="default: %(default)s")
    parser.add_argument("--output", choices=("jsonl", "parquet"), default="parquet", help="default: %(default)s")
    parser.add_argument(
        "--raw", metavar="COLUMN", help="column of raw JSON in Parquet (default: subject, body and others)"
    )
    parser.add_argument("--actors", type=int, metavar="N", help="processes (default: all cores of the cluster)")
    options = parser.parse_args()
    ray.init()
    raw, as_json = options.raw, options.output == "jsonl"
    if options.input == "parquet":
        rows = ray.data.read_parquet(options.source, **BESIDE)
    else:
        # Latin-1 gives every byte a character, so that a line that is not UTF-8 is an error of that line only.
        rows, raw = ray.data.read_text(options.source, encoding="latin-1", **BESIDE), "raw"
        rows = rows.map_batches(lines_as_bytes, batch_format="pyarrow", **BESIDE)
    actors = options.actors or int(ray.cluster_resources()["CPU"])
    found = enriched(rows, options.bundle, raw=raw, as_json=as_json, actors=actors)
    if as_json:
        found.write_datasink(Lines(options.out, raw), ray_remote_args=BESIDE)
    else:
        found.write_parquet(options.out, ray_remote_args=BESIDE)


if __name__ == "__main__":
    main()
