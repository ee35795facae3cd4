"""How a replay looks: a bar while it works, tables of what lies in a queue, and one sentence at the end.

Bodies are customers' texts: they are shown as JSON only, when somebody asks for it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from handler.cli.output import Row, age, moment
from handler.errors import MessageError
from handler.messages import Ignored, InlineTicket, StoredTicket, references
from handler.replay.letter import Letter
from handler.replay.look import Tally
from handler.replay.queue import QueueFacts

__all__ = ["Groups", "depth_rows", "letter_row", "progress", "sentence"]


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        # Of all the time: rich's own begins anew whenever an estimated total grows.
        return Text(f"{task.completed / task.elapsed:.1f}/s" if task.elapsed else "", style="progress.data.speed")


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Shows a bar on a terminal; yields what it is told how much is done. An estimated total grows when it must."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(label, total=total)

        def advance(done: int) -> None:
            bar.update(task, completed=done, total=None if total is None else max(total, done))

        yield advance


@dataclass
class Groups:
    """Letters by their reason: how many, and when the first and the last of them were sent (milliseconds)."""

    numbers: dict[str, int] = field(default_factory=dict)
    oldest: dict[str, int] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)

    def add(self, letter: Letter) -> None:
        """Counts a letter."""
        reason, sent_at = letter.reason, letter.sent_at or 0
        self.numbers[reason] = self.numbers.get(reason, 0) + 1
        self.oldest[reason] = min(sent_at, self.oldest.get(reason, sent_at))
        self.newest[reason] = max(sent_at, self.newest.get(reason, sent_at))

    def rows(self) -> list[Row]:
        """One row a reason, the most frequent first. In a pipe: reason, number, time of the oldest, of the newest."""
        rows = []
        for reason, number in sorted(self.numbers.items(), key=lambda entry: (-entry[1], entry[0])):
            oldest, newest = self.oldest[reason] // 1000, self.newest[reason] // 1000
            times = {"oldest": moment(oldest), "newest": moment(newest)}
            shown = {"reason": reason, "messages": str(number), "oldest": age(oldest), "newest": age(newest)}
            rows.append(
                Row({"reason": reason, "messages": number, **times}, [reason, str(number), *times.values()], shown)
            )
        return rows


def depth_rows(facts: QueueFacts) -> list[Row]:
    """How many messages SQS believes to be in a queue: those that wait, that somebody holds, that are delayed."""
    rows = []
    for state, number in (("visible", facts.visible), ("hidden", facts.hidden), ("delayed", facts.delayed)):
        shown = {"queue": facts.name, "state": state, "messages": str(number)}
        rows.append(Row({**shown, "messages": number}, list(shown.values()), shown))
    return rows


def letter_row(letter: Letter) -> Row:
    """One message. In a pipe: when it was sent, reason, replays, message id, what it refers to, what was wrong."""
    sent_at = (letter.sent_at or 0) // 1000
    replays = str(letter.ancestor({}).replay_count)
    texts = {"refers to": _subject(letter.body), "why": _why(letter)}
    names = {"reason": letter.reason, "replays": replays, "message": letter.message_id}
    data = {
        "message_id": letter.message_id,
        "reason": letter.reason,
        "sent_at": moment(sent_at),
        "replay_count": int(replays),
        "rejection": letter.rejection,
        "attributes": {name: _plain(value) for name, value in letter.own.items()},
        "body": letter.body,
    }
    return Row(data, [moment(sent_at), *names.values(), *texts.values()], {"age": age(sent_at), **names, **texts})


def sentence(tally: Tally, what: str, *, dry_run: bool = False) -> str:
    """What became of it all, in one line."""
    sent = f"{tally.replayed} of {tally.chosen} chosen {what} sent"
    parts = [f"{f'{tally.chosen} {what} would be sent' if dry_run else sent} ({tally.looked} looked at)"]
    extras = {
        "had been sent by an earlier run and were only deleted": tally.finished,
        "refused: replayed too often": tally.refused,
        "failed": tally.failed,
        "sent but not deleted: they are in both queues": tally.undeleted,
        "came back while this ran and were left": tally.returned,
        "sent without ReplayCount, for want of room": tally.unmarked,
    }
    parts += [f"{number} {words}" for words, number in extras.items() if number]
    return "; ".join(parts + (["interrupted"] if tally.interrupted else []))


def _subject(body: str) -> str:
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


def _why(letter: Letter) -> str:
    errors = letter.rejection.get("errors")
    found = [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []
    return "; ".join(str(error.get("detail", error.get("error", ""))) for error in found)


def _plain(attribute: Any) -> Any:
    if "BinaryValue" in attribute:
        return {"binary": base64.b64encode(attribute["BinaryValue"]).decode()}
    return attribute.get("StringValue", "")
