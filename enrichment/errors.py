"""Everything that goes wrong while a ticket is enriched, as one tree.

    EnrichmentError                 the base; carries `ticket_id`, `code`, `transient`
    ├── TicketInvalid               permanent: the ticket breaks the schema of RawTicket
    ├── ModelFailed                 transient: a model raised on this ticket alone
    ├── OutOfTime                   transient: not started, the time left would not have sufficed
    └── BundleError                 the model bundle cannot be used
        ├── BundleMissing           there is no bundle at that place
        ├── BundleInvalid           its manifest is not one, or contradicts its graphs
        └── BundleCorrupt           a file is not what the manifest says

`code` is stable and fit for metrics and for a dead-letter's reason; the message is for people. No message holds a
ticket's subject, body or other customer data.
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
    """Base of all errors of this library.

    `transient` says whether the same ticket may succeed later, `ticket_id` which ticket it was (None: not known, or
    no single one).
    """

    code: ClassVar[str] = "enrichment_error"
    transient: ClassVar[bool] = False

    def __init__(self, message: str, *, ticket_id: str | None = None) -> None:
        super().__init__(message)
        self.ticket_id = ticket_id


class TicketInvalid(EnrichmentError):
    """The ticket can never be enriched: it is not JSON, or breaks the schema."""

    code = "schema_violation"


class ModelFailed(EnrichmentError):
    """A model raised, on this ticket by itself; the cause is chained."""

    code = "model_failed"
    transient = True


class OutOfTime(EnrichmentError):
    """The ticket was not started, because what was left of the time would not have been enough."""

    code = "out_of_time"
    transient = True


class BundleError(EnrichmentError):
    """The model bundle cannot be used."""

    code = "bundle_error"


class BundleMissing(BundleError):
    """No bundle lies at the given place."""

    code = "bundle_missing"


class BundleInvalid(BundleError):
    """The manifest cannot be read, is of another version, or does not fit the graphs."""

    code = "bundle_invalid"


class BundleCorrupt(BundleError):
    """A file of the bundle is absent, or differs in size or hash from what the manifest says."""

    code = "bundle_corrupt"
