"""`dlq-replay`: the commands.

    dlq-replay count                               number of messages; with a filter, per reason
    dlq-replay peek --reason schema_violation      the messages, and why they are in the DLQ
    dlq-replay replay --dry-run --older-than 2h    what a replay would send, by reason
    dlq-replay replay --reason throttled --rate 20 --audit replay.jsonl
    dlq-replay redrive                             SQS moves everything (StartMessageMoveTask)
    dlq-replay backfill s3://tickets-raw/2026/     stored tickets again, for example after a new bundle

The queues are DLQ_URL and QUEUE_URL, unless --source and --destination name others; if they list several, --lane says
which. `count` with a filter, `peek` and `replay --dry-run` receive messages to read them: they are invisible to other
consumers until the command ends, and their receive counts grow by one. `count` without a filter receives nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import typer
from botocore.exceptions import BotoCoreError

from handler.aws.clients import client_factory
from handler.aws.sqs import MoveTask, Queue, QueueAttributes
from handler.cli.errors import error_line
from handler.cli.output import echo, form_of, replace_unprintable, write
from handler.cli.shutdown import stopping_on_signals
from handler.dlq.audit import Audit
from handler.dlq.backfill import Backfill, list_objects, parse_location
from handler.dlq.errors import RequestInvalid, warn
from handler.dlq.message import DlqMessage
from handler.dlq.options import FILTER, SCAN, DlqGroup, Lane, Options, command
from handler.dlq.output import confirm, depth_rows, message_row, progress, reason_rows, summary
from handler.dlq.redrive import MAX_RATE, wait_for
from handler.dlq.replay import RateLimiter, Replay
from handler.dlq.scan import Scan, Stats
from handler.settings import listed

__all__ = ["app", "main"]

_SOURCE: Final = "the dead-letter queue: --source, or DLQ_URL"
_DESTINATION: Final = "the queue to send to: --destination, or QUEUE_URL"
_STOPPING: Final = (
    "\ndlq-replay: finishing the current batch and releasing the other messages; again to stop immediately\n"
)

app = typer.Typer(
    cls=DlqGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Inspect a dead-letter queue (DLQ) and get its messages processed again. Without a command: replay.",
)


@command(app, "source", "lane", *FILTER, "as_json", *SCAN)
def count(options: Options) -> None:
    """Count messages: SQS's estimate or, with a filter, an exact number per reason, for which each message is read."""
    dlq = _open(_client("sqs"), _chosen(options.source, options.lane, _SOURCE))
    if options.filter.is_empty:
        write(depth_rows(dlq.attributes), form_of(as_json=options.as_json))
    else:
        _count_by_reason(dlq, options)


@command(app, "source", "lane", *FILTER, "limit", "as_json", *SCAN)
def peek(options: Options) -> None:
    """Show messages and why they are in the DLQ; with --json everything, including the body.

    Columns in a pipe, separated by tabs: time sent, reason, replay count, message id, tickets, error.
    """
    messages: list[DlqMessage] = []
    dlq = _open(_client("sqs"), _chosen(options.source, options.lane, _SOURCE))
    stats = _scan(dlq, replace(options, limit=options.limit or 10), messages.append)
    write(map(message_row, messages), form_of(as_json=options.as_json))
    _exit(stats)


@command(
    app,
    *("source", "destination", "lane", *FILTER, "limit", "rate", "max_replays"),
    *("dry_run", "audit", "force", "yes", "as_json", *SCAN),
)
def replay(options: Options) -> None:
    """Send messages from the DLQ to their queue, then delete those that SQS has accepted. The default command.

    Unlike `redrive`, it copies the messages itself, with filters, a limit, a rate and an audit file. Reason and
    Rejection are removed; ReplayCount, FirstSentTimestamp, OriginalMessageId and ReplayedAt are added if SQS's limit of
    ten attributes allows it. FirstSentTimestamp is the time at which the message was sent first: an old inline ticket
    does not overwrite a newer one. If the command is killed, no message is lost and at most one batch of ten is sent
    twice.

    --dry-run receives the messages to read them: they are invisible to other consumers until the command ends.

    Exit code 0: all selected messages were sent and deleted; 1: some were not; 2: the command did not start.
    """
    dlq, target = _open_pair(options)
    if options.dry_run:
        _count_by_reason(dlq, options)
        return
    if dlq.attributes.is_fifo and not options.filter.is_empty:
        warn("in a FIFO queue, messages behind one that is not selected cannot be received")
    part = "all of them" if options.filter.is_empty and options.limit is None else "the selected ones"
    confirm(f"About {dlq.depth}: send {part} to {target.attributes.name}?", yes=options.yes)
    subject = {"source": dlq.attributes.arn, "destination": target.attributes.arn}
    with Audit(options.audit, subject) as audit, stopping_on_signals(_STOPPING) as shutdown:
        if doubtful := len(audit.history.in_doubt):
            warn(f"{doubtful} messages were being sent when an earlier run was killed; they may arrive twice")
        limiter = RateLimiter(options.rate, shutdown)
        scan = Scan(dlq.queue, options, shutdown, audit.history)
        total = min(options.limit or dlq.attributes.visible, dlq.attributes.visible)
        try:
            with scan.in_flight, progress("replaying", total) as advance:
                Replay(scan, target.queue, target.attributes, audit, limiter).run(
                    lambda stats: advance(stats.scanned if options.limit is None else stats.replayed)
                )
        finally:
            _report(scan.stats, "messages", options)
    _warn_of_gaps(dlq, options)
    _exit(scan.stats)


@command(app, "source", "destination", "lane", "rate", "force", "yes", "as_json")
def redrive(options: Options) -> None:
    """Let SQS move all messages out of the DLQ (StartMessageMoveTask), and wait for it; Ctrl-C cancels the task.

    SQS moves up to 500 messages per second, but without the filters, limit, audit file and ReplayCount of `replay`. The
    messages keep Reason and Rejection, and their receive counts start again at zero.
    """
    if options.rate is not None and not (options.rate.is_integer() and 1 <= options.rate <= MAX_RATE):
        raise RequestInvalid(f"the rate of a redrive is a whole number from 1 to {MAX_RATE}")
    dlq, target = _open_pair(options)
    confirm(f"About {dlq.depth}: let SQS move all of them to {target.attributes.name}?", yes=options.yes)
    rate = None if options.rate is None else int(options.rate)
    with stopping_on_signals(_STOPPING) as shutdown, progress("moving", dlq.attributes.visible) as advance:
        task = MoveTask(_client("sqs"), dlq.attributes.arn, target.attributes.arn, rate)
        state = wait_for(task, shutdown, lambda state: advance(state.moved))
    if options.as_json:
        echo(json.dumps(asdict(state)))
    else:
        failure = f": {state.failure}" if state.failure else ""
        echo(f"{state.moved} of about {state.total} messages moved; {state.status}{failure}")
    if state.status != "COMPLETED":
        raise typer.Exit(1)


@command(
    app,
    *("stored", "destination", "lane", "older_than", "newer_than", "limit", "rate"),
    *("dry_run", "audit", "raw_bucket", "force", "yes", "as_json"),
)
def backfill(options: Options) -> None:
    """Send an S3 notification for each stored raw ticket to the queue, for example to apply a new model bundle.

    If QUEUE_URL lists several queues, it is sent to the last one, so that live tickets do not wait for it.

    With --audit, a run continues after the last key of the previous run.
    """
    bucket, prefix = parse_location(options.stored)
    name = _chosen(options.destination, options.lane, _DESTINATION, default="bulk")
    target = _open(_client("sqs"), name)
    if options.raw_bucket and bucket not in listed(options.raw_bucket) and not options.force:
        raise RequestInvalid(f"the function reads {options.raw_bucket} (RAW_BUCKET), not {bucket}; or use --force")
    location = f"s3://{bucket}/{prefix}"
    if not options.dry_run:
        confirm(f"Send the tickets of {location} to {target.attributes.name}?", yes=options.yes)
    subject = {"source": location, "destination": target.attributes.arn}
    with (
        Audit(None if options.dry_run else options.audit, subject) as audit,
        stopping_on_signals(_STOPPING) as shutdown,
    ):
        after = audit.history.last_key
        if after:
            warn(f"{audit.history.enqueued} were sent by earlier runs; continuing after {after!r}")
        run = Backfill(bucket, target.queue, options, audit, RateLimiter(options.rate, shutdown))
        is_finished = False
        try:
            with progress("sending", options.limit) as advance:
                run.run(list_objects(_client("s3"), bucket, prefix, after), lambda stats: advance(stats.selected))
            is_finished = not run.stats.interrupted
        finally:
            _report(run.stats, "tickets", options)
            if options.audit is None and run.last_key and not is_finished:
                warn(f"the last key was {run.last_key!r}; with --audit FILE the next run would continue after it")
    _exit(run.stats)


@dataclass(frozen=True)
class _OpenQueue:
    queue: Queue
    attributes: QueueAttributes

    @property
    def depth(self) -> str:
        return f"{self.attributes.visible} messages in {self.attributes.name}"


def _client(service: str) -> Any:
    """A client with region, credentials and endpoint from the environment. Raises RequestInvalid."""
    try:
        # The read timeout is longer than the longest poll. Many attempts: a replay can wait.
        return client_factory(None)(service, connect_timeout=5, read_timeout=30, attempts=5)
    except BotoCoreError as error:
        raise RequestInvalid(error_line(error, {}, "AWS")) from error
    except ValueError as error:
        raise RequestInvalid(f"AWS_ENDPOINT_URL: {error}") from error


def _chosen(names: str | None, lane: Lane | None, what: str, default: Lane = "live") -> str:
    """The first or the last of several queues. Raises RequestInvalid."""
    entries = listed(names or "")
    if "" in entries:
        raise RequestInvalid(f"name {what} in the environment")
    if lane == "bulk" and len(entries) == 1:
        raise RequestInvalid(f"there is no queue for bulk: only {entries[0].rpartition('/')[2]} is named")
    return entries[0 if (lane or default) == "live" else -1]


def _open(client: Any, name: str) -> _OpenQueue:
    queue = Queue.find(client, name)
    return _OpenQueue(queue, queue.attributes())


def _open_pair(options: Options) -> tuple[_OpenQueue, _OpenQueue]:
    """DLQ and destination. Raises RequestInvalid unless they belong together, or --force."""
    names = (
        _chosen(options.source, options.lane, _SOURCE),
        _chosen(options.destination, options.lane, _DESTINATION),
    )
    client = _client("sqs")
    dlq, target = (_open(client, name) for name in names)
    source, destination = dlq.attributes, target.attributes
    if source.arn == destination.arn and not options.force:
        raise RequestInvalid(f"source and destination are both {source.name}; name another --destination, or --force")
    if destination.dead_letter_arn != source.arn and not options.force:
        raise RequestInvalid(
            f"{source.name} is not the dead-letter queue of {destination.name}; check both, or --force"
        )
    if source.dead_letter_arn is not None:
        warn(f"{source.name} has a dead-letter queue itself, and each receive counts towards its maxReceiveCount")
    return dlq, target


def _scan(dlq: _OpenQueue, options: Options, on_message: Callable[[DlqMessage], None]) -> Stats:
    """Read the selected messages, then make all received messages visible again."""
    with stopping_on_signals(_STOPPING) as shutdown, progress("scanning", dlq.attributes.visible) as advance:
        scan = Scan(dlq.queue, options, shutdown)
        with scan.in_flight:
            for selection in scan:
                for message, _ in selection.send:
                    on_message(message)
                advance(scan.stats.scanned)
    _warn_of_gaps(dlq, options)
    return scan.stats


def _count_by_reason(dlq: _OpenQueue, options: Options) -> None:
    found: list[tuple[str, int]] = []
    stats = _scan(dlq, options, lambda message: found.append((message.reason, message.sent_at or 0)))
    write(reason_rows(found), form_of(as_json=options.as_json))
    refused = stats.selected - len(found)
    extra = f", {refused} refused: replayed too often" if refused else ""
    warn(f"{len(found)} of {stats.scanned} messages selected{extra}; nothing was sent")
    _exit(stats)


def _warn_of_gaps(dlq: _OpenQueue, options: Options) -> None:
    """Warn about messages that --match could not evaluate, and about those that could not be received."""
    if options.match is not None and options.match.type_errors:
        number, error = options.match.type_errors, options.match.type_error
        warn(f"--match could not be evaluated on {number} messages, which were skipped: {error}")
    if dlq.attributes.in_flight:
        warn(f"about {dlq.attributes.in_flight} messages were already in flight when this started")


def _report(stats: Stats, what: str, options: Options) -> None:
    for name, error in stats.failures:
        warn(f"{name} failed: {error}")
    if stats.failed > len(stats.failures):
        warn(f"and {stats.failed - len(stats.failures)} more")
    echo(json.dumps(stats.as_json()) if options.as_json else summary(stats, what, dry_run=options.dry_run))


def _exit(stats: Stats) -> None:
    if not stats.is_complete:
        raise typer.Exit(1)


def main() -> None:
    """Run `dlq-replay`."""
    replace_unprintable()
    app()
