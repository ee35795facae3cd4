"""`ticket-processor`: runs the Lambda handler on SQS messages without Lambda: on Kubernetes, EC2 or a laptop.

The settings come from the environment (handler.settings.WorkerSettings). A light parent process serves /livez,
/startupz, /readyz and /metrics on HEALTH_PORT and supervises NUM_WORKERS processes, each of which loads the models.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from pydantic import ValidationError

from handler.cli.errors import settings_line
from handler.cli.output import echo
from handler.metrics import make_logger
from handler.settings import WorkerSettings
from handler.worker.health import PortTaken, serve_health
from handler.worker.message_queue import SqsDepth, SqsVisibility
from handler.worker.prometheus import PrometheusMetrics
from handler.worker.reports import WorkerOptions
from handler.worker.supervisor import Supervisor
from handler.worker.webhook import sending

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def process(
    *,
    wait: Annotated[int, typer.Option(min=0, max=20, help="Length of a long poll, in seconds.")] = 20,
    visibility_timeout: Annotated[
        int,
        typer.Option(
            "--visibility-timeout",
            min=1,
            max=43200,
            help="Visibility timeout of received messages, in seconds. It is renewed every third of this time while "
            "the batch is processed. The messages of a killed process come back after it.",
        ),
    ] = 30,
    hidden: Annotated[int | None, typer.Option(min=1, max=43200, hidden=True)] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=1, help="Maximum seconds per batch. Default: the queue's visibility timeout."),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(min=1, help="Seconds for shutdown; use less than the pod's terminationGracePeriodSeconds."),
    ] = 25,
) -> None:
    """Enrich tickets from the queue until SIGTERM or Ctrl-C; the current batches are finished first."""
    settings = _settings()
    options = WorkerOptions(
        batch_size=settings.batch_size,
        wait=wait,
        visibility_timeout=hidden or visibility_timeout,
        timeout=timeout,
        grace=grace,
    )
    queues = [lane.name for lane in settings.lanes]
    metrics, visibility = PrometheusMetrics(queues), SqsVisibility(settings)
    visibility.prepare()
    logger = make_logger(settings.log_level)
    supervisor = Supervisor(
        lambda descriptor: [sys.executable, "-P", "-m", "handler.worker.processor", str(descriptor), options.dump()],
        settings.num_workers,
        grace,
        change_visibility=visibility,
        metrics=metrics,
        logger=logger,
    )
    try:
        with (
            serve_health(settings.health_port, supervisor.not_ready, metrics.text, supervisor.not_started),
            sending(settings, metrics, logger),
        ):
            if settings.health_port:
                SqsDepth(settings).watch(metrics.queue)
            code = supervisor.run()
    except PortTaken as error:
        _complain(str(error))
        raise typer.Exit(1) from None
    if supervisor.failure is not None:
        _complain(supervisor.failure)
    raise typer.Exit(code)


def _settings() -> WorkerSettings:
    """The settings; if some are missing or invalid, one line that names them all, and exit code 2."""
    try:
        return WorkerSettings.read()
    except ValidationError as error:
        _complain(settings_line(error))
        raise typer.Exit(2) from None


def _complain(text: str) -> None:
    echo(f"ticket-processor: {text}", err=True)


def main() -> None:
    """Runs `ticket-processor`."""
    app()
