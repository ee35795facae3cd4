"""Exports of the selected tickets: CSV, JSON lines and Parquet, from the table; without text and embedding.

CSV and JSON lines are written while the table is read. A Parquet file is written to a temporary file first.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import IO, Any, Final

from handler.cli.output import moment
from handler.tickets.repository import Item, RepositoryError

__all__ = ["FORMATS", "csv_lines", "json_lines", "parquet_file"]

_AT_ONCE: Final = 500  # tickets per piece
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_FIELDS: Final[dict[str, Callable[[Item], Any]]] = {
    "ticket_id": lambda item: item.ticket_id,
    "created_at": lambda item: moment(item.created_at),
    "customer_id": lambda item: item.customer_id,
    "subject": lambda item: item.subject,
    "intent": lambda item: item.intent,
    "intent_confidence": lambda item: item.intent_confidence,
    "urgency": lambda item: item.urgency,
    "urgency_confidence": lambda item: item.urgency_confidence,
    "sentiment": lambda item: item.sentiment,
    "sentiment_confidence": lambda item: item.sentiment_confidence,
    "needs_review": lambda item: item.needs_review,
    "review_reasons": lambda item: list(item.review_reasons),
    "corrected": lambda item: sorted(item.corrections),
    "language": lambda item: item.language,
    "summary": lambda item: item.summary,
    "processed_at": lambda item: item.processed_at,
    "model_version": lambda item: item.model_version,
}


def csv_lines(items: Iterable[Item]) -> Iterator[bytes]:
    """The tickets as CSV (RFC 4180, UTF-8 with a byte order mark, which spreadsheets need), in pieces."""
    yield b"\xef\xbb\xbf" + _csv([list(_FIELDS)])
    for part in _parts(items):
        yield _csv([_cell(read(item)) for read in _FIELDS.values()] for item in part)


def json_lines(items: Iterable[Item]) -> Iterator[bytes]:
    """The tickets as JSON, one per line, in pieces."""
    for part in _parts(items):
        yield "".join(json.dumps(_record(item), ensure_ascii=False) + "\n" for item in part).encode()


def parquet_file(items: Iterable[Item]) -> IO[bytes]:
    """The tickets as a Parquet file, open at its beginning. Raises RepositoryError without the extra `arrow`."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise RepositoryError("Parquet needs pyarrow: pip install 'ticket-enrichment[arrow]'") from error
    texts, numbers, lists = pa.string(), pa.float64(), pa.list_(pa.string())
    types = {
        "needs_review": pa.bool_(),
        "review_reasons": lists,
        "corrected": lists,
        "created_at": pa.timestamp("s", "UTC"),
        **{name: numbers for name in _FIELDS if name.endswith("_confidence")},
    }
    schema = pa.schema([(name, types.get(name, texts)) for name in _FIELDS])
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the response closes it
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for part in _parts(items):
            records = [_record(item) | {"created_at": item.created_at} for item in part]
            writer.write_table(pa.Table.from_pylist(records, schema))
    file.seek(0)
    return file


FORMATS: Final = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/jsonl",
    "parquet": "application/vnd.apache.parquet",
}


def _record(item: Item) -> dict[str, Any]:
    return {name: read(item) for name, read in _FIELDS.items()}


def _parts(items: Iterable[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    while part := list(islice(rest, _AT_ONCE)):
        yield part


def _csv(rows: Iterable[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> Any:
    """A value for a spreadsheet: a text that would be a formula there gets an apostrophe."""
    if isinstance(value, list):
        value = ";".join(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
