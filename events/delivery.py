"""Delivery of synthetic tickets: a rate limiter, and the bucket or file that they are written to."""

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
MAX_PER_MINUTE = 7


class RateLimiter:
    """Waits until the next ticket is due; the first one is due immediately.

    Args:
        rate: Tickets per minute. 0: no limit. None: random pauses of 8 to 15 s, at most 7 tickets in any minute.
        seed: Seed of the random pauses.
        clock: A monotonic clock, in seconds.
        sleep: Sleeps for a number of seconds, at most 0.2 per call, so that a signal takes effect quickly.
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
        self._made: deque[float] = deque(maxlen=MAX_PER_MINUTE)
        self._due = clock()

    def wait(self, stopping: Callable[[], bool]) -> bool:
        """Wait until the next ticket is due; return False as soon as `stopping()` is true."""
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
            return max(self._due + 60 / self._rate, now)  # from when it was due: otherwise delays would lower the rate
        self._made.append(now)
        pause = now + self._chance.uniform(*PAUSE_SECONDS)
        return max(pause, self._made[0] + 60) if len(self._made) == MAX_PER_MINUTE else pause


class SinkError(Exception):
    """Tickets cannot be delivered; the message is one line for the user."""


def _encode(ticket: dict[str, Any]) -> bytes:
    return json.dumps(ticket, ensure_ascii=False).encode()


def to_bucket(name: str) -> Put:
    """Return a function that puts a ticket into the S3 bucket as <ticket_id>.json. Only this function imports boto3.

    Raises:
        SinkError: Here, if boto3 is not installed or AWS_ENDPOINT_URL is not a URL. From the returned function, if S3
            rejects a ticket or cannot be reached in four attempts.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        # Short timeouts, because a user may be waiting for the generator to stop.
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
    """Yield a function that writes a ticket as one line of JSON (UTF-8) to the file, which is overwritten; "-": stdout.

    Raises:
        SinkError: The file cannot be written. A closed pipe is not an error: the block ends.
    """
    try:
        with nullcontext(typer.get_binary_stream("stdout")) if path == "-" else Path(path).open("wb") as stream:

            def put(ticket: dict[str, Any]) -> None:
                stream.write(_encode(ticket) + b"\n")
                stream.flush()  # a program that follows the file sees complete lines

            yield put
    except BrokenPipeError:
        if path == "-":  # discard the rest of the buffer, or Python reports the closed pipe again when it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise SinkError(f"cannot write to {path}: {error.strerror}") from error
