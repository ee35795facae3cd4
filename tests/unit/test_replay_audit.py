"""The audit file outlives a killed process, and the next one goes on from it."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handler.replay.audit import AuditFile, Journal, NoAudit
from handler.replay.letter import Ancestor
from handler.replay.queue import ReplayError, ReplayRefused

SUBJECT = {"source": "arn:dead", "destination": "arn:live"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def written(path: Path, *events: tuple[str, list[dict[str, Any]]]) -> None:
    with AuditFile(path, SUBJECT) as audit:
        for event, lines in events:
            audit.write(event, lines)


def journal(path: Path) -> Journal:
    with AuditFile(path, SUBJECT) as audit:
        return audit.journal


def sent(name: str, **more: Any) -> dict[str, Any]:
    return {"message_id": name, "new_message_id": f"new-{name}", "original_message_id": "o", "replay_count": 2, **more}


def lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        yield json.loads(line)


def test_lines_are_json_with_their_time_and_event(path: Path) -> None:
    written(path, ("sending", [{"message_ids": ["a"]}]), ("deleted", []))
    found = list(lines(path))
    assert [line["event"] for line in found] == ["begin", "sending"]
    assert found[0] == {"time": found[0]["time"], "event": "begin", **SUBJECT}
    assert found[1]["message_ids"] == ["a"]


def test_lines_are_there_before_the_file_is_closed(path: Path) -> None:
    with AuditFile(path, SUBJECT) as audit:
        audit.write("sent", [sent("a")])
        assert len(list(lines(path))) == 2


def test_what_was_sent_and_not_deleted_is_known(path: Path) -> None:
    written(path, ("sent", [sent("a"), sent("b")]), ("deleted", [{"message_id": "a"}]))
    assert journal(path).unfinished == {"b"}
    written(path, ("deleted", [{"message_id": "b"}]))
    assert journal(path).unfinished == set()


def test_what_was_on_its_way_is_known(path: Path) -> None:
    written(path, ("sending", [{"message_ids": ["a", "b", "c"]}]), ("failed", [{"message_id": "b"}]))
    written(path, ("sent", [sent("a")]))
    assert journal(path).in_doubt == {"c"}


def test_ancestors_of_what_was_sent_without_its_count_are_known(path: Path) -> None:
    written(path, ("sent", [sent("a", left_out=["ReplayCount", "ReplayedAt"]), sent("b", left_out=["ReplayedAt"])]))
    assert journal(path).unmarked == {"new-a": Ancestor("o", 2)}


def test_a_backfill_goes_on_after_its_last_key_with_what_failed_before_it(path: Path) -> None:
    written(path, ("failed", [{"key": "k2"}, {"key": "k3"}]), ("enqueued", [{"count": 8, "last_key": "k10"}]))
    written(path, ("enqueued", [{"count": 1, "failed_before": ["k3"]}]))
    found = journal(path)
    assert (found.last_key, found.failed_keys, found.enqueued) == ("k10", {"k2"}, 9)


@pytest.mark.parametrize("cut", range(2, 60, 4))
def test_half_a_line_of_a_killed_process_is_passed_over(path: Path, cut: int) -> None:
    written(path, ("sent", [sent("a")]), ("deleted", [{"message_id": "a"}]))
    path.write_bytes(path.read_bytes()[:-cut])
    assert journal(path).unfinished == {"a"}
    written(path, ("sent", [sent("b")]))
    assert journal(path).unfinished == {"a", "b"}


def test_half_of_the_first_line_too(path: Path) -> None:
    path.write_bytes(b'{"time": "2026-11-2')
    written(path, ("sent", [sent("b")]))
    assert journal(path).unfinished == {"b"}


@pytest.mark.parametrize(
    "content",
    [
        "dear diary\n",
        '{"event": "begin"}\n',
        '{"time": "x"}\n',
        '{"time": "x", "event": "sent"}\n',
        '{"time": "x", "event": "begin"}\n',
        '{"time": "x", "event": "enqueued", "count": "many"}\n',
    ],
)
def test_another_file_is_left_alone(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(ReplayRefused, match="is no audit file of dlq-replay"):
        journal(path)
    assert path.read_text() == content


def test_a_file_about_other_queues_is_refused(path: Path) -> None:
    written(path)
    with pytest.raises(ReplayRefused, match="audit file of arn:dead to arn:live"), AuditFile(path, {"source": "other"}):
        pass
    assert len(list(lines(path))) == 1


def test_two_replays_do_not_share_a_file(path: Path) -> None:
    with AuditFile(path, SUBJECT), pytest.raises(ReplayRefused, match="another replay"), AuditFile(path, SUBJECT):
        pass
    assert journal(path).unfinished == set()


def test_a_file_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ReplayRefused, match="No such file or directory"):
        journal(tmp_path / "nowhere" / "audit.jsonl")
    with pytest.raises(ReplayRefused, match="Is a directory"):
        journal(tmp_path)


def test_a_disk_that_takes_no_more_ends_the_replay(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with AuditFile(path, SUBJECT) as audit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
        try:
            with pytest.raises(ReplayError, match="File too large; make room"):
                audit.write("sent", [sent("a")])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_audit_knows_nothing_and_takes_everything() -> None:
    audit = NoAudit()
    audit.write("sent", [sent("a")])
    assert audit.journal.unfinished == set()
