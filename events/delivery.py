"""How made-up tickets leave: at what pace, and into which bucket or file."""

import json
import os
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import typer

Put = Callable[[dict[str, Any]], None]

PAUSE_SECONDS = (8, 15)
MOST_PER_MINUTE = 7


class Pace:
    """Tells when the next ticket is due; the first one is due at once.

    Args:
        rate: Tickets per minute. 0: as fast as can be. None: random pauses of 8 to 15 s, at most 7 in any minute.
        seed: Of the random pauses.
        clock: Seconds that only ever grow.
        sleep: Waits so many seconds; never asked for more than a fifth of a second, so that a signal is soon heeded.
    """

    def __init__(
        self,
        rate: float | None = None,
        seed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._chance = random.Random(seed)
        self._made: deque[float] = deque(maxlen=MOST_PER_MINUTE)
        self._due = clock()

    def wait(self, stopping: Callable[[], bool]) -> bool:
        """Wait until the next ticket is due; False as soon as `stopping` says so."""
        while not stopping():
            left = self._due - self._clock()
            if left <= 0:
                self._due = self._after(self._clock())
                return True
            self._sleep(min(left, 0.2))
        return False

    def _after(self, now: float) -> float:
        if self._rate == 0:
            return now
        if self._rate is not None:
            return max(self._due + 60 / self._rate, now)  # counted from when it was due, or the rate would sag
        self._made.append(now)
        pause = now + self._chance.uniform(*PAUSE_SECONDS)
        return max(pause, self._made[0] + 60) if len(self._made) == MOST_PER_MINUTE else pause


class SinkError(Exception):
    """The tickets cannot be handed over; the message is one line for people."""


def _encode(ticket: dict[str, Any]) -> bytes:
    return json.dumps(ticket, ensure_ascii=False).encode()


def to_bucket(name: str) -> Put:
    """Return a function that puts a ticket into the S3 bucket as <ticket_id>.json; only this imports boto3.

    Raises:
        SinkError: From here without boto3 or with an AWS_ENDPOINT_URL that is no address; from the function returned
            when S3 refuses a ticket or is out of reach after four attempts.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        # Short, for somebody may be waiting for the generator to stop.
        config = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 4})
        client = boto3.client("s3", config=config)
    except ImportError as error:
        raise SinkError("--bucket needs boto3: pip install boto3") from error
    except ValueError as error:
        raise SinkError(f"AWS_ENDPOINT_URL: {error}") from error

    def put(ticket: dict[str, Any]) -> None:
        key = f"{ticket['ticket_id']}.json"
        try:
            client.put_object(Bucket=name, Key=key, Body=_encode(ticket), ContentType="application/json")
        except (BotoCoreError, ClientError) as error:
            raise SinkError(f"cannot put {key} into bucket {name}: {' '.join(str(error).split())}") from error

    return put


@contextmanager
def to_file(path: str) -> Iterator[Put]:
    """Yield a function that writes a ticket as one line of JSON (UTF-8) to the file, emptied first; "-" is stdout.

    Raises:
        SinkError: The file cannot be written. A reader of a pipe who has seen enough is no error: the block just ends.
    """
    try:
        with nullcontext(typer.get_binary_stream("stdout")) if path == "-" else Path(path).open("wb") as stream:

            def put(ticket: dict[str, Any]) -> None:
                stream.write(_encode(ticket) + b"\n")
                stream.flush()  # whoever follows the file sees whole lines

            yield put
    except BrokenPipeError:
        if path == "-":  # what is left in the buffer goes nowhere, or Python complains once more when it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise SinkError(f"cannot write to {path}: {error.strerror}") from error
