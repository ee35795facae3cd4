"""Enriches support tickets on CPU: embedding, intent, urgency, sentiment and summary from one ONNX model bundle.

    from enrichment import Enricher, parse_ticket

    enricher = Enricher.open("path/to/bundle")
    [result] = enricher.enrich([parse_ticket(raw)])

A pure library: no AWS, no environment variables, no network.
"""

from enrichment.bundle import Bundle, install
from enrichment.enricher import Enricher
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
