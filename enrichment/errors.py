"""The library's errors.

    EnrichmentError                 base class, with `ticket_id`, `code` and `transient`
    ├── TicketInvalid               permanent: the ticket breaks the schema of RawTicket
    ├── ModelFailed                 transient: a model raised on this ticket alone
    ├── OutOfTime                   transient: not started, because not enough time was left
    └── BundleError                 the model bundle cannot be used
        ├── BundleMissing           there is no bundle at that location
        ├── BundleInvalid           the manifest is invalid, or does not match the graphs
        └── BundleCorrupt           a file does not match the manifest

`code` is stable and used in metrics and as the `Reason` of DLQ messages; the message is for people. No message contains
a ticket's subject, body or other customer data.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BundleCorrupt",
    "BundleError",
    "BundleInvalid",
    "BundleMissing",
    "EnrichmentError",
    "ModelFailed",
    "OutOfTime",
    "TicketInvalid",
]


class EnrichmentError(Exception):
    """Base class of this library's errors.

    `transient`: whether the same ticket may succeed later. `ticket_id`: the ticket, None if unknown or not a single
    one.
    """

    code: ClassVar[str] = "enrichment_error"
    transient: ClassVar[bool] = False

    def __init__(self, message: str, *, ticket_id: str | None = None) -> None:
        super().__init__(message)
        self.ticket_id = ticket_id


class TicketInvalid(EnrichmentError):
    """The ticket can never be enriched: it is not JSON, or violates the schema."""

    code = "schema_violation"


class ModelFailed(EnrichmentError):
    """A model raised an exception for this ticket alone; the exception is the cause."""

    code = "model_failed"
    transient = True


class OutOfTime(EnrichmentError):
    """The ticket was not started, because not enough time was left."""

    code = "out_of_time"
    transient = True


class BundleError(EnrichmentError):
    """The model bundle cannot be used."""

    code = "bundle_error"


class BundleMissing(BundleError):
    """There is no bundle at the given location."""

    code = "bundle_missing"


class BundleInvalid(BundleError):
    """The manifest cannot be read, has another version, or does not match the graphs."""

    code = "bundle_invalid"


class BundleCorrupt(BundleError):
    """A file of the bundle is missing, or its size or hash differs from the manifest."""

    code = "bundle_corrupt"
