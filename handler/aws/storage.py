"""The adapters for S3 and DynamoDB: reading raw tickets, storing enriched ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

from botocore.exceptions import BotoCoreError, ClientError

from enrichment.ticket import ShadowLabels
from handler.aws.corrections import with_corrections
from handler.aws.errors import from_aws
from handler.aws.forgetting import item_key, name_hash, tombstone_key, versions_to_erase
from handler.errors import BucketUnexpected, ObjectTooLarge, ServiceFailed, Throttled
from handler.messages import StoredTicket, inline_key
from handler.ports import Commit, Committed, Known, Placed, RawObject, TicketName, Write
from handler.result_event import Change, batch_text, change_by, event_attribute, event_of_item

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

__all__ = ["AwsTicketSink", "S3TicketSource", "day_of"]

_Name: TypeAlias = tuple[str, str]
"""An item's `ticket_id` and `created_at`, as DynamoDB writes them."""

_MAX_SUBJECT: Final = 1000  # characters; the table is for lists, S3 has the whole subject
_TRIES: Final = 3  # of the part of a batch read that DynamoDB did not process
_KNOWN: Final = ("content_sha256", "model_version", "s3_key", "source_modified")
_MAX_KEYS: Final = 100  # of a batch read
_MAX_RACES: Final = 5  # writers that change one item at the same time


def day_of(created_at: int) -> str:
    """The UTC date of a ticket, the key of day-index: 2026-11-26."""
    return datetime.fromtimestamp(created_at, UTC).date().isoformat()


class S3TicketSource:
    """Raw tickets in their buckets."""

    def __init__(self, client: S3Client, buckets: Collection[str], max_bytes: int) -> None:
        self._client = client
        self._buckets = buckets
        self._max_bytes = max_bytes

    def fetch(self, reference: StoredTicket) -> RawObject:
        """As TicketSource.fetch; does not read objects that exceed the limit."""
        if reference.bucket not in self._buckets:
            raise BucketUnexpected("the notification names a bucket other than RAW_BUCKET")
        try:
            answer = self._client.get_object(Bucket=reference.bucket, Key=reference.key)
            # closing(), because a StreamingBody used in `with` yields the raw stream, whose errors are not botocore's.
            with closing(answer["Body"]) as stream:
                size = answer["ContentLength"]
                if size > self._max_bytes:
                    raise ObjectTooLarge(f"the object has {size} bytes, MAX_TICKET_BYTES allows {self._max_bytes}")
                raw = stream.read()
        except (ClientError, BotoCoreError) as error:
            raise from_aws(error, "GetObject") from error
        return RawObject(raw, int(answer["LastModified"].timestamp() * 1000), answer.get("ETag", "").strip('"'))


class AwsTicketSink:
    """Enriched tickets in a versioned bucket, with an extract in a table.

    DynamoDB deletes an item `item_retention_days` after its ticket arrived; 0: never. With `outbox`, each commit also
    writes its event for the webhook, in one transaction (handler.aws.outbox).
    """

    def __init__(
        self,
        s3: S3Client,
        dynamodb: DynamoDBClient,
        bucket: str,
        table: str,
        *,
        item_retention_days: int = 0,
        outbox: bool = False,
    ) -> None:
        self._s3 = s3
        self._dynamodb = dynamodb
        self._bucket = bucket
        self._table = table
        self._item_retention_days = item_retention_days
        self._outbox = outbox

    def known(self, names: Sequence[TicketName]) -> list[Committed]:
        """As TicketSink.known, with one consistent read of all items and tombstones (two, of more than 50 tickets)."""
        keys = {name: (item_key(*name), tombstone_key("ticket", name[0])) for name in names}
        found, unread = self._read([key for pair in keys.values() for key in pair])

        def state(name: TicketName) -> Committed:
            item, tombstone = map(_name_in, keys[name])
            if tombstone in found:
                return "forgotten"
            if unread & {item, tombstone}:
                return Throttled("BatchGetItem: UnprocessedKeys")
            return _known(found.get(item, {}))

        return [state(name) for name in names]

    def store(self, write: Write) -> Commit | None:
        """As TicketSink.store. The item contains the object's version, so its readers never see a partial write."""
        try:
            put = self._s3.put_object(
                Bucket=self._bucket, Key=write.key, Body=write.body, ContentType="application/json"
            )
        except (ClientError, BotoCoreError) as error:
            raise from_aws(error, "PutObject") from error
        return self._commit(write, put.get("VersionId", "null"))

    def put_together(self, bodies: Iterable[tuple[str, bytes]]) -> list[Placed]:
        """As TicketSink.put_together: one object of JSON Lines (handler.aws.batch_objects)."""
        from handler.aws.batch_objects import batch_key, line_of  # not part of a start without the setting

        content = bytearray()
        ticket_ids, ranges = [], []
        for ticket_id, body in bodies:
            line = line_of(body)
            ticket_ids.append(ticket_id)
            ranges.append((len(content), len(line)))
            content += line + b"\n"
        if not ranges:
            return []
        key = batch_key(ticket_ids, datetime.now(UTC))
        try:
            # botocore sends a bytearray too, which its type stubs do not know: a copy would double the memory.
            body = cast("bytes", content)
            put = self._s3.put_object(Bucket=self._bucket, Key=key, Body=body, ContentType="application/x-ndjson")
        except (ClientError, BotoCoreError) as error:
            raise from_aws(error, "PutObject") from error
        return [Placed(key, offset, length, put.get("VersionId", "null")) for offset, length in ranges]

    def commit(self, write: Write, placed: Placed) -> Commit | None:
        """As TicketSink.commit."""
        return self._commit(write, placed.version_id, placed)

    def forgotten(self, ticket_ids: Collection[str]) -> set[str]:
        """As TicketSink.forgotten, with one consistent read of all tombstones.

        A tombstone is written before anything is removed. If it is not there now, `tickets forget` finds what was
        stored before this call; otherwise it may have looked too early.
        """
        tombstones = {name: tombstone_key("ticket", name) for name in ticket_ids}
        found, unread = self._read(list(tombstones.values()))
        if unread:
            raise Throttled("BatchGetItem: UnprocessedKeys")
        return {name for name, key in tombstones.items() if _name_in(key) in found}

    def erase(self, ticket_id: str, created_at: int, key: str, *, since: int | None = None) -> None:
        """As TicketSink.erase. The tombstone remembers the raw object, so that `tickets forget` finds it."""
        if key != inline_key(ticket_id, created_at):
            try:
                self._dynamodb.update_item(
                    TableName=self._table,
                    Key=tombstone_key("ticket", ticket_id),
                    UpdateExpression="ADD raw_keys :key",
                    ExpressionAttributeValues={":key": {"SS": [key]}},
                )
            except (ClientError, BotoCoreError) as error:
                raise from_aws(error, "UpdateItem") from error
        self._erase_item(ticket_id, created_at)
        owner = name_hash("ticket", ticket_id)
        self._erase_versions(key, owner)
        self._blank(owner, since)

    def erase_object(self, key: str, *, since: int | None = None) -> bool:
        """As TicketSink.erase_object."""
        tombstone = self._tombstone("object", key)
        if tombstone is None:
            return False
        self._erase_versions(key, tombstone["owner"]["S"])
        self._blank(tombstone["owner"]["S"], since)
        return True

    def _commit(self, write: Write, version_id: str, placed: Placed | None = None) -> Commit | None:
        """Puts the item in the place of exactly the state that `write` knows, so that its event can say what changed.

        If another writer was faster, its item is returned with the refusal, and the put is repeated against that.
        """
        known = write.known
        for _ in range(_MAX_RACES):
            if known is not None and known.source_modified > write.source_modified:
                return None
            item = _item(write, version_id, change_by(known, write), self._item_retention_days, placed)
            if known is not None and known.corrections:
                item = with_corrections(item, known.corrections)
            found = self._put_item(item, known)
            if found is None or _is_own(found, item):
                return "tie" if known is not None and _is_tie(known, write) else "clear"
            known = _known(found)
            if known is not None and _is_stored(known, write):
                return "clear"
        raise ServiceFailed("PutItem: other writers keep changing the item")

    def _put_item(self, item: dict[str, Any], known: Known | None) -> Mapping[str, Any] | None:
        """Puts an item in the place of the known one. Returns None, or the other item that is there instead."""
        put: dict[str, Any] = {
            "TableName": self._table,
            "Item": item,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            **_in_the_place_of(known),
        }
        try:
            if self._outbox:
                from handler.aws.outbox import outbox_item  # only in the worker

                event: dict[str, Any] = {"TableName": self._table, "Item": outbox_item(event_of_item(item))}
                writes: list[Any] = [{"Put": put}, {"Put": event}]
                self._dynamodb.transact_write_items(TransactItems=writes)
            else:
                self._dynamodb.put_item(**put)
        except (ClientError, BotoCoreError) as error:
            reason = _reason(error)
            if reason.get("Code") in {"ConditionalCheckFailed", "ConditionalCheckFailedException"}:
                return cast("Mapping[str, Any]", reason.get("Item", {}))
            raise from_aws(error, "PutItem") from error
        return None

    def _read(self, keys: Sequence[Mapping[str, Any]]) -> tuple[dict[_Name, Mapping[str, Any]], set[_Name]]:
        """Reads items consistently: those that exist, and the names of those that DynamoDB did not process."""
        found: dict[_Name, Mapping[str, Any]] = {}
        unread: set[_Name] = set()
        distinct = {_name_in(key): key for key in keys}  # DynamoDB refuses a key that occurs twice
        rest = iter(distinct.values())
        while part := list(islice(rest, _MAX_KEYS)):
            items, left = self._read_part(part)
            found |= {_name_in(item): item for item in items}
            unread |= {_name_in(key) for key in left}
        return found, unread

    def _read_part(
        self, keys: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
        """The items that exist of up to 100 keys, and the keys that were not processed in several tries."""
        items: list[Mapping[str, Any]] = []
        wanted: dict[str, Any] = {
            self._table: {
                "Keys": keys,
                "ProjectionExpression": ", ".join(("ticket_id", "created_at", *_KNOWN, "redacted", "corrections")),
                "ConsistentRead": True,
            }
        }
        for _ in range(_TRIES):
            try:
                answer = self._dynamodb.batch_get_item(RequestItems=wanted)
            except (ClientError, BotoCoreError) as error:
                raise from_aws(error, "BatchGetItem") from error
            items += answer["Responses"].get(self._table, [])
            wanted = answer.get("UnprocessedKeys", {})
            if not wanted:
                return items, ()
        return items, wanted[self._table]["Keys"]

    def _tombstone(self, kind: Literal["ticket", "object"], name: str) -> Mapping[str, Any] | None:
        try:
            answer = self._dynamodb.get_item(TableName=self._table, Key=tombstone_key(kind, name), ConsistentRead=True)
        except (ClientError, BotoCoreError) as error:
            raise from_aws(error, "GetItem") from error
        return answer.get("Item")

    def _erase_item(self, ticket_id: str, created_at: int) -> None:
        try:
            self._dynamodb.delete_item(TableName=self._table, Key=item_key(ticket_id, created_at))
        except (ClientError, BotoCoreError) as error:
            raise from_aws(error, "DeleteItem") from error

    def _erase_versions(self, key: str, owner: str) -> None:
        """Removes the versions of an enriched object that belong to a ticket, and the items of what they hold."""
        try:
            versions, _ = versions_to_erase(self._s3, self._bucket, key, owner)
            for version in versions:
                found = version.holder
                if found.ticket_id is not None and found.created_at is not None:
                    self._erase_item(found.ticket_id, found.created_at)
                self._s3.delete_object(Bucket=self._bucket, Key=key, VersionId=version.version_id)
        except (ClientError, BotoCoreError) as error:
            raise from_aws(error, getattr(error, "operation_name", "DeleteObject")) from error

    def _blank(self, owner: str, since: int | None) -> None:
        """Removes a ticket from the batch objects that were written since then, if there may be any."""
        if since is None:
            return
        from handler.aws.batch_objects import blank_tickets, hour_prefixes_since, keys_with

        try:
            for prefix in hour_prefixes_since(since):
                for key in keys_with(self._s3, self._bucket, prefix, [owner]):
                    blank_tickets(self._s3, self._bucket, key, [owner])
        except (ClientError, BotoCoreError) as error:
            raise from_aws(error, getattr(error, "operation_name", "ListObjectVersions")) from error


def _name_in(key: Mapping[str, Any]) -> _Name:
    """An item's key as a name that can be compared."""
    return key["ticket_id"]["S"], key["created_at"]["N"]


def _reason(error: ClientError | BotoCoreError) -> Mapping[str, Any]:
    """The code of a refused put and the item in its place; the put is also the first one of a transaction."""
    if not isinstance(error, ClientError):
        return {}
    answer: Mapping[str, Any] = error.response
    if "CancellationReasons" in answer:
        return cast("Mapping[str, Any]", answer["CancellationReasons"][0])
    return {**answer["Error"], **({"Item": answer["Item"]} if "Item" in answer else {})}


def _is_own(found: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    """Whether an item in the table is the one that an earlier try, whose answer was lost, has put there."""
    names = ("s3_version_id", "s3_batch")
    return item["s3_version_id"] != {"S": "null"} and all(found.get(name) == item.get(name) for name in names)


def _in_the_place_of(known: Known | None) -> dict[str, Any]:
    """The condition that the item is as it is known."""
    if known is None:
        return {"ConditionExpression": " OR ".join(f"attribute_not_exists({name})" for name in _KNOWN)}
    # Nor has a person corrected a label in the meantime.
    corrections = "corrections = :corrections" if known.corrections else "attribute_not_exists(corrections)"
    return {
        "ConditionExpression": " AND ".join([*(f"{name} = :{name}" for name in _KNOWN), corrections]),
        "ExpressionAttributeValues": {
            ":content_sha256": {"S": known.content_sha256},
            ":model_version": {"S": known.model_version},
            ":s3_key": {"S": known.s3_key},
            ":source_modified": {"N": str(known.source_modified)},
            **({":corrections": {"M": known.corrections}} if known.corrections else {}),
        },
    }


def _known(item: Mapping[str, Any]) -> Known | None:
    if not item.keys() >= set(_KNOWN):  # none, or an item that somebody else made
        return None
    return Known(
        item["content_sha256"]["S"],
        item["model_version"]["S"],
        item["s3_key"]["S"],
        int(item["source_modified"]["N"]),
        item.get("redacted", {"S": "off"})["S"],
        item.get("corrections", {"M": {}})["M"],
    )


def _is_tie(known: Known, write: Write) -> bool:
    return known.source_modified == write.source_modified and known.content_sha256 != write.content_sha256


def _is_stored(known: Known, write: Write) -> bool:
    """Whether another writer, which had a duplicate of the message, has stored the same result in the meantime."""
    same = (write.content_sha256, write.enrichment.model_version, write.key, write.redacted)
    return same == (known.content_sha256, known.model_version, known.s3_key, known.redacted) and (
        known.source_modified >= write.source_modified
    )


def _shadow_attribute(shadow: ShadowLabels) -> dict[str, Any]:
    """For `tickets compare`: the second bundle, and its labels where they differ."""
    labels = {task: {"S": getattr(shadow, task)} for task in shadow.differs}
    return {"shadow": {"M": {"model_version": {"S": shadow.model_version}, **labels}}}


def _item(
    write: Write, version_id: str, change: Change, retention_days: int, placed: Placed | None = None
) -> dict[str, Any]:
    ticket, found = write.ticket, write.enrichment
    texts = {
        "ticket_id": ticket.ticket_id,
        "subject": ticket.subject if len(ticket.subject) <= _MAX_SUBJECT else ticket.subject[: _MAX_SUBJECT - 1] + "…",
        "customer_id": ticket.customer_id,
        "intent": found.intent,
        "urgency": found.urgency,
        "sentiment": found.sentiment,
        "summary": found.summary,
        "processed_at": found.processed_at,
        "s3_key": write.key,
        "s3_version_id": version_id,
        "content_sha256": write.content_sha256,
        "model_version": found.model_version,
        "day": day_of(ticket.created_at),
    }
    numbers: dict[str, int | float] = {
        "created_at": ticket.created_at,
        "intent_confidence": found.intent_confidence,
        "urgency_confidence": found.urgency_confidence,
        "sentiment_confidence": found.sentiment_confidence,
        "source_modified": write.source_modified,
    }
    if retention_days:
        # From the ticket's arrival, so that enriching it again does not keep it longer.
        numbers["expires_at"] = write.source_modified // 1000 + retention_days * 86400
    return {
        **{name: {"S": value} for name, value in texts.items()},
        # DynamoDB stores decimals: repr() is the shortest text that reads back as the same float.
        **{name: {"N": str(Decimal(repr(value)))} for name, value in numbers.items()},
        "needs_review": {"BOOL": found.needs_review},
        "review_reasons": {"L": [{"S": reason} for reason in found.review_reasons]},
        "language": {"S": found.language} if found.language else {"NULL": True},
        "event": event_attribute(write, version_id, change, placed),
        **({} if placed is None else {"s3_batch": {"S": batch_text(placed.key, placed.offset, placed.length)}}),
        **({"embedding_model": {"S": found.embedding_model}} if found.embedding_model else {}),
        **({} if write.redacted == "off" else {"redacted": {"S": write.redacted}}),
        **(_shadow_attribute(found.shadow) if found.shadow is not None else {}),
    }
