"""2,000 tickets, of which 40 are broken, as JSON lines and Parquet, and what the library says of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from enrichment import Enricher, EnrichmentData, TicketInvalid, parse_ticket
from events.generator import TicketGenerator

COUNT = 2000
BROKEN = [b"not json", b"{}", b'"\xff"', b"[1]", b'{"ticket_id": "T", "subject": "\\ud800"}']
FILES = 8  # partitions


@dataclass(frozen=True)
class Tickets:
    """Folders with the same tickets."""

    lines: Path
    parquet: Path
    raw: list[bytes]


@pytest.fixture(scope="session")
def tickets(tmp_path_factory: pytest.TempPathFactory) -> Tickets:
    """Eight files, and one without a ticket; every 50th line is broken."""
    made = [
        json.dumps(ticket | {"body": ticket["body"][:80]}).encode()
        for ticket in islice(TicketGenerator(seed=21, start=1_790_000_000), COUNT)
    ]
    for place, index in enumerate(range(7, COUNT, 50)):
        made[index] = BROKEN[place % len(BROKEN)]
    folder = tmp_path_factory.mktemp("tickets")
    lines, parquet = folder / "lines", folder / "parquet"
    lines.mkdir()
    parquet.mkdir()
    for number in range(FILES):
        part = made[number::FILES]
        (lines / f"{number}.jsonl").write_bytes(b"\n".join(part) + b"\n\n")
        table = pa.table({"raw": pa.array(part, pa.binary()), "row": range(number, COUNT, FILES)})
        pq.write_table(table, parquet / f"{number}.parquet")
    (lines / "empty.jsonl").write_bytes(b"")
    pq.write_table(table.slice(0, 0), parquet / "empty.parquet")
    return Tickets(lines, parquet, made)


@pytest.fixture(scope="session")
def expected(tickets: Tickets, enricher: Enricher) -> Callable[[bytes], dict[str, Any]]:
    """What the library says of one ticket: its fields and its enrichment without its time, or its error."""
    parsed: dict[bytes, Any] = {}
    for raw in tickets.raw:
        try:
            parsed[raw] = parse_ticket(raw)
        except TicketInvalid as error:
            parsed[raw] = {"error": error.code, "error_message": str(error)}
    good = {raw: ticket for raw, ticket in parsed.items() if not isinstance(ticket, dict)}
    for raw, result in zip(good, enricher.enrich(list(good.values())), strict=True):
        assert isinstance(result, EnrichmentData)
        parsed[raw] = result.model_dump()
    return parsed.__getitem__


def check_enrichment(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compares an enrichment with the library's."""
    np.testing.assert_array_equal(np.float32(found["embedding"]), np.float32(wanted["embedding"]))
    for name in ("intent", "urgency", "sentiment", "summary", "language", "needs_review", "model_version"):
        assert found[name] == wanted[name]
    assert {task: dict(each) for task, each in found["scores"].items()} == wanted["scores"]


def check_lines(folder: Path, tickets: Tickets, expected: Callable[[bytes], dict[str, Any]]) -> None:
    """Every ticket has exactly one line."""
    rows = [
        json.loads(line)
        for file in sorted(folder.iterdir())
        if file.suffix != ".crc"
        for line in file.read_bytes().splitlines()
    ]
    assert len(rows) == COUNT
    good = {json.loads(raw)["ticket_id"]: raw for raw in tickets.raw if raw not in BROKEN}
    written = [row for row in rows if "error" not in row]
    assert sorted(row["ticket_id"] for row in written) == sorted(good)
    for row in written:
        raw = json.loads(good[row["ticket_id"]])
        check_enrichment(row.pop("enrichment"), expected(good[row["ticket_id"]]))
        raw["priority"] = row["priority"]
        assert row == raw
    failed = sorted((row["raw"], row["error"], row["error_message"]) for row in rows if "error" in row)
    errors = [(raw.decode(errors="replace"), expected(raw)) for raw in tickets.raw if raw in BROKEN]
    assert failed == sorted((text, error["error"], error["error_message"]) for text, error in errors)


def check_parquet(folder: Path, tickets: Tickets, expected: Callable[[bytes], dict[str, Any]]) -> None:
    """Every ticket has exactly one row, with its own columns."""
    rows = pq.read_table(folder).to_pylist()
    assert sorted(row["row"] for row in rows) == list(range(COUNT))
    for row in rows:
        raw = tickets.raw[row["row"]]
        assert row["raw"] == raw
        if raw in BROKEN:
            error = expected(raw)
            assert (row["error"], row["error_message"]) == (error["error"], error["error_message"])
            assert row["embedding"] is None
        else:
            assert row["error"] is None
            assert row["ticket_id"] == json.loads(raw)["ticket_id"]
            check_enrichment(row, expected(raw))


def processes(pid: int, name: str) -> list[psutil.Process]:
    """The descendants of a process whose command line has this text and that have used a second of CPU time."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if name in " ".join(child.cmdline()) and child.cpu_times().user > 1:
                found.append(child)
        except psutil.Error:
            continue
    return found
