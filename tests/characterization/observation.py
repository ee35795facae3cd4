"""The observable results of a run, without the times and ids that differ from run to run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from boto3.dynamodb.types import TypeDeserializer

from tests.characterization.harness import EVENT_BUCKET, Product, Run
from tests.characterization.snapshots import HOUR, digits_as_zeros, rounded, shape, without_times_and_ids

__all__ = ["metrics", "observed"]

NOT_FROM_MODELS: Final = ("processed_at", "schema_version")
# Log fields with a fixed set of values; of all other fields only the names are kept.
CODES: Final = ("level", "outcome", "error_type", "stage", "note", "receive_count")
MAX_CHARACTERS: Final = 4000  # characters; of a longer object, only the beginning and the hash are kept


def observed(product: Product, run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer, stores, DLQ, log and metrics after a run; and separately the models' results by ticket id."""
    reader = _Reader(product, run)
    stored = reader.stored()
    behaviour = {
        "answer": run.answer,
        "tickets": [{"item": item, **place} for item, place, _ in stored],
        "versions in the bucket": len(product.versions()),
        "dead letters": reader.dlq_messages(),
        "log": reader.log(),
        "metrics": reader.metrics(),
    }
    return behaviour, {item["ticket_id"]["S"]: values for item, _, values in stored}


def metrics(product: Product, run: Run) -> list[dict[str, Any]]:
    """The EMF documents of a run."""
    return _Reader(product, run).metrics()


class _Reader:
    """Reads the results of one run."""

    def __init__(self, product: Product, run: Run) -> None:
        self._product = product
        self._ids = run.message_ids
        self._lines = [json.loads(line) for line in run.log.splitlines() if line.startswith("{")]
        others = [line for line in run.log.splitlines() if line and not line.startswith("{")]
        assert not others, "the log contains lines that are not JSON"

    def stored(self) -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
        """For each ticket: its item, its object, and the models' results."""
        found = []
        for item in self._product.items():
            kind, body = self._product.object(item["s3_key"]["S"], item["s3_version_id"]["S"])
            enrichment = json.loads(body)["enrichment"]
            models = {name: value for name, value in enrichment.items() if name not in NOT_FROM_MODELS}
            # Training, and so the digest, differs slightly between CPUs: only the bundle's name is kept.
            models["model_version"], _, digest = models["model_version"].partition("@")
            assert re.fullmatch("[0-9a-f]{12}", digest)
            place = {"content type": kind, "bytes": _masked(body.decode(), enrichment)}
            found.append((_masked_item(item, enrichment), place, rounded(models)))
        return found

    def dlq_messages(self) -> list[dict[str, Any]]:
        """The messages in the DLQ, in the order of the original messages."""
        found = [self._dlq_message(message) for message in self._product.take(self._product.environment["DLQ_URL"])]
        return sorted(found, key=lambda message: message["attributes"]["Rejection"]["StringValue"]["message_id"])

    def log(self) -> list[dict[str, Any]]:
        """The fields of each line, and the values of those in CODES, in the order of the messages."""
        lines = [line for line in self._lines if "_aws" not in line]
        lines.sort(key=lambda line: (self._message(line.get("message_id")), line.get("s3_key", "")))
        return [
            {
                "fields": sorted(line),
                "stages": sorted(line.get("milliseconds", ())),
                **{name: line[name] for name in CODES if name in line},
                **({"message_id": self._message(line["message_id"])} if "message_id" in line else {}),
            }
            for line in lines
        ]

    def metrics(self) -> list[dict[str, Any]]:
        """The EMF documents: fields, dimensions and units, and the values of counts."""
        found = []
        for line in (line for line in self._lines if "_aws" in line):
            (directive,) = line["_aws"]["CloudWatchMetrics"]
            units = {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]}
            dimensions = {name: line[name] for names in directive["Dimensions"] for name in names}
            found.append(
                {
                    "namespace": directive["Namespace"],
                    "dimensions": dimensions,
                    "fields": sorted(line),
                    "counts": {name: line[name] for name in sorted(units) if units[name] == "Count"},
                    "latencies": {name: units[name] for name in sorted(units) if units[name] != "Count"},
                }
            )
        return found

    def _dlq_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        attributes = {name: _json_safe(value) for name, value in message["MessageAttributes"].items()}
        rejection = json.loads(attributes["Rejection"]["StringValue"])
        rejection |= {
            "message_id": self._message(rejection["message_id"]),
            "rejected_at": digits_as_zeros(rejection["rejected_at"]),
            "first_sent": without_times_and_ids(rejection["first_sent"], {}),
        }
        attributes["Rejection"]["StringValue"] = rejection
        return {
            "attributes": attributes,
            "system attributes": sorted(message["Attributes"]),
            "body": message["Body"].replace(self._product.environment["RAW_BUCKET"], EVENT_BUCKET),
        }

    def _message(self, message_id: str | None) -> str:
        """A message by its position in the event, because its id differs from queue to queue."""
        return f"message {self._ids.index(message_id)}" if message_id in self._ids else f"no message: {message_id}"


def _masked_item(item: Mapping[str, Mapping[str, Any]], enrichment: Mapping[str, Any]) -> dict[str, Any]:
    """An item in DynamoDB's format; values that equal those of the object are replaced by a note."""
    masked: dict[str, Any] = {}
    for name, typed in item.items():
        ((kind, value),) = typed.items()
        repeated = enrichment.get(name)
        if name == "s3_version_id":
            value = "the version that is shown here"
        elif name == "event":
            language, reasons = value.pop("language")["S"], value.pop("review_reasons")["M"]
            assert language == (enrichment["language"] or "und")
            assert {reason for reason, given in reasons.items() if given["BOOL"]} == set(enrichment["review_reasons"])
            value = {**value, "id": "an id", "reasons and language": "as in the object"}
        elif name == "source_modified" and abs(int(value) / 1000 - time.time()) < HOUR:
            value = "just now"
        elif repeated is not None:
            expected = Decimal(repr(repeated)) if kind == "N" else repeated
            attribute: Any = typed
            stored = TypeDeserializer().deserialize(attribute)
            assert expected == stored, f"{name} differs between item and object"
            value = "as in the object"
        masked[name] = {kind: value}
    return dict(sorted(masked.items()))


def _masked(text: str, enrichment: Mapping[str, Any]) -> dict[str, Any]:
    """The exact text of an enriched object, except for the values in `enrichment`."""
    decoder, begin = json.JSONDecoder(), text.index('"enrichment":{') + len('"enrichment":{')
    parts, place = [text[:begin]], begin
    while match := re.compile(r',?"(\w+)":').match(text, place):
        value, place = decoder.raw_decode(text, match.end())
        name = match[1]
        kept = json.dumps(value) if name == "schema_version" else f"<{json.dumps(_mask(name, value))}>"
        parts += [match[0], kept]
    masked = "".join([*parts, text[place:]])
    if len(masked) <= MAX_CHARACTERS:
        return {"text": masked}
    return {"text": masked[:200], "length": len(masked), "sha256": hashlib.sha256(masked.encode()).hexdigest()}


def _mask(name: str, value: Any) -> Any:
    return digits_as_zeros(value) if name == "processed_at" else shape(value)


def _json_safe(attribute: Mapping[str, Any]) -> dict[str, Any]:
    return {name: base64.b64encode(v).decode() if isinstance(v, bytes) else v for name, v in attribute.items()}
