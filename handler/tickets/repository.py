"""Reads stored tickets: lists from the table, whole tickets from S3.

Lists come from the urgency index, one query per level, merged: nothing here scans the table. The role needs
dynamodb:Query on the table and its index, and s3:GetObjectVersion on the enriched objects.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, get_args

import pydantic_core
from boto3.dynamodb.types import TypeDeserializer
from botocore.exceptions import ClientError
from pydantic import BaseModel, ConfigDict, ValidationError

from enrichment.errors import BundleError
from enrichment.manifest import Manifest
from enrichment.ticket import Priority
from handler.aws.bundle_source import read_bundle_manifest
from handler.aws.errors import from_aws
from handler.errors import ObjectGone

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

__all__ = ["URGENCIES", "Item", "ObjectUnreadable", "RepositoryError", "Selection", "TicketRepository"]

URGENCIES: Final = get_args(Priority)  # the hash keys of the index
_INDEX: Final = "urgency-index"
# Items that a query evaluates per page. Pages start small, because most lists are short, and double up to about the
# number that fits into DynamoDB's limit of 1 MB.
_FIRST_PAGE: Final = 250
_LARGEST_PAGE: Final = 1000
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


class Item(BaseModel):
    """A ticket in the table. Only the keys are required; attributes that are not declared here are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True, protected_namespaces=())

    ticket_id: str
    created_at: int
    urgency: str = ""
    intent: str = ""
    sentiment: str = ""
    needs_review: bool = False
    review_reasons: list[str] = []
    language: str | None = None
    subject: str = ""
    summary: str = ""
    s3_key: str = ""
    s3_version_id: str = "null"
    model_version: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """A filter: tickets that meet all conditions given. `since` and `until` are in Unix seconds, both inclusive."""

    urgencies: tuple[str, ...] = URGENCIES
    intent: str | None = None
    sentiment: str | None = None
    needs_review: bool = False
    since: int | None = None
    until: int | None = None


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
        requests = [self._request(urgency, selection, shown) for urgency in selection.urgencies]
        size = max(1, min(at_once, _FIRST_PAGE))
        with ThreadPoolExecutor(len(URGENCIES)) as pool:
            answers = list(pool.map(lambda request: self._dynamodb.query(**request, Limit=size), requests))
        pages = [self._pages(request, answer, size) for request, answer in zip(requests, answers, strict=True)]
        return heapq.merge(*pages, key=lambda item: -item.created_at)

    def count(self, selection: Selection) -> dict[str, Counter[str]]:
        """The number of selected tickets per `intent`, `urgency` and `sentiment`."""
        shown = ("ticket_id", "created_at", "urgency", "intent", "sentiment")

        def labels(urgency: str) -> list[tuple[str, str, str]]:
            request = self._request(urgency, selection, shown)
            first = self._dynamodb.query(**request)
            return [(i.intent, i.urgency, i.sentiment) for i in self._pages(request, first, _LARGEST_PAGE)]

        with ThreadPoolExecutor(len(URGENCIES)) as pool:
            found = [label for part in pool.map(labels, selection.urgencies) for label in part]
        names = ("intent", "urgency", "sentiment")
        return {name: Counter(label[place] for label in found) for place, name in enumerate(names)}

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
        """The enriched ticket, from the object version that the item names. Raises ObjectUnreadable."""
        place = f"s3://{self._bucket}/{item.s3_key} in version {item.s3_version_id}"
        if not item.s3_key:
            raise ObjectUnreadable(f"the item of ticket {item.ticket_id} names no object; enrich the ticket again")
        try:
            answer = self._s3().get_object(Bucket=self._bucket, Key=item.s3_key, VersionId=item.s3_version_id)
            with answer["Body"] as stream:
                ticket = pydantic_core.from_json(stream.read())
        except ClientError as error:
            if isinstance(from_aws(error, "GetObject"), ObjectGone):
                raise ObjectUnreadable(f"{place} is gone; enrich the ticket again") from error
            raise
        except ValueError as error:
            raise ObjectUnreadable(f"{place} is not JSON; enrich the ticket again") from error
        if not isinstance(ticket, dict) or not isinstance(ticket.get("enrichment"), dict):
            raise ObjectUnreadable(f"{place} is not an enriched ticket; enrich the ticket again")
        return ticket

    def manifest(self, uri: str) -> Manifest:
        """The manifest of the bundle at file:///directory or s3://bucket/prefix. Raises RepositoryError."""
        try:
            return read_bundle_manifest(uri, self._s3)
        except BundleError as error:
            raise RepositoryError(str(error)) from error

    def _request(self, urgency: str, selection: Selection, shown: Sequence[str] = ()) -> dict[str, Any]:
        """A query of the index for one urgency, newest first."""
        key, filters = "#urgency = :urgency", []
        names, values = {"#urgency": "urgency", **{f"#{name}": name for name in shown}}, {":urgency": {"S": urgency}}
        conditions: dict[str, Any] = {}
        if selection.since is not None:
            names["#created_at"], values[":created_at"] = "created_at", {"N": str(selection.since)}
        if selection.until is not None:
            names["#created_at"], values[":until"] = "created_at", {"N": str(selection.until)}
        key += _TIMES[selection.since is not None, selection.until is not None]
        if selection.intent is not None:
            conditions["intent"] = {"S": selection.intent}
        if selection.sentiment is not None:
            conditions["sentiment"] = {"S": selection.sentiment}
        if selection.needs_review:
            conditions["needs_review"] = {"BOOL": True}
        for name, value in conditions.items():
            names[f"#{name}"], values[f":{name}"] = name, value
            filters.append(f"#{name} = :{name}")
        return {
            "TableName": self._table,
            "IndexName": _INDEX,
            "KeyConditionExpression": key,
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
            "ScanIndexForward": False,
            **({"FilterExpression": " AND ".join(filters)} if filters else {}),
            **({"ProjectionExpression": ", ".join(f"#{name}" for name in shown)} if shown else {}),
        }

    def _pages(self, request: Mapping[str, Any], answer: Mapping[str, Any], size: int) -> Iterator[Item]:
        """The items of a query's first answer, then those of further pages, which are read lazily."""
        while True:
            yield from map(_item, answer["Items"])
            last = answer.get("LastEvaluatedKey")
            if not last:
                return
            size = min(2 * size, _LARGEST_PAGE)
            answer = self._dynamodb.query(**request, ExclusiveStartKey=last, Limit=size)


def _item(attributes: Mapping[str, Any]) -> Item:
    # `event` repeats other attributes, for the pipe (handler.result_event).
    plain = {name: TypeDeserializer().deserialize(value) for name, value in attributes.items() if name != "event"}
    try:
        return Item.model_validate(plain)
    except ValidationError as error:
        name = error.errors(include_input=False)[0]["loc"][0]
        raise RepositoryError(f"ticket {plain['ticket_id']} has an unexpected {name} in the table") from error
