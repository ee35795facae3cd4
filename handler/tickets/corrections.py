"""Corrections: the labels that people decided, as a log in the enriched bucket and in the items of the tickets.

Each correction is an object of the log, which nothing overwrites and only `tickets forget` removes:

    corrections/<hash of ticket_id>/<created_at>/<number>.json

The log is written first and says what was decided; the item shows what is in force (handler.aws.corrections) and makes
the event. A process that is killed between the two leaves a correction that no list shows: the same command repeated,
or `tickets corrections --apply`, copies it into the item. The function keeps the corrections of an item whenever it
enriches the ticket again.

Of two people who correct a ticket at the same time, only one can write the next number: the other one decides last.
`at` rises with the number, whatever the clocks say.

The role needs dynamodb:Query, dynamodb:GetItem and dynamodb:UpdateItem on the table, s3:GetObjectVersion on the
enriched objects, and s3:GetObject, s3:PutObject and (on the bucket) s3:ListBucket for the prefix corrections/; if the
workers have RESULT_WEBHOOK, also dynamodb:PutItem on the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError
from pydantic import BaseModel, ConfigDict, ValidationError

from handler.aws.corrections import TASKS, with_corrections
from handler.aws.errors import from_aws
from handler.aws.forgetting import item_key, name_hash, tombstone_key
from handler.aws.outbox import outbox_item
from handler.errors import ObjectGone
from handler.result_event import event_of_correction, event_of_item
from handler.tickets.repository import READERS, Item, RepositoryError, TicketRepository, item_of

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

__all__ = ["PREFIX", "Correction", "CorrectionRefused", "Corrections", "labelled", "log_prefix"]

PREFIX: Final = "corrections/"
_KEY: Final = re.compile(PREFIX + r"[0-9a-f]{64}/[0-9]+/([0-9]{6})\.json")
_MAX_RACES: Final = 10  # others that correct or enrich one ticket at the same time
_UNCHANGED: Final = ("s3_key", "s3_version_id", "processed_at", "corrections")  # attributes that say which item it is
_LOST_RACE: Final = {
    *("ConditionalCheckFailed", "ConditionalCheckFailedException"),
    *("TransactionConflict", "TransactionConflictException"),  # in a transaction, and with one: workers use them
}


class CorrectionRefused(RepositoryError):
    """A label cannot be corrected; the message is one line for users."""


class Correction(BaseModel):
    """One entry of the log: what a person decided about some tasks of a ticket.

    `predicted` are the model's labels of these tasks, from the object version that the item named; `by` is the ARN of
    the person's identity, `at` the time (UTC, ISO 8601).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, protected_namespaces=())

    ticket_id: str
    created_at: int
    labels: dict[str, str]
    predicted: dict[str, str]
    by: str
    at: str
    model_version: str
    s3_key: str
    s3_version_id: str
    s3_batch: str | None = None


def log_prefix(ticket_id: str) -> str:
    """The prefix of the log's objects about a ticket: a hash, because an id may name a person or contain slashes."""
    return f"{PREFIX}{name_hash('ticket', ticket_id)}/"


def _folder(ticket_id: str, created_at: int) -> str:
    return f"{log_prefix(ticket_id)}{created_at}/"


def labelled(history: Sequence[Correction], ticket: Mapping[str, Any]) -> dict[str, Any]:
    """A ticket with the labels that its history decided, for labelled files. `ticket` has the text."""
    labels: dict[str, str] = {}
    predicted: dict[str, str] = {}
    for correction in history:
        labels |= correction.labels
        predicted |= correction.predicted
    last = history[-1]
    return {
        "ticket_id": last.ticket_id,
        "created_at": last.created_at,
        **{name: ticket.get(name, "") for name in ("customer_id", "subject", "body")},
        **{task: labels[task] for task in TASKS if task in labels},
        "predicted": {task: predicted[task] for task in TASKS if task in predicted},
        "model_version": last.model_version,
        "at": last.at,
    }


class Corrections:
    """Reads and writes corrections. Methods raise botocore's errors; RepositoryError for invalid data.

    `s3()` returns a client. `by()` returns the ARN of the caller, None if it is unknown. With `outbox`, each corrected
    item also writes its event for the worker's webhook, in one transaction (handler.aws.outbox).
    """

    def __init__(
        self,
        dynamodb: DynamoDBClient,
        s3: Callable[[], S3Client],
        repository: TicketRepository,
        by: Callable[[], str | None],
        *,
        table: str,
        bucket: str,
        outbox: bool = False,
    ) -> None:
        self._dynamodb = dynamodb
        self._s3 = s3
        self._repository = repository
        self._by = by
        self._table = table
        self._bucket = bucket
        self._outbox = outbox

    def correct(self, item: Item, labels: Mapping[str, str]) -> Item:
        """Puts a person's labels, by task, in force; returns the new item. A label as predicted confirms it.

        First the log, then the item with its event. Labels that are in force already are not logged again, so that
        repeating a call that was killed completes it. Raises CorrectionRefused.
        """
        self._check(item, labels)
        by = self._by()
        if by is None:
            raise CorrectionRefused("STS does not say who you are, which the log needs; check the credentials")
        for _ in range(_MAX_RACES):
            numbered = list(self._log(_folder(item.ticket_id, item.created_at)))
            history = [entry for _, entry in numbered]
            stored = self._stored(item.ticket_id, item.created_at)
            if not _decides(labels, stored, history):
                break
            entry = _entry(item_of(stored), labels, by, _next_moment(stored, history))
            if self._append(entry, numbered[-1][0] + 1 if numbered else 1):
                history.append(entry)
                break
        else:
            raise CorrectionRefused(f"others keep correcting ticket {item.ticket_id}; try again")
        self._refuse_forgotten(item.ticket_id)
        changed = self.apply(history) if history else None
        return changed or item_of(self._stored(item.ticket_id, item.created_at))

    def of(self, item: Item) -> list[Correction]:
        """All corrections of a ticket, oldest first."""
        return [entry for _, entry in self._log(_folder(item.ticket_id, item.created_at))]

    def everything(self) -> Iterator[Correction]:
        """All corrections, those of a ticket together, oldest first."""
        return (entry for _, entry in self._log(PREFIX))

    def by_ticket(self) -> Iterator[list[Correction]]:
        """All corrections, one list per ticket, each oldest first."""
        for _, history in groupby(self.everything(), key=lambda each: (each.ticket_id, each.created_at)):
            yield list(history)

    def apply(self, history: Sequence[Correction]) -> Item | None:
        """Puts what the log says of one ticket into its item. None if the item has it already.

        Raises CorrectionRefused if there is no such item.
        """
        ticket_id, created_at = history[-1].ticket_id, history[-1].created_at
        for _ in range(_MAX_RACES):
            stored = self._stored(ticket_id, created_at)
            decisions = _decisions(stored, history)
            if not decisions:
                return None
            item = with_corrections(stored, decisions)
            item["event"] = event_of_correction(item)
            if self._replace(stored, item):
                return item_of(item)
        raise CorrectionRefused(f"ticket {ticket_id} keeps changing; run the command again")

    def _check(self, item: Item, labels: Mapping[str, str]) -> None:
        """Raises CorrectionRefused unless the model of the ticket knows the labels."""
        if not labels:
            raise CorrectionRefused("give at least one label")
        scores = self._repository.whole(item)["enrichment"].get("scores", {})
        for task, label in labels.items():
            known = scores.get(task, {}) if task in TASKS else {}
            if not known:
                raise CorrectionRefused(f"ticket {item.ticket_id} has no scores for {task}; enrich the ticket again")
            if label not in known:
                raise CorrectionRefused(f"{task} cannot be {label}; choose one of {', '.join(sorted(known))}")

    def _stored(self, ticket_id: str, created_at: int) -> Mapping[str, Any]:
        answer = self._dynamodb.get_item(
            TableName=self._table, Key=item_key(ticket_id, created_at), ConsistentRead=True
        )
        if "Item" not in answer:
            raise CorrectionRefused(f"there is no ticket {ticket_id} of {created_at} (any more)")
        return answer["Item"]

    def _refuse_forgotten(self, ticket_id: str) -> None:
        """`tickets forget` writes the tombstone first. If it is not there now, it finds what was written here."""
        key = tombstone_key("ticket", ticket_id)
        if "Item" in self._dynamodb.get_item(TableName=self._table, Key=key, ConsistentRead=True):
            raise CorrectionRefused(f"ticket {ticket_id} was forgotten meanwhile; run `tickets forget` for it again")

    # -- the log

    def _append(self, entry: Correction, number: int) -> bool:
        """Writes an entry, unless another one has this number already."""
        key = f"{_folder(entry.ticket_id, entry.created_at)}{number:06}.json"
        body = entry.model_dump_json(exclude_none=True).encode()
        try:
            self._s3().put_object(
                Bucket=self._bucket, Key=key, Body=body, ContentType="application/json", IfNoneMatch="*"
            )
        except ClientError as error:
            if error.response["Error"]["Code"] in {"PreconditionFailed", "ConditionalRequestConflict"}:
                return False
            raise
        return True

    def _log(self, prefix: str) -> Iterator[tuple[int, Correction]]:
        """The entries under a prefix with their numbers, in the order of their keys."""
        pages = self._s3().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        with ThreadPoolExecutor(READERS) as pool:
            for page in pages:
                # An enriched ticket may have a key that begins like those of the log.
                names = [match for each in page.get("Contents", []) if (match := _KEY.fullmatch(each["Key"]))]
                for match, entry in zip(names, pool.map(lambda match: self._read(match[0]), names), strict=True):
                    if entry is not None:
                        yield int(match[1]), entry

    def _read(self, key: str) -> Correction | None:
        """An entry; None if `tickets forget` has just removed it."""
        try:
            answer = self._s3().get_object(Bucket=self._bucket, Key=key)
            with closing(answer["Body"]) as stream:
                return Correction.model_validate_json(stream.read())
        except ClientError as error:
            if isinstance(from_aws(error, "GetObject"), ObjectGone):
                return None
            raise
        except ValidationError as error:
            raise RepositoryError(f"s3://{self._bucket}/{key} is not a correction") from error

    # -- the item

    def _replace(self, stored: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
        """Changes an item, and writes its event if there is an outbox. False if the item is no longer as `stored`."""
        changed = [name for name in item if item[name] != stored.get(name)]
        conditions = [f"#{n} = :was_{n}" if n in stored else f"attribute_not_exists(#{n})" for n in _UNCHANGED]
        update: dict[str, Any] = {
            "TableName": self._table,
            "Key": {name: stored[name] for name in ("ticket_id", "created_at")},
            "UpdateExpression": "SET " + ", ".join(f"#{name} = :{name}" for name in changed),
            "ConditionExpression": " AND ".join(conditions),
            "ExpressionAttributeNames": {f"#{name}": name for name in {*changed, *_UNCHANGED}},
            "ExpressionAttributeValues": {
                **{f":{name}": item[name] for name in changed},
                **{f":was_{name}": stored[name] for name in _UNCHANGED if name in stored},
            },
        }
        try:
            if self._outbox:
                event = {"TableName": self._table, "Item": outbox_item(event_of_item(item))}
                writes: list[Any] = [{"Update": update}, {"Put": event}]
                self._dynamodb.transact_write_items(TransactItems=writes)
            else:
                self._dynamodb.update_item(**update)
        except ClientError as error:
            answer: Mapping[str, Any] = error.response
            codes = {answer["Error"]["Code"], *(each.get("Code") for each in answer.get("CancellationReasons", ()))}
            if codes & _LOST_RACE:
                return False
            raise
        return True


def _decides(labels: Mapping[str, str], stored: Mapping[str, Any], history: Iterable[Correction]) -> bool:
    """Whether labels differ from those that people have decided so far."""
    decided = {**_in_force(stored), **_decisions(stored, history)}
    return any(task not in decided or decided[task]["M"]["label"]["S"] != label for task, label in labels.items())


def _decisions(stored: Mapping[str, Any], history: Iterable[Correction]) -> dict[str, Any]:
    """What the log says and the item does not: label, by and at of each task, in DynamoDB's JSON."""
    found: dict[str, Any] = {}
    in_force = _in_force(stored)
    for entry in history:
        for task, label in entry.labels.items():
            before = found.get(task, in_force.get(task))
            if before is None or entry.at > before["M"]["at"]["S"]:
                found[task] = {"M": {"label": {"S": label}, "by": {"S": entry.by}, "at": {"S": entry.at}}}
    return found


def _in_force(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    corrections: Mapping[str, Any] = stored.get("corrections", {"M": {}})["M"]
    return corrections


def _entry(item: Item, labels: Mapping[str, str], by: str, at: str) -> Correction:
    predicted = {
        task: item.corrections[task].predicted if task in item.corrections else getattr(item, task) for task in labels
    }
    return Correction(
        ticket_id=item.ticket_id,
        created_at=item.created_at,
        labels=dict(labels),
        predicted=predicted,
        by=by,
        at=at,
        model_version=item.model_version,
        s3_key=item.s3_key,
        s3_version_id=item.s3_version_id,
        s3_batch=(item.model_extra or {}).get("s3_batch"),
    )


def _next_moment(stored: Mapping[str, Any], history: Iterable[Correction]) -> str:
    """Now, but after all earlier corrections: of two, the one that was logged last is in force."""
    earlier = [entry.at for entry in history] + [each["M"]["at"]["S"] for each in _in_force(stored).values()]
    times = [datetime.fromisoformat(at) + timedelta(milliseconds=1) for at in earlier]
    return max([datetime.now(UTC), *times]).isoformat(timespec="milliseconds").replace("+00:00", "Z")
