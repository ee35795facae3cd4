"""Made-up support tickets that read as if customers had written them, sent to a bucket or a file at a human pace.

The words are data: `templates.toml`, whose head explains its small language. Here is only chance and plumbing.
"""

import random
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from events.delivery import PAUSE_SECONDS, Pace, Put, SinkError, to_bucket, to_file
from events.wording import STYLES, Writer

Ticket = dict[str, Any]

TAGGED = 0.6  # how likely a ticket carries each of the tags that suit it
LATEST_START = 250_000_000_000  # Unix seconds in the year 9892; dates beyond 9999 have no text form
# What `priority` holds, per hundred tickets. metadata.truth keeps the urgency of the words either way.
PRIORITY_ODDS = {"absent": 50, "null": 5, "same": 36, "other": 6, "nonsense": 3}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TicketGenerator:
    """An endless iterator of raw tickets: dicts that fit the schema of the pipeline's input.

    `metadata.truth` holds the labels that the words carry: `intent`, `urgency` and `sentiment`. An explicit `priority`
    mostly agrees with that urgency, but not always.

    Args:
        seed: The same seed gives the same tickets, but for `created_at` and the dates in the texts that follow it.
        now: The time of a ticket in Unix seconds, asked once for each.
        start: Unix seconds of the first ticket; each next one is 8 to 15 seconds later. `now` is not asked then, and
            the same seed gives the same tickets to the letter.
    """

    def __init__(
        self, seed: int | None = None, now: Callable[[], int] = lambda: int(time.time()), *, start: int | None = None
    ) -> None:
        data = tomllib.loads(resources.files(__package__).joinpath("templates.toml").read_text(encoding="utf-8"))
        self._names: dict[str, Any] = data["variables"] | data["phrases"]
        self._templates: list[dict[str, Any]] = data["templates"]
        self._shapes: list[dict[str, Any]] = data["shapes"]
        self._weights: dict[str, Any] = data["weights"]
        self._chance = random.Random(seed)
        self._now, self._start = now, start

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Ticket:
        chance, created_at = self._chance, self._time()
        template = self._pick(self._templates)
        template = template | self._pick(template.get("cases", [{}]))
        intent, kind = template["intent"], template["kind"]
        urgency = self._label(template.get("urgency") or template["impact"], self._weights["urgency"])
        moods = self._weights["sentiment"][urgency]
        sentiment = self._label(template.get("sentiment") or moods, moods)
        shape = self._pick([shape for shape in self._shapes if _suits(shape, kind, sentiment)])

        moment = _EPOCH + timedelta(seconds=created_at)
        writer = Writer(chance, self._names | template, (intent, kind, urgency, sentiment), moment)
        ticket: Ticket = {
            "ticket_id": f"TCK-{chance.getrandbits(40):010X}",
            "subject": writer.write(shape.get("subject", "{prefix}{subject}")),
            "body": STYLES[shape.get("style", "plain")](writer.write(shape["body"])),
            "created_at": created_at,
            "customer_id": f"CUST-{chance.randint(1000, 9999)}",
        }
        ticket["metadata"] = {
            "source": chance.choice(shape["sources"]),
            "language": template.get("language", "en"),
            "tags": [tag for tag in (template["category"], *template.get("tags", ())) if chance.random() < TAGGED],
            "truth": {"intent": intent, "urgency": urgency, "sentiment": sentiment},
        }
        return ticket | self._priority(urgency)

    def _time(self) -> int:
        # Drawn in either case: the tickets of a seed do not depend on where their time comes from.
        pause = self._chance.randint(*PAUSE_SECONDS)
        if self._start is None:
            return self._now()
        moment, self._start = self._start, self._start + pause
        return moment

    def _pick(self, options: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return self._chance.choices(options, [option.get("weight", 1) for option in options])[0]

    def _label(self, allowed: Iterable[str], weights: Mapping[str, float]) -> str:
        labels = list(allowed)
        return self._chance.choices(labels, [weights[label] for label in labels])[0]

    def _priority(self, urgency: str) -> dict[str, str | None]:
        chance, levels = self._chance, list(self._weights["urgency"])
        match self._label(PRIORITY_ODDS, PRIORITY_ODDS):
            case "absent":
                return {}
            case "null":
                return {"priority": None}
            case "nonsense":
                return {"priority": chance.choice(["P2", "normal", "n/a", ""])}
            case "other":
                urgency = chance.choice([level for level in levels if level != urgency])
        return {"priority": chance.choice([urgency, urgency, urgency.capitalize(), urgency.upper()])}


def _suits(shape: Mapping[str, Any], kind: str, sentiment: str) -> bool:
    kinds = shape.get("kinds", ("fault", "wish", "errand"))
    return kind in kinds and sentiment in shape.get("sentiments", (sentiment,))


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM or Ctrl-C has come; a second one ends the process as ever."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        restore()


def _sink(bucket: str | None, out: str | None) -> AbstractContextManager[Put]:
    if bucket is not None and out is None:
        return nullcontext(to_bucket(bucket))
    if out is not None and bucket is None:
        return to_file(out)
    raise SinkError("say where the tickets go: either --bucket NAME or --out FILE.jsonl ('-' for stdout)")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def generate(
    *,
    bucket: Annotated[str | None, typer.Option(help="Put each ticket into this S3 bucket as <ticket_id>.json.")] = None,
    out: Annotated[
        str | None, typer.Option(help="Write one line of JSON a ticket to this file, anew; - is stdout.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=0, help="Stop after so many tickets. Default: go on.")] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0, help="Tickets a minute, 0: no pauses. Default: 8 to 15 s apart, 7 a minute at most."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same number makes the same tickets again.")] = None,
    start: Annotated[
        int | None,
        typer.Option(min=0, max=LATEST_START, help="created_at of the first, Unix seconds. Default: always now."),
    ] = None,
) -> None:
    """Make support tickets and send them to an S3 bucket (AWS_ENDPOINT_URL says where) or a file until stopped.

    SIGTERM and Ctrl-C end it after the ticket in hand.
    """
    console, made = Console(stderr=True), 0
    quiet = not console.is_terminal or (out == "-" and sys.stdout.isatty())
    columns = (TextColumn("{task.completed} tickets"), BarColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True, disable=quiet, redirect_stdout=False)
    try:
        with _stop_signals() as stopping, _sink(bucket, out) as put, progress:
            tickets, pace, task = (
                TicketGenerator(seed, start=start),
                Pace(rate, seed),
                progress.add_task("", total=count),
            )
            while (count is None or made < count) and pace.wait(stopping):
                put(next(tickets))
                made += 1
                progress.advance(task)
    except SinkError as error:
        typer.echo(f"ticket-generator: {error}" + (f" ({_stats(made)})" if made else ""), err=True)
        raise typer.Exit(1) from None
    typer.echo(_stats(made), err=True)


def _stats(made: int) -> str:
    return f"{made} ticket{'' if made == 1 else 's'} made"


def main() -> None:
    """Run `ticket-generator`."""
    app()


if __name__ == "__main__":
    main()
