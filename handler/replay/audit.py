"""The audit file of a replay or a backfill: JSON lines of what was done to which message, and where to go on.

Lines are written in the order of the work: `sending` before a batch goes out, `sent` or `failed` when the queue has
answered, `deleted` at last. A process may be killed between any two of them; the next one with the same file deletes
what was sent and only not deleted, and sends again no more than the batch whose answer was never written. The lines
hold ids, reasons and keys, never a body.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Protocol, Self

from handler.replay.letter import Ancestor, timestamp
from handler.replay.queue import ReplayError, ReplayRefused

__all__ = ["Audit", "AuditFile", "Journal", "NoAudit"]

_BEGINNING: Final = b'{"time": "'


class Journal:
    """What earlier runs left behind, as far as it matters to the next one."""

    def __init__(self) -> None:
        self.unfinished: set[str] = set()  # messages that were sent and perhaps not deleted
        self.in_doubt: set[str] = set()  # messages whose sending was begun and never answered
        self.unmarked: dict[str, Ancestor] = {}  # by the new message's id
        self.last_key = ""
        self.failed_keys: set[str] = set()
        self.enqueued = 0

    def read(self, line: Mapping[str, Any]) -> None:
        """Takes one line."""
        match line.get("event"):
            case "sending":
                self.in_doubt.update(line["message_ids"])
            case "sent":
                self.unfinished.add(line["message_id"])
                self.in_doubt.discard(line["message_id"])
                if "ReplayCount" in line.get("left_out", ()):
                    self.unmarked[line["new_message_id"]] = Ancestor(line["original_message_id"], line["replay_count"])
            case "failed" if "key" in line:
                self.failed_keys.add(line["key"])
            case "failed":
                self.in_doubt.discard(line["message_id"])
            case "deleted":
                self.unfinished.discard(line["message_id"])
            case "enqueued":
                self.enqueued += line["count"]
                self.failed_keys.difference_update(line.get("failed_before", ()))
                self.last_key = line.get("last_key", self.last_key)


class Audit(Protocol):
    """Takes what was done; `journal` says what earlier runs did."""

    journal: Journal

    def write(self, event: str, lines: Sequence[Mapping[str, Any]] = ({},)) -> None:
        """Adds a line of this event for each mapping, so that it outlives the process."""
        ...


class NoAudit:
    """Where nobody asked for one."""

    def __init__(self) -> None:
        self.journal = Journal()

    def write(self, event: str, lines: Sequence[Mapping[str, Any]] = ({},)) -> None:
        """As Audit.write, and forgets it."""


class AuditFile:
    """An audit file, from `with` to its end; `subject` says what the work is about, and a file speaks of one only.

    Raises ReplayRefused where the file cannot be written, is in another process's hands, or is about something else.
    """

    def __init__(self, path: Path, subject: Mapping[str, str]) -> None:
        self.journal = Journal()
        self._path = path
        self._subject = dict(subject)
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._close()
            raise ReplayRefused(f"{self._path}: another replay writes this audit file; give another --audit") from error
        except OSError as error:
            raise ReplayRefused(f"{self._path}: {error.strerror}; give another --audit") from error
        try:
            self._resume(self._file)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def write(self, event: str, lines: Sequence[Mapping[str, Any]] = ({},)) -> None:
        """As Audit.write. A killed process leaves whole lines behind, or at worst half of the last one."""
        if self._file is None or not lines:
            return
        texts = [json.dumps({"time": timestamp(), "event": event, **line}) for line in lines]
        try:
            self._file.write(("\n".join(texts) + "\n").encode())
            self._file.flush()
        except OSError as error:
            raise ReplayError(f"{self._path}: {error.strerror}; make room, and start again with this file") from error

    def _resume(self, file: IO[bytes]) -> None:
        foreign = ReplayRefused(f"{self._path} is no audit file of dlq-replay; give another --audit")
        file.seek(0)
        if not _BEGINNING.startswith(file.read(len(_BEGINNING))):
            raise foreign
        file.seek(0)
        try:
            for line in _lines(file):
                if line["event"] != "begin":
                    self.journal.read(line)
                elif self._subject.items() - line.items():
                    raise ReplayRefused(
                        f"{self._path} is the audit file of {line['source']} to {line['destination']}; "
                        "give another --audit"
                    )
        except (KeyError, TypeError) as error:
            raise foreign from error
        self.write("begin", [self._subject])

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what could not be written has been said already
                self._file.close()
            self._file = None


def _lines(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The lines there are; one that a killed process was writing is ended, and passed over from then on."""
    for raw in file:
        with suppress(ValueError):
            yield json.loads(raw)
        if not raw.endswith(b"\n"):
            file.write(b"\n")
