"""The jobs of `dlq-replay`: to look, to send back, to let SQS move everything, and to fill a queue from stored tickets.

Each does what an order says. Where one cannot go on it raises ReplayError; what it has done until then is reported all
the same, and stands in the audit file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from handler.replay.audit import Audit, AuditFile, Journal, NoAudit
from handler.replay.backfill import Backfill, list_objects, parse_place
from handler.replay.choice import Choice
from handler.replay.display import progress
from handler.replay.hold import Hold
from handler.replay.letter import Letter
from handler.replay.look import Look, Plan, Tally
from handler.replay.move import Move, move_all
from handler.replay.queue import QueueFacts, ReplayRefused, SqsQueue
from handler.replay.run import Pace, Replay
from handler.replay.session import check_pair, client, complain, confirm, ending

__all__ = ["Order", "facts", "fill", "look", "move", "send_back"]

_MOST_NATIVE: Final = 500


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the user wants; queues by URL, ARN or name, `rate` in messages a second."""

    source: str | None = None
    destination: str | None = None
    choice: Choice = field(default_factory=Choice)
    plan: Plan = field(default_factory=Plan)
    rate: float | None = None
    audit: Path | None = None
    force: bool = False
    yes: bool = False
    dry_run: bool = False


def facts(order: Order) -> QueueFacts:
    """What the dead-letter queue says of itself."""
    return SqsQueue(client("sqs"), _source(order)).facts()


def look(order: Order, see: Callable[[Letter], None], *, pair: bool = False) -> Tally:
    """Shows each chosen letter to `see` and gives everything back; `pair`: the destination must be a right one."""
    if pair:
        queue, _, there, _ = _pair(order)
    else:
        queue = SqsQueue(client("sqs"), _source(order))
        there = queue.facts()
    with ending() as halt, Hold(queue, order.plan.hidden) as hold:
        found = Look(queue, hold, order.choice, halt, order.plan, Journal())
        with progress("looking", there.visible) as advance:
            for letters in found:
                for letter, _ in letters.send:
                    see(letter)
                advance(found.tally.looked)
    _hint(order.choice, there)
    return found.tally


def send_back(order: Order, report: Callable[[Tally], None]) -> Tally:
    """Replays the chosen messages, once the user has agreed."""
    source, destination, there, target = _pair(order)
    if there.is_fifo and not order.choice.is_all:
        complain("in a FIFO queue, what stands behind a message that is not chosen cannot be seen")
    chosen = "of them the chosen ones" if not order.choice.is_all or order.plan.limit else "all of them"
    confirm(f"About {there.visible} messages in {there.name}: send {chosen} to {target.name}?", yes=order.yes)
    with _audit(order, {"source": there.arn, "destination": target.arn}) as audit, ending() as halt:
        if doubts := len(audit.journal.in_doubt):
            complain(f"{doubts} messages were on their way when an earlier run was ended; those may arrive twice")
        hold = Hold(source, order.plan.hidden)
        found = Look(source, hold, order.choice, halt, order.plan, audit.journal)
        pace = Pace(order.rate, halt)
        work = Replay(found, hold, source, destination, target, audit=audit, pace=pace, halt=halt)
        try:
            with hold, progress("replaying", _expected(order, there)) as advance:
                work.run(lambda tally: advance(tally.settled if order.plan.limit is None else tally.replayed))
        finally:
            report(found.tally)
    _hint(order.choice, there)
    return found.tally


def move(order: Order) -> Move:
    """Hands the whole queue over to SQS, once the user has agreed."""
    if order.rate is not None and not (order.rate.is_integer() and 1 <= order.rate <= _MOST_NATIVE):
        raise ReplayRefused(f"with --native the rate is a whole number from 1 to {_MOST_NATIVE}")
    _, _, there, target = _pair(order)
    confirm(f"Let SQS move about {there.visible} messages from {there.name} to {target.name}?", yes=order.yes)
    rate = None if order.rate is None else int(order.rate)
    with ending() as halt, progress("moving", there.visible) as advance:
        return move_all(
            client("sqs"), there.arn, target.arn, rate=rate, halt=halt, advance=lambda state: advance(state.moved)
        )


def fill(order: Order, stored: str, raw_bucket: str | None, report: Callable[[Tally], None]) -> Tally:
    """Sends the notifications of stored tickets, `s3://bucket/prefix`, once the user has agreed."""
    place, destination = parse_place(stored), SqsQueue(client("sqs"), _destination(order))
    target = destination.facts()
    if raw_bucket and raw_bucket != place.bucket and not order.force:
        raise ReplayRefused(f"the function reads {raw_bucket} (RAW_BUCKET), not {place.bucket}; mend one, or --force")
    if not order.dry_run:
        confirm(f"Send the tickets of s3://{place.bucket}/{place.prefix} to {target.name}?", yes=order.yes)
    subject = {"source": f"s3://{place.bucket}/{place.prefix}", "destination": target.arn}
    with _audit(order, subject) as audit, ending() as halt:
        if audit.journal.last_key:
            complain(f"{audit.journal.enqueued} were sent by earlier runs; going on after {audit.journal.last_key!r}")
        work = Backfill(
            place,
            destination,
            order.choice,
            audit=audit,
            pace=Pace(order.rate, halt),
            halt=halt,
            limit=order.plan.limit,
            dry_run=order.dry_run,
        )
        is_over = False
        try:
            with progress("sending", order.plan.limit) as advance:
                work.run(list_objects(client("s3"), place, audit.journal.last_key), lambda tally: advance(tally.chosen))
            is_over = not work.tally.interrupted
        finally:
            report(work.tally)
            if order.audit is None and work.last_key and not is_over:
                complain(f"the last key was {work.last_key!r}; with --audit FILE the next run would go on after it")
    return work.tally


def _source(order: Order) -> str:
    if not order.source:
        raise ReplayRefused("name the dead-letter queue: --source, or DLQ_URL in the environment")
    return order.source


def _destination(order: Order) -> str:
    if not order.destination:
        raise ReplayRefused("name the queue to send to: --destination, or QUEUE_URL in the environment")
    return order.destination


def _pair(order: Order) -> tuple[SqsQueue, SqsQueue, QueueFacts, QueueFacts]:
    """Both queues and what they say of themselves. Raises ReplayRefused where they do not belong together."""
    places = _source(order), _destination(order)
    sqs = client("sqs")
    source, destination = (SqsQueue(sqs, place) for place in places)
    there, target = source.facts(), destination.facts()
    check_pair(there, target, force=order.force)
    return source, destination, there, target


@contextmanager
def _audit(order: Order, subject: dict[str, str]) -> Iterator[Audit]:
    if order.audit is None or order.dry_run:
        yield NoAudit()
        return
    with AuditFile(order.audit, subject) as audit:
        yield audit


def _expected(order: Order, there: QueueFacts) -> int:
    return there.visible if order.plan.limit is None else min(order.plan.limit, there.visible)


def _hint(choice: Choice, there: QueueFacts) -> None:
    if choice.match is not None and choice.match.misfits:
        complain(f"--match could not be asked of {choice.match.misfits} messages: {choice.match.misfit}")
    if there.hidden:
        complain(f"about {there.hidden} messages were in other hands when this began")
