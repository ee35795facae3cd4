"""The audit file: one JSON line per event, from which the next run with the same file continues.

Lines are written in order and flushed before the next call to SQS. They contain ids, reasons and keys, never a body.
Each has `time` and `event`:

    begin     source, destination         a run starts; a file belongs to one source and destination
    sending   message_ids                 a batch is about to be sent
    sent      message_id, new_message_id  SQS accepted the message; it can be deleted from the DLQ
    failed    message_id or key, error    SQS did not accept it; it stays in the DLQ, or in S3
    deleted   message_id                  the message is deleted from the DLQ
    refused   message_id, replay_count    the message was replayed too often (--max-replays) and stays in the DLQ
    enqueued  count, last_key             a backfill sent this many keys, up to this one

To resume, a run reads the whole file first. A message that was `sent` but not `deleted` is deleted when it is received
again, and not sent a second time. A message in `sending` without a result may or may not have arrived: it is sent
again, so it can arrive twice. A backfill first retries the keys that failed, then continues after its `last_key`.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from handler.dlq.errors import DlqError, RequestInvalid
from handler.dlq.message import Lineage, timestamp

__all__ = ["Audit", "History"]

_FIRST_BYTES: Final = b'{"time": "'


class History:
    """What earlier runs with the same audit file did."""

    def __init__(self) -> None:
        self.undeleted: set[str] = set()  # ids of messages that were sent and perhaps not deleted
        self.in_doubt: set[str] = set()  # ids of messages whose send has no recorded result
        self.lineages: dict[str, Lineage] = {}  # of messages sent without ReplayCount, by their new ids
        self.last_key = ""
        self.failed_keys: set[str] = set()
        self.enqueued = 0

    def add(self, line: Mapping[str, Any]) -> None:
        """Apply one line. Raises KeyError or TypeError if it is not a line of an audit file."""
        match line["event"]:
            case "sending":
                self.in_doubt.update(line["message_ids"])
            case "sent":
                self.undeleted.add(line["message_id"])
                self.in_doubt.discard(line["message_id"])
                if "ReplayCount" in line.get("left_out", ()):
                    self.lineages[line["new_message_id"]] = Lineage(line["original_message_id"], line["replay_count"])
            case "failed" if "key" in line:
                self.failed_keys.add(line["key"])
            case "failed":
                self.in_doubt.discard(line["message_id"])
            case "deleted":
                self.undeleted.discard(line["message_id"])
            case "enqueued":
                self.enqueued += line["count"]
                self.failed_keys.difference_update(line.get("failed_before", ()))
                self.last_key = line.get("last_key", self.last_key)


class Audit:
    """Writes an audit file inside its `with` block; without a path it writes nothing and its history is empty.

    Raises RequestInvalid if the file cannot be opened, is locked by another process or belongs to other queues.
    """

    def __init__(self, path: Path | None = None, subject: Mapping[str, str] | None = None) -> None:
        self.history = History()
        self._path = path
        self._subject = dict(subject or {})
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        if self._path is not None:
            try:
                self._open(self._path)
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def write(self, event: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append a line for each mapping. After a kill, at most the last line is incomplete. Raises DlqError."""
        if self._file is None or not lines:
            return
        texts = [json.dumps({"time": timestamp(), "event": event, **line}) for line in lines]
        try:
            self._file.write(("\n".join(texts) + "\n").encode())
            self._file.flush()
        except OSError as error:
            raise DlqError(f"{self._path}: {error.strerror}; fix it and run again with the same --audit") from error

    def _open(self, path: Path) -> None:
        try:
            self._file = path.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._resume(self._file)
        except BlockingIOError as error:
            raise RequestInvalid(f"{path}: another process is writing it; use a different --audit") from error
        except OSError as error:
            raise RequestInvalid(f"{path}: {error.strerror}; use a different --audit") from error
        except (KeyError, TypeError) as error:
            raise RequestInvalid(f"{path} is not an audit file of dlq-replay; use a different --audit") from error
        self.write("begin", [self._subject])

    def _resume(self, file: IO[bytes]) -> None:
        file.seek(0)
        if not _FIRST_BYTES.startswith(file.read(len(_FIRST_BYTES))):
            raise TypeError
        file.seek(0)
        for line in _lines(file):
            if line["event"] != "begin":
                self.history.add(line)
            elif self._subject.items() - line.items():
                about = f"{line['source']} to {line['destination']}"
                raise RequestInvalid(f"{self._path} is the audit file of {about}; use a different --audit")

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # a write that failed has been reported
                self._file.close()
            self._file = None


def _lines(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The complete lines. A line that a killed process left incomplete is terminated and ignored."""
    for raw in file:
        with suppress(ValueError):
            yield json.loads(raw)
        if not raw.endswith(b"\n"):
            file.write(b"\n")
