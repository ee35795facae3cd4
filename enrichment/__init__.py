"""Enriches support tickets on CPU: embedding, intent, urgency, sentiment and summary from one ONNX model bundle.

    from enrichment import Enricher, parse_ticket

    enricher = Enricher.open("path/to/bundle")
    [result] = enricher.enrich([parse_ticket(raw)])

A pure library: no AWS, no environment variables, no network.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from enrichment.bundle import Bundle, install
from enrichment.errors import (
    BundleCorrupt,
    BundleError,
    BundleInvalid,
    BundleMissing,
    EnrichmentError,
    ModelFailed,
    OutOfTime,
    TicketInvalid,
)

if TYPE_CHECKING:
    from enrichment.enricher import Enricher
    from enrichment.ticket import EnrichedTicket, EnrichmentData, RawTicket, TicketMetadata, enriched_json, parse_ticket

__all__ = [
    "Bundle",
    "BundleCorrupt",
    "BundleError",
    "BundleInvalid",
    "BundleMissing",
    "EnrichedTicket",
    "Enricher",
    "EnrichmentData",
    "EnrichmentError",
    "ModelFailed",
    "OutOfTime",
    "RawTicket",
    "TicketInvalid",
    "TicketMetadata",
    "enriched_json",
    "install",
    "parse_ticket",
]

# Imported when they are first used: NumPy and ONNX Runtime take most of the time to import the library, and a bundle
# can be copied before they are there.
_MODULES = {"Enricher": "enrichment.enricher"} | dict.fromkeys(
    ("EnrichedTicket", "EnrichmentData", "RawTicket", "TicketMetadata", "enriched_json", "parse_ticket"),
    "enrichment.ticket",
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
