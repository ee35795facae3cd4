"""What Lambda's event source mapping does, as a loop: receive, invoke the handler, delete what succeeded.

A message in hand is hidden from others for a short time only, and the time is renewed while the work goes on. So what
a process held when it was killed comes back soon, and so does what SQS hands to a long poll that was left: it does not
notice that nobody waits for the answer any more (aws-sdk-java issue 2083).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from handler.errors import MessageError
from handler.worker.invocation import AnswerMalformed, InvocationContext, Message, failed_ids, function_arn, sqs_event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from handler.drain import Drain
    from handler.observability import Logger
    from handler.worker.message_queue import MessageQueue, QueueFacts
    from handler.worker.reports import Plan, PollFigures

__all__ = ["FUNCTION_NAME", "Poller"]

FUNCTION_NAME: Final = "ticket-processor"
_YOUNG_POLL: Final = 1.0  # seconds in which a queue that is not empty has long answered
_DELETE_TRIES: Final = 5
_DELETE_PAUSE: Final = 0.1
_MOST_PAUSE: Final = 30.0
# Of the seconds that a process has to end, the handler does not get these: deleting needs them.
_DELETING_SHARE: Final = 0.2
_DELETING_MOST: Final = 3.0
# A handler that overruns its time by so many seconds hangs: on Lambda it would have been killed long ago.
_OVERRUN: Final = 10.0


class Poller:
    """Feeds a handler from a queue until it is asked to end."""

    def __init__(
        self,
        queue: MessageQueue,
        handler: Callable[[Any, Any], Any],
        drain: Drain,
        plan: Plan,
        *,
        figures: PollFigures,
        logger: Logger,
        hang: Callable[[], None],
        memory_mb: int = 0,
        max_receive_count: int | None = None,
    ) -> None:
        """`hang()` is called in another thread when the handler overruns its time by far; it should end the process.

        `max_receive_count` is the handler's own setting, to be compared with the queue's.
        """
        self._queue = queue
        self._handler = handler
        self._drain = drain
        self._plan = plan
        self._figures = figures
        self._logger = logger
        self._hang = hang
        self._memory_mb = memory_mb
        self._max_receive_count = max_receive_count
        self._deleting = min(_DELETING_MOST, _DELETING_SHARE * plan.grace)
        self._facts: QueueFacts | None = None
        self._error: str | None = None
        self._errors = 0

    def run(self) -> None:
        """Polls until the drain is asked for; a batch that is in hand then is finished."""
        while not self._drain.is_asked:
            try:
                received = self._drain.during(self._receive, _YOUNG_POLL)
            except MessageError as error:
                self._back_off(error)
                continue
            if received is not None:
                self._answered()
                facts, messages = received
                if messages:
                    self._process(messages, facts)

    def _receive(self) -> tuple[QueueFacts, Sequence[Message]]:
        if self._facts is None:
            self._facts = self._queue.facts()
            self._compare_limits(self._facts)
        return self._facts, self._queue.receive(self._plan.batch_size, self._hidden(self._facts))

    def _compare_limits(self, facts: QueueFacts) -> None:
        """Warns if the queue and the setting disagree about the number of receives: the lower one is in force."""
        limits = {"max_receive_count": self._max_receive_count, "queue_max_receive_count": facts.max_receive_count}
        if None not in limits.values() and len(set(limits.values())) > 1:
            self._logger.warning("MAX_RECEIVE_COUNT is not the queue's maxReceiveCount; set both alike", extra=limits)

    def _hidden(self, facts: QueueFacts) -> int:
        return max(1, min(self._plan.hidden, facts.visibility or self._plan.hidden))

    def _back_off(self, error: MessageError) -> None:
        """Waits, longer each time; says so at the first time, and when the trouble changes."""
        self._errors += 1
        self._figures.receive_failed(error.code)
        self._figures.flush()
        if str(error) != self._error:
            self._error = str(error)
            self._logger.warning("the queue cannot be read; trying until it can", extra={"detail": self._error})
        self._drain.pause(_jitter(min(_MOST_PAUSE, 2.0 ** min(self._errors - 1, 10))))

    def _answered(self) -> None:
        if self._errors:
            self._logger.info("the queue answers again", extra={"tries": self._errors})
        self._error, self._errors = None, 0

    def _process(self, messages: Sequence[Message], facts: QueueFacts) -> None:
        end = time.monotonic() + (self._plan.timeout or facts.visibility or self._plan.hidden)
        with self._kept_hidden(messages, self._hidden(facts), end):
            failed = self._invoke(messages, facts, end)
            done = [] if failed is None else [m for m in messages if m["MessageId"] not in failed]
            self._delete(done)
        if failed is None:
            # As Lambda has it: the batch comes back when the queue's own time is over, not at once.
            self._queue.hide(messages, facts.visibility)
        self._figures.messages("kept", len(messages) - len(done))
        self._figures.flush()

    def _invoke(self, messages: Sequence[Message], facts: QueueFacts, end: float) -> frozenset[str] | None:
        """The ids of the messages that failed; None where the whole batch did."""
        context = InvocationContext(
            function_name=FUNCTION_NAME,
            invoked_function_arn=function_arn(facts.arn, FUNCTION_NAME),
            memory_limit_in_mb=str(self._memory_mb),
            time_left=lambda: min(end - time.monotonic(), self._drain.time_left - self._deleting),
        )
        request = {"function_request_id": context.aws_request_id}
        try:
            answer = self._handler(sqs_event(messages, facts.arn), context)
            failed = failed_ids(answer, {message["MessageId"] for message in messages})
        except AnswerMalformed as error:
            self._logger.error(
                "the handler's answer is malformed; the batch stays", extra={**request, "detail": str(error)}
            )
            self._figures.invocation("malformed")
            return None
        except Exception:  # an isolation boundary: the next batch may be a better one
            self._logger.exception("the handler raised; the batch stays", extra=request)
            self._figures.invocation("raised")
            self._drain.pause(_jitter(1.0))
            return None
        self._figures.invocation("ok")
        return failed

    def _delete(self, messages: Sequence[Message]) -> None:
        left = list(messages)
        for attempt in range(_DELETE_TRIES):
            if left and attempt:
                time.sleep(_jitter(_DELETE_PAUSE * 2**attempt))
            left = self._queue.delete(left) if left else left
        self._figures.messages("deleted", len(messages) - len(left))
        if left:
            ids = [message["MessageId"] for message in left]
            self._logger.warning("messages could not be deleted; they come again", extra={"message_ids": ids})
            self._figures.messages("undeleted", len(left))

    @contextmanager
    def _kept_hidden(self, messages: Sequence[Message], seconds: int, end: float) -> Iterator[None]:
        """Renews every third of their time the seconds that messages are hidden, while the block lasts."""
        done = threading.Event()

        def renew() -> None:
            while not done.wait(seconds / 3):
                if time.monotonic() > end + _OVERRUN:
                    self._logger.error("the handler hangs; the process ends and its batch comes back")
                    self._hang()
                    return
                if left := self._queue.hide(messages, seconds):
                    ids = [message["MessageId"] for message in left]
                    self._logger.warning("messages could not be kept hidden", extra={"message_ids": ids})

        threading.Thread(target=renew, name="keep-hidden", daemon=True).start()
        try:
            yield
        finally:
            done.set()


def _jitter(seconds: float) -> float:
    """Between half of it and all of it."""
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards no secret
