"""Delivers the events in the outbox to RESULT_WEBHOOK, signed as https://www.standardwebhooks.com describes.

At least once: an event is deleted only after the receiver has answered with 2xx, and a repeated event has the same id.
A sender claims an event by making it due later, so that several workers share the work, and what a killed one had
claimed comes back. An event that the receiver refuses waits longer each time, while the others go on. If the receiver
does not answer, or answers that it is overloaded or broken, the sender itself waits.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Final, Literal, Protocol

import urllib3
from botocore.exceptions import BotoCoreError

from handler.aws.clients import client_factory
from handler.aws.outbox import DynamoOutbox, OutboxEntry
from handler.errors import MessageError, trace
from handler.metrics import Logger
from handler.settings import WorkerSettings

__all__ = ["Outbox", "PostRequest", "WebhookMetrics", "WebhookSender", "http_post", "sending", "signed_headers"]

Result = Literal["delivered", "refused", "unavailable", "expired"]
PostRequest = Callable[[bytes, dict[str, str]], int]
"""Sends a body with headers; returns the status of the answer, 0 if there is none."""

_CONCURRENCY: Final = 8
_IDLE: Final = 1.0  # seconds between two reads of an empty outbox
_LONGEST_PAUSE: Final = 60.0
_CLAIM: Final = 60  # seconds, longer than a POST takes
_FIRST_WAIT: Final = 60  # seconds, of an event that is refused; doubled with each attempt
_LONGEST_WAIT: Final = 3600
_CONNECT_TIMEOUT: Final = 3.0
_READ_TIMEOUT: Final = 10.0
_UNAVAILABLE: Final = frozenset({0, 408, 425, 429})  # and all 5xx


class Outbox(Protocol):
    """The events to deliver: handler.aws.outbox.DynamoOutbox, or a fake in tests."""

    def due(self, now: int) -> Iterator[OutboxEntry]:
        """As DynamoOutbox.due."""
        ...

    def reschedule(self, entry: OutboxEntry, due_at: int, attempts: int) -> OutboxEntry | None:
        """As DynamoOutbox.reschedule."""
        ...

    def delete(self, entry: OutboxEntry) -> None:
        """As DynamoOutbox.delete."""
        ...


class WebhookMetrics(Protocol):
    """Receives the metrics of the webhook."""

    def webhook(self, result: str) -> None:
        """Result of an attempt: delivered, refused, unavailable, or expired (given up)."""
        ...

    def webhook_delay(self, seconds: float) -> None:
        """Age of the oldest event that is due; 0 if there is none."""
        ...


class WebhookSender:
    """Delivers due events until `stopped` is set; the events that are being sent are finished."""

    def __init__(
        self,
        outbox: Outbox,
        post: PostRequest,
        secret: str,
        *,
        metrics: WebhookMetrics,
        logger: Logger,
        stopped: threading.Event,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._outbox = outbox
        self._post = post
        self._secret = secret
        self._metrics = metrics
        self._logger = logger
        self._clock = clock
        self._stopped = stopped
        self._failures = 0

    def run(self) -> None:
        """Delivers events as they become due."""
        with ThreadPoolExecutor(_CONCURRENCY, thread_name_prefix="webhook") as pool:
            while not self._stopped.is_set():
                try:
                    pause = self.deliver_due(pool)
                except MessageError as error:
                    pause = self._failed("the outbox cannot be read; retrying", str(error))
                except Exception as error:  # isolation boundary: the worker goes on, and so does the sender
                    self._logger.error("unexpected", extra={"stage": "webhook", "traceback": trace(error)})
                    pause = self._failed("the webhook failed; retrying", type(error).__name__)
                self._stopped.wait(pause)

    def deliver_due(self, pool: ThreadPoolExecutor) -> float:
        """Makes one attempt for each due event, until the receiver is unavailable; returns the seconds to wait."""
        entries = self._outbox.due(int(self._clock()))
        is_first = True
        while not self._stopped.is_set():
            # One event at a time shows whether an unavailable receiver is back.
            batch = list(islice(entries, 1 if self._failures else _CONCURRENCY))
            if is_first:
                self._metrics.webhook_delay(max(0.0, self._clock() - batch[0].committed_at) if batch else 0.0)
                is_first = False
            if not batch:
                return _IDLE
            results = list(pool.map(self._deliver, batch))
            if "unavailable" in results:
                return self._failed("the webhook's receiver is unavailable; retrying")
            if "delivered" in results:
                self._failures = 0
        return 0.0

    def _deliver(self, entry: OutboxEntry) -> Result | None:
        """One attempt for an event; None if another sender has it."""
        now, names = int(self._clock()), {"event_id": entry.event_id}
        if now >= entry.expires_at:
            self._logger.error("an event was given up; its ticket is in the table", extra=names)
            self._outbox.delete(entry)
            return self._count("expired")
        claimed = self._outbox.reschedule(entry, now + _CLAIM, entry.attempts)
        if claimed is None:
            return None
        body = entry.body.encode()
        status = self._post(body, signed_headers(self._secret, entry.event_id, now, body))
        if 200 <= status < 300:
            self._outbox.delete(entry)
            return self._count("delivered")
        if status in _UNAVAILABLE or status >= 500:
            self._outbox.reschedule(claimed, now, entry.attempts)
            return self._count("unavailable")
        self._logger.warning("the webhook's receiver refuses an event", extra={**names, "status": status})
        later = now + min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(entry.attempts, 10))
        self._outbox.reschedule(claimed, later, entry.attempts + 1)
        return self._count("refused")

    def _count(self, result: Result) -> Result:
        self._metrics.webhook(result)
        return result

    def _failed(self, text: str, detail: str | None = None) -> float:
        """Logs the first of several failures in a row; returns the seconds to wait."""
        self._failures += 1
        if self._failures == 1:
            self._logger.warning(text, extra={} if detail is None else {"detail": detail})
        return min(_LONGEST_PAUSE, 2.0 ** min(self._failures - 1, 10))


def signed_headers(secret: str, event_id: str, now: int, body: bytes) -> dict[str, str]:
    """The headers of a POST: the event's id, the time, and the signature of both and the body."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = hmac.new(key, f"{event_id}.{now}.".encode() + body, hashlib.sha256).digest()
    return {
        "Content-Type": "application/json",
        "User-Agent": "ticket-processor",
        "webhook-id": event_id,
        "webhook-timestamp": str(now),
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }


def http_post(url: str) -> PostRequest:
    """A PostRequest to that URL: with timeouts, without redirects, and without reading the answer's body."""
    timeout = urllib3.Timeout(connect=_CONNECT_TIMEOUT, read=_READ_TIMEOUT)
    pool = urllib3.PoolManager(maxsize=_CONCURRENCY, block=True, retries=False, timeout=timeout)

    def post(body: bytes, headers: dict[str, str]) -> int:
        try:
            answer = pool.request("POST", url, body=body, headers=headers, redirect=False, preload_content=False)
        except (urllib3.exceptions.HTTPError, OSError):
            return 0
        # A body could be endless; a connection without one can be used again.
        if answer.headers.get("Content-Length") == "0":
            answer.release_conn()
        else:
            answer.close()
        return answer.status

    return post


@contextmanager
def sending(settings: WorkerSettings, metrics: WebhookMetrics, logger: Logger) -> Iterator[None]:
    """Delivers events in a thread inside the block, if RESULT_WEBHOOK is set."""
    if settings.result_webhook is None or settings.result_webhook_secret is None:
        yield
        return
    secret, post = settings.result_webhook_secret.get_secret_value(), http_post(str(settings.result_webhook))
    stopped = threading.Event()

    def run() -> None:
        try:
            make = client_factory(settings.aws_endpoint_url)
            client = make("dynamodb", connections=_CONCURRENCY, read_timeout=5, attempts=2)
        except BotoCoreError:
            return  # the processes report what is wrong with the configuration
        outbox = DynamoOutbox(client, settings.table_name)
        WebhookSender(outbox, post, secret, metrics=metrics, logger=logger, stopped=stopped).run()

    thread = threading.Thread(target=run, name="webhook", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(_CONNECT_TIMEOUT + _READ_TIMEOUT)  # what is not confirmed by then is sent again
