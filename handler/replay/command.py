"""`dlq-replay`: dead letters back into their queue, chosen, paced and accounted for.

    dlq-replay count                               how many there are; with a choice: how many of them, by reason
    dlq-replay peek --reason schema_violation      what they are, and why they are there
    dlq-replay --dry-run --older-than 2h           what a replay would send, by reason
    dlq-replay --reason throttled --rate 20 --audit replay.jsonl
    dlq-replay --from-s3 s3://tickets-raw/2026/    stored tickets once more, after a new bundle

The queues are DLQ_URL and QUEUE_URL unless named. Messages are sent first and deleted when they have arrived, so that
the process may be killed at any time: nothing is lost, and at most the batch in hand comes twice.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from handler.cli.output import form_of, replace_unprintable, write
from handler.replay.display import Groups, depth_rows, letter_row, sentence
from handler.replay.jobs import Order, facts, fill, look, move, send_back
from handler.replay.letter import Letter
from handler.replay.look import Plan, Tally
from handler.replay.options import (
    CommandByDefault,
    DestinationOption,
    EmptyPollsOption,
    HiddenOption,
    JsonOption,
    MatchOption,
    MessageIdOption,
    NewerOption,
    OlderOption,
    ReasonOption,
    SourceOption,
    WaitOption,
    make_choice,
)
from handler.replay.queue import ReplayRefused
from handler.replay.session import complain, reported

__all__ = ["app", "main"]

app = typer.Typer(
    cls=CommandByDefault,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Look at dead letters and send them back. Without a command: replay.",
)


@app.command()
def count(
    *,
    source: SourceOption = None,
    reason: ReasonOption = None,
    match: MatchOption = None,
    older_than: OlderOption = None,
    newer_than: NewerOption = None,
    message_id: MessageIdOption = None,
    as_json: JsonOption = False,
    hidden: HiddenOption = 60,
    wait: WaitOption = 5,
    empty_polls: EmptyPollsOption = 3,
) -> None:
    """Count dead letters, by SQS's own estimate; with a choice by looking at each, and by reason."""
    order = Order(
        source=source,
        choice=make_choice(reason, match, older_than, newer_than, message_id),
        plan=Plan(hidden=hidden, wait=wait, empty_polls=empty_polls),
    )
    with reported():
        if order.choice.is_all:
            write(depth_rows(facts(order)), form_of(as_json=as_json))
        else:
            _group(order, as_json=as_json, pair=False)


@app.command()
def peek(
    *,
    source: SourceOption = None,
    reason: ReasonOption = None,
    match: MatchOption = None,
    older_than: OlderOption = None,
    newer_than: NewerOption = None,
    message_id: MessageIdOption = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 10,
    as_json: JsonOption = False,
    hidden: HiddenOption = 60,
    wait: WaitOption = 5,
    empty_polls: EmptyPollsOption = 3,
) -> None:
    """Show dead letters and why they are there; --json shows all of them, the body included.

    In a pipe: sent, reason, replays, message id, what it refers to, what was wrong, with tabs between them.
    """
    order = Order(
        source=source,
        choice=make_choice(reason, match, older_than, newer_than, message_id),
        plan=Plan(hidden=hidden, wait=wait, empty_polls=empty_polls, limit=limit),
    )
    letters: list[Letter] = []
    with reported():
        tally = look(order, letters.append)
        write(map(letter_row, letters), form_of(as_json=as_json))
        _end(tally)


@app.command()
def replay(
    *,
    source: SourceOption = None,
    destination: DestinationOption = None,
    reason: ReasonOption = None,
    match: MatchOption = None,
    older_than: OlderOption = None,
    newer_than: NewerOption = None,
    message_id: MessageIdOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Send at most so many.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.01, help="Messages a second; as fast as can be.")] = None,
    max_replays: Annotated[
        int | None, typer.Option(min=1, help="Refuse what was replayed so often before, by its ReplayCount.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Send and write nothing; show what would be.")] = False,
    audit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write down what is done; with the same file an ended run goes on."),
    ] = None,
    native: Annotated[
        bool, typer.Option("--native", help="Let SQS move all messages (StartMessageMoveTask), without marks.")
    ] = False,
    from_s3: Annotated[
        str | None,
        typer.Option(metavar="s3://BUCKET/PREFIX", help="Send stored raw tickets, not dead letters."),
    ] = None,
    raw_bucket: Annotated[str | None, typer.Option(envvar="RAW_BUCKET", hidden=True)] = None,
    force: Annotated[bool, typer.Option("--force", help="Also between queues that do not belong together.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    hidden: HiddenOption = 60,
    wait: WaitOption = 5,
    empty_polls: EmptyPollsOption = 3,
) -> None:
    """Send dead letters back, and delete what has arrived. This is what happens without a command.

    Reason and Rejection are taken off; ReplayCount, OriginalMessageId and ReplayedAt are added as far as SQS's ten
    attributes allow. Exit code 0: all that was chosen has arrived; 1: some has not; 2: not begun, as asked for wrongly.
    """
    order = Order(
        source=source,
        destination=destination,
        choice=make_choice(reason, match, older_than, newer_than, message_id),
        plan=Plan(hidden=hidden, wait=wait, empty_polls=empty_polls, limit=limit, max_replays=max_replays),
        rate=rate,
        audit=audit,
        force=force,
        yes=yes,
        dry_run=dry_run,
    )
    with reported():
        if from_s3 is not None:
            _refuse_beside(
                "--from-s3", reason=reason, match=match, message_id=message_id, max_replays=max_replays, native=native
            )
            _end(fill(order, from_s3, raw_bucket, lambda tally: _report(tally, "tickets", order, as_json=as_json)))
        elif native:
            _refuse_beside(
                "--native",
                reason=reason,
                match=match,
                older_than=older_than,
                newer_than=newer_than,
                message_id=message_id,
                limit=limit,
                max_replays=max_replays,
                audit=audit,
                dry_run=dry_run,
            )
            _move(order, as_json=as_json)
        elif dry_run:
            _group(order, as_json=as_json, pair=True)
        else:
            _end(send_back(order, lambda tally: _report(tally, "messages", order, as_json=as_json)))


def _group(order: Order, *, as_json: bool, pair: bool) -> None:
    groups = Groups()
    tally = look(order, groups.add, pair=pair)
    write(groups.rows(), form_of(as_json=as_json))
    number = sum(groups.numbers.values())
    refused = f", {tally.chosen - number} replayed too often before" if tally.chosen > number else ""
    complain(f"{number} of {tally.looked} messages chosen{refused}; nothing was sent")
    _end(tally)


def _move(order: Order, *, as_json: bool) -> None:
    moved = move(order)
    if as_json:
        typer.echo(json.dumps(asdict(moved)))
    else:
        failure = f": {moved.failure}" if moved.failure else ""
        typer.echo(f"{moved.moved} of about {moved.total} messages moved; {moved.status}{failure}")
    if moved.status != "COMPLETED":
        raise typer.Exit(1)


def _report(tally: Tally, what: str, order: Order, *, as_json: bool) -> None:
    for name, why in tally.failures:
        complain(f"{name} failed: {why}")
    if tally.failed > len(tally.failures):
        complain(f"and {tally.failed - len(tally.failures)} more")
    if as_json:
        data = {name: value for name, value in asdict(tally).items() if name != "failures"}
        typer.echo(json.dumps({**data, "complete": tally.is_complete}))
    else:
        typer.echo(sentence(tally, what, dry_run=order.dry_run))


def _end(tally: Tally) -> None:
    if not tally.is_complete:
        raise typer.Exit(1)


def _refuse_beside(option: str, **others: object) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in others.items() if value]
    if given:
        raise ReplayRefused(f"{option} goes without {', '.join(given)}")


def main() -> None:
    """Run `dlq-replay`."""
    replace_unprintable()
    app()
