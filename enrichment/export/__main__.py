"""`python -m enrichment.export compact --out DIR`: build a model bundle."""

from __future__ import annotations

import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from enrichment.bundle import Bundle
from enrichment.errors import EnrichmentError
from enrichment.export.corpus import TAXONOMY, TICKETS
from enrichment.export.sources import ExportError

app = typer.Typer(help="Build a model bundle.", no_args_is_help=True, pretty_exceptions_enable=False)


class PrecisionChoice(StrEnum):
    """Precision of the encoder's weights and matrix products."""

    INT8 = "int8"
    FP32 = "fp32"


@app.callback()
def _commands() -> None:
    """Build a model bundle."""


@app.command()
def compact(
    out: Annotated[Path, typer.Option(help="Directory to build; an existing bundle is replaced.", file_okay=False)],
    source: Annotated[str, typer.Option(help="Source of MiniLM: package, hub or a directory.")] = "package",
    precision: Annotated[
        PrecisionChoice, typer.Option(help="Precision of the weights; int8 is smaller and faster.")
    ] = PrecisionChoice.INT8,
    taxonomy: Annotated[
        Path, typer.Option(help="File with labels, examples and phrases (TOML).", dir_okay=False)
    ] = TAXONOMY,
    tickets: Annotated[Path, typer.Option(help="File with labelled tickets (JSON lines).", dir_okay=False)] = TICKETS,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Another encoder than MiniLM (BERT or XLM-R, 384 dimensions, mean pooling): a repository on the hub, "
            "or a directory. Needs --languages and --tickets.",
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="The commit of a repository that --encoder names.", show_default=False)
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option(
            help="Languages of the tickets, for --encoder: ISO 639-1 codes, separated by commas.", show_default=False
        ),
    ] = None,
    corrections: Annotated[
        Path | None,
        typer.Option(
            help="File with people's corrections (`tickets corrections FILE`): the classifiers are moved towards them. "
            "A bundle that is not better is refused.",
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="For --corrections: start from this finished bundle instead of building one. Of the other options, "
            "only --tickets still counts: labelled tickets on which the bundle must not get worse.",
            file_okay=False,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Build the compact bundle: one encoder, MiniLM by default, for labels, embedding and extractive summary."""
    custom = (encoder, revision, languages)

    def build(say: Callable[[str], None]) -> Bundle:
        if corrections is not None:
            return _corrected(corrections, base, source, precision, taxonomy, tickets, custom, out.absolute(), say)
        if base is not None:
            raise ExportError("--base is the bundle that --corrections moves: add --corrections, or leave it out")
        return _compact(source, precision, taxonomy, tickets, custom, out.absolute(), say)

    _run(build, out)


@app.command()
def full(
    out: Annotated[Path, typer.Option(help="Directory to build; an existing bundle is replaced.", file_okay=False)],
    source: Annotated[
        str, typer.Option(help="Source of the three models: hub, or a directory with one subdirectory per model.")
    ] = "hub",
    precision: Annotated[
        PrecisionChoice, typer.Option(help="Precision of the weights; int8 is smaller and faster.")
    ] = PrecisionChoice.INT8,
    allow_unpinned: Annotated[  # noqa: FBT002 - a flag of the shell
        bool, typer.Option("--allow-unpinned", help="Accept weights other than those of the pinned revisions.")
    ] = False,
    taxonomy: Annotated[
        Path, typer.Option(help="File with labels, examples and phrases (TOML).", dir_okay=False)
    ] = TAXONOMY,
    tickets: Annotated[Path, typer.Option(help="File with labelled tickets (JSON lines).", dir_okay=False)] = TICKETS,
) -> None:
    """Build the full bundle: MiniLM, DistilBERT for sentiment, DistilBART for abstractive summaries."""
    _run(lambda say: _full(source, precision, taxonomy, tickets, allow_unpinned, out, say), out)


def _run(build: Callable[[Callable[[str], None]], Bundle], out: Path) -> None:
    """Builds a bundle, prints progress, and turns errors into one line."""
    begin = time.perf_counter()
    # Treated like Ctrl-C, so that a partial bundle is removed.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)

    def say(line: str) -> None:
        typer.echo(f"[{time.perf_counter() - begin:5.1f} s] {line}", err=True)

    try:
        bundle = build(say)
    except ModuleNotFoundError as error:
        typer.echo(f"error: {error.name} is not installed; install the `export` extra", err=True)
        raise typer.Exit(2) from error
    except EnrichmentError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted: nothing was written", err=True)
        raise typer.Exit(130) from error
    finally:
        signal.signal(signal.SIGTERM, before)
    size = sum(spec.size for spec in bundle.manifest.files.values())
    say(f"{bundle.version}: {size / 1e6:.1f} MB in {out}")
    for name, value in _flat(bundle.manifest.verification):
        typer.echo(f"        {name:24s} {value}", err=True)
    typer.echo(bundle.folder)


def _compact(
    source: str,
    precision: PrecisionChoice,
    taxonomy: Path,
    tickets: Path,
    custom: tuple[str | None, str | None, str | None],
    out: Path,
    say: Callable[[str], None],
) -> Bundle:
    from enrichment.export.compact import Custom, Recipe, build

    encoder, revision, languages = custom
    if encoder is None:
        if revision or languages:
            raise ExportError("--revision and --languages describe another encoder: add --encoder, or leave them out")
        return build(Recipe(source, precision.value, taxonomy, tickets), out, say)
    chosen = Custom(encoder, revision, _languages(languages))
    return build(Recipe(source, precision.value, taxonomy, tickets, chosen), out, say)


def _corrected(
    corrections: Path,
    base: Path | None,
    source: str,
    precision: PrecisionChoice,
    taxonomy: Path,
    tickets: Path,
    custom: tuple[str | None, str | None, str | None],
    out: Path,
    say: Callable[[str], None],
) -> Bundle:
    """Moves the classifiers of `base`, or of a bundle that is built first, towards corrections."""
    from enrichment.export.corpus import Taxonomy
    from enrichment.export.corrections import correct, labels_of, read_corrections

    if base is not None:
        if any(custom) or taxonomy != TAXONOMY or source != "package" or precision is not PrecisionChoice.INT8:
            raise ExportError("--base is a finished bundle: leave out the options that say how to build one")
        opened = Bundle.open(base, verify=True)
        return correct(opened, read_corrections(corrections, labels_of(opened), say), tickets, out, say)
    read = read_corrections(corrections, Taxonomy.read(taxonomy).labels, say)  # before minutes of work
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        built = _compact(source, precision, taxonomy, tickets, custom, Path(scratch) / "base", say)
        return correct(built, read, tickets, out, say)


def _languages(codes: str | None) -> list[str]:
    found = list(dict.fromkeys(code.strip() for code in (codes or "").split(",")))
    if not all(re.fullmatch("[a-z]{2}", code) for code in found):
        raise ExportError("--encoder needs --languages: ISO 639-1 codes, separated by commas, such as en,de,fr")
    return found


def _full(
    source: str,
    precision: PrecisionChoice,
    taxonomy: Path,
    tickets: Path,
    allow_unpinned: bool,  # noqa: FBT001 - handed on from the shell
    out: Path,
    say: Callable[[str], None],
) -> Bundle:
    from enrichment.export.compact import Recipe
    from enrichment.export.full import FullRecipe, build

    base = Recipe(source, precision.value, taxonomy, tickets)
    return build(FullRecipe(base, allow_unpinned=allow_unpinned), out.absolute(), say)


def _flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The lines of a table from nested numbers."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield prefix + name, value


if __name__ == "__main__":
    app()
