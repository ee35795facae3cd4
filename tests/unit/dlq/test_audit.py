"""The audit file survives a kill, and the next run continues from it."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from handler.dlq.audit import Audit, History
from handler.dlq.errors import DlqError, RequestInvalid
from handler.dlq.message import Lineage

SUBJECT = {"source": "arn:dead", "destination": "arn:live"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def write(path: Path, *events: tuple[str, list[dict[str, Any]]]) -> None:
    with Audit(path, SUBJECT) as audit:
        for event, lines in events:
            audit.write(event, lines)


def history(path: Path) -> History:
    with Audit(path, SUBJECT) as audit:
        return audit.history


def sent(name: str, **more: Any) -> dict[str, Any]:
    return {"message_id": name, "new_message_id": f"new-{name}", "original_message_id": "o", "replay_count": 2, **more}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_have_time_and_event_and_are_written_at_once(path: Path) -> None:
    with Audit(path, SUBJECT) as audit:
        audit.write("sending", [{"message_ids": ["a"]}])
        audit.write("deleted", [])
        found = lines(path)
    assert [line["event"] for line in found] == ["begin", "sending"]
    assert found[0] == {"time": found[0]["time"], "event": "begin", **SUBJECT}
    assert found[1]["message_ids"] == ["a"]


def test_sent_but_not_deleted(path: Path) -> None:
    write(path, ("sent", [sent("a"), sent("b")]), ("deleted", [{"message_id": "a"}]))
    assert history(path).undeleted == {"b"}
    write(path, ("deleted", [{"message_id": "b"}]))
    assert history(path).undeleted == set()


def test_sending_without_a_result_is_in_doubt(path: Path) -> None:
    write(path, ("sending", [{"message_ids": ["a", "b", "c"]}]), ("failed", [{"message_id": "b"}]))
    write(path, ("sent", [sent("a")]))
    assert history(path).in_doubt == {"c"}


def test_lineage_of_messages_sent_without_their_count(path: Path) -> None:
    write(path, ("sent", [sent("a", left_out=["ReplayCount", "ReplayedAt"]), sent("b", left_out=["ReplayedAt"])]))
    assert history(path).lineages == {"new-a": Lineage("o", 2)}


def test_backfill_remembers_its_last_key_and_what_failed(path: Path) -> None:
    write(path, ("failed", [{"key": "k2"}, {"key": "k3"}]), ("enqueued", [{"count": 8, "last_key": "k10"}]))
    write(path, ("enqueued", [{"count": 1, "failed_before": ["k3"]}]))
    found = history(path)
    assert (found.last_key, found.failed_keys, found.enqueued) == ("k10", {"k2"}, 9)


@pytest.mark.parametrize("cut", range(2, 60, 4))
def test_incomplete_last_line_is_ignored(path: Path, cut: int) -> None:
    write(path, ("sent", [sent("a")]), ("deleted", [{"message_id": "a"}]))
    path.write_bytes(path.read_bytes()[:-cut])
    assert history(path).undeleted == {"a"}
    write(path, ("sent", [sent("b")]))
    assert history(path).undeleted == {"a", "b"}


def test_incomplete_first_line_is_ignored(path: Path) -> None:
    path.write_bytes(b'{"time": "2026-11-2')
    write(path, ("sent", [sent("b")]))
    assert history(path).undeleted == {"b"}


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
def test_other_files_are_refused_and_not_changed(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(RequestInvalid, match="is not an audit file of dlq-replay"):
        history(path)
    assert path.read_text() == content


def test_file_about_other_queues_is_refused(path: Path) -> None:
    write(path)
    with pytest.raises(RequestInvalid, match="audit file of arn:dead to arn:live"), Audit(path, {"source": "other"}):
        pass
    assert len(lines(path)) == 1


def test_file_of_a_running_process_is_refused(path: Path) -> None:
    with Audit(path, SUBJECT), pytest.raises(RequestInvalid, match="another process"), Audit(path, SUBJECT):
        pass
    assert history(path).undeleted == set()


def test_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestInvalid, match="No such file or directory"):
        history(tmp_path / "nowhere" / "audit.jsonl")
    with pytest.raises(RequestInvalid, match="Is a directory"):
        history(tmp_path)


def test_failed_write_is_an_error_with_its_cause(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Audit(path, SUBJECT) as audit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
        try:
            with pytest.raises(DlqError, match="File too large; fix it"):
                audit.write("sent", [sent("a")])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_without_a_path_nothing_is_written_or_known() -> None:
    with Audit() as audit:
        audit.write("sent", [sent("a")])
        assert audit.history.undeleted == set()
