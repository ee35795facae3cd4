"""The vector index: what both adapters store, SQLite's answers against brute force, and the calls of S3 Vectors.

S3 Vectors runs in this process (moto), except for its queries, which moto does not have: those are answered by
botocore's Stubber, which checks each request against the service's model. Nothing of it has run on AWS.
"""

from __future__ import annotations

import math
import stat
import sys
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from botocore.exceptions import ClientError, ParamValidationError
from botocore.stub import ANY, Stubber

from enrichment import Bundle
from enrichment.encoder import Encoder
from handler.tickets.repository import RepositoryError
from handler.tickets.search.index import DIMENSIONS, Entry, Key, Stored, VectorIndex
from handler.tickets.search.location import index_at
from handler.tickets.search.s3vectors import S3VectorsIndex
from handler.tickets.search.sqlite import SqliteIndex
from tests.support.mocked_aws import mocked_aws
from tests.support.vectors import around, embed, exact_nearest, labelled_texts

MODEL, OTHER = "mini@0123456789ab", "large@ba9876543210"
BUCKETS = count(1)


def unit(*numbers: float) -> list[float]:
    length = math.hypot(*numbers)
    return [number / length for number in numbers] + [0.0] * (DIMENSIONS - len(numbers))


def entry(ticket_id: str, created_at: int = 1, *numbers: float, version: str = "v1", model: str = MODEL) -> Entry:
    return Entry(Key(ticket_id, created_at), version, model, unit(*(numbers or (1.0,))))


@pytest.fixture(scope="module")
def s3vectors() -> Iterator[Any]:
    with mocked_aws():
        yield boto3.client("s3vectors")


@pytest.fixture(params=["sqlite", "s3vectors"])
def index(request: pytest.FixtureRequest, s3vectors: Any, tmp_path: Path) -> VectorIndex:
    if request.param == "sqlite":
        return SqliteIndex(tmp_path / "index" / "tickets.sqlite")
    bucket = f"vectors-{next(BUCKETS)}"
    s3vectors.create_vector_bucket(vectorBucketName=bucket)
    return S3VectorsIndex(s3vectors, bucket, "tickets")


# -- both adapters


def test_index_that_does_not_exist_is_empty(index: VectorIndex) -> None:
    assert (index.mark(), index.models(), index.has(MODEL)) == (None, [], False)
    assert (index.stored([Key("t", 1)]), list(index.all_keys()), list(index.entries(MODEL))) == ({}, [], [])
    index.remove([Key("t", 1)])


def test_entries_are_stored_under_the_whole_key(index: VectorIndex) -> None:
    ids = ["plain", "a/b", "with space", "über ✓", "#%&?", "x" * 256]
    entries = [entry(ticket_id, created_at) for ticket_id in ids for created_at in (0, 253_402_300_799)]
    index.put(entries)
    keys = [one.key for one in entries]
    assert index.stored([*keys, Key("plain", 5)]).keys() == set(keys)
    assert sorted(index.all_keys()) == sorted(keys)
    assert {one.version_id for one in index.stored(keys).values()} == {"v1"}
    assert index.has(MODEL)
    assert not index.has(OTHER)


def test_new_version_replaces_the_entry(index: VectorIndex) -> None:
    index.put([entry("t", 1, 1.0, 0.0)])
    index.put([entry("t", 1, 0.6, 0.8, version="v2")])
    [found] = index.entries(MODEL)
    assert (found.key, found.version_id) == (Key("t", 1), "v2")
    assert list(found.vector)[:3] == pytest.approx([0.6, 0.8, 0.0])
    assert len(found.vector) == DIMENSIONS


def test_ticket_has_one_entry_whatever_its_models(index: VectorIndex) -> None:
    index.put([entry("t"), entry("stays")])
    index.put([entry("t", version="v2", model=OTHER)])
    assert [one.key.ticket_id for one in index.entries(MODEL)] == ["stays"]
    assert [one.version_id for one in index.entries(OTHER)] == ["v2"]
    assert sorted(index.all_keys()) == [Key("stays", 1), Key("t", 1)]
    assert len(index.models()) == 2
    # What `models` returns stands for the model in every method.
    assert sorted(one.key.ticket_id for model in index.models() for one in index.entries(model)) == ["stays", "t"]


def test_removed_entries_are_gone(index: VectorIndex) -> None:
    index.put([entry("a"), entry("b"), entry("c", model=OTHER)])
    index.remove([Key("a", 1), Key("c", 1), Key("never there", 1)])
    assert list(index.all_keys()) == [Key("b", 1)]


def test_mark_is_kept(index: VectorIndex) -> None:
    index.put([entry("a")], mark=10)
    index.put([], mark=20)
    index.put([entry("b")])
    assert index.mark() == 20


def test_entries_since_a_time(index: VectorIndex) -> None:
    index.put([entry(f"t{number:04}", number) for number in range(1100)])
    assert sorted(one.key.created_at for one in index.entries(MODEL, since=20)) == list(range(20, 1100))
    assert len(index.stored([Key(f"t{number:04}", number) for number in range(1100)])) == 1100
    index.remove([Key(f"t{number:04}", number) for number in range(1000)])
    assert len(list(index.all_keys())) == 100


# -- SQLite


@pytest.fixture
def sqlite(tmp_path: Path) -> SqliteIndex:
    return SqliteIndex(tmp_path / "tickets.sqlite")


def test_nearest_are_ordered_by_cosine_and_of_one_model(sqlite: SqliteIndex) -> None:
    sqlite.put([
        entry("same", 1, 2.0), entry("near", 2, 0.8, 0.6), entry("far", 3, -1.0), entry("other", 4, 1.0, model=OTHER)
    ])  # fmt: skip
    found = sqlite.nearest(MODEL, unit(1.0), 10)
    assert [one.key for one in found] == [Key("same", 1), Key("near", 2), Key("far", 3)]
    assert [one.cosine for one in found] == pytest.approx([1.0, 0.8, -1.0], abs=1e-6)
    assert [one.key.ticket_id for one in sqlite.nearest(OTHER, unit(1.0), 10)] == ["other"]
    assert [one.key.ticket_id for one in sqlite.nearest(MODEL, unit(1.0), 1)] == ["same"]
    assert [one.key.ticket_id for one in sqlite.nearest(MODEL, unit(1.0), 10, since=2, until=2)] == ["near"]


@pytest.fixture(scope="module")
def encoder(bundle: Path) -> Encoder:
    return Encoder.open(Bundle.open(bundle))


def test_nearest_agree_with_brute_force(sqlite: SqliteIndex, encoder: Encoder) -> None:
    texts = labelled_texts(10)
    vectors = around(embed(encoder, [text for _, text in texts]), 20_000)
    sqlite.put([Entry(Key(str(row), row), "v1", MODEL, vector.tolist()) for row, vector in enumerate(vectors)])
    words = embed(encoder, [words for words, _ in texts[::5]])
    for queries, least in ((words, 0.95), (vectors[::400], 0.99)):
        shared = []
        for query, nearest in zip(queries, exact_nearest(queries, vectors, 10), strict=True):
            found = sqlite.nearest(MODEL, query.tolist(), 10)
            cosines = [float(vectors[one.key.created_at] @ query) for one in found]
            assert [one.cosine for one in found] == pytest.approx(cosines, abs=1e-5)
            assert cosines == sorted(cosines, reverse=True)
            shared.append(len({one.key.created_at for one in found} & nearest))
        assert sum(shared) / (10 * len(shared)) >= least


def test_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tickets.sqlite"
    SqliteIndex(path).put([entry("t")])
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_removed_and_replaced_vectors_are_not_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tickets.sqlite"
    index = SqliteIndex(path)
    chance = np.random.default_rng(1)
    vectors = {name: array("f", chance.standard_normal(DIMENSIONS)) for name in ("forgotten", "replaced", "stays")}
    index.put([Entry(Key(name, 1), "v1", MODEL, vector) for name, vector in vectors.items()])
    index.put([entry("replaced", version="v2")])
    index.remove([Key("forgotten", 1)])
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    present = {name for name, vector in vectors.items() if vector.tobytes() in content}
    assert (present, b"forgotten" in content) == ({"stays"}, False)


def test_failed_put_changes_nothing(sqlite: SqliteIndex) -> None:
    sqlite.put([entry("a")], mark=1)
    with pytest.raises(TypeError):
        sqlite.put([entry("b"), Entry(Key("c", 1), "v1", MODEL, ["not a number"])], mark=2)  # type: ignore[list-item]
    assert (list(sqlite.all_keys()), sqlite.mark()) == ([Key("a", 1)], 1)


def test_processes_that_create_the_file_at_the_same_time_share_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tickets.sqlite"
    indexes = [SqliteIndex(path) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: indexes[number].put([entry(f"t{number}")]), range(8)))
    assert sorted(key.ticket_id for key in indexes[0].all_keys()) == [f"t{number}" for number in range(8)]
    assert [file.name for file in path.parent.iterdir() if not file.name.startswith(path.name)] == []


def test_other_process_reads_while_one_writes(tmp_path: Path) -> None:
    writer, reader = SqliteIndex(tmp_path / "tickets.sqlite"), SqliteIndex(tmp_path / "tickets.sqlite")
    writer.put([entry("a")])
    keys = reader.all_keys()
    assert next(keys) == Key("a", 1)
    writer.put([entry("b")])
    writer.remove([Key("a", 1)])
    assert [one.key.ticket_id for one in reader.nearest(MODEL, unit(1.0), 5)] == ["b"]


@pytest.mark.parametrize(
    ("prepare", "line"),
    [
        (
            lambda path: path.write_bytes(b"no database, but a text that is long enough to be taken for one" * 20),
            "file is not a database",
        ),
        (lambda path: path.mkdir(), "unable to open database file"),
        (lambda path: _of_version(path, 99), "is of another version"),
    ],
    ids=["text", "directory", "version"],
)
def test_unusable_file_is_one_line_with_a_remedy(tmp_path: Path, prepare: Callable[[Path], object], line: str) -> None:
    path = tmp_path / "tickets.sqlite"
    prepare(path)
    with pytest.raises(RepositoryError) as raised:
        SqliteIndex(path).put([entry("t")])
    message = str(raised.value)
    assert message.startswith(str(path))
    assert line in message
    assert message.endswith("remove the file and run `tickets index`")
    assert "\n" not in message


def _of_version(path: Path, number: int) -> None:
    import apsw

    apsw.Connection(str(path)).pragma("user_version", number)


def test_without_the_extra_the_error_names_it(sqlite: SqliteIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sqlite.stored([Key("t", 1)]) == {}
    monkeypatch.setitem(sys.modules, "sqlite_vec", None)
    assert sqlite.stored([Key("t", 1)]) == {}  # without a file, nothing is needed
    with pytest.raises(RepositoryError, match=r"pip install 'ticket-enrichment\[search\]'"):
        sqlite.put([entry("t")])


# -- S3 Vectors


@pytest.fixture
def stubbed() -> Iterator[tuple[S3VectorsIndex, Stubber]]:
    client = boto3.client("s3vectors", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    with Stubber(client) as stub:
        yield S3VectorsIndex(client, "vectors", "tickets"), stub
        stub.assert_no_pending_responses()


INDEX = {"vectorBucketName": "vectors", "indexName": "tickets-0123456789ab"}


@pytest.mark.parametrize(
    ("bounds", "condition"),
    [
        ({}, None),
        ({"since": 5}, {"$and": [{"created_at": {"$gte": 5}}]}),
        ({"since": 5, "until": 9}, {"$and": [{"created_at": {"$gte": 5}}, {"created_at": {"$lte": 9}}]}),
    ],
    ids=["all", "since", "period"],
)
def test_s3_query_becomes_neighbours(
    stubbed: tuple[S3VectorsIndex, Stubber], bounds: dict[str, int], condition: dict[str, Any] | None
) -> None:
    index, stub = stubbed
    request = {
        **INDEX,
        "topK": 3,
        "queryVector": {"float32": unit(1.0)},
        "returnDistance": True,
        "returnMetadata": True,
    }
    answer = {
        "distanceMetric": "cosine",
        "vectors": [
            {"key": "7/far/away", "distance": 0.75, "metadata": {"version_id": "v2", "created_at": 7}},
            {"key": "6/near", "distance": 0.25, "metadata": {"version_id": "v1", "created_at": 6}},
        ],
    }
    stub.add_response("query_vectors", answer, request if condition is None else {**request, "filter": condition})
    found = index.nearest(MODEL, unit(1.0), 3, **bounds)
    assert [(one.key, one.version_id, one.cosine) for one in found] == [
        (Key("near", 6), "v1", 0.75),
        (Key("far/away", 7), "v2", 0.25),
    ]


def test_s3_index_is_created_for_cosines_of_the_model(s3vectors: Any) -> None:
    s3vectors.create_vector_bucket(vectorBucketName="made")
    S3VectorsIndex(s3vectors, "made", "tickets").put([entry("t")])
    made = s3vectors.get_index(vectorBucketName="made", indexName="tickets-0123456789ab")["index"]
    assert (made["dimension"], made["distanceMetric"], made["dataType"]) == (DIMENSIONS, "cosine", "float32")


def test_s3_ticket_in_two_indexes_has_no_version(s3vectors: Any) -> None:
    s3vectors.create_vector_bucket(vectorBucketName="killed")
    index = S3VectorsIndex(s3vectors, "killed", "tickets")
    index.put([entry("t"), entry("u", model=OTHER)])
    # A process was killed after it had put the new entry, and before it removed the one of the other model.
    vector = s3vectors.get_vectors(
        vectorBucketName="killed", indexName="tickets-0123456789ab", keys=["1/t"], returnData=True, returnMetadata=True
    )["vectors"][0]
    s3vectors.put_vectors(vectorBucketName="killed", indexName="tickets-ba9876543210", vectors=[vector])
    assert index.stored([Key("t", 1)])[Key("t", 1)].version_id == ""
    index.put([entry("t", version="v2", model=OTHER)])
    assert index.stored([Key("t", 1)]) == {Key("t", 1): Stored("v2", "ba9876543210")}


def test_s3_other_prefixes_in_the_bucket_are_left_alone(s3vectors: Any) -> None:
    s3vectors.create_vector_bucket(vectorBucketName="shared")
    mine, other = (S3VectorsIndex(s3vectors, "shared", prefix) for prefix in ("tickets", "tickets-eu"))
    other.put([entry("t")], mark=5)
    assert (mine.models(), mine.mark(), list(mine.all_keys())) == ([], None, [])
    mine.remove([Key("t", 1)])
    assert list(other.all_keys()) == [Key("t", 1)]


def test_s3_missing_vector_bucket_is_one_line_with_a_remedy(s3vectors: Any) -> None:
    index = S3VectorsIndex(s3vectors, "absent", "tickets")
    for call in (index.mark, index.models, lambda: index.put([entry("t")])):
        with pytest.raises(RepositoryError, match=r"^there is no vector bucket absent; create it: aws s3vectors"):
            call()


def test_s3_other_errors_are_botocores(stubbed: tuple[S3VectorsIndex, Stubber]) -> None:
    index, stub = stubbed
    stub.add_client_error("list_indexes", "AccessDeniedException")
    with pytest.raises(ClientError, match="AccessDenied"):
        index.models()


def test_s3_index_that_another_process_creates_is_used(stubbed: tuple[S3VectorsIndex, Stubber]) -> None:
    index, stub = stubbed
    stub.add_response("list_indexes", {"indexes": []})
    wanted = {
        **INDEX,
        "dimension": DIMENSIONS,
        "distanceMetric": "cosine",
        "dataType": "float32",
        "metadataConfiguration": {"nonFilterableMetadataKeys": ["version_id"]},  # queries filter by created_at only
    }
    stub.add_client_error("create_index", "ConflictException", expected_params=wanted)
    stub.add_response("put_vectors", {}, {**INDEX, "vectors": ANY})
    index.put([entry("t")])


def test_the_stub_refuses_what_the_api_does_not_know(stubbed: tuple[S3VectorsIndex, Stubber]) -> None:
    """A control: this is what makes the tests above prove that the requests are valid."""
    index, stub = stubbed
    stub.add_response("query_vectors", {"distanceMetric": "cosine", "vectors": []})
    with pytest.raises(ParamValidationError):
        index.nearest(MODEL, unit(1.0), 0)
    assert index.nearest(MODEL, unit(1.0), 1) == []


# -- location


def at(location: str | None, endpoint: str | None = None) -> VectorIndex:
    return index_at(location, bucket="enriched", table="Tickets", endpoint=endpoint, s3vectors=lambda: "client")


def test_index_is_in_the_cache_directory_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert at(None).place == "/cache/ticket-enrichment/vectors/enriched.Tickets.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert at(None).place == "/home/me/.cache/ticket-enrichment/vectors/enriched.Tickets.sqlite"


def test_location_is_a_directory_or_a_vector_bucket() -> None:
    assert at("sqlite:///data/my%20index").place == "/data/my index/enriched.Tickets.sqlite"
    emulated = at("sqlite:///data", "http://127.0.0.1:4566/")
    assert emulated.place == "/data/enriched.Tickets.127.0.0.1-4566.sqlite"
    assert at("s3vectors://vectors/tickets").place == "s3vectors://vectors/tickets"


@pytest.mark.parametrize(
    "location", ["sqlite://data", "sqlite:///", "/data", "s3://bucket/x", "s3vectors://bucket", "s3vectors://b/UPPER"]
)
def test_other_locations_are_refused(location: str) -> None:
    with pytest.raises(RepositoryError, match=r"VECTOR_INDEX is .*; it must be sqlite:///directory or s3vectors://"):
        at(location)
