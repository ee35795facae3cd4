"""What Lambda's event source mapping does, as a loop: receive, invoke the handler, delete what succeeded.

Up to three batches are processed at once, each in a thread of its own, so that calls of S3, DynamoDB and SQS overlap
with the models, which take one batch at a time (handler.batch). The next batch is received while others are processed
only if there is a backlog, which the last receive has shown: otherwise another process, which waits for messages, would
have them done sooner. A batch with a message that was received before has its process to itself: should the process
die, only that batch's messages are suspects (handler.crashes).

Messages are received with a short visibility timeout, which the parent renews while the batch is processed. So the
messages of a killed process become visible again soon, and so do those that SQS returns to an abandoned long poll: SQS
does not notice that the client has disconnected (aws-sdk-java issue 2083).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from handler.cli.shutdown import TICK
from handler.errors import MessageError
from handler.worker.breaker import CircuitBreaker
from handler.worker.invocation import AnswerMalformed, InvocationContext, Message, failed_ids, function_arn, sqs_event
from handler.worker.reports import BatchReport

if TYPE_CHECKING:
    from handler.aws.sqs import QueueAttributes
    from handler.cli.shutdown import Shutdown
    from handler.metrics import Logger
    from handler.worker.message_queue import MessageQueue
    from handler.worker.reports import BatchReports, PollMetrics, WorkerOptions

__all__ = ["FUNCTION_NAME", "Poller"]

FUNCTION_NAME: Final = "ticket-processor"
_MAX_BATCHES: Final = 3  # one reads, one is in the models, one is stored
_RECENT_POLL: Final = 1.0  # seconds; a queue with messages answers well within this time
_DELETE_TRIES: Final = 5
_DELETE_PAUSE: Final = 0.1
# Part of the shutdown time that is reserved for deleting messages and not given to the handler.
_DELETING_SHARE: Final = 0.2
_MAX_DELETING: Final = 3.0


@dataclass(frozen=True, slots=True)
class _Received:
    """The result of a receive: the messages of one queue, of the `wanted` number or fewer."""

    queue: MessageQueue
    attributes: QueueAttributes
    messages: Sequence[Message]
    wanted: int

    @property
    def shows_a_backlog(self) -> bool:
        """Whether more messages are probably waiting. Not only if all were found: SQS often returns fewer."""
        return 2 * len(self.messages) >= self.wanted

    @property
    def was_received_before(self) -> bool:
        """Whether this holds for at least one of the messages."""
        return any(int(m.get("Attributes", {}).get("ApproximateReceiveCount", 1)) > 1 for m in self.messages)


class Poller:
    """Invokes a handler with batches from queues until shutdown is requested."""

    def __init__(
        self,
        queues: Sequence[MessageQueue],
        handler: Callable[[Any, Any], Any],
        shutdown: Shutdown,
        options: WorkerOptions,
        *,
        metrics: PollMetrics,
        logger: Logger,
        batches: BatchReports,
        breaker: CircuitBreaker | None = None,
        memory_mb: int = 0,
        max_receive_count: int | None = None,
    ) -> None:
        """`queues` are in order of priority: a batch comes from the first one that has messages.

        `handler` is called in several threads. `batches` is told of each batch: the parent renews the visibility
        timeout and ends a process that overruns. `breaker` must also be told of the outcomes of tickets, which the
        handler reports as metrics. `max_receive_count` is the handler's setting; it is compared with the queues'.
        """
        self._queues = queues
        self._handler = handler
        self._shutdown = shutdown
        self._options = options
        self._metrics = metrics
        self._logger = logger
        self._batches = batches
        self._breaker = breaker or CircuitBreaker()
        self._memory_mb = memory_mb
        self._max_receive_count = max_receive_count
        self._deleting = min(_MAX_DELETING, _DELETING_SHARE * options.grace)
        self._attributes: dict[str, QueueAttributes] = {}
        self._unreadable: dict[str, str] = {}  # errors of the queues after the first, by URL
        self._error: str | None = None
        self._errors = 0
        self._numbers = count(1)
        self._pool = ThreadPoolExecutor(_MAX_BATCHES, thread_name_prefix="batch")
        self._running: set[Future[bool]] = set()  # the results say whether the handler raised an exception

    def run(self) -> None:
        """Polls until shutdown is requested; the current batches are finished first."""
        ahead = False  # whether to receive while batches are processed
        while True:
            self._finish_all_but(_MAX_BATCHES - 1 if ahead and self._breaker.state == "closed" else 0)
            if self._shutdown.is_requested:
                break
            if self._breaker.state == "open":
                self._shutdown.pause(self._breaker.wait())
                self._breaker.probe()
                continue  # shutdown may have been requested meanwhile
            received = self._receive()
            if received is None:
                ahead = False
                continue
            ahead = received.shows_a_backlog and not received.was_received_before
            self._start(received)
        self._finish_all_but(0)
        self._pool.shutdown()

    def _finish_all_but(self, number: int) -> None:
        """Waits until at most this number of batches is being processed."""
        while len(self._running) > number:
            done, self._running = wait(self._running, TICK, FIRST_COMPLETED)
            if sum(batch.result() for batch in done):
                self._shutdown.pause(_jitter(1.0))

    def _receive(self) -> _Received | None:
        """Receives messages; None if there are none, or SQS does not answer, or shutdown is requested."""
        try:
            received = self._shutdown.during(self._poll, _RECENT_POLL)
        except MessageError as error:
            self._back_off(error)
            return None
        if received is None:
            return None
        self._receive_succeeded()
        return received if received.messages else None

    def _poll(self) -> _Received:
        """Asks the queues for messages, in order of priority, and waits for those of the first only if all are empty.

        While batches are processed, it does not wait: messages that arrive are for another process.
        """
        first, *others = self._queues
        if self._running or others:
            received = self._receive_from(first, wait=False)
            for queue in others:
                if received.messages:
                    break
                received = self._receive_if_readable(queue) or received
            if self._running or received.messages:
                return received
        return self._receive_from(first, wait=True)

    def _receive_from(self, queue: MessageQueue, *, wait: bool) -> _Received:
        attributes = self._attributes.get(queue.url)
        if attributes is None:
            attributes = self._attributes[queue.url] = queue.attributes()
            self._compare_limits(attributes)
        wanted = self._breaker.batch_size(self._options.batch_size)
        messages = queue.receive(wanted, self._visibility_timeout(attributes), wait=wait)
        return _Received(queue, attributes, messages, wanted)

    def _receive_if_readable(self, queue: MessageQueue) -> _Received | None:
        """As _receive_from, or None after an error: it must not hold up the first queue."""
        try:
            received = self._receive_from(queue, wait=False)
        except MessageError as error:
            self._metrics.receive_failed(error.code)
            self._metrics.flush()  # without live messages, there may be no batch for hours
            if self._unreadable.get(queue.url) != str(error):
                self._unreadable[queue.url] = str(error)
                extra = {"queue_url": queue.url, "detail": str(error)}
                self._logger.warning("a queue cannot be read; the others are read on", extra=extra)
            return None
        if self._unreadable.pop(queue.url, None):
            self._logger.info("a queue can be read again", extra={"queue_url": queue.url})
        return received

    def _compare_limits(self, attributes: QueueAttributes) -> None:
        """Warns if the queue's maxReceiveCount differs from the setting: the lower one takes effect."""
        limits = {
            "max_receive_count": self._max_receive_count,
            "queue_max_receive_count": attributes.max_receive_count,
        }
        if None not in limits.values() and len(set(limits.values())) > 1:
            self._logger.warning(
                "MAX_RECEIVE_COUNT differs from the queue's maxReceiveCount; set both to the same value",
                extra={"queue": attributes.name, **limits},
            )

    def _visibility_timeout(self, attributes: QueueAttributes) -> int:
        wanted = self._options.visibility_timeout
        return max(1, min(wanted, attributes.visibility_timeout or wanted))

    def _back_off(self, error: MessageError) -> None:
        """Waits, longer after each failure; logs the first failure and each different error.

        After several failures the circuit breaker opens, and its waits replace these.
        """
        self._errors += 1
        self._metrics.receive_failed(error.code)
        self._metrics.flush()
        if str(error) != self._error:
            self._error = str(error)
            self._logger.warning("the queue cannot be read; retrying", extra={"detail": self._error})
        self._breaker.receive_failed(str(error))
        if self._breaker.state != "open":
            self._shutdown.pause(_jitter(2.0 ** (self._errors - 1)))

    def _receive_succeeded(self) -> None:
        if self._errors:
            self._logger.info("the queue can be read again", extra={"tries": self._errors})
        self._error, self._errors = None, 0
        self._breaker.receive_succeeded()

    def _start(self, received: _Received) -> None:
        """Processes a batch in a thread: alone, if a message was received before."""
        attributes, messages = received.attributes, received.messages
        seconds = self._options.timeout or attributes.visibility_timeout or self._options.visibility_timeout
        end = time.monotonic() + seconds
        report = BatchReport(
            number=next(self._numbers),
            queue_url=received.queue.url,
            message_ids=[message["MessageId"] for message in messages],
            receipts=[message["ReceiptHandle"] for message in messages],
            visibility_timeout=self._visibility_timeout(attributes),
            seconds=seconds,
        )
        self._batches.batch_started(report)
        for message in messages:
            if sent := message.get("Attributes", {}).get("SentTimestamp"):
                self._metrics.message_age(attributes.name, max(0.0, time.time() - int(sent) / 1000))
        if received.was_received_before:
            self._finish_all_but(0)
        self._running.add(self._pool.submit(self._process, received, report, end))

    def _process(self, received: _Received, report: BatchReport, end: float) -> bool:
        """Invokes the handler and settles the messages; returns whether the handler raised an exception."""
        messages = received.messages
        failed, has_raised = self._invoke(messages, received.attributes, end)
        done = [] if failed is None else [m for m in messages if m["MessageId"] not in failed]
        self._delete(received.queue, done)
        if failed is None:
            # As with Lambda, the batch comes back after the queue's visibility timeout, not at once.
            rest = [m for m in messages if not self._batches.is_settled(m["ReceiptHandle"])]
            received.queue.change_visibility(rest, received.attributes.visibility_timeout)
        self._batches.batch_finished(report)
        self._breaker.batch_finished(failed or ())
        self._metrics.messages("kept", len(messages) - len(done))
        self._metrics.flush()
        return has_raised

    def _invoke(
        self, messages: Sequence[Message], attributes: QueueAttributes, end: float
    ) -> tuple[frozenset[str] | None, bool]:
        """The ids of the failed messages, None if the whole batch failed; and whether the handler raised."""
        context = InvocationContext(
            function_name=FUNCTION_NAME,
            invoked_function_arn=function_arn(attributes.arn, FUNCTION_NAME),
            memory_limit_in_mb=str(self._memory_mb),
            time_left=lambda: min(end - time.monotonic(), self._shutdown.time_left - self._deleting),
        )
        request = {"function_request_id": context.aws_request_id}
        try:
            answer = self._handler(sqs_event(messages, attributes.arn), context)
            failed = failed_ids(answer, {message["MessageId"] for message in messages})
        except AnswerMalformed as error:
            self._logger.error(
                "the handler's response is malformed; the batch will be retried",
                extra={**request, "detail": str(error)},
            )
            self._metrics.invocation("malformed")
            return None, False
        except Exception:  # isolation boundary: the next batch may succeed
            self._logger.exception("the handler raised an exception; the batch will be retried", extra=request)
            self._metrics.invocation("raised")
            return None, True
        self._metrics.invocation("ok")
        return failed, False

    def _delete(self, queue: MessageQueue, messages: Sequence[Message]) -> None:
        remaining = [m for m in messages if not self._batches.is_settled(m["ReceiptHandle"])]
        for attempt in range(_DELETE_TRIES):
            if remaining and attempt:
                time.sleep(_jitter(_DELETE_PAUSE * 2**attempt))
            remaining = queue.delete(remaining) if remaining else remaining
        self._metrics.messages("deleted", len(messages) - len(remaining))
        if remaining:
            ids = [message["MessageId"] for message in remaining]
            self._logger.warning(
                "messages could not be deleted; they will be delivered again", extra={"message_ids": ids}
            )
            self._metrics.messages("undeleted", len(remaining))


def _jitter(seconds: float) -> float:
    """A random time between half of `seconds` and `seconds`."""
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, not for security
