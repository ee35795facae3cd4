"""The library as a function of Arrow tables, for engines that hold millions of tickets.

    from enrichment import columns

    columns.enrich(table, "path/to/bundle", keep=["ticket_id"])  # from the columns subject and body
    columns.enrich(table, "path/to/bundle", raw="value")         # from a column of raw JSON

One output row per input row, in order. A row that cannot be enriched has nulls, and says why in `error` (the library's
code, `EnrichmentError.code`) and `error_message`. The results are those of `Enricher.enrich`, whatever the size of the
batches. The bundle is opened once per process. Needs pyarrow (the `arrow` extra); `enrichment` itself does not import
this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pydantic_core

from enrichment.classify import TASKS
from enrichment.enricher import Enricher, open_once
from enrichment.errors import EnrichmentError, TicketInvalid
from enrichment.ticket import EnrichmentData, RawTicket, enriched_json, parse_ticket, ticket_from_object

__all__ = [
    "DIMENSIONS",
    "ENRICHMENT",
    "JSON",
    "TICKET",
    "enrich",
    "enrich_batches",
    "output_schema",
]

DIMENSIONS: Final = 384
"""Numbers of an embedding."""

_ERRORS: Final = (pa.field("error", pa.string()), pa.field("error_message", pa.string()))

TICKET: Final = pa.schema(
    [
        ("ticket_id", pa.string()),
        ("customer_id", pa.string()),
        ("created_at", pa.int64()),
        ("subject", pa.string()),
        ("body", pa.string()),
        ("priority", pa.string()),
    ]
)
"""What is read from raw JSON: the ticket's fields, null where `error` is set; `created_at` in Unix seconds."""

ENRICHMENT: Final = pa.schema(
    [
        ("embedding", pa.list_(pa.float32(), DIMENSIONS)),
        *(
            (f"{task}{suffix}", kind)
            for task in TASKS
            for suffix, kind in (("", pa.string()), ("_confidence", pa.float64()))
        ),
        # Maps and not structs: the labels are the bundle's, and the schema is the same for all bundles.
        ("scores", pa.struct([(task, pa.map_(pa.string(), pa.float64())) for task in TASKS])),
        ("summary", pa.string()),
        ("language", pa.string()),
        ("needs_review", pa.bool_()),
        ("review_reasons", pa.list_(pa.string())),
        ("truncated", pa.list_(pa.string())),
        ("processed_at", pa.timestamp("us", tz="UTC")),
        ("model_version", pa.string()),
        ("embedding_model", pa.string()),
        ("schema_version", pa.int32()),
        *_ERRORS,
    ]
)
"""The fields of `EnrichmentData`, and the error. Rounded to 7 digits, an embedding is exactly that of the library."""

JSON: Final = pa.schema([("enriched", pa.string()), *_ERRORS])
"""With `as_json`: the enriched ticket as `enriched_json` writes it, and the error."""

_ROWS: Final = 256  # enriched at a time: enough to fill micro-batches, few enough for the memory of one core
_PLACEHOLDERS: Final[Mapping[str, Any]] = {"ticket_id": "-", "customer_id": "-", "created_at": 0}


def enrich(
    data: pa.Table | pa.RecordBatch,
    bundle: Path | str | Enricher,
    *,
    raw: str | None = None,
    keep: Sequence[str] = (),
    as_json: bool = False,
    threads: int | None = None,
) -> Any:
    """A table or record batch, like `data`, with one row per row of `data` and the columns of `output_schema`.

    `raw` names a column of raw JSON (string or binary). Without it, the columns with the names of a ticket's fields are
    read: `subject` and `body`, and if they exist `ticket_id`, `customer_id`, `created_at` (integer or timestamp),
    `priority` and `metadata` (struct, map or JSON); a ticket may lack all but the first two. `keep` names input columns
    of the result. `bundle` is a folder, or an enricher. `threads` as in `Enricher.open`: engines with one process per
    core pass 1.

    Raises ValueError if the columns do not fit, and BundleError; never for a bad row.
    """
    schema = output_schema(data.schema, raw=raw, keep=keep, as_json=as_json)
    batches = data.to_batches() if isinstance(data, pa.Table) else [data]
    found = list(enrich_batches(batches, bundle, raw=raw, keep=keep, as_json=as_json, threads=threads))
    table = pa.Table.from_batches(found, schema)
    if isinstance(data, pa.Table):
        return table
    return pa.RecordBatch.from_arrays([_whole(column) for column in table.columns], schema=schema)


def enrich_batches(
    batches: Iterable[pa.RecordBatch],
    bundle: Path | str | Enricher,
    *,
    raw: str | None = None,
    keep: Sequence[str] = (),
    as_json: bool = False,
    threads: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """The same for a stream of record batches, as Spark's mapInArrow passes it; large ones are returned in parts."""
    for batch in batches:
        schema = output_schema(batch.schema, raw=raw, keep=keep, as_json=as_json)
        opened = bundle if isinstance(bundle, Enricher) else open_once(bundle, threads=threads)
        for begin in range(0, max(batch.num_rows, 1), _ROWS):
            part = batch.slice(begin, _ROWS)
            columns = [*(part.column(name) for name in keep), *_enriched(part, opened, raw, as_json=as_json)]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def output_schema(
    schema: pa.Schema, *, raw: str | None = None, keep: Sequence[str] = (), as_json: bool = False
) -> pa.Schema:
    """The schema of a result: the kept columns, then `JSON`, `ENRICHMENT`, or with `raw` `TICKET` and `ENRICHMENT`.

    Raises ValueError if a column does not exist, has the wrong type, or has the name of a result.
    """
    for name in (*([raw] if raw is not None else ("subject", "body")), *keep):
        count = len(schema.get_all_field_indices(name))
        if count != 1:
            number = "no column" if not count else f"{count} columns"
            remedy = "name the column of raw JSON with `raw`, or rename the columns" if raw is None else "rename it"
            raise ValueError(f"there is {number} {name} among {', '.join(schema.names)}; {remedy}")
    if raw is not None and not _is_text(schema.field(raw).type):
        raise ValueError(f"the column {raw} has the type {schema.field(raw).type}; raw JSON is a string or binary")
    results = [*JSON] if as_json else [*ENRICHMENT] if raw is None else [*TICKET, *ENRICHMENT]
    if clash := sorted({*keep} & {field.name for field in results}):
        raise ValueError(f"the kept columns {', '.join(clash)} have names of results; rename them, or do not keep them")
    return pa.schema([*(schema.field(name) for name in keep), *results])


def _enriched(batch: pa.RecordBatch, opened: Enricher, raw: str | None, *, as_json: bool) -> list[pa.Array]:
    """The result columns of a batch."""
    rows = [*_from_json(batch.column(raw))] if raw is not None else [*_from_columns(batch, complete=as_json)]
    good = [row for row in rows if isinstance(row, RawTicket)]
    enriched = iter(opened.enrich(good))
    results = [next(enriched) if isinstance(row, RawTicket) else row for row in rows]
    if as_json:
        return _json_columns(rows, results)
    ticket = [] if raw is None else [*map(_ticket_column(rows, results), TICKET)]
    return [*ticket, *_enrichment_columns(results)]


# -- rows to tickets ---------------------------------------------------------------------------------------------------


def _from_json(column: pa.Array) -> Iterator[RawTicket | TicketInvalid]:
    # As bytes: a string column of Spark may hold anything, and the library reports what is not UTF-8.
    for cell in _whole(column).cast(pa.large_binary()):
        if not cell.is_valid:
            yield TicketInvalid("the cell is null; a ticket is a JSON object")
            continue
        try:
            yield parse_ticket(cell.as_py())
        except TicketInvalid as error:
            yield error


def _from_columns(batch: pa.RecordBatch, *, complete: bool) -> Iterator[RawTicket | TicketInvalid]:
    """Tickets of rows: with all columns and no placeholders if the tickets are to be `complete`."""
    columns = {
        name: _unix_seconds(column) if name == "created_at" else column
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
        if complete or name in RawTicket.model_fields
    }
    absent = {} if complete else {name: value for name, value in _PLACEHOLDERS.items() if name not in columns}
    for index in range(batch.num_rows):
        try:
            cells = {name: _value(name, column[index]) for name, column in columns.items()}
            yield ticket_from_object(cells | absent)
        except TicketInvalid as error:
            yield error


def _value(name: str, cell: pa.Scalar) -> Any:
    """A cell as JSON would hold it. Raises TicketInvalid, which names the column only if it is a ticket's field."""
    try:
        value = cell.as_py(maps_as_pydicts="strict")
        if name == "metadata" and isinstance(value, str | bytes):
            return pydantic_core.from_json(value, allow_inf_nan=False)
    except (ValueError, KeyError, OverflowError):  # not UTF-8, not JSON; a key twice; a time beyond Python's range
        column = name if name in RawTicket.model_fields else "a column"
        raise TicketInvalid(f"{column}: the value cannot be read as JSON's types") from None
    # pandas writes NaN where a number is missing.
    return None if isinstance(value, float) and math.isnan(value) else value


def _unix_seconds(column: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("s", tz=column.type.tz), safe=False).cast(pa.int64())
    return column


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(
        test(kind)
        for test in (
            *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
            *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
        )
    )


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as one plain array."""
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


# -- results to columns ------------------------------------------------------------------------------------------------

_Result = EnrichmentData | EnrichmentError


def _json_columns(rows: Sequence[RawTicket | EnrichmentError], results: Sequence[_Result]) -> list[pa.Array]:
    texts: list[str | None] = []
    errors: list[EnrichmentError | None] = []
    for row, result in zip(rows, results, strict=True):
        text, error = None, result if isinstance(result, EnrichmentError) else None
        if isinstance(row, RawTicket) and isinstance(result, EnrichmentData):
            try:
                text = enriched_json(row, result).decode()
            except ValueError:  # of pydantic's serializer, which may quote the value
                error = TicketInvalid("a value of the row cannot be written as JSON", ticket_id=row.ticket_id)
        texts.append(text)
        errors.append(error)
    return [pa.array(texts, pa.string()), *_error_columns(errors)]


def _ticket_column(rows: Sequence[RawTicket | EnrichmentError], results: Sequence[_Result]) -> Any:
    def column(field: pa.Field) -> pa.Array:
        cells = (
            getattr(row, field.name) if isinstance(row, RawTicket) and isinstance(result, EnrichmentData) else None
            for row, result in zip(rows, results, strict=True)
        )
        return pa.array(cells, field.type)

    return column


def _enrichment_columns(results: Sequence[_Result]) -> list[pa.Array]:
    found = [result if isinstance(result, EnrichmentData) else None for result in results]
    columns = []
    for field in ENRICHMENT:
        match field.name:
            case "embedding":
                columns.append(_embeddings(found, field.type))
            case "scores":
                scores = (r and {task: [*r.scores[task].items()] for task in TASKS} for r in found)
                columns.append(pa.array(scores, field.type))
            case "processed_at":
                times = (r and datetime.fromisoformat(r.processed_at) for r in found)
                columns.append(pa.array(times, field.type))
            case "error" | "error_message":
                pass
            case name:
                columns.append(pa.array((r and getattr(r, name) for r in found), field.type))
    return [*columns, *_error_columns([r if isinstance(r, EnrichmentError) else None for r in results])]


def _embeddings(found: Sequence[EnrichmentData | None], kind: pa.DataType) -> pa.Array:
    nothing = [0.0] * DIMENSIONS
    values = np.array([r.embedding if r else nothing for r in found], np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values), type=kind, mask=pa.array([r is None for r in found], pa.bool_())
    )


def _error_columns(errors: Sequence[EnrichmentError | None]) -> list[pa.Array]:
    codes = (error.code if error else None for error in errors)
    messages = (str(error) if error else None for error in errors)
    return [pa.array(codes, pa.string()), pa.array(messages, pa.string())]
