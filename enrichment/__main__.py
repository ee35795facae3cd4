"""`python -m enrichment --bundle DIR FILE.jsonl`: enrich tickets from the shell, one JSON object a line."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Protocol

from enrichment import Enricher, EnrichmentError, enriched_json, parse_ticket
from enrichment.ticket import RawTicket

_CHUNK = 32  # tickets at once: enough to fill micro-batches, few enough for a lively progress bar


class _Advance(Protocol):
    def __call__(self, tickets: int, /) -> None: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Enrich the tickets of a file. The exit code is 0, 1 when some tickets failed, 2 when nothing could be done."""
    options = _parser().parse_args(arguments)
    try:
        enricher = Enricher.open(options.bundle, threads=options.threads)
        source = sys.stdin.buffer if options.file == "-" else Path(options.file).open("rb")  # noqa: SIM115 - closed below
    except (EnrichmentError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    begin, done, failed = time.perf_counter(), 0, 0
    with source, _progress() as advance:
        numbered = ((number, line) for number, line in enumerate(source, 1) if line.strip())
        while chunk := list(islice(numbered, _CHUNK)):
            good = _enrich(enricher, chunk, options.file)
            done, failed = done + good, failed + len(chunk) - good
            advance(len(chunk))
    seconds = time.perf_counter() - begin
    sys.stderr.write(f"{done} enriched, {failed} failed, in {seconds:.1f} s, by {enricher.version}\n")
    return 1 if failed else 0


def _enrich(enricher: Enricher, chunk: Sequence[tuple[int, bytes]], name: str) -> int:
    """Writes what could be enriched to standard output, and names the rest on standard error."""
    tickets: list[tuple[int, RawTicket]] = []
    for number, line in chunk:
        try:
            tickets.append((number, parse_ticket(line)))
        except EnrichmentError as error:
            sys.stderr.write(f"{name}:{number}: {error.code}: {error}\n")
    good = 0
    for (number, ticket), result in zip(tickets, enricher.enrich([t for _, t in tickets]), strict=True):
        if isinstance(result, EnrichmentError):
            sys.stderr.write(f"{name}:{number}: {result.code}: {result}\n")
        else:
            sys.stdout.buffer.write(enriched_json(ticket, result) + b"\n")
            good += 1
    sys.stdout.buffer.flush()
    return good


@contextmanager
def _progress() -> Iterator[_Advance]:
    """A progress bar on a terminal, where rich is installed (the `cli` extra); else nothing."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    except ModuleNotFoundError:
        yield _no_bar
        return
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("tickets"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda tickets: progress.advance(task, tickets)


def _no_bar(_tickets: int, /) -> None:
    return


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m enrichment",
        description="Enrich support tickets: JSON lines in, JSON lines out. Failures go to standard error.",
    )
    parser.add_argument("file", metavar="FILE", help="raw tickets, one JSON object a line; - for standard input")
    parser.add_argument(
        "--bundle", default=".bundles/compact", metavar="DIR", help="the model bundle's folder (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the models (default: the cores there are)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
