"""Replay: copies messages from a DLQ to its queue, at least once. None is lost; at most one batch is sent twice.

For each batch of up to ten messages:

1. receive: the messages become invisible to other consumers for the visibility timeout (60 s), which is extended as
   long as the run holds them; messages that the filter skips stay in flight too, and are made visible when the run
   ends; an empty response does not prove that the queue is empty (handler.dlq.scan);
2. write `sending` to the audit file, if there is one;
3. send the batch; entries that fail with a transient error are retried up to twice;
4. write `sent` for each message that SQS accepted, and `failed` for the others, which stay in the DLQ;
5. delete the messages that SQS accepted, and only those; then write `deleted`.

Can a message be lost? No: a message is deleted only after SQS has confirmed its copy with a new message id. All other
messages stay in the DLQ until its retention period ends.

What if the send succeeds and the delete fails? Messages whose deletion SQS does not confirm are deleted again, up to
three attempts; a call that fails completely, after botocore's retries, ends the run. The message is then in both
queues: it is counted as `undeleted`, and the exit code is 1. With an audit file, the next run deletes it without
sending it again. Without one, the next run sends it again, and the handler skips tickets that it has already enriched.

What if the process is killed? Before step 3: nothing was sent. During step 3, or between 3 and 4: the next run sends
the whole batch again. Between 4 and 5: the audit file tells the next run to delete only; without the file it sends this
batch again. So at most one batch is sent twice. In all cases the messages become visible again when their visibility
timeout ends, after at most 15 minutes (or --visibility-timeout, if that is longer). After Ctrl-C or SIGTERM the current
batch is finished, and all other messages are made visible immediately.

Why is the visibility timeout extended? A message that becomes visible during a slow replay could be received and sent a
second time, by this run or by another. If a visibility timeout has ended anyway, or is about to (the machine slept, SQS
was slow), the message is not sent but received again.

A redrive (handler.dlq.redrive) lets SQS move the messages instead: without filters and without an audit file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from handler.aws.sqs import MAX_ENTRIES, Queue, QueueAttributes, SendResult
from handler.cli.shutdown import Shutdown
from handler.dlq.audit import Audit
from handler.dlq.message import DlqMessage, Lineage, Outgoing, Unsendable, batches, prepare
from handler.dlq.scan import InFlight, Scan, Stats
from handler.errors import MessageError

__all__ = ["RateLimiter", "Replay", "send_batch"]

_TRIES: Final = 3
_PAUSE: Final = 0.5  # seconds before the second try


class RateLimiter:
    """Limits sending to `rate` messages per second; None: no limit."""

    def __init__(self, rate: float | None, shutdown: Shutdown, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self.shutdown = shutdown
        self._clock = clock
        self._next = clock()

    @property
    def batch_size(self) -> int:
        """The number of messages to send together: at most one second's worth, so that a low rate is even."""
        return MAX_ENTRIES if self._rate is None else max(1, min(MAX_ENTRIES, int(self._rate)))

    def wait(self, number: int, in_flight: InFlight | None = None) -> None:
        """Wait until `number` messages may be sent, or for a shutdown; extend what is in flight meanwhile."""
        if in_flight is not None:
            in_flight.extend()
        while not self.shutdown.is_requested and (left := self._next - self._clock()) > 0:
            self.shutdown.pause(left if in_flight is None else max(0.0, min(left, in_flight.due_in())))
            if in_flight is not None:
                in_flight.extend()
        if self._rate is not None:
            self._next = max(self._next, self._clock()) + number / self._rate


@dataclass(frozen=True)
class Replay:
    """Sends the messages that `scan` selects to `destination`, and deletes those that SQS has accepted."""

    scan: Scan
    destination: Queue
    destination_attributes: QueueAttributes
    audit: Audit
    limiter: RateLimiter

    def run(self, on_progress: Callable[[Stats], None]) -> None:
        """Replay until the scan ends, inside the caller's `with scan.in_flight`.

        Raises DlqError, Throttled or ServiceFailed; `scan.stats` is correct even then.
        """
        for selection in self.scan:
            self._refuse(selection.refuse)
            self._delete(selection.delete, by_earlier_run=True)
            for batch in batches(self._prepare(selection.send), self.limiter.batch_size):
                on_progress(self.scan.stats)
                self.limiter.wait(len(batch), self.scan.in_flight)
                if self.scan.shutdown.is_requested:
                    self.scan.stats.interrupted = True
                    break
                self._send_and_delete([outgoing for outgoing in batch if self._is_ours(outgoing.message)])
            on_progress(self.scan.stats)

    def _refuse(self, messages: Iterable[tuple[DlqMessage, Lineage]]) -> None:
        for message, lineage in messages:
            self.scan.stats.refused += 1
            self.audit.write("refused", [{**_names(message), "replay_count": lineage.replay_count}])

    def _prepare(self, messages: Iterable[tuple[DlqMessage, Lineage]]) -> list[Outgoing]:
        prepared = []
        for message, lineage in messages:
            try:
                prepared.append(prepare(message, lineage, self.destination_attributes))
            except Unsendable as error:
                self.scan.stats.add_failure(message.message_id, str(error))
                self.audit.write("failed", [{**_names(message), "error": str(error)}])
        return prepared

    def _is_ours(self, message: DlqMessage) -> bool:
        """Whether the message is still invisible to other consumers; if not, the scan receives it again."""
        if not self.scan.in_flight.has(message.message_id):
            self.scan.forget(message)
            return False
        return True

    def _send_and_delete(self, batch: Sequence[Outgoing]) -> None:
        if not batch:
            return
        self.audit.write("sending", [{"message_ids": [outgoing.message.message_id for outgoing in batch]}])
        results = send_batch(self.destination, [outgoing.entry for outgoing in batch], self.scan.shutdown)
        accepted, sent, failed = [], [], []
        for outgoing, result in zip(batch, results, strict=True):
            message, lineage = outgoing.message, outgoing.lineage
            if result.message_id is None:
                failed.append({**_names(message), "error": result.error})
                self.scan.stats.add_failure(message.message_id, result.error)
                continue
            accepted.append(message)
            self.scan.add_sent(result.message_id)
            self.scan.stats.unmarked += "ReplayCount" in outgoing.left_out
            ids = {"new_message_id": result.message_id, "original_message_id": lineage.original_id}
            left_out = {"left_out": outgoing.left_out} if outgoing.left_out else {}
            sent.append({**_names(message), **ids, "replay_count": lineage.replay_count + 1, **left_out})
        try:
            self.audit.write("sent", sent)
            self.audit.write("failed", failed)
        finally:  # also if the disk is full: messages that were sent but not recorded must at least be deleted
            self._delete(accepted)

    def _delete(self, messages: Sequence[DlqMessage], *, by_earlier_run: bool = False) -> None:
        """Delete up to ten messages that were sent, with retries, and count them."""
        left = list(messages)
        try:
            for attempt in range(_TRIES if left else 0):
                if attempt:
                    self.scan.shutdown.pause(_PAUSE * attempt)
                confirmed = self.scan.queue.delete([message.receipt for message in left])
                deleted = [
                    message.message_id for message, is_deleted in zip(left, confirmed, strict=True) if is_deleted
                ]
                left = [message for message in left if message.message_id not in deleted]
                for message_id in deleted:
                    self.scan.in_flight.remove(message_id)
                self.audit.write("deleted", [{"message_id": message_id} for message_id in deleted])
                if not left:
                    break
        finally:
            self.scan.stats.undeleted += len(left)
            if by_earlier_run:
                self.scan.stats.finished += len(messages) - len(left)
            else:
                self.scan.stats.replayed += len(messages) - len(left)


def send_batch(queue: Queue, entries: Sequence[Mapping[str, Any]], shutdown: Shutdown) -> list[SendResult]:
    """Send up to ten entries and return their results; entries with transient errors are retried.

    Raises Throttled or ServiceFailed if the first call fails.
    """
    results = queue.send(entries)
    for attempt in range(1, _TRIES):
        retries = [number for number, result in enumerate(results) if result.message_id is None and result.transient]
        if not retries:
            break
        shutdown.pause(_PAUSE * attempt)
        try:
            later = queue.send([entries[number] for number in retries])
        except MessageError:
            break  # accepted messages must be deleted first; if SQS is still down, the next batch raises
        for number, result in zip(retries, later, strict=True):
            results[number] = result
    return results


def _names(message: DlqMessage) -> dict[str, Any]:
    return {"message_id": message.message_id, "reason": message.reason}
