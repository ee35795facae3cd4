"""`python -m enrichment.export compact --out DIR`: build a model bundle."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from enrichment.errors import EnrichmentError
from enrichment.export.corpus import TAXONOMY, TICKETS

app = typer.Typer(help="Build a model bundle.", no_args_is_help=True, pretty_exceptions_enable=False)


class PrecisionChoice(StrEnum):
    """Numbers of the encoder's weights and products."""

    INT8 = "int8"
    FP32 = "fp32"


@app.callback()
def _commands() -> None:
    """Build a model bundle."""


@app.command()
def compact(
    out: Annotated[Path, typer.Option(help="The folder to build; an older bundle there is replaced.", file_okay=False)],
    source: Annotated[str, typer.Option(help="Where MiniLM comes from: package, hub, or a folder.")] = "package",
    precision: Annotated[
        PrecisionChoice, typer.Option(help="int8 is four times smaller and faster.")
    ] = PrecisionChoice.INT8,
    taxonomy: Annotated[Path, typer.Option(help="Labels, examples and cues (TOML).", dir_okay=False)] = TAXONOMY,
    tickets: Annotated[Path, typer.Option(help="Labelled tickets (JSON lines).", dir_okay=False)] = TICKETS,
) -> None:
    """One encoder for everything: embedding, intent, urgency, sentiment, extractive summary."""
    begin = time.perf_counter()

    def say(line: str) -> None:
        typer.echo(f"[{time.perf_counter() - begin:5.1f} s] {line}", err=True)

    try:
        from enrichment.export.compact import Recipe, build

        bundle = build(Recipe(source, precision.value, taxonomy, tickets), out.absolute(), say)
    except ModuleNotFoundError as error:
        typer.echo(f"error: {error.name} is not installed; install the `export` extra", err=True)
        raise typer.Exit(2) from error
    except EnrichmentError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    size = sum(spec.size for spec in bundle.manifest.files.values())
    say(f"{bundle.version}: {size / 1e6:.1f} MB in {out}; verification: {bundle.manifest.verification}")
    typer.echo(bundle.folder)


if __name__ == "__main__":
    app()
