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

from handler.local import EmbeddedStack, StackError

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def local() -> None:
    """Run every AWS service that the system needs on this machine."""


@app.command()
def up(
    *,
    port: Annotated[int, typer.Option(help="On 127.0.0.1; 0 takes a free one.")] = 4566,
    environment: Annotated[
        Path | None,
        typer.Option("--env-file", help="Keep the environment in this file too, for as long as the stack is up."),
    ] = None,
) -> None:
    """Run the stack until Ctrl-C or SIGTERM, and print the environment for the other commands."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with EmbeddedStack(port=port) as stack:
            exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in stack.environment().items())
            with _env_file(environment, exports) if environment else nullcontext():
                typer.echo(exports, nl=False)
                typer.echo(f"# The stack is up at {stack.endpoint_url}; Ctrl-C ends it.", err=True)
                stack.wait()
    except StackError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo("# The stack has ended.", err=True)


@contextmanager
def _env_file(path: Path, exports: str) -> Iterator[None]:
    """Keep the exports in a file that a shell can source, for as long as the block lasts; never half of them.

    What a killed process left there is recognised by its STACK_PID, which is no process any more. Raises StackError.
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
        if path.is_file() and path.read_text(encoding="utf-8") == text:  # not that of a stack which came later
            path.unlink()


if __name__ == "__main__":
    app()
