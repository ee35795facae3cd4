"""Enriches a folder of tickets with Spark: `spark-submit deploy/engines/spark.py IN OUT --bundle DIR`.

IN is a file, a folder or a prefix (file:, s3:, s3a:) of JSON lines, or of Parquet files with `--input parquet`; OUT is
a folder or prefix. Every row of IN gives one row of OUT. EMR, Glue and Databricks run the same call of mapInArrow:
install this package with its `arrow` extra for the Python workers, and put the bundle on each node (docs/scale.md).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name that every Spark program uses
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

from enrichment import columns


def enrich(
    batches: Iterator[pa.RecordBatch], *, bundle: str, raw: str | None, as_json: bool
) -> Iterator[pa.RecordBatch]:
    """What a Python worker does with its partition. It opens the bundle once, and uses the one core of a Spark task."""
    for batch in batches:
        keep = batch.schema.names if not as_json else [raw] if raw else []
        yield from map(
            as_spark, columns.enrich_batches([batch], bundle, raw=raw, keep=keep, as_json=as_json, threads=1)
        )


def as_spark(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Spark has no lists of fixed size."""
    schema = spark_types(batch.schema)
    arrays = [column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def spark_types(schema: pa.Schema) -> pa.Schema:
    """The schema with lists of any size."""
    return pa.schema(
        field.with_type(pa.list_(field.type.value_type)) if pa.types.is_fixed_size_list(field.type) else field
        for field in schema
    )


def enriched(rows: DataFrame, bundle: str, *, raw: str | None, as_json: bool) -> DataFrame:
    """One row per row: the columns of `rows` and the results, or with `as_json` the enriched ticket."""
    keep = rows.columns if not as_json else [raw] if raw else []
    schema = columns.output_schema(to_arrow_schema(rows.schema), raw=raw, keep=keep, as_json=as_json)
    work = partial(enrich, bundle=bundle, raw=raw, as_json=as_json)
    return rows.mapInArrow(work, from_arrow_schema(spark_types(schema)))


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
    options = parser.parse_args()
    spark = SparkSession.builder.appName("ticket-enrichment").getOrCreate()
    raw, as_json = options.raw, options.output == "jsonl"
    if options.input == "parquet":
        rows = spark.read.parquet(options.source)
    else:
        # Only \n ends a line, as in the library; a line that is not UTF-8 is an error of that line.
        rows, raw = spark.read.text(options.source, lineSep="\n"), "value"
        rows = rows.where(F.col(raw).rlike(r"\S"))
    found = enriched(rows, options.bundle, raw=raw, as_json=as_json)
    if as_json:
        # A row that failed is a line as well: its error, and the raw JSON that caused it.
        failed = F.to_json(F.struct("error", "error_message", *([F.col(raw).alias("raw")] if raw else [])))
        found.select(F.coalesce("enriched", failed).alias("value")).write.text(options.out)
    else:
        found.write.parquet(options.out)


if __name__ == "__main__":
    main()
