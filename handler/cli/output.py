"""Output of the commands: a table on a terminal, tab-separated lines in a pipe, JSON lines, and messages.

All text passes through `harmless`, so that a subject cannot send escape sequences to the terminal or reverse what is
displayed. JSON escapes the same characters instead, so that its values stay complete.
"""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, Never

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

__all__ = [
    "Form",
    "Row",
    "age",
    "echo",
    "form_of",
    "harmless",
    "keep_showing",
    "moment",
    "replace_unprintable",
    "write",
    "write_whole",
]

Form = Literal["table", "lines", "json"]

_STYLES: Final = {"critical": "bold red", "high": "yellow", "NEGATIVE": "red", "POSITIVE": "green"}
_GIVE_WAY: Final = frozenset({"ticket", "subject", "summary"})  # columns that shrink on a narrow terminal
_MIN_WIDTH: Final = {"summary": 140, "lang": 100}  # terminal width from which a column is shown
_SHOWN_NUMBERS: Final = 4  # numbers shown of a vector
_UNITS: Final = (("y", 365 * 86400), ("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
# Persian and Indic words and composed emoji are wrong without these; str.isprintable rejects them as format characters.
_JOINERS: Final = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
# A sequence is introduced by ESC and [ or ], or by the C1 character that means the same (ECMA-48). What has no end is
# left to the filter of single characters, so that an unfinished sequence does not hide the text behind it.
_ESCAPE_SEQUENCE: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colors, cursor movement
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"  # OSC, DCS: titles, links
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Row:
    """One row of a list: its JSON data, its cells in a pipe, and its columns on a terminal by heading."""

    data: Mapping[str, Any]
    cells: Sequence[str]
    shown: Mapping[str, str]


def form_of(*, as_json: bool) -> Form:
    """The form of standard output: a table only on a terminal."""
    return "json" if as_json else "table" if sys.stdout.isatty() else "lines"


def write(rows: Iterable[Row], form: Form) -> None:
    """Prints a list to standard output."""
    if form == "table":
        console, listed = Console(), list(rows)
        if listed:
            console.print(_table(listed, console))
        return
    for row in rows:
        sys.stdout.write((_json_line(row.data) if form == "json" else "\t".join(map(_one_line, row.cells))) + "\n")
    sys.stdout.flush()  # a reader of the pipe sees each update at once


def write_whole(ticket: Mapping[str, Any], place: Mapping[str, str], form: Form) -> None:
    """Prints one whole ticket: the stored JSON, or one field per line, with `place` and with vectors shortened."""
    if form == "json":
        sys.stdout.write(_json_line(ticket) + "\n")
        sys.stdout.flush()  # a closed pipe is noticed here, not when Python exits
        return
    fields = list(_fields({**ticket, **place}))
    if form == "lines":
        sys.stdout.writelines(f"{_one_line(name)}\t{_one_line(value)}\n" for name, value in fields)
        sys.stdout.flush()
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in fields:
        grid.add_row(Text(_one_line(name)), Text(harmless(value), style=_STYLES.get(value, "")))
    Console().print(grid)


def keep_showing(load: Callable[[], list[Row]], pause: Callable[[], object]) -> Never:
    """Shows a list that is reloaded after each pause, until an exception (Ctrl-C) ends it."""
    console = Console()

    def view() -> Group:
        now = datetime.now(UTC).astimezone()
        return Group(Text(f"{now:%H:%M:%S}, Ctrl-C ends", style="dim"), _table(load(), console))

    with Live(view(), console=console, auto_refresh=False) as screen:
        while True:
            pause()
            screen.update(view(), refresh=True)


def moment(seconds: int) -> str:
    """Unix seconds as ISO 8601 in UTC; a number if the year is beyond 9999."""
    try:
        return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%SZ}"
    except OverflowError:
        return str(seconds)


def age(seconds: int, now: float | None = None) -> str:
    """The age of a time (Unix seconds) in its largest unit: 45s, 12m, 3h, 5d, 2y; -3h is in the future."""
    past = int(time.time() if now is None else now) - seconds
    unit, size = next(((unit, size) for unit, size in _UNITS if abs(past) >= size), _UNITS[-1])
    return f"{'-' if past < 0 else ''}{abs(past) // size}{unit}"


def _table(rows: Sequence[Row], console: Console) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    shown = rows[0].shown if rows else {}
    headings = [heading for heading in shown if console.width >= _MIN_WIDTH.get(heading, 0)]
    for heading in headings:
        numeric = heading in {"cosine", "age", "tickets", "group", "stored", "removed", "unchanged", "left out"}
        table.add_column(heading, no_wrap=heading not in _GIVE_WAY, justify="right" if numeric else "left")
    for row in rows:
        cells = [Text(_one_line(row.shown[name]), style=_STYLES.get(row.shown[name], "")) for name in headings]
        for name, cell in zip(headings, cells, strict=True):
            # Ids wrap, so that they can be copied; texts are cut.
            cell.no_wrap, cell.overflow = name != "ticket", "fold" if name == "ticket" else "ellipsis"
        table.add_row(*cells)
    return table


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of a nested value as text, each with its dotted path."""
    if isinstance(value, Mapping) and value:
        if all(_is_number(number) for number in value.values()):
            by_size = sorted(value.items(), key=lambda entry: -entry[1])
            yield name, ", ".join(f"{label} {number:.4g}" for label, number in by_size)
        else:
            for key, part in value.items():
                yield from _fields(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and len(value) > _SHOWN_NUMBERS and all(map(_is_number, value)):
        first = ", ".join(f"{number:.4g}" for number in value[:_SHOWN_NUMBERS])
        yield name, f"{first}, … ({len(value)} numbers)"
    elif isinstance(value, list):
        yield name, ", ".join(part if isinstance(part, str) else _json_line(part) for part in value)
    elif name == "created_at" and isinstance(value, int):
        yield name, moment(value)
    else:
        yield name, value if isinstance(value, str) else _json_line(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json_line(value: Any) -> str:
    """JSON with every unprintable character escaped: the same value, without escape sequences for the terminal."""
    text = json.dumps(value, ensure_ascii=False, default=_plain)
    return text if text.isprintable() else "".join(c if _is_shown(c) else json.dumps(c)[1:-1] for c in text)


def _plain(value: Any) -> Any:
    """Converts DynamoDB's types for JSON."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return sorted(value, key=str) if isinstance(value, set) else str(value)


def harmless(text: str) -> str:
    """Text without escape sequences, C0 and C1 control characters and bidirectional controls; line breaks stay."""
    if text.isprintable():
        return text
    lines = _ESCAPE_SEQUENCE.sub("", text).replace("\r\n", "\n")
    return "".join(c if _is_shown(c) or c == "\n" else " " if c.isspace() else "" for c in lines)


def _is_shown(character: str) -> bool:
    return character.isprintable() or character in _JOINERS


def _one_line(text: str) -> str:
    return " ".join(harmless(text).split())


def echo(text: str, *, err: bool = False) -> None:
    """Prints a message to standard output, or to standard error."""
    typer.echo(harmless(text), err=err)


def replace_unprintable() -> None:
    """Makes standard output and error write a question mark for characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
