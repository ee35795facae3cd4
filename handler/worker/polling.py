"""What Lambda's event source mapping does, as a loop: receive, invoke the handler, delete what succeeded.

Messages are received with a short visibility timeout, which the parent renews while the batch is processed. So the
messages of a killed process become visible again soon, and so do those that SQS returns to an abandoned long poll: SQS
does not notice that the client has disconnected (aws-sdk-java issue 2083).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

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
_RECENT_POLL: Final = 1.0  # seconds; a queue with messages answers well within this time
_DELETE_TRIES: Final = 5
_DELETE_PAUSE: Final = 0.1
# Part of the shutdown time that is reserved for deleting messages and not given to the handler.
_DELETING_SHARE: Final = 0.2
_MAX_DELETING: Final = 3.0


class Poller:
    """Invokes a handler with batches from a queue until shutdown is requested."""

    def __init__(
        self,
        queue: MessageQueue,
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
        """`batches` is told of each batch: the parent renews the visibility timeout and ends a process that overruns.

        `breaker` must also be told of the outcomes of tickets, which the handler reports as metrics.
        `max_receive_count` is the handler's setting; it is compared with the queue's.
        """
        self._queue = queue
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
        self._attributes: QueueAttributes | None = None
        self._error: str | None = None
        self._errors = 0

    def run(self) -> None:
        """Polls until shutdown is requested; the current batch is finished first."""
        while not self._shutdown.is_requested:
            if self._breaker.state == "open":
                self._shutdown.pause(self._breaker.wait())
                self._breaker.probe()
                continue  # shutdown may have been requested meanwhile
            try:
                received = self._shutdown.during(self._receive, _RECENT_POLL)
            except MessageError as error:
                self._back_off(error)
                continue
            if received is not None:
                self._receive_succeeded()
                attributes, messages = received
                if messages:
                    self._process(messages, attributes)

    def _receive(self) -> tuple[QueueAttributes, Sequence[Message]]:
        if self._attributes is None:
            self._attributes = self._queue.attributes()
            self._compare_limits(self._attributes)
        visibility_timeout = self._visibility_timeout(self._attributes)
        count = self._breaker.batch_size(self._options.batch_size)
        return self._attributes, self._queue.receive(count, visibility_timeout)

    def _compare_limits(self, attributes: QueueAttributes) -> None:
        """Warns if the queue's maxReceiveCount differs from the setting: the lower one takes effect."""
        limits = {
            "max_receive_count": self._max_receive_count,
            "queue_max_receive_count": attributes.max_receive_count,
        }
        if None not in limits.values() and len(set(limits.values())) > 1:
            self._logger.warning(
                "MAX_RECEIVE_COUNT differs from the queue's maxReceiveCount; set both to the same value", extra=limits
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

    def _process(self, messages: Sequence[Message], attributes: QueueAttributes) -> None:
        seconds = self._options.timeout or attributes.visibility_timeout or self._options.visibility_timeout
        self._batches.batch_started(
            BatchReport(
                message_ids=[message["MessageId"] for message in messages],
                receipts=[message["ReceiptHandle"] for message in messages],
                visibility_timeout=self._visibility_timeout(attributes),
                seconds=seconds,
            )
        )
        for message in messages:
            if sent := message.get("Attributes", {}).get("SentTimestamp"):
                self._metrics.message_age(max(0.0, time.time() - int(sent) / 1000))
        failed = self._invoke(messages, attributes, time.monotonic() + seconds)
        done = [] if failed is None else [m for m in messages if m["MessageId"] not in failed]
        self._delete(done)
        self._batches.batch_finished()
        if failed is None:
            # As with Lambda, the batch comes back after the queue's visibility timeout, not at once.
            rest = [m for m in messages if not self._batches.is_settled(m["ReceiptHandle"])]
            self._queue.change_visibility(rest, attributes.visibility_timeout)
        self._breaker.batch_finished(failed or ())
        self._metrics.messages("kept", len(messages) - len(done))
        self._metrics.flush()

    def _invoke(self, messages: Sequence[Message], attributes: QueueAttributes, end: float) -> frozenset[str] | None:
        """The ids of the failed messages; None if the whole batch failed."""
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
            return None
        except Exception:  # isolation boundary: the next batch may succeed
            self._logger.exception("the handler raised an exception; the batch will be retried", extra=request)
            self._metrics.invocation("raised")
            self._shutdown.pause(_jitter(1.0))
            return None
        self._metrics.invocation("ok")
        return failed

    def _delete(self, messages: Sequence[Message]) -> None:
        remaining = [m for m in messages if not self._batches.is_settled(m["ReceiptHandle"])]
        for attempt in range(_DELETE_TRIES):
            if remaining and attempt:
                time.sleep(_jitter(_DELETE_PAUSE * 2**attempt))
            remaining = self._queue.delete(remaining) if remaining else remaining
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
