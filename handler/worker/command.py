"""`ticket-processor`: feeds the Lambda handler from SQS where there is no Lambda: Kubernetes, EC2, a laptop.

The settings come from the environment (handler.settings.WorkerSettings). A light parent process serves /livez, /readyz
and /metrics on HEALTH_PORT and looks after NUM_WORKERS processes, each with models of its own.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from handler.observability import make_logger
from handler.settings import WorkerSettings
from handler.worker.health import PortTaken, serve_health
from handler.worker.prometheus import PrometheusFigures
from handler.worker.reports import Plan
from handler.worker.supervisor import Supervisor

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def process(
    *,
    wait: Annotated[int, typer.Option(min=0, max=20, help="Seconds of one long poll.")] = 20,
    hidden: Annotated[
        int,
        typer.Option(
            min=1,
            max=43200,
            help="Seconds that a received message is hidden from others, renewed every third of them while it is in "
            "work. What a killed process held comes back after them.",
        ),
    ] = 30,
    timeout: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds that a batch may take. Default: the queue's visibility timeout."),
    ] = None,
    grace: Annotated[
        float, typer.Option(min=1, help="Seconds to end in when asked to; shorter than what the pod is given.")
    ] = 25,
) -> None:
    """Enrich tickets from the queue until SIGTERM or Ctrl-C, which lets the batch in hand be finished."""
    settings = _settings()
    plan = Plan(batch_size=settings.batch_size, wait=wait, hidden=hidden, timeout=timeout, grace=grace)
    figures = PrometheusFigures()
    supervisor = Supervisor(
        lambda descriptor: [sys.executable, "-P", "-m", "handler.worker.processor", str(descriptor), plan.dump()],
        settings.num_workers,
        grace,
        figures=figures,
        logger=make_logger(settings.log_level),
    )
    try:
        with serve_health(settings.health_port, supervisor.not_ready, figures.text):
            code = supervisor.run()
    except PortTaken as error:
        _complain(str(error))
        raise typer.Exit(1) from None
    if supervisor.failure is not None:
        _complain(supervisor.failure)
    raise typer.Exit(code)


def _settings() -> WorkerSettings:
    """The settings; where some are missing or wrong, one line that names them all, and exit code 2."""
    try:
        return WorkerSettings()
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        missing = [_variable(item) for item in found if item["type"] == "missing"]
        wrong = [f"{_variable(item)}: {item['msg']}" for item in found if item["type"] != "missing"]
        _complain("; ".join([*([f"missing in the environment: {', '.join(missing)}"] if missing else []), *wrong]))
        raise typer.Exit(2) from None


def _variable(item: ErrorDetails) -> str:
    return str(item["loc"][0]).upper()


def _complain(text: str) -> None:
    typer.echo(f"ticket-processor: {text}", err=True)


def main() -> None:
    """Runs `ticket-processor`."""
    app()
