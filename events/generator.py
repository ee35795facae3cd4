"""Synthetic support tickets that read like those of customers, sent to a bucket or a file at a realistic rate.

The texts are data: `templates.toml`, whose header explains its syntax. This module makes the random choices.
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

from events.delivery import PAUSE_SECONDS, Put, RateLimiter, SinkError, to_bucket, to_file
from events.wording import STYLES, Writer

Ticket = dict[str, Any]

TAGGED = 0.6  # probability of each tag that fits a ticket
LATEST_START = 250_000_000_000  # Unix seconds in the year 9892; dates beyond 9999 have no text form
# The value of `priority`, in percent of the tickets. metadata.truth always holds the urgency of the text.
PRIORITY_ODDS = {"absent": 50, "null": 5, "same": 36, "other": 6, "nonsense": 3}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TicketGenerator:
    """An endless iterator of raw tickets: dicts that conform to the schema of the pipeline's input.

    `metadata.truth` holds the labels that the text expresses: `intent`, `urgency` and `sentiment`. An explicit
    `priority` agrees with that urgency in most tickets, but not in all.

    Args:
        seed: The same seed gives the same tickets, except for `created_at` and the dates in the texts.
        now: Returns the time of a ticket in Unix seconds; called once per ticket.
        start: Unix seconds of the first ticket; each following one is 8 to 15 seconds later. `now` is then not called,
            and the same seed gives identical tickets.
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
        # Drawn in both cases: the tickets of a seed do not depend on the source of their time.
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
    """Yield a function that tells whether SIGTERM or Ctrl-C was received; the second one ends the process as usual."""
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
    raise SinkError("choose a destination: either --bucket NAME or --out FILE.jsonl ('-' for stdout)")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def generate(
    *,
    bucket: Annotated[str | None, typer.Option(help="Put each ticket into this S3 bucket as <ticket_id>.json.")] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Write one line of JSON per ticket to this file, which is overwritten; - is standard output."
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=0, help="Stop after this number of tickets. Default: no limit.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0, help="Tickets per minute; 0: no pauses. Default: 8 to 15 s apart, at most 7 per minute."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed; the same seed gives the same tickets.")] = None,
    start: Annotated[
        int | None,
        typer.Option(
            min=0, max=LATEST_START, help="created_at of the first ticket, in Unix seconds. Default: the current time."
        ),
    ] = None,
) -> None:
    """Generate synthetic support tickets and write them to an S3 bucket or a file, until stopped.

    SIGTERM and Ctrl-C stop it after the current ticket. AWS_ENDPOINT_URL selects another endpoint, for an emulator.
    """
    console, made = Console(stderr=True), 0
    quiet = not console.is_terminal or (out == "-" and sys.stdout.isatty())
    columns = (TextColumn("{task.completed} tickets"), BarColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True, disable=quiet, redirect_stdout=False)
    try:
        with _stop_signals() as stopping, _sink(bucket, out) as put, progress:
            tickets, limiter = TicketGenerator(seed, start=start), RateLimiter(rate, seed)
            task = progress.add_task("", total=count)
            while (count is None or made < count) and limiter.wait(stopping):
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
