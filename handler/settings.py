"""The settings of the function and the worker, from environment variables."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

__all__ = [
    "SERVICE",
    "UNPUBLISHED",
    "EnrichedObjects",
    "EnvironmentSettings",
    "Lane",
    "Names",
    "Redact",
    "Settings",
    "WorkerSettings",
    "listed",
]

SERVICE: Final = "ticket-enrichment"
UNPUBLISHED: Final = "$LATEST"  # Lambda's name for an unpublished version

_MIN_SECRET: Final = 24  # bytes

Name = Annotated[str, StringConstraints(min_length=1)]
Redact = Literal["off", "table", "all"]
EnrichedObjects = Literal["ticket", "batch"]


@dataclass(frozen=True, slots=True)
class Lane:
    """A queue of tickets to enrich, and the dead-letter queue of the messages that are rejected from it."""

    queue_url: str
    dlq_url: str

    @property
    def name(self) -> str:
        """The queue's name."""
        return self.queue_url.rstrip("/").rpartition("/")[2]


def listed(value: str) -> tuple[str, ...]:
    """The entries of a comma-separated setting, such as QUEUE_URL."""
    return tuple(entry.strip() for entry in value.split(","))


def _different(value: str) -> str:
    entries = listed(value)
    if "" in entries or len(set(entries)) < len(entries):
        raise PydanticCustomError("entries", "separate different entries by one comma each")
    return value


Names = Annotated[Name, AfterValidator(_different)]
"""One name or several, comma-separated; `listed` returns them."""


class EnvironmentSettings(BaseModel):
    """Settings from the environment: the field `raw_bucket` is the variable RAW_BUCKET, and so on.

    pydantic-settings would do the same, but importing it takes about a tenth of the function's init.
    """

    # Deferred, because a process reads the settings of one of the classes.
    model_config = ConfigDict(frozen=True, extra="ignore", validate_default=True, defer_build=True)

    @classmethod
    def read(cls, **given: Any) -> Self:
        """The settings; an empty variable counts as absent, and what is given takes precedence.

        Raises pydantic.ValidationError, which names the fields.
        """
        names: list[str] = []
        for name, field in cls.model_fields.items():
            alias = field.validation_alias
            names += map(str, alias.choices) if isinstance(alias, AliasChoices) else [name]
        found = {name: value for name in names if (value := os.environ.get(name.upper()))}
        return cls(**{**found, **given})


class Settings(EnvironmentSettings):
    """The function's settings."""

    model_bundle: Annotated[
        str, Field(pattern=r"^(file|s3)://.+", description="Location of the model bundle: file:// or s3://")
    ]
    model_bundle_digest: Annotated[
        str | None,
        Field(
            pattern=r"^[0-9a-f]{64}$", description="Digest that the bundle must have; default: any bundle is accepted"
        ),
    ] = None
    shadow_bundle: Annotated[
        str | None,
        Field(
            pattern=r"^(file|s3)://.+",
            description="Location of a second bundle, which labels the same tickets for comparison",
        ),
    ] = None
    bundle_cache_dir: Annotated[
        str,
        Field(
            validation_alias=AliasChoices("bundle_cache_dir", "model_cache_dir"),
            description="Directory that the bundle is copied to, once per container; older name: MODEL_CACHE_DIR",
        ),
    ] = "/tmp"  # noqa: S108 - the only directory that a Lambda function can write to
    raw_bucket: Annotated[Names, Field(description="Bucket of the raw tickets, or several, comma-separated")]
    enriched_bucket: Annotated[Name, Field(description="Bucket of the enriched tickets; versioned")]
    table_name: Annotated[Name, Field(description="DynamoDB table of the tickets")]
    queue_url: Annotated[
        Names,
        Field(description="Queue of the tickets to enrich, or several, comma-separated, in order of priority"),
    ]
    dlq_url: Annotated[
        Names, Field(description="Dead-letter queue for rejected messages; one for each queue, in the same order")
    ]
    max_receive_count: Annotated[
        int,
        Field(
            ge=1,
            description="The queue's maxReceiveCount: at the last receive the handler itself sends the message to the "
            "dead-letter queue, with its reason",
        ),
    ] = 30
    max_ticket_bytes: Annotated[int, Field(ge=1, description="Maximum size of a raw ticket")] = 1024 * 1024
    item_retention_days: Annotated[
        int,
        Field(ge=0, le=36500, description="Days after its arrival at which a ticket's item is deleted; 0: never"),
    ] = 0
    intra_op_threads: Annotated[
        int | None, Field(ge=1, description="Number of threads for the models; default: the number of cores")
    ] = None
    redact: Annotated[
        Redact,
        Field(
            description="Where mail addresses, phone numbers, cards, IBANs, IP addresses and secrets are replaced: "
            "in the table, or in the enriched object too"
        ),
    ] = "off"
    enriched_objects: Annotated[
        EnrichedObjects,
        Field(description="What an object of the enriched bucket holds: one ticket, or the tickets of a batch"),
    ] = "ticket"
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], Field(description="Minimum log level")
    ] = "INFO"
    service_name: Annotated[
        Name, Field(description="Dimension `service` of the metrics, which separates functions in one account")
    ] = SERVICE
    aws_lambda_function_version: Annotated[
        Name, Field(description="Dimension `version` of the outcomes, unless $LATEST; set by Lambda itself")
    ] = UNPUBLISHED
    aws_endpoint_url: Annotated[HttpUrl | None, Field(description="Endpoint of an AWS emulator")] = None

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The queues, each with its dead-letter queue, in order of priority: the first has the live tickets."""
        return tuple(map(Lane, listed(self.queue_url), listed(self.dlq_url)))

    @property
    def raw_buckets(self) -> tuple[str, ...]:
        """The buckets of the raw tickets."""
        return listed(self.raw_bucket)

    @field_validator("dlq_url")
    @classmethod
    def _each_queue_has_a_dlq(cls, value: str, info: ValidationInfo) -> str:
        if "queue_url" not in info.data:
            return value  # it is invalid itself
        queues, dlqs = listed(info.data["queue_url"]), listed(value)
        if len(queues) != len(dlqs):
            raise PydanticCustomError(
                "dead_letter_queues",
                "it has {dlqs} entries and QUEUE_URL has {queues}; name one dead-letter queue for each queue",
                {"dlqs": len(dlqs), "queues": len(queues)},
            )
        if set(queues) & set(dlqs):
            raise PydanticCustomError("dead_letter_queues", "it names a queue that is in QUEUE_URL too")
        return value


class WorkerSettings(Settings):
    """Additional settings of the worker."""

    batch_size: Annotated[int, Field(ge=1, le=10, description="Maximum number of messages per receive")] = 10
    num_workers: Annotated[int, Field(ge=1, le=64, description="Number of processes, each with its own models")] = 1
    health_port: Annotated[
        int, Field(ge=0, le=65535, description="Port of /livez, /startupz, /readyz and /metrics; 0: no server")
    ] = 0
    result_webhook: Annotated[
        HttpUrl | None, Field(description="URL that receives a signed POST for each stored ticket (docs/events.md)")
    ] = None
    result_webhook_secret: Annotated[
        SecretStr | None,
        Field(
            validate_default=True,
            description="Key of the signature: whsec_ and at least 24 bytes in base64; required with RESULT_WEBHOOK",
        ),
    ] = None

    @field_validator("result_webhook_secret")
    @classmethod
    def _secret_is_a_key(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        # The errors must not quote the secret.
        if value is None:
            if info.data.get("result_webhook") is not None:
                raise PydanticCustomError("secret", "set it too, so that receivers can check who sends")
            return None
        scheme, _, encoded = value.get_secret_value().partition("_")
        try:
            key = base64.b64decode(encoded, validate=True)
        except ValueError:
            key = b""
        if scheme != "whsec" or len(key) < _MIN_SECRET:
            raise PydanticCustomError("secret", "it must be whsec_ and at least 24 bytes in base64")
        return value
