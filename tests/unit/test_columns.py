"""enrichment.columns: one row per row in order, the results of Enricher.enrich, and errors in their columns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrichment import Enricher, EnrichmentData, EnrichmentError, TicketInvalid, columns, enriched_json, parse_ticket
from enrichment.enricher import open_once
from events.generator import TicketGenerator

TICKETS = [json.dumps(ticket).encode() for ticket in islice(TicketGenerator(seed=5, start=1_790_000_000), 24)]
BROKEN = [
    *(b"", b"not json", b"[]", b'"\xff"', b"{}", b'{"ticket_id": "T", "subject": "\\ud800"}'),
    *(TICKETS[0][:-1], TICKETS[0].replace(b'"created_at": 1', b'"created_at": -1'), None),
]
EDGES = [
    json.dumps({"ticket_id": "E", "customer_id": "C", "created_at": 1, "subject": subject, "body": body}).encode()
    for subject, body in (
        ("", ""),
        ("Empty body", ""),
        ("", "\N{PILE OF POO}" * 50),
        ("Long", "It fails again. " * 900),
    )
]
CELLS: list[bytes | None] = [*TICKETS, *BROKEN, *EDGES]
TABLE = pa.table({"raw": pa.array(CELLS, pa.binary()), "row": range(len(CELLS))})


def row_of(cell: bytes | None, enricher: Enricher) -> dict[str, Any]:
    """What the columns have to say about one cell, from the library alone."""
    if cell is None:
        return {"error": "schema_violation", "error_message": "the cell is null; a ticket is a JSON object"}
    try:
        ticket = parse_ticket(cell)
    except TicketInvalid as error:
        return {"error": error.code, "error_message": str(error)}
    [result] = enricher.enrich([ticket])
    assert isinstance(result, EnrichmentData)
    fields = {name: getattr(ticket, name) for name in columns.TICKET.names}
    return {**fields, **result.model_dump(), "processed_at": None, "json": enriched_json(ticket, result).decode()}


@pytest.fixture(scope="module")
def expected(enricher: Enricher) -> list[dict[str, Any]]:
    """The library's results, one ticket at a time."""
    return [row_of(cell, enricher) for cell in CELLS]


def check(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Compares rows of a result with the library's."""
    for row in rows:
        wanted = {k: v for k, v in expected[row["row"]].items() if v is not None and k != "json"}
        found = {name: value for name, value in row.items() if value is not None and name != "row"}
        if "error" in found:
            assert (found["error"], found["error_message"] or "") == (wanted["error"], wanted["error_message"])
            continue
        assert isinstance(found.pop("processed_at"), datetime)
        np.testing.assert_array_equal(found.pop("embedding"), np.float32(wanted.pop("embedding")))
        found["scores"] = {task: dict(scores) for task, scores in found["scores"].items()}
        assert found == wanted


def test_each_row_has_the_library_s_result_or_error(bundle: Path, expected: list[dict[str, Any]]) -> None:
    result = columns.enrich(TABLE, bundle, raw="raw", keep=["row"])
    assert result.schema == columns.output_schema(TABLE.schema, raw="raw", keep=["row"])
    assert result.schema.names == ["row", *columns.TICKET.names, *columns.ENRICHMENT.names]
    rows = result.to_pylist()
    assert [row["row"] for row in rows] == list(range(len(CELLS)))
    assert sum(row["error"] is not None for row in rows) == len(BROKEN)
    check(rows, expected)


@given(st.permutations(range(len(CELLS))), st.integers(1, 20), st.booleans())
@settings(max_examples=8)
def test_results_do_not_depend_on_order_or_batches(
    bundle: Path, expected: list[dict[str, Any]], order: list[int], size: int, as_text: bool
) -> None:
    shuffled = TABLE.take(order)
    if as_text:  # what is not UTF-8 cannot be in a text column that Arrow made
        shuffled = shuffled.filter(pa.array([b"\xff" not in (cell or b"") for cell in shuffled["raw"].to_pylist()]))
        shuffled = shuffled.set_column(0, "raw", shuffled["raw"].cast(pa.large_string()))
    found = columns.enrich_batches(shuffled.to_batches(max_chunksize=size), bundle, raw="raw", keep=["row"])
    rows = pa.Table.from_batches(found).to_pylist()
    assert [row["row"] for row in rows] == shuffled["row"].to_pylist()
    check(rows, expected)


def test_same_batch_gives_the_same_bits(bundle: Path, enricher: Enricher) -> None:
    tickets = [parse_ticket(raw) for raw in TICKETS]
    results = [result for result in enricher.enrich(tickets) if isinstance(result, EnrichmentData)]
    table = pa.table({"raw": TICKETS})
    for row, result in zip(columns.enrich(table, bundle, raw="raw").to_pylist(), results, strict=True):
        assert [round(value, 7) for value in row["embedding"]] == result.embedding
        assert {task: dict(scores) for task, scores in row["scores"].items()} == result.scores
    written = columns.enrich(table, bundle, raw="raw", as_json=True)["enriched"].to_pylist()
    for text, ticket, result in zip(written, tickets, results, strict=True):
        time = json.loads(text)["enrichment"]["processed_at"]
        assert text.encode() == enriched_json(ticket, result.model_copy(update={"processed_at": time}))


def test_json_column_is_null_where_there_is_an_error(bundle: Path, expected: list[dict[str, Any]]) -> None:
    result = columns.enrich(TABLE, bundle, raw="raw", as_json=True)
    assert result.schema == columns.JSON
    for found, wanted in zip(result.to_pylist(), expected, strict=True):
        assert (found["enriched"] is None) == ("error" in wanted)
        assert found["error"] == wanted.get("error")
        assert found["error_message"] == wanted.get("error_message")


def test_columns_give_what_raw_json_gives(bundle: Path) -> None:
    tickets = [json.loads(raw) for raw in TICKETS]
    table = pa.Table.from_pylist([{name: ticket.get(name) for name in columns.TICKET.names} for ticket in tickets])
    from_columns = columns.enrich(table, bundle, keep=["ticket_id"])
    from_json = columns.enrich(pa.table({"raw": pa.array(TICKETS)}), bundle, raw="raw")
    names = [name for name in ("ticket_id", *columns.ENRICHMENT.names) if name != "processed_at"]
    assert from_columns.select(names).equals(from_json.select(names))
    assert from_columns["error"].null_count == len(TICKETS)


def test_columns_to_json_keep_every_column(bundle: Path, enricher: Enricher) -> None:
    ticket = json.loads(TICKETS[0]) | {"region": "eu", "seats": 3, "ratio": 0.5}
    [found] = columns.enrich(pa.Table.from_pylist([ticket]), bundle, as_json=True).to_pylist()
    parsed = parse_ticket(json.dumps(ticket))
    [result] = enricher.enrich([parsed])
    assert isinstance(result, EnrichmentData)
    wanted, written = json.loads(enriched_json(parsed, result)), json.loads(found["enriched"])
    wanted["enrichment"]["processed_at"] = written["enrichment"]["processed_at"]
    assert written == wanted


def test_subject_and_body_are_enough(bundle: Path) -> None:
    table = pa.table({"body": ["I cannot log in, my password is refused.", None], "subject": ["Login", None]})
    login, empty = columns.enrich(table, bundle).to_pylist()
    assert (login["intent"], login["error"]) == ("login_issue", None)
    assert (empty["intent"], empty["summary"], set(empty["embedding"])) == ("general_inquiry", "", {0.0})


def test_types_of_a_data_lake_are_read(bundle: Path) -> None:
    time = datetime(2026, 11, 26, 10, 0, 0, 999_999, tzinfo=UTC)
    columns_of = {
        "ticket_id": pa.array(["T"]).dictionary_encode(),
        "customer_id": pa.array(["C"], pa.large_string()),
        "created_at": pa.array([time], pa.timestamp("us", tz="UTC")),
        "subject": pa.array(["Refund"], pa.string_view()),
        "body": pa.array(["Where is my refund?"]).dictionary_encode(),
        "priority": pa.array(["HIGH"]),
        "age": pa.array([float("nan")]),
    }
    for metadata in (
        pa.array([{"source": "web", "tags": ["a"]}]),
        pa.array([[("source", "web")]], pa.map_(pa.string(), pa.string())),
        pa.array(['{"source": "web"}']),
    ):
        table = pa.table({**columns_of, "metadata": metadata})
        [row] = columns.enrich(table, bundle, as_json=True).to_pylist()
        ticket = json.loads(row["enriched"])
        assert (ticket["created_at"], ticket["metadata"]["source"]) == (int(time.timestamp()), "web")
        assert (ticket["priority"], ticket["enrichment"]["urgency_confidence"], ticket["age"]) == ("high", 1.0, None)
    raw = pa.table({"raw": pa.array([TICKETS[0], TICKETS[0]]).dictionary_encode()})
    assert columns.enrich(raw, bundle, raw="raw")["error"].null_count == 2


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ({"created_at": pa.array([-1])}, "created_at: Input should be greater than or equal to 0"),
        ({"customer_id": pa.array([7])}, "customer_id: Input should be a valid string"),
        ({"ticket_id": pa.array([None], pa.string())}, "ticket_id: Input should be a valid string"),
        ({"metadata": pa.array(["{"])}, "metadata: the value cannot be read as JSON's types"),
        ({"metadata": pa.array([[("a", "1"), ("a", "2")]], pa.map_(pa.string(), pa.string()))}, "metadata: the value"),
        ({"subject": pa.array([b"\xff"]).cast(pa.string(), safe=False)}, "subject: the value cannot be read"),
        ({"subject": pa.array([1])}, "subject: Input should be a valid string"),
    ],
)
def test_bad_cell_is_an_error_of_its_row(bundle: Path, column: dict[str, pa.Array], says: str) -> None:
    table = pa.table({"subject": pa.array(["s"]), "body": pa.array(["b"])} | column)
    [row] = columns.enrich(table, bundle).to_pylist()
    assert row["error"] == "schema_violation"
    assert row["error_message"].startswith(says)
    assert row["embedding"] is row["scores"] is row["processed_at"] is None


def test_value_that_json_cannot_hold_is_an_error_of_its_row(bundle: Path) -> None:
    ticket = {"ticket_id": "T", "customer_id": "C", "created_at": 1, "subject": "", "body": ""}
    table = pa.Table.from_pylist([ticket | {"blob": b"\xff\xfe"}, ticket | {"blob": b"fine"}])
    bad, good = columns.enrich(table, bundle, as_json=True).to_pylist()
    assert (bad["enriched"], bad["error"]) == (None, "schema_violation")
    assert "\xff" not in bad["error_message"]
    assert json.loads(good["enriched"])["blob"] == "fine"


class _Fails:
    """An enricher whose models raise for every ticket."""

    def enrich(self, tickets: list[Any]) -> list[EnrichmentError]:
        from enrichment import ModelFailed

        return [ModelFailed("a model raised RuntimeError", ticket_id=ticket.ticket_id) for ticket in tickets]


def test_failed_model_is_an_error_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "open_once", lambda *_, **__: _Fails())
    for as_json in (False, True):
        [row] = columns.enrich(pa.table({"raw": TICKETS[:1]}), "unused", raw="raw", as_json=as_json).to_pylist()
        assert (row["error"], row["error_message"]) == ("model_failed", "a model raised RuntimeError")
        assert all(value is None for name, value in row.items() if not name.startswith("error"))


def test_empty_inputs_have_the_schema(bundle: Path) -> None:
    for data in (TABLE.slice(0, 0), TABLE.schema.empty_table(), pa.RecordBatch.from_pylist([], TABLE.schema)):
        found = columns.enrich(data, bundle, raw="raw")
        assert (type(found), found.num_rows) == (type(data), 0)
        assert found.schema == columns.output_schema(TABLE.schema, raw="raw")
    assert list(columns.enrich_batches([], bundle)) == []


def test_record_batch_in_record_batch_out(bundle: Path) -> None:
    [batch] = pa.table({"raw": TICKETS[:3] * 100}).to_batches()  # more than one part
    found = columns.enrich(batch, bundle, raw="raw")
    assert isinstance(found, pa.RecordBatch)
    assert found.column("ticket_id").to_pylist() == [json.loads(raw)["ticket_id"] for raw in TICKETS[:3]] * 100


@pytest.mark.parametrize(
    ("table", "options", "says"),
    [
        ({"text": ["x"]}, {}, "there is no column subject among text; name the column of raw JSON with `raw`"),
        ({"text": ["x"]}, {"raw": "value"}, "there is no column value among text; rename it"),
        ({"text": [1]}, {"raw": "text"}, "the column text has the type int64; raw JSON is a string or binary"),
        ({"text": ["x"], "error": ["x"]}, {"raw": "text", "keep": ["error"]}, "the kept columns error have names of"),
    ],
)
def test_columns_that_do_not_fit_are_refused(table: dict[str, Any], options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        columns.enrich(pa.table(table), "unused", **options)


def test_bundle_is_opened_once_per_process(bundle: Path) -> None:
    first = open_once(bundle, threads=1)
    assert open_once(str(bundle), threads=1) is first
    assert open_once(bundle.parent / "." / bundle.name, threads=1) is first
    assert open_once(bundle, threads=2) is not first


def test_child_of_a_fork_opens_its_own(bundle: Path) -> None:
    script = (
        "import os, sys, pyarrow as pa\n"
        "from enrichment import columns\n"
        "table = pa.table({'subject': ['Login'] * 40, 'body': ['My password is refused.'] * 40})\n"
        "columns.enrich(table, sys.argv[1], threads=2)\n"  # has threads, which a fork does not copy
        "child = os.fork()\n"
        "if not child:\n"
        "    os._exit(len(set(columns.enrich(table, sys.argv[1], threads=2)['intent'].to_pylist())))\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(bundle)], timeout=120, check=False, env=os.environ)
    assert done.returncode == 1


@given(st.floats(-1, 1, allow_subnormal=False))
def test_float32_loses_no_digit_of_an_embedding(value: float) -> None:
    digits = round(value, 7)
    assert round(float(np.float32(digits)), 7) == digits


def test_library_does_not_import_pyarrow() -> None:
    script = "import enrichment.__main__, sys; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
