"""Finds the message that kills its process (a crash, no memory, a hang), and keeps it away from its neighbours.

That a message was received before does not prove a crash: after an outage this is true of every message. So the
messages of a batch with a previously received one are noted in the table before they are processed, and the note is
cleared when the models have survived them. A message is a suspect if it has a note that was never cleared. Suspects run
after the others, one at a time, when the others are stored and deleted from the queue: Lambda's answer, which would
delete them, dies with the process. A message that killed its process while it ran alone, twice, is rejected.

A batch of messages that are received for the first time is neither noted nor looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any, Final

from enrichment.errors import EnrichmentError, OutOfTime
from handler.errors import Crashed, trace
from handler.outcome import receive_count
from handler.ports import Ports, Unfinished

__all__ = ["Part", "delete_early", "parts"]

_MAX_CRASHES: Final = 2  # while the message ran alone
# A suspect needs a fair chance, because one that overruns its time counts like one that crashes. Part of the time that
# was left when the batch began.
_FAIR_SHARE: Final = 0.5
# Limits of calls that a batch can do without: seconds, and part of the time that is left.
_MAX_WAIT: Final = 5.0
_MAX_SHARE: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Part:
    """Records of a batch that are processed together, and then deleted if they are done."""

    records: Sequence[Mapping[str, Any]]
    ports: Ports
    noted: frozenset[str] = frozenset()  # the message ids whose notes must be cleared
    unfinished: Unfinished | None = None  # for a suspect alone
    enough: float = 0.0

    def begin(self, time_left: Callable[[], float]) -> EnrichmentError | None:
        """Notes that a suspect runs alone. Returns an error if it must not run."""
        if self.unfinished is None:
            return None
        if self.is_culprit:
            return Crashed(f"the process ended while it processed only this message, {self.unfinished.alone} times")
        if time_left() < self.enough:
            return OutOfTime("not started: it runs alone because a process died, and too little time was left")
        _begin(self.records, self.ports, time_left, alone=True)
        return None

    @property
    def is_suspect(self) -> bool:
        """Whether this is one message that may have killed its process."""
        return self.unfinished is not None

    @property
    def is_culprit(self) -> bool:
        """Whether this message killed its process often enough, or once and this is its last receive."""
        crashes = 0 if self.unfinished is None else self.unfinished.alone
        is_last = max(map(receive_count, self.records)) >= self.ports.max_receive_count
        return crashes >= (1 if is_last else _MAX_CRASHES)


def parts(records: Sequence[Mapping[str, Any]], ports: Ports, time_left: Callable[[], float]) -> list[Part]:
    """Divides the records of an event: first those that are no suspects, then each suspect."""
    if all(receive_count(record) == 1 for record in records):
        return [Part(records=records, ports=ports)]
    enough = _FAIR_SHARE * time_left()
    found = _begin(records, ports, time_left, alone=False)
    noted = frozenset(name for name, unfinished in found.items() if unfinished is not None)
    suspects = {name: unfinished for name, unfinished in found.items() if unfinished not in (None, Unfinished())}
    ports.logger.info(
        "messages that were received before", extra={"message_ids": list(found), "suspects": list(suspects)}
    )
    others = [record for record in records if str(record.get("messageId")) not in suspects]
    alone = [
        Part(
            records=[record for record in records if str(record.get("messageId")) == name],
            ports=ports,
            noted=noted,
            unfinished=unfinished,
            enough=enough,
        )
        for name, unfinished in suspects.items()
    ]
    # What is rejected cannot do harm. Of the others, the most suspicious one comes last.
    alone.sort(key=lambda part: (not part.is_culprit, part.unfinished.alone if part.unfinished else 0))
    return [*([Part(records=others, ports=ports, noted=noted)] if others else []), *alone]


def delete_early(records: Sequence[Mapping[str, Any]], kept: Sequence[Mapping[str, Any]], ports: Ports) -> None:
    """Deletes records from the queue before a suspect runs, except those that are `kept`."""
    done = [record for record in records if not any(record is each for each in kept)]
    if done:
        future = ports.pool.submit(ports.dead_letters.delete, done)
        wait([future], timeout=_MAX_WAIT)
        is_over = future.done() and future.exception() is None
        deleted = future.result() if is_over else [False] * len(done)
        if not all(deleted):
            ids = [r.get("messageId") for r, is_deleted in zip(done, deleted, strict=True) if not is_deleted]
            ports.logger.warning("messages could not be deleted early", extra={"message_ids": ids})
        done = [record for record, is_deleted in zip(done, deleted, strict=True) if is_deleted]
    ports.on_settled([record["receiptHandle"] for record in (*done, *kept) if "receiptHandle" in record])


def _begin(
    records: Sequence[Mapping[str, Any]], ports: Ports, time_left: Callable[[], float], *, alone: bool
) -> dict[str, Unfinished | None]:
    """Notes messages, concurrently; returns their unfinished receives by message id, None if one cannot be noted.

    Such a message is processed as if there were none: it must not wait for the note's sake.
    """
    # Of the same message twice in a batch, the later receive counts.
    counts = {str(r["messageId"]): receive_count(r) for r in sorted(records, key=receive_count) if r.get("messageId")}
    futures = {
        name: ports.pool.submit(ports.failure_counts.begin, name, count, alone=alone) for name, count in counts.items()
    }
    wait(futures.values(), timeout=min(_MAX_WAIT, _MAX_SHARE * time_left()))
    errors = {name: future.exception() if future.done() else TimeoutError() for name, future in futures.items()}
    failed = {name: error for name, error in errors.items() if error is not None}
    for _ in failed:
        ports.metrics.note_failed()
    if failed:
        details = {str(error) if isinstance(error, EnrichmentError) else trace(error) for error in failed.values()}
        extra = {"message_ids": list(failed), "details": sorted(details)}
        ports.logger.warning("messages could not be noted; a crash would not be noticed", extra=extra)
    return {name: None if name in failed else future.result() for name, future in futures.items()}
