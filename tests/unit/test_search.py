"""`tickets index`, `search`, `similar` and `duplicates`, on a table and a bucket in this process."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner, Result

from enrichment import Bundle
from handler.tickets.command import app
from handler.tickets.repository import ObjectUnreadable, RepositoryError, Selection
from handler.tickets.search.duplicates import duplicates
from handler.tickets.search.index import Entry, Key
from handler.tickets.search.indexer import Indexed, Indexer
from handler.tickets.search.query import QueryEncoder, Search
from handler.tickets.search.sqlite import SqliteIndex
from tests.support.mocked_aws import mocked_aws
from tests.support.ticket_table import VERSION, Harness, ticket_table

MODEL, OTHER = "mini@0123456789ab", "large@ba9876543210"
NOW = 10_000_000.0
HOUR = 3600


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in the program catches it."""


@pytest.fixture(scope="module")
def clients() -> Iterator[tuple[Any, Any]]:
    with mocked_aws():
        yield boto3.client("dynamodb"), boto3.client("s3")


@pytest.fixture
def harness(clients: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Harness]:
    """A table and a bucket, with an index in a directory of its own."""
    monkeypatch.setenv("VECTOR_INDEX", f"sqlite://{tmp_path}")
    monkeypatch.delenv("MODEL_BUNDLE", raising=False)
    with ticket_table(clients, monkeypatch) as made:
        yield made


@pytest.fixture
def index(harness: Harness, tmp_path: Path) -> SqliteIndex:
    return SqliteIndex(tmp_path / f"{harness.place}.{harness.place}.sqlite")


def indexer(harness: Harness, index: SqliteIndex, **options: Any) -> Indexer:
    models = options.pop("models", {})
    return Indexer(harness.repository, index, models, clock=lambda: NOW, **options)


def follow(harness: Harness, index: SqliteIndex, **options: Any) -> Indexed:
    return indexer(harness, index, **options).follow(2 * HOUR)


def store(harness: Harness, ticket_id: str, created_at: int, *vector: float, **fields: Any) -> str:
    fields = {"embedding_model": MODEL, **fields}
    return harness.store(ticket_id, created_at, vector=vector or (1.0,), **fields)


def ids(index: SqliteIndex) -> list[str]:
    return sorted(key.ticket_id for key in index.all_keys())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


# -- the indexer


def test_first_run_reads_all_tickets_and_the_next_one_only_new_ones(harness: Harness, index: SqliteIndex) -> None:
    for number in range(5):
        store(harness, f"t{number}", 100_000 * number, urgency=("low", "critical", "high")[number % 3])
    harness.forget_calls()
    assert follow(harness, index) == Indexed(stored=5)
    assert harness.calls.count("GetObject") == 5
    assert index.mark() == 400_000
    store(harness, "new", 400_001)
    harness.forget_calls()
    assert follow(harness, index) == Indexed(stored=1, unchanged=1)
    assert harness.calls.count("GetObject") == 1
    assert {f"created_at >= {400_000 - 2 * HOUR}"} == {
        f"created_at >= {query['ExpressionAttributeValues'][':created_at']['N']}" for query in harness.queries
    }
    assert ids(index) == ["new", "t0", "t1", "t2", "t3", "t4"]


def test_ticket_that_was_enriched_again_replaces_its_entry(harness: Harness, index: SqliteIndex) -> None:
    store(harness, "t", 1000, 1.0)
    follow(harness, index)
    store(harness, "t", 1000, 0.6, 0.8, body="another text")
    assert follow(harness, index) == Indexed(stored=1)
    [entry] = index.entries(MODEL)
    assert list(entry.vector)[:2] == pytest.approx([0.6, 0.8])
    assert entry.version_id == harness.item("t").s3_version_id


def test_ticket_stored_late_is_found_within_the_overlap_and_otherwise_by_reconcile(
    harness: Harness, index: SqliteIndex
) -> None:
    store(harness, "newest", 100_000)
    follow(harness, index)
    store(harness, "an hour before", 100_000 - HOUR)
    store(harness, "a day before", 100_000 - 24 * HOUR)
    assert follow(harness, index) == Indexed(stored=1, unchanged=1)
    assert ids(index) == ["an hour before", "newest"]
    assert indexer(harness, index).reconcile() == Indexed(stored=1, unchanged=2)
    assert ids(index) == ["a day before", "an hour before", "newest"]


def test_reconcile_repairs_everything(harness: Harness, index: SqliteIndex) -> None:
    for name in ("right", "missing", "superseded", "other model", "forgotten"):
        store(harness, name, 1000)
    follow(harness, index)
    index.remove([Key("missing", 1000)])
    store(harness, "superseded", 1000, 0.6, 0.8, body="another text")
    store(harness, "other model", 1000, body="another text", embedding_model=OTHER)
    harness.dynamodb.delete_item(
        TableName=harness.place, Key={"ticket_id": {"S": "forgotten"}, "created_at": {"N": "1000"}}
    )
    index.put([Entry(Key("never stored", 5), "v1", MODEL, [1.0] + [0.0] * 383)])
    done = indexer(harness, index).reconcile()
    assert done == Indexed(stored=3, removed=2, unchanged=1)
    assert ids(index) == ["missing", "other model", "right", "superseded"]
    assert {entry.key.ticket_id for entry in index.entries(OTHER)} == {"other model"}
    items = {name: harness.item(name).s3_version_id for name in ids(index)}
    assert {key.ticket_id: one.version_id for key, one in index.stored(list(index.all_keys())).items()} == items
    assert indexer(harness, index).reconcile() == Indexed(unchanged=4)


def test_run_that_was_killed_goes_on_where_it_stopped(
    harness: Harness, index: SqliteIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed at each of its calls in turn; what it has stored until then is complete up to the mark."""
    monkeypatch.setattr("handler.tickets.search.indexer._BATCH", 3)
    times = {f"t{number:02}": 100_000 * number for number in range(10)}
    for name, created_at in times.items():
        store(harness, name, created_at)
    reads, allowed, is_over = [], 0, False

    def kill(name: str, _params: dict[str, Any]) -> None:
        if len(harness.calls) > allowed:
            raise Killed
        if name == "GetObject":
            reads.append(allowed)

    while not is_over:
        allowed += 2
        harness.forget_calls()
        harness.before = kill
        try:
            follow(harness, index)
            is_over = True
        except Killed:
            pass
        harness.before = lambda _name, _params: None
        mark = index.mark()
        assert ids(index) == [name for name, created_at in times.items() if mark is not None and created_at <= mark]
    assert ids(index) == list(times)
    # Each batch was read again at most as often as it was killed, never one that was stored.
    assert len(reads) < 10 * allowed / 2
    assert follow(harness, index) == Indexed(unchanged=1)


def test_pass_ends_after_its_batch_when_it_is_stopped(
    harness: Harness, index: SqliteIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handler.tickets.search.indexer._BATCH", 2)
    for number in range(6):
        store(harness, f"t{number}", 100_000 * number)
    advanced: list[int] = []
    options = {"advance": advanced.append, "is_stopped": lambda: sum(advanced) >= 4}
    assert follow(harness, index, **options) == Indexed(stored=4)
    assert index.mark() == 300_000
    index.put([Entry(Key("orphan", 5), "v1", MODEL, [1.0] + [0.0] * 383)])
    advanced.clear()
    assert indexer(harness, index, **options).reconcile().removed == 0


def test_mark_is_never_in_the_future(harness: Harness, index: SqliteIndex) -> None:
    store(harness, "clock of the sender is wrong", 253_402_300_799)
    store(harness, "now", int(NOW) - 60)
    follow(harness, index)
    assert index.mark() == int(NOW)
    store(harness, "later", int(NOW) - 30)
    assert follow(harness, index).stored == 1


def test_what_cannot_be_compared_has_no_entry(harness: Harness, index: SqliteIndex) -> None:
    store(harness, "good", 1000)
    store(harness, "empty", 1000, 0.0)
    store(harness, "not of unit length", 1000, 0.5)
    gone = store(harness, "gone", 1000)
    harness.s3.delete_object(Bucket=harness.place, Key=gone, VersionId=harness.item("gone").s3_version_id)
    harness.store("old", 1000)
    done = follow(harness, index)
    assert ids(index) == ["good"]
    assert done.left_out == {
        "without text": 1,
        "without a readable object": 2,
        f"of {VERSION} (name its bundle with --bundle)": 1,
    }


def test_ticket_whose_new_version_is_unreadable_loses_its_entry(harness: Harness, index: SqliteIndex) -> None:
    store(harness, "t", 1000)
    follow(harness, index)
    key = store(harness, "t", 1000, body="another text")
    harness.s3.delete_object(Bucket=harness.place, Key=key, VersionId=harness.item("t").s3_version_id)
    assert follow(harness, index) == Indexed(removed=1, left_out={"without a readable object": 1})  # type: ignore[arg-type]  # a Counter equals a dict
    assert ids(index) == []


def test_tickets_of_earlier_releases_need_their_bundle(harness: Harness, index: SqliteIndex) -> None:
    harness.store("old", 1000)
    store(harness, "new", 1000)
    follow(harness, index)
    assert ids(index) == ["new"]
    assert follow(harness, index, models={VERSION: MODEL}).stored == 1
    assert {entry.key.ticket_id for entry in index.entries(MODEL)} == {"new", "old"}
    # Once it is stored, the bundle need not be named again.
    assert follow(harness, index) == Indexed(unchanged=2)


@pytest.mark.parametrize("moment", range(1, 4))
def test_ticket_that_changes_while_it_is_read_is_read_again(harness: Harness, index: SqliteIndex, moment: int) -> None:
    """Before the first look at the item, between it and the object, and before the second look."""
    store(harness, "t", 1000, 1.0)
    calls: list[str] = []

    def change(name: str, _params: dict[str, Any]) -> None:
        if name in {"BatchGetItem", "GetObject"}:
            calls.append(name)
            if len(calls) == moment:
                harness.before = lambda _name, _params: None
                store(harness, "t", 1000, 0.6, 0.8, body="another text")

    harness.before = change
    follow(harness, index)
    [entry] = index.entries(MODEL)
    assert entry.version_id == harness.item("t").s3_version_id
    assert list(entry.vector)[:2] == pytest.approx([0.6, 0.8])


def test_ticket_that_is_removed_after_it_kept_changing_has_no_entry(harness: Harness, index: SqliteIndex) -> None:
    store(harness, "t", 1000)
    reads = 0

    def change(name: str, _params: dict[str, Any]) -> None:
        nonlocal reads
        harness.before = lambda _name, _params: None
        reads += name == "GetObject"
        if name == "GetObject" and reads < 3:
            store(harness, "t", 1000, body=f"text {reads}")
        elif name == "BatchGetItem" and reads == 3:
            harness.sink.erase("t", 1000, harness.item("t").s3_key)
            return
        harness.before = change

    harness.before = change
    follow(harness, index)
    assert (reads, ids(index)) == (3, [])


def test_items_that_dynamodb_leaves_unprocessed_are_read_again(
    harness: Harness, index: SqliteIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        store(harness, name, 1000)
    read, left = harness.dynamodb.batch_get_item, [1, 1]

    def half(RequestItems: dict[str, Any]) -> Any:  # noqa: N803 - the name of the parameter
        keys = RequestItems[harness.place]["Keys"]
        if len(keys) == 1 or not left:
            return read(RequestItems=RequestItems)
        left.pop()
        rest = {harness.place: {**RequestItems[harness.place], "Keys": keys[1:]}}
        return {
            **read(RequestItems={harness.place: {**RequestItems[harness.place], "Keys": keys[:1]}}),
            "UnprocessedKeys": rest,
        }

    monkeypatch.setattr(harness.dynamodb, "batch_get_item", half)
    monkeypatch.setattr("handler.tickets.repository._PAUSE", 0)
    assert follow(harness, index).stored == 2
    assert left == []
    monkeypatch.setattr(
        harness.dynamodb,
        "batch_get_item",
        lambda RequestItems: {"Responses": {}, "UnprocessedKeys": RequestItems},  # noqa: N803
    )
    with pytest.raises(RepositoryError, match="try again when the table is less busy"):
        harness.repository.current([("a", 1000)])


# -- search


@pytest.fixture(scope="module")
def encoder(bundle: Path) -> QueryEncoder:
    return QueryEncoder(Bundle.open(bundle))


@pytest.fixture
def search(harness: Harness, index: SqliteIndex, encoder: QueryEncoder) -> Search:
    return Search(harness.repository, index, lambda: encoder)


def found(matches: list[Any]) -> list[str]:
    return [item.ticket_id for _, item in matches]


def test_like_lists_the_nearest_without_the_ticket_itself(harness: Harness, index: SqliteIndex, search: Search) -> None:
    store(harness, "query", 5, 1.0)
    store(harness, "near", 4, 0.8, 0.6)
    store(harness, "same", 3, 1.0)
    store(harness, "other model", 2, 1.0, embedding_model=OTHER)
    store(harness, "far", 1, 0.0, 1.0)
    follow(harness, index)
    matches = search.like(harness.item("query"), 10)
    assert found(matches) == ["same", "near", "far"]
    assert [cosine for cosine, _ in matches] == pytest.approx([1.0, 0.8, 0.0], abs=1e-6)
    assert found(search.like(harness.item("query"), 1)) == ["same"]
    assert found(search.like(harness.item("other model"), 5)) == []


def test_forgotten_and_superseded_tickets_are_never_shown(harness: Harness, index: SqliteIndex, search: Search) -> None:
    for name in ("query", "stays", "superseded", "forgotten"):
        store(harness, name, 1000)
    follow(harness, index)
    store(harness, "superseded", 1000, 0.0, 1.0, body="another text")
    harness.dynamodb.delete_item(
        TableName=harness.place, Key={"ticket_id": {"S": "forgotten"}, "created_at": {"N": "1000"}}
    )
    assert found(search.like(harness.item("query"), 10)) == ["stays"]


def test_selection_is_filled_although_few_of_the_nearest_are_selected(
    harness: Harness, index: SqliteIndex, search: Search
) -> None:
    for number in range(60):
        angle = number / 100
        store(harness, f"t{number:02}", number, math.cos(angle), math.sin(angle), urgency="low")
    for number in (55, 57):
        store(harness, f"u{number}", number, math.cos(number / 100), math.sin(number / 100), urgency="critical")
    follow(harness, index)
    query = harness.item("t00")
    assert found(search.like(query, 2, Selection(urgencies=("critical",)))) == ["u55", "u57"]
    assert found(search.like(query, 5, Selection(since=58))) == ["t58", "t59"]
    assert found(search.like(query, 5, Selection(until=2))) == ["t01", "t02"]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), {"a", "b"}),
        (Selection(intent="login_issue"), {"b"}),
        (Selection(sentiment="NEGATIVE"), {"a"}),
        (Selection(needs_review=True), {"a"}),
        (Selection(needs_review=False), {"b"}),
        (Selection(language="de"), {"a"}),
        (Selection(language="und"), {"b"}),
        (Selection(text="ABOUT B"), {"b"}),
        (Selection(urgencies=("high",)), {"a"}),
    ],
    ids=["all", "intent", "sentiment", "review", "no-review", "language", "unknown-language", "text", "urgency"],
)
def test_selection_is_the_same_as_in_lists(
    harness: Harness, index: SqliteIndex, search: Search, selection: Selection, expected: set[str]
) -> None:
    store(harness, "a", 10, sentiment="NEGATIVE", needs_review=True, language="de", urgency="high")
    store(harness, "b", 10, intent="login_issue")
    store(harness, "query", 10, intent="data_request", urgency="medium", language="fr")
    follow(harness, index)
    matches = set(found(search.like(harness.item("query"), 10, selection)))
    listed = {item.ticket_id for item in harness.repository.newest(selection)} - {"query"}
    assert matches == listed == expected


def test_search_without_an_index_says_how_to_build_it(harness: Harness, search: Search, index: SqliteIndex) -> None:
    store(harness, "t", 10)
    line = "there is no vector index yet; build it with `tickets index`"
    with pytest.raises(RepositoryError, match=line):
        search.words("anything", 5)
    with pytest.raises(RepositoryError, match=line):
        search.like(harness.item("t"), 5)
    follow(harness, index)
    with pytest.raises(RepositoryError, match=r"no tickets of the encoder all-MiniLM-L6-v2@\w{12}; .* MODEL_BUNDLE"):
        search.words("anything", 5)
    store(harness, "other", 10, embedding_model=OTHER)
    with pytest.raises(RepositoryError, match="no tickets that can be compared with other"):
        search.like(harness.item("other"), 5)


def test_nothing_to_search_for_is_an_error(harness: Harness, search: Search, index: SqliteIndex) -> None:
    model = search._open_encoder().model
    store(harness, "t", 10, embedding_model=model)
    store(harness, "empty", 10, 0.0, embedding_model=model)
    gone = store(harness, "gone", 10, embedding_model=model)
    follow(harness, index)
    with pytest.raises(RepositoryError, match="no words to search for"):
        search.words("  ", 5)
    with pytest.raises(RepositoryError, match="empty has no text"):
        search.like(harness.item("empty"), 5)
    harness.s3.delete_object(Bucket=harness.place, Key=gone, VersionId=harness.item("gone").s3_version_id)
    with pytest.raises(ObjectUnreadable):
        search.like(harness.item("gone"), 5)


def test_words_find_paraphrases(harness: Harness, index: SqliteIndex, search: Search, encoder: QueryEncoder) -> None:
    texts = {
        "money": "Our card was charged twice for the invoice of May.",
        "door": "The password reset link has expired, so nobody gets into the account.",
        "slow": "Opening the dashboard takes more than a minute since Monday.",
    }
    for name, text in texts.items():
        harness.store(name, 10, vector=tuple(encoder.vector(text)), embedding_model=encoder.model)
    follow(harness, index)
    for words, name in (("duplicate payment", "money"), ("locked out", "door"), ("sluggish reports page", "slow")):
        assert found(search.words(words, 3))[0] == name
    cosines = [cosine for cosine, _ in search.words("duplicate payment", 3)]
    assert all(one >= other for one, other in pairwise(cosines))


# -- duplicates


def clustered(number: int, groups: int, spread: float) -> npt.NDArray[np.float32]:
    """`number` unit vectors, in turn around each of `groups` random ones."""
    chance = np.random.default_rng(3)
    centres = chance.standard_normal((groups, 384)).astype(np.float32)
    vectors = centres[np.arange(number) % groups] + spread * chance.standard_normal((number, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def exact_groups(vectors: npt.NDArray[np.float32], threshold: float) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for row, vector in enumerate(vectors):
        cosines = {first: float(vectors[first] @ vector) for first in groups}
        best = max(cosines, key=lambda first: cosines[first], default=None)
        if best is not None and cosines[best] >= threshold:
            groups[best].append(row)
        else:
            groups[row] = [row]
    return [group for group in groups.values() if len(group) > 1]


@pytest.mark.parametrize("threshold", [0.8, 0.95])
def test_groups_are_those_of_comparing_one_by_one(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.concatenate([clustered(600, 200, 0.1), clustered(400, 150, 0.5)])
    # Smaller blocks, so that groups extend over many of them.
    monkeypatch.setattr("handler.tickets.search.duplicates._BLOCK", 64)
    monkeypatch.setattr("handler.tickets.search.duplicates._FIRSTS", 100)
    groups = duplicates(vectors, threshold)
    assert [[row for row, _ in group] for group in groups] == exact_groups(vectors, threshold)
    for group in groups:
        assert group[0][1] == 1.0
        assert [cosine for _, cosine in group] == pytest.approx(
            [float(vectors[row] @ vectors[group[0][0]]) for row, _ in group], abs=1e-5
        )


def test_equal_texts_are_duplicates_at_threshold_1() -> None:
    vectors = clustered(40, 20, 0.0)
    assert [[row for row, _ in group] for group in duplicates(vectors, 1.0)] == [[n, n + 20] for n in range(20)]
    assert duplicates(vectors[:20], 1.0) == duplicates(vectors[:0], 0.9) == []


# -- the commands


def test_index_and_similar_commands(harness: Harness, index: SqliteIndex) -> None:
    store(harness, "query", 5)
    store(harness, "near", 4, 0.8, 0.6)
    before = run("similar", "query")
    assert "compared with 1 tickets" in before.stderr
    built = run("index")
    assert (built.exit_code, built.stdout, built.stderr) == (0, "2\t0\t0\t0\n", "")
    again = run("index", "--json", "--reconcile")
    assert json.loads(again.stdout) == {"stored": 0, "removed": 0, "unchanged": 2, "left_out": {}}
    assert run("similar", "query", "--among", "5").stderr == before.stderr
    # With the index, only the ticket's own object is read.
    near = harness.item("near")
    harness.s3.delete_object(Bucket=harness.place, Key=near.s3_key, VersionId=near.s3_version_id)
    result = run("similar", "query")
    assert result.stdout == before.stdout
    assert result.stderr == f"found in the vector index {index.place}\n"
    # A ticket of an encoder that the index does not have is compared as before.
    store(harness, "other", 3, embedding_model=OTHER)
    assert "compared with 2 tickets" in run("similar", "other").stderr


def test_index_says_what_has_no_entry(harness: Harness, bundle: Path) -> None:
    harness.store("old", 1000)
    store(harness, "empty", 1000, 0.0)
    result = run("index")
    assert (result.exit_code, result.stdout) == (0, "0\t0\t0\t2\n")
    assert result.stderr.splitlines() == [
        f"not in the index: 1 ticket of {VERSION} (name its bundle with --bundle)",
        "not in the index: 1 ticket without text",
    ]


def test_bundle_names_the_model_of_older_tickets(harness: Harness, index: SqliteIndex, bundle: Path) -> None:
    opened = Bundle.open(bundle)
    harness.store("old", 1000, model_version=opened.version)
    assert run("index", "--bundle", bundle.as_uri()).stdout == "1\t0\t0\t0\n"
    assert index.models() == [opened.manifest.embedding_model]
    # `tickets similar` knows it from the index.
    assert run("similar", "old").stderr == f"found in the vector index {index.place}\n"


def test_search_command(harness: Harness, bundle: Path, encoder: QueryEncoder, tmp_path: Path) -> None:
    for name, text, urgency in (
        ("refund", "Please refund the second payment.", "low"),
        ("charged", "Our card was charged twice.", "high"),
        ("login", "I cannot sign in with my password.", "high"),
    ):
        harness.store(name, 10, vector=tuple(encoder.vector(text)), embedding_model=encoder.model, urgency=urgency)
    assert run("index").exit_code == 0
    options = ("--bundle", bundle.as_uri())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUNDLE_CACHE_DIR", str(tmp_path / "bundles"))
        rows = [
            line.split("\t") for line in run("search", "our card was billed two times", *options).stdout.splitlines()
        ]
        assert [row[6] for row in rows] == ["charged", "refund", "login"]
        assert [float(row[0]) for row in rows] == sorted((float(row[0]) for row in rows), reverse=True)
        urgent = run("search", "our card was billed two times", *options, "--urgent", "--json", "--limit", "1")
        assert [json.loads(line)["ticket_id"] for line in urgent.stdout.splitlines()] == ["charged"]
        assert run("search", "our card was billed two times", *options, "--intent", "login_issue").stdout == ""


def test_duplicates_command(harness: Harness) -> None:
    store(harness, "oldest", 1, 1.0)
    store(harness, "copy", 2, 0.99, math.sqrt(1 - 0.99**2))
    store(harness, "alone", 3, 0.0, 0.0, 1.0)
    for number, name in enumerate(("first", "second", "third")):
        store(harness, name, 10 + number, 0.0, 0.0, 0.0, 1.0)
    store(harness, "other model", 20, 0.0, 0.0, 0.0, 1.0, embedding_model=OTHER)
    assert run("index").exit_code == 0

    def groups(*arguments: str) -> list[tuple[int, str]]:
        return [(row["group"], row["ticket_id"]) for row in map(json.loads, run(*arguments).stdout.splitlines())]

    newest_first = [(1, "first"), (1, "second"), (1, "third"), (2, "oldest"), (2, "copy")]
    assert groups("duplicates", "--json") == newest_first
    lines = [line.split("\t") for line in run("duplicates").stdout.splitlines()]
    assert [(line[0], line[1], line[7]) for line in lines][-2:] == [("2", "1.0000", "oldest"), ("2", "0.9900", "copy")]
    assert groups("duplicates", "--json", "--threshold", "0.995") == newest_first[:3]
    assert groups("duplicates", "--json", "--since", "1970-01-01T00:00:11") == [(1, "second"), (1, "third")]
    # Without the group's first ticket, the others are compared with the next one.
    harness.dynamodb.delete_item(TableName=harness.place, Key={"ticket_id": {"S": "first"}, "created_at": {"N": "10"}})
    result = run("duplicates", "--json")
    assert result.stderr == "4 tickets in 2 groups\n"
    assert [json.loads(line)["ticket_id"] for line in result.stdout.splitlines()][:2] == ["second", "third"]


@pytest.mark.parametrize(
    ("arguments", "environment", "line"),
    [
        (("search", "words"), {}, "set MODEL_BUNDLE, or give --bundle: the words need the encoder of the tickets"),
        (("search", "words", "--bundle", "file:///none"), {}, "MODEL_BUNDLE names /none, where bundle.json cannot be"),
        (("index", "--bundle", "file:///none"), {}, "MODEL_BUNDLE names /none, where bundle.json cannot be read"),
        (("duplicates",), {}, "there is no vector index yet; build it with `tickets index`"),
        (("index",), {"VECTOR_INDEX": "/tmp/x"}, "VECTOR_INDEX is '/tmp/x'; it must be sqlite:///directory or"),
        (("index",), {"TABLE_NAME": "elsewhere"}, "Query: ResourceNotFoundException"),
    ],
    ids=str,
)
def test_errors_are_one_line(
    harness: Harness,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    line: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"tickets: {line}")
    assert len(result.stderr.splitlines()) == 1
