"""The result event: what it says of a commit, the same from the pipe and the webhook, and without any text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enrichment import EnrichmentData, parse_ticket
from enrichment.ticket import enriched_json
from handler.aws.storage import _item
from handler.ports import Known, Write
from handler.result_event import Change, ResultEvent, change_by, event_of_item, result_event_schema
from tests.support.canaries import FIELDS, WORD
from tests.support.fakes import FakeModels, ticket
from tests.support.result_events import PATTERNS, REPO, check_event, is_selected, matches, rendered

VARIANTS: list[dict[str, Any]] = [{}, {"ticket_id": "T-2"}, {"created_at": 7}]


def write(known: Known | None = None, sha: str = "s", **fields: Any) -> Write:
    raw = parse_ticket(json.dumps(ticket(**fields)))
    (enrichment,) = FakeModels("fake@1").enrich([raw])
    assert isinstance(enrichment, EnrichmentData)
    return Write(raw, enrichment, enriched_json(raw, enrichment), "k.json", sha, 10, known=known)


def stream_record(item: Any, name: str = "INSERT") -> dict[str, Any]:
    return {"eventName": name, "dynamodb": {"Keys": {}, "NewImage": item, "StreamViewType": "NEW_AND_OLD_IMAGES"}}


def item(entry: Write | None = None, **enrichment: Any) -> dict[str, Any]:
    entry = entry or write()
    found = entry.enrichment.model_copy(update=enrichment)
    return _item(Write(entry.ticket, found, entry.body, entry.key, entry.content_sha256, 10), "v1", "new", 0)


def test_committed_schema_equals_the_generated_one() -> None:
    committed = (REPO / "events" / "schemas" / "result_event.json").read_text(encoding="utf-8")
    assert committed == result_event_schema(), (
        'regenerate it: python -c "from handler.result_event import result_event_schema as s; print(s(), end=str())" '
        "> events/schemas/result_event.json"
    )


@pytest.mark.parametrize(
    ("known", "change"),
    [
        (None, "new"),
        (Known("other", "fake@1", "k.json", 9), "updated"),
        (Known("s", "older@1", "k.json", 9), "enriched_again"),
        (Known("s", "fake@1", "elsewhere.json", 9), "enriched_again"),
    ],
)
def test_change_is_what_the_write_replaces(known: Known | None, change: Change) -> None:
    assert change_by(known, write()) == change


@pytest.mark.parametrize(
    "enrichment",
    [
        {},
        {"language": None, "needs_review": True, "review_reasons": ["language", "urgency"]},
        {"intent_confidence": 1.0, "urgency_confidence": 0.0, "sentiment_confidence": 1e-7},
    ],
    ids=["plain", "review", "extremes"],
)
def test_pipe_and_webhook_build_the_same_event(enrichment: dict[str, Any]) -> None:
    stored = item(write(priority="critical", ticket_id='#7 "\\<$.a>'), **enrichment)
    event = event_of_item(stored)
    assert is_selected(stream_record(stored))
    sent = event.model_dump(exclude_none=True)
    assert rendered(stream_record(stored)) == sent == json.loads(event.model_dump_json(exclude_none=True))
    check_event(sent)
    assert event.review_reasons.urgency == ("urgency" in enrichment.get("review_reasons", []))


def test_event_has_no_text_of_the_customer() -> None:
    fields: dict[str, Any] = {name: value for name, value in FIELDS.items() if name != "priority"}
    stored = item(write(**fields), summary="A canary.", language="en")
    assert WORD in json.dumps(stored).lower()
    assert WORD not in json.dumps(rendered(stream_record(stored))).lower()
    assert not ResultEvent.model_fields.keys() & {"subject", "body", "summary", "customer_id"}


def test_each_commit_has_its_own_id() -> None:
    ids = {
        _item(write(**fields), version, change, 0)["event"]["M"]["id"]["S"]
        for fields in VARIANTS
        for version in ("v1", "v2")
        for change in ("new", "corrected")
    }
    assert len(ids) == 12
    assert event_of_item(item()).event_id == event_of_item(item()).event_id


@pytest.mark.parametrize(
    ("record", "selected"),
    [
        (stream_record(item()), True),
        (stream_record(item(), "MODIFY"), True),
        (stream_record(item(write(ticket_id="#1042"))), True),
        (stream_record(item(), "REMOVE"), False),
        ({"eventName": "REMOVE", "dynamodb": {"OldImage": item()}}, False),
        (stream_record({"ticket_id": {"S": "#failures#m-1"}, "created_at": {"N": "-1"}}), False),
        (stream_record({**item(), "created_at": {"N": "-1"}}), False),
        (stream_record({"ticket_id": {"S": "T-1"}, "created_at": {"N": "1"}}), False),
    ],
    ids=["new", "modified", "number-sign", "removed", "removed-image", "failures", "negative", "other"],
)
def test_pipe_selects_commits(record: dict[str, Any], selected: bool) -> None:
    assert is_selected(record) is selected


def test_missing_value_is_an_error_of_the_template() -> None:
    stored = item()
    del stored["event"]["M"]["language"]
    with pytest.raises(KeyError, match="language"):
        rendered(stream_record(stored))


def test_pattern_of_the_pipe_is_not_empty() -> None:
    assert PATTERNS
    assert not any(matches(pattern, {}) for pattern in PATTERNS)
