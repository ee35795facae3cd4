"""The stores: one contract for the adapters (on moto's S3 and DynamoDB) and for the fakes, and how AWS's errors map."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

import boto3
import pytest
from boto3.dynamodb.types import TypeDeserializer
from botocore.config import Config
from moto import mock_aws

from enrichment import EnrichmentData, parse_ticket
from enrichment.ticket import enriched_json
from handler.aws.forgetting import item_key, name_hash, tombstone_key
from handler.aws.storage import AwsTicketSink, S3TicketSource
from handler.errors import (
    BucketUnexpected,
    MessageError,
    ObjectGone,
    ObjectTooLarge,
    ServiceFailed,
    StoreRefused,
    Throttled,
)
from handler.messages import StoredTicket
from handler.ports import Committed, Known, TicketSink, TicketSource, Write
from handler.settings import Redact
from tests.support.fakes import FakeModels, FakeSink, FakeSource, ticket

RAW, ENRICHED, TABLE = "tickets-raw", "tickets-enriched", "tickets"
REGION = "us-east-1"


@cache
def session() -> Any:
    """Shared by all tests: each new session would read boto's service descriptions again."""
    return boto3.session.Session(aws_access_key_id="x", aws_secret_access_key="x", region_name=REGION)


def client(service: str, **options: Any) -> Any:
    return session().client(service, **options)


@pytest.fixture
def aws() -> Iterator[dict[str, Any]]:
    with mock_aws():
        s3, dynamodb = client("s3"), client("dynamodb")
        for bucket in (RAW, ENRICHED):
            s3.create_bucket(Bucket=bucket)
        s3.put_bucket_versioning(Bucket=ENRICHED, VersioningConfiguration={"Status": "Enabled"})
        dynamodb.create_table(
            TableName=TABLE,
            KeySchema=[
                {"AttributeName": "ticket_id", "KeyType": "HASH"},
                {"AttributeName": "created_at", "KeyType": "RANGE"},
            ],
            AttributeDefinitions=[
                {"AttributeName": "ticket_id", "AttributeType": "S"},
                {"AttributeName": "created_at", "AttributeType": "N"},
            ],
            BillingMode="PAY_PER_REQUEST",
        )
        yield {"s3": s3, "dynamodb": dynamodb}


@pytest.fixture
def sink_of_aws(aws: dict[str, Any]) -> AwsTicketSink:
    return AwsTicketSink(aws["s3"], aws["dynamodb"], ENRICHED, TABLE)


@pytest.fixture(params=["aws", "fake"])
def source(request: pytest.FixtureRequest) -> tuple[TicketSource, Callable[[str, bytes], object]]:
    """A source with a limit of 100 bytes, and a function that puts an object into it."""
    if request.param == "fake":
        fake = FakeSource(RAW, 100)
        return fake, fake.put
    s3 = request.getfixturevalue("aws")["s3"]
    return S3TicketSource(s3, [RAW], 100), lambda key, body: s3.put_object(Bucket=RAW, Key=key, Body=body)


@pytest.fixture(params=["aws", "fake"])
def sink(request: pytest.FixtureRequest) -> TicketSink:
    found: TicketSink = FakeSink() if request.param == "fake" else request.getfixturevalue("sink_of_aws")
    return found


def write(modified: int = 10, sha: str = "s", key: str = "k.json", **fields: Any) -> Write:
    raw = parse_ticket(json.dumps(ticket(**fields)))
    (enrichment,) = FakeModels("fake@1").enrich([raw])
    assert isinstance(enrichment, EnrichmentData)
    return Write(raw, enrichment, enriched_json(raw, enrichment), key, sha, modified)


def known(sink: TicketSink, ticket_id: str = "T-1", created_at: int = 1_795_165_200) -> Committed:
    (state,) = sink.known([(ticket_id, created_at)])
    return state


# -- the contract of the adapters and the fakes


def test_fetch_returns_content_and_modification_time(
    source: tuple[TicketSource, Callable[[str, bytes], object]],
) -> None:
    tickets, put = source
    put("a b/ü+%.json", b"\x00raw")
    found = tickets.fetch(StoredTicket(RAW, "a b/ü+%.json"))
    assert found.raw == b"\x00raw"
    assert abs(found.modified - datetime.now(UTC).timestamp() * 1000) < 60_000
    assert found.modified % 1000 == 0, "S3 has a resolution of one second"


def test_object_above_the_size_limit_is_refused(
    source: tuple[TicketSource, Callable[[str, bytes], object]],
) -> None:
    tickets, put = source
    put("full", b"x" * 100)
    put("over", b"x" * 101)
    assert len(tickets.fetch(StoredTicket(RAW, "full")).raw) == 100
    with pytest.raises(ObjectTooLarge, match="101 bytes"):
        tickets.fetch(StoredTicket(RAW, "over"))


def test_missing_object_is_gone_and_other_bucket_is_unexpected(
    source: tuple[TicketSource, Callable[[str, bytes], object]],
) -> None:
    tickets, _ = source
    with pytest.raises(ObjectGone):
        tickets.fetch(StoredTicket(RAW, "none"))
    with pytest.raises(BucketUnexpected):
        tickets.fetch(StoredTicket(ENRICHED, "none"))


def test_stored_ticket_is_known(sink: TicketSink) -> None:
    assert known(sink) is None
    assert sink.store(write())
    assert known(sink) == Known("s", "fake@1", "k.json", 10)


@pytest.mark.parametrize("redacted", ["table", "all"])
def test_stored_ticket_says_how_it_was_redacted(sink: TicketSink, redacted: Redact) -> None:
    sink.store(replace(write(10), redacted=redacted))
    assert known(sink) == Known("s", "fake@1", "k.json", 10, redacted)
    assert known(sink, created_at=1_795_165_201) is None


def test_newest_version_wins_in_any_order(sink: TicketSink) -> None:
    assert sink.store(write(10, "first")) == "clear"
    assert sink.store(write(10, "first")) == "clear"
    assert sink.store(write(10, "same time")) == "tie"
    assert sink.store(write(11, "newer")) == "clear"
    assert sink.store(write(9, "stale")) is None
    newest = known(sink)
    assert isinstance(newest, Known)
    assert (newest.content_sha256, newest.source_modified) == ("newer", 11)
    assert sink.store(write(1, "another ticket", created_at=5))


# -- only the adapters


def test_item_names_the_object_version_written_with_it(sink_of_aws: AwsTicketSink, aws: dict[str, Any]) -> None:
    sink_of_aws.store(write(11, "winner", body="the winner's"))
    sink_of_aws.store(write(10, "loser", body="the loser's"))
    (item,) = aws["dynamodb"].scan(TableName=TABLE)["Items"]
    latest = aws["s3"].get_object(Bucket=ENRICHED, Key="k.json")["Body"].read()
    named = aws["s3"].get_object(Bucket=ENRICHED, Key="k.json", VersionId=item["s3_version_id"]["S"])
    assert b"the loser's" in latest
    assert b"the winner's" in named["Body"].read()
    assert named["ContentType"] == "application/json"


def test_item_has_the_summary_fields_and_no_embedding(sink_of_aws: AwsTicketSink, aws: dict[str, Any]) -> None:
    sink_of_aws.store(write(1_795_166_000_123, subject="Ü" * 1000, priority="high"))
    (item,) = aws["dynamodb"].scan(TableName=TABLE)["Items"]
    read = TypeDeserializer().deserialize
    found = {name: read(value) for name, value in item.items()}
    assert found.pop("s3_version_id")
    assert found == {
        "ticket_id": "T-1",
        "created_at": 1_795_165_200,
        "subject": "Ü" * 1000,
        "customer_id": "C-1",
        "intent": "general_inquiry",
        "intent_confidence": Decimal("0.9"),
        "urgency": "high",
        "urgency_confidence": Decimal("1.0"),
        "sentiment": "NEUTRAL",
        "sentiment_confidence": Decimal("0.8"),
        "summary": "A summary.",
        "processed_at": "2026-11-20T09:00:00.000Z",
        "s3_key": "k.json",
        "needs_review": False,
        "review_reasons": [],
        "language": "en",
        "content_sha256": "s",
        "model_version": "fake@1",
        "day": "2026-11-20",
        "source_modified": 1_795_166_000_123,
        "event": {
            "id": found["event"]["id"],
            "change": "new",
            "language": "en",
            "review_reasons": dict.fromkeys(("language", "intent", "urgency", "sentiment"), False),
        },
    }


def change_in(aws: dict[str, Any]) -> tuple[str, str]:
    """The change that the event of the only item states, and the item's object version."""
    (item,) = aws["dynamodb"].scan(TableName=TABLE)["Items"]
    return item["event"]["M"]["change"]["S"], item["s3_version_id"]["S"]


def test_event_states_what_another_writer_left(sink_of_aws: AwsTicketSink, aws: dict[str, Any]) -> None:
    # All three read the table before any of them wrote.
    assert sink_of_aws.store(write(10, "first")) == "clear"
    new, version = change_in(aws)
    assert sink_of_aws.store(write(10, "first")) == "clear"
    assert change_in(aws) == (new, version) == ("new", version), "the same result is not committed twice"
    assert sink_of_aws.store(write(11, "second")) == "clear"
    assert change_in(aws)[0] == "updated"
    assert sink_of_aws.store(write(12, "second")) == "clear"
    assert change_in(aws)[0] == "enriched_again"
    assert sink_of_aws.store(write(5, "stale")) is None
    aws["dynamodb"].delete_item(
        TableName=TABLE, Key={"ticket_id": {"S": "T-1"}, "created_at": {"N": str(ticket()["created_at"])}}
    )
    removed = Known("second", "fake@1", "k.json", 12)
    assert sink_of_aws.store(replace(write(13, "third"), known=removed)) == "clear"
    assert change_in(aws)[0] == "new"


def test_repeated_put_of_the_same_item_is_one_commit(
    sink_of_aws: AwsTicketSink, aws: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The response to the first attempt is lost, so botocore sends the same put again.
    dynamodb, put_item = aws["dynamodb"], aws["dynamodb"].put_item

    def twice(**request: Any) -> Any:
        put_item(**request)
        return put_item(**request)

    monkeypatch.setattr(dynamodb, "put_item", twice)
    assert sink_of_aws.store(write(10, "first")) == "clear"
    assert change_in(aws)[0] == "new"
    assert sink_of_aws.store(write(10, "same time")) == "tie"
    assert change_in(aws)[0] == "updated"


def test_writers_that_never_stop_are_a_transient_error(
    sink_of_aws: AwsTicketSink, aws: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers, put_item = count(), aws["dynamodb"].put_item
    other = AwsTicketSink(aws["s3"], client("dynamodb"), ENRICHED, TABLE)

    def after_another(**request: Any) -> Any:
        assert other.store(write(10, f"other {next(numbers)}"))
        return put_item(**request)

    monkeypatch.setattr(aws["dynamodb"], "put_item", after_another)
    with pytest.raises(ServiceFailed, match="PutItem: other writers"):
        sink_of_aws.store(write(10, "ours"))
    assert next(numbers) == 5


@pytest.mark.parametrize("value", [1 / 3, 1e-7, 5e-324, 0.1 + 0.2, 1.0, 0.0])
def test_confidence_round_trips_exactly(sink_of_aws: AwsTicketSink, aws: dict[str, Any], value: float) -> None:
    entry = write()
    enrichment = entry.enrichment.model_copy(update={"intent_confidence": value})
    number = Write(entry.ticket, enrichment, entry.body, entry.key, entry.content_sha256, entry.source_modified)
    if 0 < value < 1e-130:  # below the smallest number of DynamoDB
        with pytest.raises(StoreRefused):
            sink_of_aws.store(number)
        return
    sink_of_aws.store(number)
    (item,) = aws["dynamodb"].scan(TableName=TABLE)["Items"]
    assert float(item["intent_confidence"]["N"]) == value


def test_long_subject_is_shortened_only_in_the_table(sink_of_aws: AwsTicketSink, aws: dict[str, Any]) -> None:
    subject = "s" * 300_000
    sink_of_aws.store(write(subject=subject))
    (item,) = aws["dynamodb"].scan(TableName=TABLE)["Items"]
    assert item["subject"]["S"] == "s" * 999 + "…"
    assert subject.encode() in aws["s3"].get_object(Bucket=ENRICHED, Key="k.json")["Body"].read()


def test_item_of_another_writer_is_overwritten(sink_of_aws: AwsTicketSink, aws: dict[str, Any]) -> None:
    key = {"ticket_id": {"S": "T-1"}, "created_at": {"N": "1795165200"}}
    aws["dynamodb"].put_item(TableName=TABLE, Item={**key, "note": {"S": "made by hand"}})
    assert known(sink_of_aws) is None
    assert sink_of_aws.store(write())
    assert known(sink_of_aws) is not None


def test_failed_object_write_commits_nothing(aws: dict[str, Any]) -> None:
    sink = AwsTicketSink(aws["s3"], aws["dynamodb"], "no-such-bucket", TABLE)
    with pytest.raises(ServiceFailed, match="PutObject: NoSuchBucket"):
        sink.store(write())
    assert known(sink) is None


def test_missing_table_is_a_transient_error(aws: dict[str, Any]) -> None:
    sink = AwsTicketSink(aws["s3"], aws["dynamodb"], ENRICHED, "no-such-table")
    with pytest.raises(ServiceFailed, match="BatchGetItem: ResourceNotFoundException"):
        known(sink, created_at=1)
    with pytest.raises(ServiceFailed, match="PutItem: ResourceNotFoundException"):
        sink.store(write())


# -- forgotten tickets


@pytest.mark.parametrize("kind", ["aws", "fake"])
def test_forgotten_ticket_is_known_as_such(kind: str, request: pytest.FixtureRequest) -> None:
    found: TicketSink
    if kind == "fake":
        fake = FakeSink()
        fake.forgotten_ids.add("T-1")
        found = fake
    else:
        found = request.getfixturevalue("sink_of_aws")
        request.getfixturevalue("aws")["dynamodb"].put_item(TableName=TABLE, Item=tombstone_key("ticket", "T-1"))
    assert known(found) == "forgotten"
    assert found.store(write()) == "clear"
    assert found.forgotten({"T-1", "T-2"}) == {"T-1"}
    found.erase("T-1", 1_795_165_200, "k.json")
    assert found.store(write(ticket_id="T-2", key="other.json")) == "clear"
    assert isinstance(known(found, "T-2"), Known)
    assert not found.erase_object("other.json")


def test_nothing_is_left_of_a_ticket_that_is_forgotten_while_it_is_stored(
    sink_of_aws: AwsTicketSink, aws: dict[str, Any]
) -> None:
    sink_of_aws.store(write())
    sink_of_aws.store(write(ticket_id="T-2"))  # another ticket under the same key
    aws["dynamodb"].put_item(TableName=TABLE, Item=tombstone_key("ticket", "T-1"))
    assert sink_of_aws.store(write(modified=11)) == "clear"
    assert sink_of_aws.forgotten(["T-1"]) == {"T-1"}
    sink_of_aws.erase("T-1", 1_795_165_200, "k.json")
    tickets = [item["ticket_id"]["S"] for item in aws["dynamodb"].scan(TableName=TABLE)["Items"]]
    assert sorted(tickets) == sorted([tombstone_key("ticket", "T-1")["ticket_id"]["S"], "T-2"])
    (version,) = aws["s3"].list_object_versions(Bucket=ENRICHED)["Versions"]
    body = aws["s3"].get_object(Bucket=ENRICHED, Key="k.json", VersionId=version["VersionId"])["Body"].read()
    assert json.loads(body)["ticket_id"] == "T-2"


def test_versions_of_an_object_that_is_gone_are_removed_with_their_items(
    sink_of_aws: AwsTicketSink, aws: dict[str, Any]
) -> None:
    """A process that was killed while it stored the ticket left them."""
    sink_of_aws.store(write())
    assert not sink_of_aws.erase_object("k.json")
    owner = {"owner": {"S": name_hash("ticket", "T-1")}}
    aws["dynamodb"].put_item(TableName=TABLE, Item={**tombstone_key("object", "k.json"), **owner})
    assert sink_of_aws.erase_object("k.json")
    assert "Versions" not in aws["s3"].list_object_versions(Bucket=ENRICHED)
    assert known(sink_of_aws) is None


def test_unprocessed_part_of_a_read_is_read_again(sink_of_aws: AwsTicketSink, aws: dict[str, Any]) -> None:
    sink_of_aws.store(write())
    dynamodb, requests = aws["dynamodb"], []
    unprocessed = [2]

    def process_a_part(params: dict[str, Any], **_: Any) -> None:
        requests.append(len(params["RequestItems"][TABLE]["Keys"]))

    def leave_the_rest(parsed: dict[str, Any], **_: Any) -> None:
        if unprocessed[0] > 0:
            unprocessed[0] -= 1
            parsed["Responses"] = {}
            parsed["UnprocessedKeys"] = {TABLE: {"Keys": [item_key("T-1", 1_795_165_200)], "ConsistentRead": True}}

    dynamodb.meta.events.register("provide-client-params.dynamodb.BatchGetItem", process_a_part)
    dynamodb.meta.events.register("after-call.dynamodb.BatchGetItem", leave_the_rest)
    assert isinstance(known(sink_of_aws), Known)
    assert requests == [2, 1, 1]
    unprocessed[0] = 9
    states = sink_of_aws.known([("T-1", 1_795_165_200), ("T-2", 1_795_165_200)])
    assert [type(state) for state in states] == [Throttled, type(None)]
    unprocessed[0] = 9
    with pytest.raises(Throttled, match="UnprocessedKeys"):
        sink_of_aws.forgotten(["T-1"])


def test_any_number_of_tickets_is_read_with_100_keys_at_a_time(sink_of_aws: AwsTicketSink, aws: dict[str, Any]) -> None:
    sink_of_aws.store(write())
    requests: list[int] = []

    def count(params: dict[str, Any], **_: Any) -> None:
        requests.append(len(params["RequestItems"][TABLE]["Keys"]))

    aws["dynamodb"].meta.events.register("provide-client-params.dynamodb.BatchGetItem", count)
    # The same ticket twice, and tickets that share a tombstone: DynamoDB refuses a key that occurs twice.
    names = [("T-1", 1_795_165_200), ("T-1", 1_795_165_200), ("T-1", 7), *((f"N-{n}", 1) for n in range(60))]
    states = sink_of_aws.known(names)
    assert [isinstance(state, Known) for state in states] == [True, True, *[False] * 61]
    assert requests == [100, 23]


# -- AWS's errors, from a server with fixed responses


class FixedResponse(BaseHTTPRequestHandler):
    """Responds to every request with the status and body of its server."""

    protocol_version = "HTTP/1.1"  # S3 clients wait for "100 Continue" before they send a body

    def answer(self) -> None:
        server: Any = self.server
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(server.status)
        self.send_header("Content-Length", str(server.length or len(server.body)))
        self.send_header("Last-Modified", "Fri, 20 Nov 2026 09:00:00 GMT")
        self.end_headers()
        self.wfile.write(server.body)
        self.close_connection = True

    do_GET = do_PUT = do_POST = answer  # noqa: N815 - names required by the base class

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def server() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), FixedResponse) as found:
        found.status, found.body, found.length = 200, b"", 0  # type: ignore[attr-defined]
        threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture
def client_of_server(server: Any) -> Iterator[Callable[[str], Any]]:
    made: list[Any] = []

    def make(service: str) -> Any:
        # No retries: the mapping of an error does not depend on the number of attempts.
        options = Config(retries={"total_max_attempts": 1}, proxies={})
        made.append(client(service, endpoint_url=f"http://127.0.0.1:{server.server_port}", config=options))
        return made[-1]

    yield make
    for found in made:
        found.close()


def s3_error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>in words</Message></Error>".encode()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, s3_error("NoSuchKey"), ObjectGone),
        (404, s3_error("NoSuchVersion"), ObjectGone),
        (404, b"", ObjectGone),
        (400, s3_error("KeyTooLongError"), ObjectGone),
        (404, s3_error("NoSuchBucket"), ServiceFailed),
        (403, s3_error("AccessDenied"), ServiceFailed),
        (403, b"", ServiceFailed),
        (500, s3_error("InternalError"), ServiceFailed),
        (503, s3_error("ServiceUnavailable"), ServiceFailed),
        (503, s3_error("SlowDown"), Throttled),
        (429, b"", Throttled),
        (400, s3_error("RequestTimeout"), ServiceFailed),
    ],
    ids=lambda value: value.decode()[13:30] if isinstance(value, bytes) else None,
)
def test_s3_read_errors_are_mapped(
    server: Any, client_of_server: Callable[[str], Any], status: int, body: bytes, kind: type[MessageError]
) -> None:
    server.status, server.body = status, body
    with pytest.raises(MessageError) as caught:
        S3TicketSource(client_of_server("s3"), [RAW], 100).fetch(StoredTicket(RAW, "secret key"))
    assert type(caught.value) is kind
    assert caught.value.transient == (kind is not ObjectGone)
    assert str(caught.value).startswith("GetObject: ")
    assert "secret" not in str(caught.value)


def test_interrupted_body_is_a_transient_error(server: Any, client_of_server: Callable[[str], Any]) -> None:
    server.body, server.length = b"half", 50
    with pytest.raises(ServiceFailed, match=r"GetObject: (ResponseStreamingError|IncompleteReadError)"):
        S3TicketSource(client_of_server("s3"), [RAW], 100).fetch(StoredTicket(RAW, "k"))


def test_unreachable_service_is_a_transient_error(server: Any, client_of_server: Callable[[str], Any]) -> None:
    source = S3TicketSource(client_of_server("s3"), [RAW], 100)
    server.shutdown()
    server.server_close()
    with pytest.raises(ServiceFailed, match="GetObject: EndpointConnectionError"):
        source.fetch(StoredTicket(RAW, "k"))


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "ProvisionedThroughputExceededException", Throttled),
        (400, "ThrottlingException", Throttled),
        (400, "RequestLimitExceeded", Throttled),
        (500, "InternalServerError", ServiceFailed),
        (400, "AccessDeniedException", ServiceFailed),
        (400, "ValidationException", StoreRefused),
    ],
)
def test_dynamodb_errors_are_mapped(
    server: Any,
    client_of_server: Callable[[str], Any],
    aws: dict[str, Any],
    status: int,
    code: str,
    kind: type[MessageError],
) -> None:
    del aws
    server.status, server.body = status, f'{{"__type": "com.amazonaws.dynamodb.v20120810#{code}"}}'.encode()
    sink = AwsTicketSink(client("s3"), client_of_server("dynamodb"), ENRICHED, TABLE)
    with pytest.raises(MessageError, match=r"^PutItem: ") as caught:
        sink.store(write())
    assert type(caught.value) is kind
    with pytest.raises(MessageError, match=r"^BatchGetItem: ") as caught:
        known(sink, created_at=1)
    assert caught.value.transient, "a read is never a permanent error"


@pytest.mark.parametrize(
    ("code", "kind"), [("EntityTooLarge", StoreRefused), ("KeyTooLongError", StoreRefused), ("SlowDown", Throttled)]
)
def test_s3_write_errors_are_mapped(
    server: Any, client_of_server: Callable[[str], Any], code: str, kind: type[MessageError]
) -> None:
    server.status, server.body = 400, s3_error(code)
    sink = AwsTicketSink(client_of_server("s3"), client_of_server("dynamodb"), ENRICHED, TABLE)
    with pytest.raises(MessageError, match=r"^PutObject: ") as caught:
        sink.store(write())
    assert type(caught.value) is kind


# -- several tickets in one object


def test_tickets_that_are_written_together_are_committed_one_by_one(sink: TicketSink) -> None:
    writes = [
        write(modified=10, ticket_id=f"T-{number}", key=f"{number}.json", body="ü" * number) for number in range(3)
    ]
    placed = sink.put_together((each.ticket.ticket_id, each.body) for each in writes)
    assert [known(sink, each.ticket.ticket_id) for each in writes] == [None] * 3, "the item is the commit"
    assert len({place.key for place in placed}) == 1
    assert [place.length for place in placed] == [len(each.body) for each in writes]
    assert [place.offset for place in placed] == [0, placed[0].length + 1, placed[0].length + placed[1].length + 2]
    assert sink.commit(replace(writes[0], body=b""), placed[0]) == "clear"
    assert sink.commit(writes[2], placed[2]) == "clear"
    assert known(sink, "T-0") == Known("s", "fake@1", "0.json", 10)
    assert known(sink, "T-1") is None
    older = write(modified=9, sha="older", ticket_id="T-2", key="2.json")
    assert sink.commit(older, sink.put_together([("T-2", older.body)])[0]) is None
    assert sink.put_together([]) == []


def test_ranges_in_s3_are_the_tickets(sink_of_aws: AwsTicketSink, aws: dict[str, Any]) -> None:
    bodies = [("a", b'{"n":\n 1}'), ("b", '{"ü": "🎫\\n"}'.encode()), ("c", b"{}")]
    placed = sink_of_aws.put_together(bodies)
    content = aws["s3"].get_object(Bucket=ENRICHED, Key=placed[0].key)["Body"].read()
    parts = [content[place.offset : place.offset + place.length] for place in placed]
    assert list(map(json.loads, parts)) == [json.loads(body) for _, body in bodies]
    assert content.splitlines() == parts
    versions = aws["s3"].list_object_versions(Bucket=ENRICHED)["Versions"]
    assert [(version["Key"], version["VersionId"]) for version in versions] == [(placed[0].key, placed[0].version_id)]


def test_item_says_where_the_ticket_is(sink_of_aws: AwsTicketSink, aws: dict[str, Any]) -> None:
    first = write()
    (place,) = sink_of_aws.put_together([("T-1", first.body)])
    sink_of_aws.commit(first, place)
    item = aws["dynamodb"].get_item(TableName=TABLE, Key=item_key("T-1", first.ticket.created_at))["Item"]
    assert item["s3_batch"] == {"S": f"{place.key}:0+{place.length}"}
    assert (item["s3_key"], item["s3_version_id"]) == ({"S": "k.json"}, {"S": place.version_id})
    sink_of_aws.store(write(modified=11, sha="other"))
    item = aws["dynamodb"].get_item(TableName=TABLE, Key=item_key("T-1", first.ticket.created_at))["Item"]
    assert "s3_batch" not in item


def test_failed_write_of_several_tickets_is_transient(aws: dict[str, Any]) -> None:
    sink = AwsTicketSink(aws["s3"], aws["dynamodb"], "no-such-bucket", TABLE)
    with pytest.raises(ServiceFailed, match="PutObject: NoSuchBucket"):
        sink.put_together([("T-1", b"{}"), ("T-2", b"{}")])
