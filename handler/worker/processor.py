"""One process of the worker: loads the models, then polls until shutdown is requested.

handler.worker.supervisor starts it as `python -m handler.worker.processor FD OPTIONS`. It reports through FD and
shuts down when its standard input closes, so that the processes of a killed parent end too.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

from botocore.exceptions import BotoCoreError, NoRegionError

from enrichment.errors import EnrichmentError
from enrichment.session import available_cores
from handler.app import build
from handler.cli.shutdown import Shutdown, on_shutdown_signal
from handler.metrics import Logger, make_logger
from handler.settings import WorkerSettings
from handler.worker.breaker import BreakerState, CircuitBreaker
from handler.worker.message_queue import message_queues
from handler.worker.polling import Poller
from handler.worker.reports import Reporter, WorkerOptions

__all__ = ["process"]

_MEMORY_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")


def process(settings: WorkerSettings, options: WorkerOptions, shutdown: Shutdown, reporter: Reporter) -> int:
    """Loads the models, reports that it is ready and polls until shutdown; returns the exit code."""
    logger = make_logger(settings.log_level)
    breaker = CircuitBreaker(partial(_breaker_changed, reporter, logger))
    reporter.observe_outcomes(breaker.ticket)
    try:
        handler: Any = build(
            _with_shared_cores(settings),
            metrics=reporter,
            logger=logger,
            on_settled=reporter.batch_settled,
            outbox=settings.result_webhook is not None,
        )
        queues = message_queues(settings, options.wait)
    except NoRegionError:
        reporter.fatal("no AWS region is configured; set AWS_DEFAULT_REGION")
        return 1
    except (EnrichmentError, BotoCoreError) as error:
        reporter.fatal(str(error))
        return 1
    poller = Poller(
        queues,
        handler,
        shutdown,
        options,
        metrics=reporter,
        logger=logger,
        batches=reporter,
        breaker=breaker,
        memory_mb=_memory_mb(),
        max_receive_count=settings.max_receive_count,
    )
    with on_shutdown_signal(shutdown.request):  # until now, a signal simply ends the process
        reporter.flush()
        reporter.ready()
        poller.run()
    return 0


def _breaker_changed(reporter: Reporter, logger: Logger, state: BreakerState, reason: str) -> None:
    if state == "open":
        logger.warning("the circuit breaker is open: no messages are received", extra={"detail": reason})
    elif state == "closed":
        logger.info("the circuit breaker is closed again: messages are received", extra={"detail": reason})
    reporter.breaker(state, reason)


def _with_shared_cores(settings: WorkerSettings) -> WorkerSettings:
    """Settings in which the processes share the cores instead of each using all of them."""
    threads = settings.intra_op_threads or max(1, available_cores() // settings.num_workers)
    return settings.model_copy(update={"intra_op_threads": threads})


def _memory_mb(limit: Path = _MEMORY_LIMIT) -> int:
    """Memory in MB that this process may use: the container's limit, or the machine's memory."""
    found = limit.read_text().strip() if limit.is_file() else ""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (int(found) if found.isdigit() else machine) // 2**20


def _end_with_parent(stdin: BinaryIO, shutdown: Shutdown) -> None:
    while stdin.read(1):
        pass
    shutdown.request()


def main() -> None:
    """Runs this process; it exits without waiting for threads that hang in network calls."""
    descriptor, options = int(sys.argv[1]), WorkerOptions.load(sys.argv[2])
    shutdown = Shutdown(options.grace)
    with open(descriptor, "wb") as stream:
        threading.Thread(target=_end_with_parent, args=(sys.stdin.buffer, shutdown), daemon=True).start()
        code = process(WorkerSettings.read(), options, shutdown, Reporter(stream))
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
