"""What dlq-replay prints: a confirmation prompt, a progress bar, tables of messages and a summary.

Bodies are customer text: only `peek --json` prints them.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from handler.aws.sqs import QueueAttributes
from handler.cli.output import Row, age, moment
from handler.dlq.errors import DlqError, RequestInvalid
from handler.dlq.message import DlqMessage
from handler.dlq.scan import Stats
from handler.errors import MessageError
from handler.messages import Ignored, InlineTicket, StoredTicket, references

__all__ = ["confirm", "depth_rows", "message_row", "progress", "reason_rows", "summary"]


def confirm(question: str, *, yes: bool) -> None:
    """Ask on the terminal, unless `yes`. Raises RequestInvalid without a terminal, DlqError if the answer is no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise RequestInvalid("there is no terminal to ask for confirmation; use --yes")
    typer.echo(f"{question} [y/N] ", nl=False, err=True)  # typer.confirm would print to standard output as well
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        answer = ""
    if answer.strip().lower() not in {"y", "yes"}:
        raise DlqError("nothing was sent")


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        # Over the whole run: rich's own rate starts again when an estimated total grows.
        return Text(f"{task.completed / task.elapsed:.1f}/s" if task.elapsed else "", style="progress.data.speed")


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar if standard error is a terminal; yields a function that takes the number done.

    `total` may be an estimate, and grows if it was too low.
    """
    console = Console(stderr=True)
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(_RateColumn(), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done, total=None if total is None else max(total, done))


def reason_rows(messages: Iterable[tuple[str, int]]) -> list[Row]:
    """One row per reason, the most frequent first; `messages` are pairs of reason and time sent (milliseconds).

    In a pipe: reason, number of messages, times at which the oldest and the newest were sent.
    """
    times: dict[str, list[int]] = {}
    for reason, sent_at in messages:
        times.setdefault(reason, []).append(sent_at // 1000)
    rows = []
    for reason, found in sorted(times.items(), key=lambda entry: (-len(entry[1]), entry[0])):
        row = {"reason": reason, "messages": str(len(found))}
        ends = {"oldest": min(found), "newest": max(found)}
        moments, ages = ({name: show(end) for name, end in ends.items()} for show in (moment, age))
        cells = [*row.values(), *moments.values()]
        rows.append(Row({**row, "messages": len(found), **moments}, cells, {**row, **ages}))
    return rows


def depth_rows(attributes: QueueAttributes) -> list[Row]:
    """The number of messages in a queue, as SQS estimates it; `hidden` are those in flight."""
    rows = []
    numbers = {"visible": attributes.visible, "hidden": attributes.in_flight, "delayed": attributes.delayed}
    for state, number in numbers.items():
        row = {"queue": attributes.name, "state": state, "messages": str(number)}
        rows.append(Row({**row, "messages": number}, list(row.values()), row))
    return rows


def message_row(message: DlqMessage) -> Row:
    """One message. In a pipe: time sent, reason, replay count, message id, the tickets it refers to, errors."""
    sent_at = (message.sent_at or 0) // 1000
    replays = message.lineage({}).replay_count
    row = {
        "reason": message.reason,
        "replays": str(replays),
        "message": message.message_id,
        "refers to": _content(message.body),
        "why": _errors(message),
    }
    data = {
        "message_id": message.message_id,
        "reason": message.reason,
        "sent_at": moment(sent_at),
        "replay_count": replays,
        "rejection": message.rejection,
        "attributes": {name: _value(value) for name, value in message.sender_attributes.items()},
        "body": message.body,
    }
    return Row(data, [moment(sent_at), *row.values()], {"age": age(sent_at), **row})


def summary(stats: Stats, what: str, *, dry_run: bool = False) -> str:
    """What a run did, in one line; `what` is "messages" or "tickets"."""
    if dry_run:
        sent = f"{stats.selected} {what} would be sent"
    else:
        sent = f"{stats.replayed} of {stats.selected} selected {what} sent"
    extras = {
        "had been sent by an earlier run and were only deleted": stats.finished,
        "refused: replayed too often": stats.refused,
        "failed": stats.failed,
        "sent but not deleted: they are in both queues": stats.undeleted,
        "came back to the DLQ during the run and stay there": stats.returned,
        "sent without ReplayCount: there was no room for it": stats.unmarked,
    }
    parts = [f"{sent} ({stats.scanned} scanned)", *(f"{number} {text}" for text, number in extras.items() if number)]
    return "; ".join([*parts, "interrupted"] if stats.interrupted else parts)


def _content(body: str) -> str:
    try:
        found = references(body)
    except MessageError as error:
        return error.code
    names = []
    for reference in found:
        match reference:
            case StoredTicket(bucket, key):
                names.append(f"s3://{bucket}/{key}")
            case InlineTicket(raw):
                names.append(f"a ticket of {len(raw)} bytes")
            case Ignored(what):
                names.append(what)
    return ", ".join(names)


def _errors(message: DlqMessage) -> str:
    errors = message.rejection.get("errors")
    found = [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []
    return "; ".join(str(error.get("detail", error.get("error", ""))) for error in found)


def _value(attribute: Any) -> Any:
    if "BinaryValue" in attribute:
        return {"binary": base64.b64encode(attribute["BinaryValue"]).decode()}
    return attribute.get("StringValue", "")
