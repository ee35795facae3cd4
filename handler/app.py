"""The composition root: makes the real ports where none are given, and the handler that Lambda calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, Final

import boto3
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from botocore.config import Config

from enrichment import Enricher
from handler.batch import Batch
from handler.bundle_source import install_bundle
from handler.dead_letters import DeadLetters, SqsDeadLetters
from handler.failure_counts import DynamoFailureCounts, FailureCounts
from handler.observability import EmfFigures, Figures, Logger, make_logger
from handler.ports import Models, Ports
from handler.settings import Settings
from handler.storage import AwsTicketSink, S3TicketSource, TicketSink, TicketSource

__all__ = ["EventNotUnderstood", "Handler", "build"]

Handler = Callable[[Any, Any], dict[str, Any]]

_CONNECTIONS: Final = 16  # reads and writes at once; the HTTP pool of each client matches


class EventNotUnderstood(Exception):
    """The event holds something that is not an SQS record, so none of it was processed; Lambda tries it again."""


def build(
    settings: Settings,
    *,
    source: TicketSource | None = None,
    sink: TicketSink | None = None,
    dead_letters: DeadLetters | None = None,
    failure_counts: FailureCounts | None = None,
    models: Models | None = None,
    figures: Figures | None = None,
    logger: Logger | None = None,
) -> Handler:
    """Makes the Lambda handler from settings; ports that are not given are the real ones.

    Raises BundleError when the model bundle cannot be used.
    """
    pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="ticket")
    # One thread makes the clients, from one session, while this one opens the models. In threads of their own they
    # would need a session each, boto3's being unsafe to share, and each would parse the same descriptions once more.
    clients = ThreadPoolExecutor(1, thread_name_prefix="client")
    session = cache(boto3.session.Session)

    @cache
    def client(service: str) -> Future[Any]:
        return clients.submit(lambda: _client(session(), service, settings))

    for service, ports_of_it in {
        "s3": (source, sink),
        "dynamodb": (sink, failure_counts),
        "sqs": (dead_letters,),
    }.items():
        if None in ports_of_it:
            client(service)
    begin = time.perf_counter()
    figures = figures or EmfFigures(settings.service_name, settings.aws_lambda_function_version)
    if models is None:
        folder = install_bundle(settings.model_bundle, settings.bundle_cache_dir, lambda: client("s3").result())
        models = Enricher.open(folder, threads=settings.intra_op_threads)
        figures.started(time.perf_counter() - begin)
    ports = Ports(
        source=source or S3TicketSource(client("s3").result(), settings.raw_bucket, settings.max_ticket_bytes),
        sink=sink
        or AwsTicketSink(
            client("s3").result(), client("dynamodb").result(), settings.enriched_bucket, settings.table_name
        ),
        dead_letters=dead_letters or SqsDeadLetters(client("sqs").result(), settings.queue_url, settings.dlq_url),
        failure_counts=failure_counts or DynamoFailureCounts(client("dynamodb").result(), settings.table_name),
        models=models,
        figures=figures,
        logger=logger or make_logger(settings.log_level),
        pool=pool,
        max_receive_count=settings.max_receive_count,
        max_ticket_bytes=settings.max_ticket_bytes,
    )
    clients.shutdown(wait=False)
    return _handler(ports)


def _handler(ports: Ports) -> Handler:
    processor = BatchProcessor(event_type=EventType.SQS, raise_on_entire_batch_failure=False)

    def lambda_handler(event: Any, context: Any) -> dict[str, Any]:
        """Processes the SQS records of an event; answers which are to be retried (ReportBatchItemFailures).

        Raises EventNotUnderstood for an event that holds something else: success would delete it.
        """
        records = _records(event)
        if not records:
            ports.logger.warning("an event without messages was ignored")
            return {"batchItemFailures": []}
        batch = Batch(records, ports, _clock(context))
        batch.run()
        # A record without an id cannot be reported, and would make Lambda repeat the whole batch.
        named = [record for record in records if isinstance(record.get("messageId"), str) and record["messageId"]]
        return dict(
            process_partial_response(
                {"Records": named}, lambda record: batch.settled(record.raw_event), processor, context
            )
            if named
            else {"batchItemFailures": []}
        )

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
    """Seconds until the function's timeout; a minute from now where nobody says."""
    if hasattr(context, "get_remaining_time_in_millis"):
        return lambda: float(context.get_remaining_time_in_millis()) / 1000
    end = time.monotonic() + 60
    return lambda: end - time.monotonic()


def _client(session: boto3.session.Session, service: str, settings: Settings) -> Any:
    make: Any = session.client
    return make(
        service,
        endpoint_url=str(settings.aws_endpoint_url) if settings.aws_endpoint_url else None,
        config=Config(
            connect_timeout=2,
            read_timeout=10,
            retries={"mode": "standard", "max_attempts": 3},
            max_pool_connections=_CONNECTIONS,
        ),
    )
