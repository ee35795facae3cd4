"""`tickets drift`."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from handler.cli.output import echo, form_of, moment, write
from handler.tickets.access import opened
from handler.tickets.drift import (
    DRIFT_ATTRIBUTES,
    FEWEST,
    Distribution,
    compare,
    distribution,
    training_distribution,
)
from handler.tickets.options import BaselineOption, BundleOption, JsonOption, StartOption
from handler.tickets.repository import RepositoryError, Selection, TicketRepository
from handler.tickets.rows import drift_row
from handler.tickets.similarity import read_objects, vector_of

__all__ = ["detect_drift"]


def detect_drift(
    *,
    since: StartOption,
    baseline: BaselineOption = None,
    bundle: BundleOption = "",
    limit: Annotated[int, typer.Option(min=FEWEST, help="Maximum number of tickets per period.")] = 20_000,
    sample: Annotated[int, typer.Option(min=0, help="Number of embeddings to read per period.")] = 300,
    as_json: JsonOption = False,
) -> None:
    """Compare recent tickets with the bundle's training texts, or with an earlier period.

    Columns in a pipe, separated by tabs: measure (psi, share, confidence, language, review, embedding), label,
    baseline, recent, value, limit, drift. A measure whose value exceeds its limit is marked `drift`, and then the exit
    code is 3. This queries the urgency index for each period; each embedding reads one object from S3.
    """
    if baseline is not None and baseline.end > since:
        raise typer.BadParameter("--baseline ends after --since begins")
    form = form_of(as_json=as_json)
    with opened() as repository:
        if baseline is None:
            before = _training(repository, bundle)
        else:
            before = _period(repository, Selection(since=baseline.begin, until=baseline.end - 1), limit, sample)
        measures = compare(before, _period(repository, Selection(since=since), limit, sample))
        write(map(drift_row, measures), form)
    if any(measure.drifted for measure in measures):
        raise typer.Exit(3)


def _training(repository: TicketRepository, bundle: str) -> Distribution:
    if not bundle:
        raise RepositoryError("set MODEL_BUNDLE, give --bundle, or compare with an earlier period: --baseline 8w..4w")
    reference = repository.manifest(bundle).reference
    if reference is None:
        raise RepositoryError(
            f"the bundle {bundle} does not have the distribution of its training texts; build it with this version, or "
            "compare with an earlier period: --baseline 8w..4w"
        )
    return training_distribution(reference)


def _period(repository: TicketRepository, selection: Selection, limit: int, sample: int) -> Distribution:
    """The distribution of the tickets of a period, of at most the `limit` newest ones."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("tickets", total=None)
        items = []
        for item in islice(repository.newest(selection, shown=DRIFT_ATTRIBUTES), limit):
            items.append(item)
            bar.advance(task)
        if len(items) < FEWEST:
            begin = moment(selection.since or 0)
            raise RepositoryError(f"only {len(items)} tickets since {begin}; a comparison needs at least {FEWEST}")
        chosen = items[:: max(1, len(items) // sample)][:sample] if sample else []
        bar.update(task, description="embeddings", completed=0, total=len(chosen))
        vectors = [v for v in read_objects(repository, chosen, vector_of, lambda: bar.advance(task)) if v is not None]
    versions = ", ".join(sorted({item.model_version for item in items}))
    cut = f"; older tickets were not read (raise --limit {limit})" if len(items) == limit else ""
    period = f"{moment(items[-1].created_at)} to {moment(items[0].created_at)}"
    echo(f"{len(items)} tickets from {period}, {len(vectors)} embeddings, of {versions}{cut}", err=True)
    return distribution(items, vectors)
