"""The library's commands.

python -m enrichment --bundle DIR FILE.jsonl          enrich tickets: JSON lines in, JSON lines out
python -m enrichment FILE --out OUT --processes N     the same for a big file, also in Parquet or S3: resumable
python -m enrichment score --bundle DIR FILE.jsonl    compare the bundle's labels with those of a labelled file
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

from enrichment import Enricher, EnrichmentError, enriched_json, files, parse_ticket
from enrichment.classify import TASKS
from enrichment.score import read_examples, score
from enrichment.session import available_cores
from enrichment.ticket import RawTicket

_COLUMNS = (
    "tickets",
    "accuracy",
    "macro_f1",
    "mean_confidence",
    "calibration_error",
    "review_share",
    "accuracy_without_review",
)
_CHUNK = 32  # tickets per call: enough to fill micro-batches, few enough for a smooth progress bar


class _Advance(Protocol):
    def __call__(self, tickets: int, /) -> None: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Enrich the tickets of a file. Returns the exit code: 1 if some tickets failed, 2 if it could not start."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["score"]:
        return _score(arguments[1:])
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.out is not None:
        if options.file == "-":
            parser.error("--out needs a file and not standard input, which cannot be read again to continue")
        return _enrich_file(options)
    if options.processes is not None or options.raw is not None:
        parser.error("--processes and --raw need --out")
    if _is_closed(sys.stdout):
        return _fail("standard output is closed; redirect it to a file, or use --out")
    if options.file == "-" and _is_closed(sys.stdin):
        return _fail("standard input is closed; redirect it from a file, or name one")
    try:
        enricher = Enricher.open(options.bundle, threads=options.threads)
        source = sys.stdin.buffer if options.file == "-" else Path(options.file).open("rb")  # noqa: SIM115 - closed below
    except (EnrichmentError, OSError) as error:
        return _fail(error)
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


def _enrich_file(options: argparse.Namespace) -> int:
    """Enrich a big file with several processes. Returns the exit code, as `main`; 130 if it was interrupted."""
    wanted = files.Options(
        source=options.file,
        out=options.out,
        bundle=Path(options.bundle),
        processes=options.processes or available_cores(),
        threads=options.threads or 1,
        raw=options.raw,
    )
    try:
        return files.enrich_file(wanted)
    except (EnrichmentError, files.FileError, OSError) as error:
        return _fail(error)


def _enrich(enricher: Enricher, chunk: Sequence[tuple[int, bytes]], name: str) -> int:
    """Writes enriched tickets to standard output and errors to standard error; returns the number enriched."""
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


def _score(arguments: Sequence[str]) -> int:
    """Print the accuracy of a bundle on a labelled file. Returns the exit code: 2 if it could not start."""
    options = _score_parser().parse_args(arguments)
    if _is_closed(sys.stdout):
        return _fail("standard output is closed; redirect it to a file")
    try:
        enricher = Enricher.open(options.bundle, threads=options.threads)
        models = enricher.bundle.manifest.models
        # A classifier with two labels also says NEUTRAL, its fallback.
        labels = {task: {*models.of(task).labels, models.of(task).fallback} for task in TASKS}
        examples = read_examples(Path(options.file), labels)
        figures = score(enricher, examples)
    except EnrichmentError as error:
        return _fail(error)
    if options.json:
        sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    else:
        _print_scores(figures)
    sys.stdout.flush()
    return 0


def _print_scores(figures: Mapping[str, Any]) -> None:
    """Prints tables with rich if it is installed (the `cli` extra), otherwise plain columns."""
    columns = ("task", "tickets", "accuracy", "macro-F1", "confidence", "calibration error", "review", "right without")
    rows = [[task, *(_cell(found[name]) for name in _COLUMNS)] for task, found in figures["tasks"].items()]
    if "all_tasks" in figures:
        every = figures["all_tasks"]
        share, accuracy = every["review_share"], every["accuracy_without_review"]
        rows.append(
            ["all three", str(figures["tickets"]), _cell(every["accuracy"]), "", "", "", _cell(share), _cell(accuracy)]
        )
    _print_table(f"{figures['tickets']} tickets, {figures['model_version']}", columns, rows)
    for task, found in figures["tasks"].items():
        confusion = found["confusion"]
        _print_table(
            f"{task}: labelled as (rows), predicted as (columns)",
            ["", *confusion],
            [[label, *(str(count or "") for count in row.values())] for label, row in confusion.items()],
        )


def _cell(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        sys.stdout.write(f"{title}\n")
        for row in (columns, *rows):
            sys.stdout.write("  ".join(f"{cell:>18}" for cell in row).rstrip() + "\n")
        return
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console = Console()
    # Output to a file is not wrapped to a terminal's width.
    Console(width=None if console.is_terminal else 250).print(table)


@contextmanager
def _progress() -> Iterator[_Advance]:
    """A progress bar on a terminal if rich is installed (the `cli` extra), otherwise nothing."""
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


def _model_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--bundle",
        default=".bundles/compact",
        metavar="DIR",
        help="directory of the model bundle (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=_positive, metavar="N", help="threads for the models (default: all available cores)"
    )
    return parser


def _score_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m enrichment score",
        description="Measure how accurate a bundle's labels are on a labelled file.",
        parents=[_model_options()],
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="JSON lines with subject, body, and intent, urgency or sentiment: a label or a list of accepted labels",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m enrichment",
        description="Enrich support tickets: JSON lines in, JSON lines out. Errors go to standard error.",
        epilog="`python -m enrichment score FILE` measures a bundle's accuracy on a labelled file.",
        parents=[_model_options()],
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="raw tickets, one JSON object per line; - is standard input, but not with --out; "
        "with --out, FILE may also be *.parquet or an s3:// URI",
    )
    big = parser.add_argument_group(
        "one big file",
        "With --out, the results are in the order of the input, and a run that ended early continues when started "
        "again. JSON lines: errors go to OUT.errors.jsonl. Parquet: errors are columns.",
    )
    big.add_argument(
        "--out",
        type=_local,
        metavar="OUT",
        help="output file of this machine: Parquet if named *.parquet, else JSON lines",
    )
    big.add_argument(
        "--processes",
        type=_positive,
        metavar="N",
        help="processes, each with --threads threads or one (default: all cores)",
    )
    big.add_argument(
        "--raw",
        metavar="COLUMN",
        help="column of a Parquet file with raw JSON (default: columns subject, body and others)",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def _local(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is not a file of this machine; name one, and copy it when it is complete"
        )
    return Path(text)


def _is_closed(stream: TextIO | None) -> bool:
    return stream is None  # as Python leaves it after `>&-`, which its types do not say


def _fail(error: Exception | str) -> int:
    """Says what is wrong, in one line: errors of Arrow have several. Returns the exit code."""
    sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
    return 2


def _run() -> int:
    try:
        return main()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:  # of reading, or of standard output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python reports it again when it exits
        if isinstance(error, BrokenPipeError):  # nobody reads any more, as in `| head -1`
            return 128 + signal.SIGPIPE  # what a shell shows for a program that ends by this signal
        return _fail(error)


if __name__ == "__main__":
    sys.exit(_run())
