"""Reads stored tickets: lists from the table, whole tickets from S3.

Nothing here scans the table. Lists, pages and counts come from urgency-index, one query per level, merged: it has every
ticket in the order of time, and a period without tickets costs nothing. Counts by day come from day-index, one query
per day, which run concurrently. Tickets that were stored before version 0.2 are in day-index only once
`tickets upgrade` has put them there; until it has ended, counts by day come from urgency-index too, with a query per
day and level (handler.tickets.upgrade).

The role needs dynamodb:Query on the table and its indexes, and s3:GetObjectVersion on the enriched objects; for those
that hold several tickets (handler.aws.batch_objects), s3:GetObject.
"""

from __future__ import annotations

import base64
import heapq
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, get_args

import pydantic_core
from boto3.dynamodb.types import TypeDeserializer
from botocore.exceptions import ClientError
from pydantic import BaseModel, ConfigDict, ValidationError

from enrichment.errors import BundleError
from enrichment.manifest import Manifest
from enrichment.ticket import MAX_CREATED_AT, Priority
from handler.aws.batch_objects import BatchRange, read_enriched
from handler.aws.bundle_source import read_bundle_manifest
from handler.aws.corrections import TASKS
from handler.aws.errors import from_aws
from handler.aws.forgetting import item_key
from handler.aws.storage import day_of
from handler.errors import ObjectGone
from handler.result_event import batch_place

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

__all__ = [
    "READERS",
    "UNKNOWN_LANGUAGE",
    "UPGRADED",
    "URGENCIES",
    "CorrectedLabel",
    "Item",
    "ObjectUnreadable",
    "Page",
    "RepositoryError",
    "Selection",
    "TicketRepository",
    "item_of",
]

URGENCIES: Final = get_args(Priority)  # the hash keys of urgency-index
READERS: Final = 16
"""The number of concurrent reads; the clients' HTTP pools have the same size."""
UPGRADED: Final = "#upgraded"
"""The ticket_id of the item that exists once day-index has every ticket."""
UNKNOWN_LANGUAGE: Final = "und"
"""In a selection: tickets whose language is not known."""
_SEARCHED: Final = ("ticket_id", "subject", "summary")
_COUNTED: Final = ("ticket_id", "created_at", *TASKS)
# Items that a query evaluates per page. Pages start small, because most lists are short, and double up to about the
# number that fits into DynamoDB's limit of 1 MB.
_FIRST_PAGE: Final = 250
_LARGEST_PAGE: Final = 1000
_MOST_KEYS: Final = 100  # of one BatchGetItem
_READS: Final = 6  # of the keys that DynamoDB leaves unprocessed
_PAUSE: Final = 0.1  # seconds before the second one; doubled before each further one
_MOST_DAYS: Final = 100  # counts of more days read urgency-index once: most of so many days may have few tickets
_TIMES: Final = {  # conditions on the range key, of which a query allows one
    (False, False): "",
    (True, False): " AND #created_at >= :created_at",
    (False, True): " AND #created_at <= :until",
    (True, True): " AND #created_at BETWEEN :created_at AND :until",
}


class RepositoryError(Exception):
    """The requested data is missing or invalid; the message is one line for users."""


class ObjectUnreadable(RepositoryError):
    """The enriched object that an item names is missing or invalid."""


class CorrectedLabel(BaseModel):
    """The label of one task that a person decided, and the model's label with its confidence.

    A label can equal the predicted one: then the person confirmed it. `uncertain` says whether the ticket was to be
    reviewed for this task, or for its language. `by` is the ARN of the person's identity, `at` the time (UTC, ISO
    8601).
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    label: str
    predicted: str
    confidence: float | None = None
    uncertain: bool = False
    by: str
    at: str


class Item(BaseModel):
    """A ticket in the table. Only the keys are required; attributes that are not declared here are kept.

    The labels are those in force: where a person corrected the model, the person's, with the confidence 1.
    """

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True, protected_namespaces=())

    ticket_id: str
    created_at: int
    customer_id: str = ""
    urgency: str = ""
    intent: str = ""
    sentiment: str = ""
    intent_confidence: float | None = None
    urgency_confidence: float | None = None
    sentiment_confidence: float | None = None
    corrections: dict[str, CorrectedLabel] = {}
    needs_review: bool = False
    review_reasons: list[str] = []
    language: str | None = None
    subject: str = ""
    summary: str = ""
    s3_key: str = ""
    s3_version_id: str = "null"
    model_version: str = ""
    embedding_model: str = ""
    processed_at: str = ""

    @property
    def batch(self) -> BatchRange | None:
        """Where the ticket is in an object that holds several; None if it has one of its own.

        The attribute is not declared, so that it is only where the item has it, also in what is printed.
        """
        place = batch_place((self.model_extra or {}).get("s3_batch"))
        return None if place is None else BatchRange(*place)

    @property
    def corrected_at(self) -> str:
        """When a person last corrected a label; "" if nobody did."""
        return max((label.at for label in self.corrections.values()), default="")


@dataclass(frozen=True, slots=True)
class Selection:
    """A filter: tickets that meet all conditions given.

    `text` is a part of the id, subject or summary, in upper or lower case. `language` is an ISO 639-1 code or
    UNKNOWN_LANGUAGE. `since` and `until` are in Unix seconds, both inclusive. `with_shadow`: only tickets that a second
    bundle has labelled too.
    """

    urgencies: tuple[str, ...] = URGENCIES
    intent: str | None = None
    sentiment: str | None = None
    needs_review: bool | None = None
    language: str | None = None
    text: str | None = None
    since: int | None = None
    until: int | None = None
    with_shadow: bool = False

    def has_text(self, item: Item) -> bool:
        """Whether an item has the text, which DynamoDB cannot compare without regard to case."""
        if not self.text:
            return True
        return any(self.text.casefold() in getattr(item, name).casefold() for name in _SEARCHED)

    def includes(self, item: Item) -> bool:
        """Whether an item meets all conditions, for items that no query of this selection returned."""
        language = None if self.language == UNKNOWN_LANGUAGE else self.language
        return (
            item.urgency in self.urgencies
            and self.intent in (None, item.intent)
            and self.sentiment in (None, item.sentiment)
            and self.needs_review in (None, item.needs_review)
            and (self.language is None or language == item.language)
            and (self.since is None or item.created_at >= self.since)
            and (self.until is None or item.created_at <= self.until)
            and self.has_text(item)
        )


@dataclass(frozen=True, slots=True)
class Page:
    """Some tickets, newest first. `next` is the position of the following page, None after the oldest ticket."""

    items: list[Item]
    next: str | None


@dataclass(frozen=True, slots=True)
class _Position:
    """Where a page ended: at the time of its last ticket, and after which ticket of that time in each urgency.

    A ticket that is stored later, with a later time, moves no other one to another page.
    """

    created_at: int
    after: Mapping[str, str]

    @classmethod
    def behind(cls, items: Sequence[Item], earlier: _Position | None) -> _Position:
        """The position after a page, which is not empty."""
        last = items[-1].created_at
        after = dict(earlier.after) if earlier is not None and earlier.created_at == last else {}
        return cls(last, after | {item.urgency: item.ticket_id for item in items if item.created_at == last})

    @classmethod
    def parse(cls, text: str) -> _Position:
        """Reads what `str` wrote. Raises RepositoryError."""
        try:
            created_at, after = json.loads(base64.urlsafe_b64decode(text.encode()))
            after = {str(urgency): str(ticket_id) for urgency, ticket_id in after.items()}
        except (ValueError, TypeError, AttributeError):
            created_at, after = None, {}
        if type(created_at) is not int or not 0 <= created_at <= MAX_CREATED_AT or not after.keys() <= set(URGENCIES):
            raise RepositoryError("the position in the list is not valid; begin with the newest tickets")
        return cls(created_at, after)

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(json.dumps([self.created_at, self.after]).encode()).decode()


class TicketRepository:
    """Reads the tickets of a table and the enriched objects of a bucket. Its methods raise botocore's errors.

    `s3()` returns a client. It is called only when an object is read, because creating a client delays lists.
    """

    def __init__(self, dynamodb: DynamoDBClient, s3: Callable[[], S3Client], *, table: str, bucket: str) -> None:
        self._dynamodb = dynamodb
        self._s3 = s3
        self._table = table
        self._bucket = bucket

    def newest(self, selection: Selection, at_once: int = _FIRST_PAGE, shown: Sequence[str] = ()) -> Iterator[Item]:
        """The selected tickets, newest first. Pages are read lazily; with `shown`, only with these attributes.

        The first pages of all urgencies, of at most `at_once` items each, are read concurrently.
        """
        requests = self._level_requests(selection, shown)
        return self._merged(requests, selection, at_once)

    def oldest(self, selection: Selection, shown: Sequence[str] = ()) -> Iterator[Item]:
        """The selected tickets, oldest first; read lazily, in large pages. With `shown`, only with these attributes."""
        parts = []
        for urgency in selection.urgencies:
            request = {**self._request("urgency", urgency, selection, shown), "ScanIndexForward": True}
            parts.append(self._pages(request, self._dynamodb.query(**request, Limit=_LARGEST_PAGE), _LARGEST_PAGE))
        return filter(selection.has_text, heapq.merge(*parts, key=lambda item: item.created_at))

    def current(self, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Item]:
        """The tickets with these keys (ticket_id and created_at), without those that do not exist; consistent reads.

        Needs dynamodb:BatchGetItem.
        """
        found: dict[tuple[str, int], Item] = {}
        parts = [keys[start : start + _MOST_KEYS] for start in range(0, len(keys), _MOST_KEYS)]
        with ThreadPoolExecutor(READERS) as pool:
            for items in pool.map(self._with_keys, parts):
                found |= {(item.ticket_id, item.created_at): item for item in items}
        return found

    def _with_keys(self, keys: Sequence[tuple[str, int]]) -> list[Item]:
        wanted: Any = {self._table: {"Keys": [item_key(*key) for key in keys], "ConsistentRead": True}}
        found: list[Item] = []
        for attempt in range(_READS):
            answer = self._dynamodb.batch_get_item(RequestItems=wanted)
            found += map(item_of, answer["Responses"].get(self._table, []))
            wanted = answer.get("UnprocessedKeys", {})
            if not wanted:
                return found
            time.sleep(_PAUSE * 2**attempt)
        raise RepositoryError("DynamoDB did not return all tickets; try again when the table is less busy")

    def page(self, selection: Selection, size: int, after: str | None = None) -> Page:
        """At most `size` of the selected tickets, newest first: the first ones, or those at a `Page.next`.

        Raises RepositoryError if `after` is no position.
        """
        position = None if after is None else _Position.parse(after)
        if position is None:
            requests = self._level_requests(selection)
        else:
            until = min(position.created_at, MAX_CREATED_AT if selection.until is None else selection.until)
            requests = self._level_requests(replace(selection, until=until))
            for request in requests:
                urgency = request["ExpressionAttributeValues"][":key"]["S"]
                if urgency in position.after and until == position.created_at:
                    request["ExclusiveStartKey"] = {
                        "urgency": {"S": urgency},
                        "created_at": {"N": str(until)},
                        "ticket_id": {"S": position.after[urgency]},
                    }
        items = list(islice(self._merged(requests, selection, size + 1), size + 1))
        if len(items) <= size:
            return Page(items, None)
        return Page(items[:size], str(_Position.behind(items[:size], position)))

    def count(self, selection: Selection) -> dict[str, Counter[str]]:
        """The number of selected tickets per `intent`, `urgency` and `sentiment`."""
        counts = _no_labels()
        for labels in self._count(self._level_requests(selection, _COUNTED), selection).values():
            _add(counts, labels)
        return counts

    def by_day(self, selection: Selection) -> dict[str, dict[str, Counter[str]]]:
        """The number of selected tickets per day (UTC, as 2026-11-26), task and label, in the order of the days.

        Days without tickets are absent.
        """
        bounds = self._bounds(selection)
        if bounds is None:
            return {}
        first, last = (date.fromisoformat(day_of(moment)) for moment in bounds)
        number = (last - first).days + 1
        if number > _MOST_DAYS:
            requests = self._level_requests(selection, _COUNTED)
        else:
            requests = self._day_requests(selection, [first + timedelta(days=place) for place in range(number)])
        return dict(sorted(self._count(requests, selection).items()))

    def with_id(self, ticket_id: str) -> list[Item]:
        """The tickets with an id, newest first. Usually one, but `created_at` is part of the table's key too."""
        request: dict[str, Any] = {
            "TableName": self._table,
            # What is not a ticket (failure counts, tombstones) has a negative created_at.
            "KeyConditionExpression": "ticket_id = :id AND created_at >= :first",
            "ExpressionAttributeValues": {":id": {"S": ticket_id}, ":first": {"N": "0"}},
            "ScanIndexForward": False,
            "ConsistentRead": True,
        }
        return list(self._pages(request, self._dynamodb.query(**request), _FIRST_PAGE))

    def whole(self, item: Item) -> dict[str, Any]:
        """The enriched ticket, from the object version or the range that the item names. Raises ObjectUnreadable."""
        place, batch = f"s3://{self._bucket}/{item.s3_key} in version {item.s3_version_id}", item.batch
        if batch is not None:
            place = f"s3://{self._bucket}/{batch.key} at byte {batch.offset}"
        if not item.s3_key:
            raise ObjectUnreadable(f"the item of ticket {item.ticket_id} names no object; enrich the ticket again")
        try:
            body = read_enriched(self._s3(), self._bucket, item.s3_key, item.s3_version_id, batch)
            if batch is not None and not body:
                raise ObjectUnreadable(f"{place} was forgotten; enrich the ticket again")
            ticket = pydantic_core.from_json(body)
        except ClientError as error:
            if isinstance(from_aws(error, "GetObject"), ObjectGone):
                raise ObjectUnreadable(f"{place} is gone; enrich the ticket again") from error
            raise
        except ValueError as error:
            raise ObjectUnreadable(f"{place} is not JSON; enrich the ticket again") from error
        if not isinstance(ticket, dict) or not isinstance(ticket.get("enrichment"), dict):
            raise ObjectUnreadable(f"{place} is not an enriched ticket; enrich the ticket again")
        if batch is not None and (ticket.get("ticket_id"), ticket.get("created_at")) != (
            item.ticket_id,
            item.created_at,
        ):
            raise ObjectUnreadable(f"{place} is another ticket; enrich the ticket again")
        return ticket

    def manifest(self, uri: str) -> Manifest:
        """The manifest of the bundle at file:///directory or s3://bucket/prefix. Raises RepositoryError."""
        return self._manifest(uri)[0]

    def models_of(self, uri: str) -> tuple[str, str]:
        """The model_version and the embedding_model of the tickets that a bundle enriches. Raises RepositoryError."""
        manifest, digest = self._manifest(uri)
        try:
            return manifest.version(digest), manifest.embedding_model
        except BundleError as error:
            raise RepositoryError(str(error)) from error

    def _manifest(self, uri: str) -> tuple[Manifest, str]:
        try:
            return read_bundle_manifest(uri, self._s3)
        except BundleError as error:
            raise RepositoryError(str(error)) from error

    def _bounds(self, selection: Selection) -> tuple[int, int] | None:
        """The times of the oldest and the newest ticket of a period, whatever their labels; None without tickets."""
        period = Selection(selection.urgencies, since=selection.since, until=selection.until)
        requests = [
            {**request, "ScanIndexForward": is_forward, "Limit": 1}
            for request in self._level_requests(period, ("created_at",))
            for is_forward in (True, False)
        ]
        with ThreadPoolExecutor(READERS) as pool:
            answers = pool.map(lambda request: self._dynamodb.query(**request)["Items"], requests)
            times = [int(item["created_at"]["N"]) for items in answers for item in items]
        return (min(times), max(times)) if times else None

    def _level_requests(self, selection: Selection, shown: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The queries of urgency-index that together read a selection; none if its period ends before it begins."""
        if selection.since is not None and selection.until is not None and selection.since > selection.until:
            return []
        return [self._request("urgency", urgency, selection, shown) for urgency in selection.urgencies]

    def _day_requests(self, selection: Selection, days: Sequence[date]) -> list[dict[str, Any]]:
        """The queries that together read a selection: one per day, or one per day and urgency."""
        if set(selection.urgencies) == set(URGENCIES) and self._every_ticket_has_a_day():
            return [self._request("day", day.isoformat(), selection, _COUNTED) for day in days]
        requests = []
        for day in days:
            begin = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
            since = max(begin, selection.since or 0)
            until = min(begin + 86399, MAX_CREATED_AT if selection.until is None else selection.until)
            requests += self._level_requests(replace(selection, since=since, until=until), _COUNTED)
        return requests

    def _every_ticket_has_a_day(self) -> bool:
        answer = self._dynamodb.query(
            TableName=self._table,
            KeyConditionExpression="ticket_id = :upgraded",
            ExpressionAttributeValues={":upgraded": {"S": UPGRADED}},
        )
        return bool(answer["Items"])

    def _count(self, requests: Iterable[Mapping[str, Any]], selection: Selection) -> dict[str, dict[str, Counter[str]]]:
        """The numbers of tickets by day, task and label; the queries run concurrently."""

        def count(request: Mapping[str, Any]) -> dict[str, dict[str, Counter[str]]]:
            found: dict[str, dict[str, Counter[str]]] = defaultdict(_no_labels)
            answer = self._dynamodb.query(**request)
            for item in filter(selection.has_text, self._pages(request, answer, _LARGEST_PAGE)):
                for task, labels in found[day_of(item.created_at)].items():
                    labels[getattr(item, task)] += 1
            return found

        counts: dict[str, dict[str, Counter[str]]] = defaultdict(_no_labels)
        with ThreadPoolExecutor(READERS) as pool:
            for part in pool.map(count, requests):
                for day, labels in part.items():
                    _add(counts[day], labels)
        return counts

    def _merged(self, requests: Sequence[Mapping[str, Any]], selection: Selection, at_once: int) -> Iterator[Item]:
        """The items of all queries, newest first; of the same time, those of the first query come first."""
        size = max(1, min(at_once, _FIRST_PAGE))
        with ThreadPoolExecutor(len(URGENCIES)) as pool:
            answers = list(pool.map(lambda request: self._dynamodb.query(**request, Limit=size), requests))
        pages = [self._pages(request, answer, size) for request, answer in zip(requests, answers, strict=True)]
        return filter(selection.has_text, heapq.merge(*pages, key=lambda item: -item.created_at))

    def _request(self, index: str, key: str, selection: Selection, shown: Sequence[str] = ()) -> dict[str, Any]:
        """A query of an index (`urgency` or `day`) for one of its keys, newest first."""
        attributes = dict.fromkeys((*shown, *_SEARCHED)) if shown and selection.text else dict.fromkeys(shown)
        names = {"#key": index, **{f"#{name}": name for name in attributes}}
        values: dict[str, Any] = {":key": {"S": key}}
        if selection.since is not None:
            names["#created_at"], values[":created_at"] = "created_at", {"N": str(selection.since)}
        if selection.until is not None:
            names["#created_at"], values[":until"] = "created_at", {"N": str(selection.until)}
        conditions: dict[str, Any] = {}
        if selection.intent is not None:
            conditions["intent"] = {"S": selection.intent}
        if selection.sentiment is not None:
            conditions["sentiment"] = {"S": selection.sentiment}
        if selection.needs_review is not None:
            conditions["needs_review"] = {"BOOL": selection.needs_review}
        if selection.language not in (None, UNKNOWN_LANGUAGE):
            conditions["language"] = {"S": selection.language}
        filters = []
        for name, value in conditions.items():
            names[f"#{name}"], values[f":{name}"] = name, value
            filters.append(f"#{name} = :{name}")
        if selection.language == UNKNOWN_LANGUAGE:
            names["#language"], values[":string"] = "language", {"S": "S"}
            filters.append("NOT attribute_type(#language, :string)")
        if selection.with_shadow:
            names["#shadow"] = "shadow"
            filters.append("attribute_exists(#shadow)")
        return {
            "TableName": self._table,
            "IndexName": f"{index}-index",
            "KeyConditionExpression": "#key = :key" + _TIMES[selection.since is not None, selection.until is not None],
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
            "ScanIndexForward": False,
            **({"FilterExpression": " AND ".join(filters)} if filters else {}),
            **({"ProjectionExpression": ", ".join(f"#{name}" for name in attributes)} if attributes else {}),
        }

    def _pages(self, request: Mapping[str, Any], answer: Mapping[str, Any], size: int) -> Iterator[Item]:
        """The items of a query's first answer, then those of further pages, which are read lazily."""
        while True:
            yield from map(item_of, answer["Items"])
            last = answer.get("LastEvaluatedKey")
            if not last:
                return
            size = min(2 * size, _LARGEST_PAGE)
            answer = self._dynamodb.query(**{**request, "ExclusiveStartKey": last}, Limit=size)


def _no_labels() -> dict[str, Counter[str]]:
    return {task: Counter() for task in TASKS}


def _add(counts: Mapping[str, Counter[str]], more: Mapping[str, Counter[str]]) -> None:
    for task, labels in more.items():
        counts[task].update(labels)


def item_of(attributes: Mapping[str, Any]) -> Item:
    """An item in DynamoDB's JSON. Raises RepositoryError."""
    # `event` repeats other attributes, for the pipe (handler.result_event).
    plain = {name: TypeDeserializer().deserialize(value) for name, value in attributes.items() if name != "event"}
    try:
        return Item.model_validate(plain)
    except ValidationError as error:
        name = error.errors(include_input=False)[0]["loc"][0]
        raise RepositoryError(f"ticket {plain['ticket_id']} has an unexpected {name} in the table") from error
