"""`python -m handler.local up`: the embedded stack as a command."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from handler.cli.output import echo
from handler.local import EmbeddedStack, StackError

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def local() -> None:
    """Emulate the AWS services of the system on this machine."""


@app.command()
def up(
    *,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 chooses a free one.")] = 4566,
    environment: Annotated[
        Path | None,
        typer.Option("--env-file", help="Also write the environment to this file; it is deleted at the end."),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="A parameter of template.yaml, such as BulkConcurrency=10. Can be repeated."
        ),
    ] = None,
) -> None:
    """Run the stack of template.yaml until Ctrl-C or SIGTERM, and print the environment for the other commands."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        given = dict(each.split("=", 1) for each in parameter or () if "=" in each)
        if len(given) < len(parameter or ()):
            raise typer.BadParameter("write NAME=VALUE, each name once", param_hint="--parameter")
        with EmbeddedStack(port=port, parameters=given) as stack:
            exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in stack.environment().items())
            with _env_file(environment, exports) if environment else nullcontext():
                typer.echo(exports, nl=False)
                typer.echo(f"# The stack is up at {stack.endpoint_url}; Ctrl-C ends it.", err=True)
                stack.wait()
    except StackError as error:
        echo(str(error), err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo("# The stack has ended.", err=True)


@contextmanager
def _env_file(path: Path, exports: str) -> Iterator[None]:
    """Write the exports atomically to a file that a shell can source, and remove it after the block.

    A file left by a killed process is recognisable by its STACK_PID, which no longer exists. Raises StackError.
    """
    text = f"{exports}STACK_PID={os.getpid()}\n"
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise StackError(f"{path}: {error.strerror}; name another file for the environment") from error
    try:
        yield
    finally:
        if path.is_file() and path.read_text(encoding="utf-8") == text:  # not the file of a later stack
            path.unlink()


if __name__ == "__main__":
    app()
