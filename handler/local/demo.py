"""`make demo`: the whole system on this machine, with good and broken tickets.

Starts the embedded stack and a worker, uploads tickets, shows them arriving, and then checks every one: stored in
S3 and DynamoDB, or in the DLQ with its reason. The last line on standard output is one JSON object. `make demo PAGE=1`
then serves the triage page on these tickets, until Ctrl-C.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from enrichment import Bundle, EnrichmentError
from events.upload import Upload, make_uploads
from handler.cli.output import harmless
from handler.cli.shutdown import on_shutdown_signal
from handler.local import EmbeddedStack
from handler.local.emulator import StackError
from handler.local.reconciliation import Stats, dead_letters, stored_tickets

__all__ = ["main"]

_OUTCOMES: Final = ("done", "skipped", "rejected", "failed")
_PATIENCE: Final = 90.0  # seconds after which a ticket without an outcome counts as lost


def main(
    bundle: Annotated[Path, typer.Option(help="Directory of the model bundle.")] = Path(".bundles/compact"),
    count: Annotated[int, typer.Option(help="Number of tickets to send.", min=12, max=2000)] = 60,
    seed: Annotated[int, typer.Option(help="Seed of the generated tickets.")] = 7,
    *,
    page: Annotated[bool, typer.Option("--page", help="Then serve the triage page until Ctrl-C.")] = False,
) -> None:
    """Send tickets through the whole system on this machine and check the outcome of each."""
    people = Console(stderr=True)
    try:
        version = Bundle.open(bundle).version
        people.print(f"Model bundle {version}; starting the AWS services of template.yaml on this machine ...")
        with EmbeddedStack() as stack, tempfile.TemporaryDirectory(prefix="ticket-demo-") as scratch:
            result = _run(stack, Path(scratch), bundle.resolve(), make_uploads(count, seed), people)
            sys.stdout.write(json.dumps({**result, "bundle": version}) + "\n")
            sys.stdout.flush()
            if page:
                _serve_page(stack, Path(scratch), bundle.resolve())
    except (EnrichmentError, StackError) as error:
        people.print(harmless(f"error: {error}"), style="red", markup=False, highlight=False)
        raise typer.Exit(1) from error
    if result["lost"] or result["failed"]:
        raise typer.Exit(1)


def _run(
    stack: EmbeddedStack, scratch: Path, bundle: Path, uploads: Sequence[Upload], people: Console
) -> dict[str, Any]:
    environment = stack.environment() | {
        "MODEL_BUNDLE": bundle.as_uri(),
        "BUNDLE_CACHE_DIR": str(scratch),
        "LOG_LEVEL": "INFO",
    }
    s3, bucket = stack.client("s3"), environment["RAW_BUCKET"]
    first, *others = uploads  # deleted again before the worker can read it
    s3.put_object(Bucket=bucket, Key=first.key, Body=first.body)
    s3.delete_object(Bucket=bucket, Key=first.key)
    stats, sent_at = Stats(), {}
    log = scratch / "worker.log"
    with _worker(environment, log) as worker:
        _wait_until_ready(worker, log)
        with _follow(people, stats, len(uploads)) as show:
            begin = time.time()
            for upload in others:
                sent_at[upload.key] = time.time()
                s3.put_object(Bucket=bucket, Key=upload.key, Body=upload.body)
                show(log)
            while sum(stats.counts().values()) < len(uploads) and time.time() - begin < _PATIENCE:
                if worker.poll() is not None:
                    raise StackError(f"the worker ended with code {worker.returncode}: {_last_line(log)}")
                time.sleep(0.05)
                show(log)
            seconds = time.time() - begin
    return _account(stack, environment, uploads, stats, sent_at, seconds)


def _serve_page(stack: EmbeddedStack, scratch: Path, bundle: Path) -> None:
    """Builds the vector index and serves the page, which prints its link, until Ctrl-C or SIGTERM."""
    index = {"MODEL_BUNDLE": bundle.as_uri(), "VECTOR_INDEX": f"sqlite://{scratch / 'vectors'}"}
    tickets = [sys.executable, "-m", "handler.tickets"]
    environment = {**os.environ, **stack.environment(), **index, "BUNDLE_CACHE_DIR": str(scratch)}
    subprocess.run([*tickets, "index"], env=environment, stdout=subprocess.DEVNULL, check=False)  # noqa: S603 - our own module
    server = subprocess.Popen([*tickets, "serve", "--port", "0"], env=environment)  # noqa: S603 - our own module
    with server, on_shutdown_signal(server.terminate):  # a terminal's Ctrl-C reaches it anyway
        server.wait()


def _account(
    stack: EmbeddedStack,
    environment: Mapping[str, str],
    uploads: Sequence[Upload],
    stats: Stats,
    sent_at: Mapping[str, float],
    seconds: float,
) -> dict[str, Any]:
    """Looks up every upload in the stores and the DLQ, prints the results, and returns the numbers."""
    stored, dead = stored_tickets(stack, environment), dead_letters(stack, environment)
    counts: Counter[str] = Counter()
    wanted: dict[str, list[Upload]] = {}
    for upload in uploads:
        wanted.setdefault(upload.key, []).append(upload)
    for key, same in wanted.items():
        found = dead.get(key) == same[0].broken if same[0].broken else key in stored
        outcomes = stats.outcomes.get(key, [])[: len(same)]
        counts.update(outcomes if found else [])
        counts["lost"] += len(same) - (len(outcomes) if found else 0)
    out = Console()
    handled, waited = (
        stats.handler_ms or [0.0],
        [stats.stored_at[k] - sent_at[k] for k in stats.stored_at if k in sent_at],
    )
    table = Table("", "p50", "p95", "p99", title=f"{len(uploads)} tickets in {seconds:.1f} s")
    table.add_row(
        "one ticket in the handler (fetch, models, store), ms", *(f"{_quantile(handled, q):.0f}" for q in (50, 95, 99))
    )
    table.add_row(
        "from upload to stored, queueing included, ms",
        *(f"{_quantile(waited or [0.0], q) * 1000:.0f}" for q in (50, 95, 99)),
    )
    out.print(table)
    _print_examples(out, stored)
    for upload in uploads:
        if upload.note:
            ended = ", ".join(stats.outcomes.get(upload.key, ["lost"]))
            reason = f" ({dead[upload.key]})" if upload.key in dead else ""
            out.print(f"  {upload.note}: {ended}{reason}", highlight=False, markup=False)
    result = {name: counts[name] for name in _OUTCOMES} | {"lost": counts["lost"]}
    out.print("  " + "  ".join(f"{name} {value}" for name, value in result.items()), style="bold", highlight=False)
    return {
        "sent": len(uploads),
        **result,
        "seconds": round(seconds, 2),
        "tickets_per_second": round(len(uploads) / seconds, 1),
        "p50_ms": round(_quantile(handled, 50), 1),
        "p95_ms": round(_quantile(handled, 95), 1),
    }


def _print_examples(out: Console, stored: Mapping[str, Mapping[str, Any]]) -> None:
    chosen: dict[str, Mapping[str, Any]] = {}
    for ticket in sorted(stored.values(), key=lambda t: -min(len(t["body"]), 600)):
        chosen.setdefault(ticket["enrichment"]["sentiment"], ticket)
    for ticket in list(chosen.values())[:3]:
        found = ticket["enrichment"]
        body = " ".join(harmless(ticket["body"]).split())
        text = Text(body if len(body) <= 300 else body[:299] + "…", style="dim")
        labels = (
            f"{task} {found[task]} {found[f'{task}_confidence']:.2f}" for task in ("intent", "urgency", "sentiment")
        )
        text.append("\n" + " · ".join(labels), style="not dim bold")
        text.append(f"\n{harmless(found['summary'])}", style="not dim")
        numbers = ", ".join(f"{value:.3f}" for value in found["embedding"][:4])
        text.append(f"\n384 numbers: {numbers}, …", style="dim")
        out.print(
            Panel(text, title=Text(harmless(ticket["subject"] or ticket["ticket_id"])), title_align="left", width=100)
        )


@contextmanager
def _worker(environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "handler.worker", "--wait", "1"],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield worker
    finally:
        worker.terminate()
        try:
            worker.wait(20)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _wait_until_ready(worker: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while "object_gone" not in log.read_text(errors="replace"):  # the first message is settled, so the worker polls
        if worker.poll() is not None or time.monotonic() > end:
            raise StackError(f"the worker did not start: {_last_line(log)}")
        time.sleep(0.05)


@contextmanager
def _follow(people: Console, stats: Stats, total: int) -> Iterator[Any]:
    """Reads new lines of the log and shows their outcomes in a live table on a terminal."""
    position = 0
    with Live(console=people, refresh_per_second=8, transient=True) as live:

        def show(log: Path) -> None:
            nonlocal position
            with log.open("rb") as file:
                file.seek(position)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    position += len(line)
                    stats.read(line.decode(errors="replace"))
            counts = stats.counts()
            table = Table("sent", *_OUTCOMES)
            table.add_row(str(total), *(str(counts[name]) for name in _OUTCOMES[:3]), str(stats.attempts_failed))
            live.update(table)

        yield show


def _quantile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    if len(ordered) == 1:
        return ordered[0]
    return statistics.quantiles(ordered, n=100, method="inclusive")[percent - 1]


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it wrote nothing"


if __name__ == "__main__":
    typer.run(main)
