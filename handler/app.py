"""The composition root: builds the adapters and the handler that Lambda calls."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, Final

from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response

from handler.aws.clients import client_factory
from handler.aws.dead_letters import SqsDeadLetters
from handler.aws.failure_counts import DynamoFailureCounts
from handler.aws.storage import AwsTicketSink, S3TicketSource
from handler.batch import Batch
from handler.crashes import Part, delete_early, parts
from handler.errors import trace
from handler.metrics import EmfMetrics, Logger, Metrics, make_logger
from handler.models import OpenedModels, open_models
from handler.ports import DeadLetters, FailureCounts, Models, Ports, TicketSink, TicketSource
from handler.settings import Settings

__all__ = ["EventNotUnderstood", "Handler", "build"]

Handler = Callable[[Any, Any], dict[str, Any]]

_THREADS: Final = 16  # for reads, and as many for everything else
_CONNECTIONS: Final = 2 * _THREADS  # of each client


class EventNotUnderstood(Exception):
    """The event contains something other than SQS records, so none of it was processed; Lambda retries it."""


def build(
    settings: Settings,
    *,
    source: TicketSource | None = None,
    sink: TicketSink | None = None,
    dead_letters: DeadLetters | None = None,
    failure_counts: FailureCounts | None = None,
    models: Models | None = None,
    opening: Future[OpenedModels] | None = None,
    metrics: Metrics | None = None,
    logger: Logger | None = None,
    on_settled: Callable[[Sequence[str]], None] = lambda _receipts: None,
    outbox: bool = False,
) -> Handler:
    """Builds the Lambda handler from settings; ports that are not given are the AWS adapters and the real models.

    `opening` are the models that `begin_opening` opens, if it was called earlier.
    `on_settled` is told the receipt handles of messages that are deleted or deferred before an invocation ends.
    `outbox` is for the worker's webhook: each commit also writes its event, in one transaction.
    Raises BundleError if the model bundle cannot be used.
    """
    readers, pool = (ThreadPoolExecutor(_THREADS, thread_name_prefix=name) for name in ("reader", "ticket"))
    # One thread creates the clients, from one session, while this thread opens the models: separate threads would need
    # a session each, and each session would parse the service descriptions again.
    client_thread = ThreadPoolExecutor(1, thread_name_prefix="client")
    make_client = client_factory(settings.aws_endpoint_url)

    @cache
    def client(service: str) -> Future[Any]:
        return client_thread.submit(make_client, service, connections=_CONNECTIONS)

    for service, needed_by in {
        "s3": (source, sink),
        "dynamodb": (sink, failure_counts),
        "sqs": (dead_letters,),
    }.items():
        if None in needed_by:
            client(service)
    metrics = metrics or EmfMetrics(settings.service_name, settings.aws_lambda_function_version)
    logger = logger or make_logger(settings.log_level)
    shadow_error = None
    if models is None:
        opened = opening.result() if opening else open_models(settings, lambda: client("s3").result())
        models, shadow_error = opened.models, opened.shadow_error
        if shadow_error is not None:
            extra = {"error_type": shadow_error.code, "detail": str(shadow_error), "traceback": trace(shadow_error)}
            logger.error("SHADOW_BUNDLE cannot be opened: tickets are labelled without it", extra=extra)
        metrics.started(opened.seconds)
    ports = Ports(
        source=source or S3TicketSource(client("s3").result(), settings.raw_buckets, settings.max_ticket_bytes),
        sink=sink
        or AwsTicketSink(
            client("s3").result(),
            client("dynamodb").result(),
            settings.enriched_bucket,
            settings.table_name,
            item_retention_days=settings.item_retention_days,
            outbox=outbox,
        ),
        dead_letters=dead_letters or SqsDeadLetters(client("sqs").result(), settings.lanes),
        failure_counts=failure_counts or DynamoFailureCounts(client("dynamodb").result(), settings.table_name),
        models=models,
        metrics=metrics,
        logger=logger,
        readers=readers,
        pool=pool,
        on_settled=on_settled,
        max_receive_count=settings.max_receive_count,
        max_ticket_bytes=settings.max_ticket_bytes,
        redact=settings.redact,
        enriched_objects=settings.enriched_objects,
        shadow_error=shadow_error,
    )
    # What only some settings need; now, and not while the first ticket waits.
    if settings.redact != "off":
        importlib.import_module("enrichment.redaction")
    if settings.enriched_objects == "batch":
        importlib.import_module("handler.aws.batch_objects")
    client_thread.shutdown(wait=False)
    return _handler(ports)


def _handler(ports: Ports) -> Handler:
    def lambda_handler(event: Any, context: Any) -> dict[str, Any]:
        """Processes the SQS records of an event; the response names those to retry (ReportBatchItemFailures).

        Raises EventNotUnderstood for an event with any other content, because a success response would delete it.
        """
        records = _records(event)
        if not records:
            ports.logger.warning("an event without messages was ignored")
            return {"batchItemFailures": []}
        time_left = _clock(context)
        failures: list[Any] = []
        # Usually one part. After a crash, each message that may have caused it is a part of its own.
        in_order = parts(records, ports, time_left)
        for part in in_order:
            failed, kept = process(part, time_left, context)
            failures += failed
            if part is not in_order[-1]:
                delete_early(part.records, kept, ports)
        return {"batchItemFailures": failures}

    def process(part: Part, time_left: Callable[[], float], context: Any) -> tuple[list[Any], list[Any]]:
        """The failures to report, and the records that stay in the queue."""
        error = part.begin(time_left)
        batch = Batch(
            part.records,
            ports,
            time_left,
            error=error,
            noted=part.noted if error is None else (),
            with_shadow=not part.is_suspect,
        )
        batch.process()
        # Powertools needs an id to report a record; SQS always sends one.
        named = [record for record in part.records if isinstance(record.get("messageId"), str) and record["messageId"]]
        failed: list[Any] = []
        if named:
            # One for each batch: it has the batch's state, and the worker processes several at once.
            processor = BatchProcessor(event_type=EventType.SQS, raise_on_entire_batch_failure=False)
            response = process_partial_response({"Records": named}, batch.settle, processor, context)
            failed = list(response["batchItemFailures"])
        batch.close()
        return failed, batch.kept

    return lambda_handler


def _records(event: Any) -> list[dict[str, Any]]:
    """The SQS records of an event: an event source mapping sends them as `Records`, EventBridge Pipes as a list.

    None for an empty event and for S3's test event. Raises EventNotUnderstood if there is anything but SQS records.
    """
    wrapped = isinstance(event, dict)
    if not event or (wrapped and event.get("Event") == "s3:TestEvent"):
        return []
    found = event.get("Records") if wrapped else event
    if not isinstance(found, list) or not all(
        isinstance(record, dict) and record.get("eventSource") == "aws:sqs" for record in found
    ):
        raise EventNotUnderstood(
            'the event does not consist of SQS records; send {"Records": [...]} as SQS does, or a list as Pipes does'
        )
    return found


def _clock(context: Any) -> Callable[[], float]:
    """Seconds until the function's timeout; one minute if the context does not say."""
    if hasattr(context, "get_remaining_time_in_millis"):
        return lambda: float(context.get_remaining_time_in_millis()) / 1000
    end = time.monotonic() + 60
    return lambda: end - time.monotonic()
